"""ONNX graphs around a recurrent operator: onnxruntime, which runs the whole file, is the truth."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import throughtime as tt
from throughtime.importers import importer

D, H, T, B = 3, 4, 6, 2
RNG = np.random.default_rng(0)
W, R, BIAS = (RNG.normal(size=shape).astype(np.float32) for shape in ((4 * H, D), (4 * H, H), (8 * H,)))
FLOATS = TensorProto.FLOAT


def tensor(name: str, value) -> TensorProto:
    return numpy_helper.from_array(np.asarray(value), name)


def model(nodes, initializers, inputs, outputs, opset: int = 17) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializer=initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def value(name: str, shape, kind: int = FLOATS):
    return helper.make_tensor_value_info(name, kind, shape)


def run(made: onnx.ModelProto, given: dict[str, np.ndarray], names: list[str] | None = None) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(names, given)


X = RNG.normal(size=(T, B, D)).astype(np.float32)

# Each: how W (1, 4H, D) is made of an array, the array, and other constants.
MADE = {
    "identity": ([("Identity", ["w"], {})], W[None], {}),
    "unsqueeze by operand": ([("Unsqueeze", ["w", "zero"], {})], W, {"zero": np.array([0])}),
    "transpose": ([("Transpose", ["w"], {"perm": [0, 2, 1]})], W.T[None].copy(), {}),
    "transpose, all axes": ([("Transpose", ["w"], {}), ("Unsqueeze", ["", "zero"], {})], W.T.copy(), {"zero": np.array([0])}),
    "reshape": ([("Reshape", ["w", "shape"], {})], W.ravel(), {"shape": np.array([1, -1, D])}),
    "reshape keeps": ([("Reshape", ["w", "shape"], {})], W[None].reshape(1, -1, 2 * D), {"shape": np.array([0, -1, D])}),
    "squeeze": ([("Squeeze", ["w", "axes"], {})], W[None, None], {"axes": np.array([-4])}),
    "cast": ([("Cast", ["w"], {"to": FLOATS})], W[None].astype(np.float64), {}),
    "slice backwards": (
        [("Slice", ["w", "starts", "ends", "axes", "steps"], {})],
        W[None, ::-1].copy(),
        {"starts": np.array([-1]), "ends": np.array([-(2**31)]), "axes": np.array([1]), "steps": np.array([-1])},
    ),
    "gates one by one": (
        [("Gather", ["w", "order"], {"axis": 0}), ("Reshape", ["", "shape"], {})],
        W.reshape(4, H, D)[[1, 0, 3, 2]],
        {"order": np.array([1, 0, -1, 2]), "shape": np.array([1, 4 * H, D])},
    ),
    "joined": (
        [("Slice", ["w", "starts", "ends", "axes"], {}), ("Concat", ["", "rest"], {"axis": 1})],
        W[None],
        {"starts": np.array([0]), "ends": np.array([H]), "axes": np.array([1]), "rest": W[None, H:]},
    ),
}  # fmt: skip


def chain(steps, final: str) -> list:
    """Nodes one after another; "" is what the one before made."""
    nodes, last = [], ""
    for place, (operator, given, options) in enumerate(steps):
        name = final if place == len(steps) - 1 else f"{final}_{place}"
        nodes.append(helper.make_node(operator, [each or last for each in given], [name], **options))
        last = name
    return nodes


def lstm(weights: str = "W") -> onnx.NodeProto:
    return helper.make_node("LSTM", ["x", weights, "R", "B"], ["y", "", ""], name="rnn", hidden_size=H)


FIXED = [tensor("R", R[None]), tensor("B", BIAS[None])]


@pytest.mark.parametrize("how", MADE)
def test_weights_that_are_moved_about_are_read(how, tmp_path):
    steps, source, others = MADE[how]
    constants = [tensor("w", source), *(tensor(name, each) for name, each in others.items()), *FIXED]
    made = model([*chain(steps, "W"), lstm()], constants, [value("x", [T, B, D])], [value("y", None)])
    (expected,) = run(made, {"x": X})
    path = tmp_path / "model.onnx"
    path.write_bytes(made.SerializeToString())
    np.testing.assert_allclose(tt.load(path)(torch.from_numpy(X))[0].detach(), expected[:, 0], atol=1e-6)


def test_attributes_of_older_operators_are_read(tmp_path):
    """Before opset 13 axes, starts and ends were attributes."""
    steps = [("Slice", ["w"], {"starts": [0], "ends": [4 * H], "axes": [0]}), ("Unsqueeze", [""], {"axes": [0]})]
    constants = [tensor("w", np.concatenate([W, W])), *FIXED]
    made = model([*chain(steps, "W"), lstm()], constants, [value("x", [T, B, D])], [value("y", None)], opset=9)
    (expected,) = run(made, {"x": X})
    path = tmp_path / "model.onnx"
    path.write_bytes(made.SerializeToString())
    np.testing.assert_allclose(tt.load(path)(torch.from_numpy(X))[0].detach(), expected[:, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([("Add", ["w", "w"], {})], "computed in the graph"),
        ([("Concat", ["w", "W"], {"axis": 0})], "computed in the graph"),  # of itself
        ([("Transpose", ["x"], {"perm": [1, 0, 2]})], "computed in the graph"),
        ([("Transpose", ["w"], {"perm": [0, 9, 1]})], "damaged graph"),
    ],
)
def test_what_is_computed_is_refused(steps, words, tmp_path):
    made = model(
        [*chain(steps, "W"), lstm()], [tensor("w", W[None]), *FIXED], [value("x", [T, B, D])], [value("y", None)]
    )
    path = tmp_path / "model.onnx"
    path.write_bytes(made.SerializeToString())
    with pytest.raises(tt.ThroughtimeError, match=words):
        tt.load(path)


@pytest.mark.parametrize("operator", ["Concat", "Gather"])
def test_a_small_file_makes_no_large_constant(operator, tmp_path, monkeypatch):
    """Each of 60 nodes doubles the array: 2⁶⁰ bytes, if it were made."""
    step = (operator, ["w", "w"], {"axis": 0}) if operator == "Concat" else ("Gather", ["w", "twice"], {"axis": 0})
    steps = [step, *[(operator, ["", "" if operator == "Concat" else "twice"], {"axis": 0})] * 59]
    monkeypatch.setattr(importer, "LARGEST", 2**24)
    made = model(
        [*chain(steps, "W"), lstm()],
        [tensor("w", W[None]), tensor("twice", np.zeros((2**15, 2), np.int64)), *FIXED],
        [value("x", [T, B, D])],
        [value("y", None)],
    )
    path = tmp_path / "model.onnx"
    path.write_bytes(made.SerializeToString())
    with pytest.raises(tt.ThroughtimeError, match=operator):
        tt.load(path)
