"""What holds for every importer: the layer it makes runs as the file's own runtime ran it, and nothing in a file runs."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import throughtime as tt
from throughtime.cli import main
from throughtime.importers import importer
from throughtime.importers.load import layers

D, H, T, B = 3, 5, 7, 2
TORCH = {
    "gru": nn.GRU,
    "lstm": nn.LSTM,
    "rnn-tanh": nn.RNN,
    "rnn-relu": lambda *a, **o: nn.RNN(*a, nonlinearity="relu", **o),
}


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def write_state_dict(module: nn.Module, path: Path) -> None:
    torch.save(
        {"epoch": 3, "model_state": {f"net.rnn.{name}": value for name, value in state_of(module).items()}}, path
    )


def write_safetensors(module: nn.Module, path: Path) -> None:
    from safetensors.torch import save_file

    save_file({f"net.rnn.{name}": value for name, value in state_of(module).items()}, path)


def write_npz(module: nn.Module, path: Path) -> None:
    with open(path, "wb") as file:
        np.savez(file, **{f"net.rnn.{name}": value.numpy() for name, value in state_of(module).items()})


ORDER = {"GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2), "RNN": (0,)}  # of torch's gates, as ONNX stacks them


def onnx_arrays(module: nn.Module, operator: str) -> dict[str, np.ndarray]:
    """W, R and B of one layer of a torch module."""
    order = ORDER[operator]

    def stacked(name: str) -> list[np.ndarray]:
        ways = ["", "_reverse"] if module.bidirectional else [""]
        values = [getattr(module, f"{name}_l0{way}").detach().numpy() for way in ways]
        return [np.concatenate([np.split(value, len(order))[gate] for gate in order]) for value in values]

    biases = zip(stacked("bias_ih"), stacked("bias_hh"), strict=True)
    return {
        "W": np.stack(stacked("weight_ih")),
        "R": np.stack(stacked("weight_hh")),
        "B": np.stack([np.concatenate(pair) for pair in biases]),
    }


def onnx_model(operator: str, arrays: dict[str, np.ndarray], where: str = "initializers", **options) -> bytes:
    """A graph with this one operator, its weights as initializers or Constants, perhaps inside an If."""
    from onnx import TensorProto, helper, numpy_helper

    ways, size = len(arrays["W"]), arrays["R"].shape[-1]
    node = helper.make_node(operator, ["x", "W", "R", "B"], ["y"], name="net.rnn", hidden_size=size, **options)
    tensors = {name: numpy_helper.from_array(value, name) for name, value in arrays.items()}
    nodes, outside = [node], list(tensors.values())
    if where == "constants":
        outside = []
        nodes = [helper.make_node("Constant", [], [name], value=value) for name, value in tensors.items()] + nodes
    kind = helper.np_dtype_to_tensor_dtype(arrays["W"].dtype)
    x = helper.make_tensor_value_info("x", kind, [T, None, arrays["W"].shape[-1]])
    y = helper.make_tensor_value_info("y", kind, [T, ways, None, size])
    inputs = [x]
    if where == "nested":
        branch = helper.make_graph(nodes, "branch", [], [y])
        nodes = [helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)]
        inputs = [x, helper.make_tensor_value_info("yes", TensorProto.BOOL, [])]
    graph = helper.make_graph(nodes, "graph", inputs, [y], initializer=outside)
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8, producer_name="tests").SerializeToString()


def write_onnx(module: nn.Module, path: Path) -> None:
    """As torch's exporter lays one layer out."""
    operator = type(module).__name__
    options = {"direction": "bidirectional"} if module.bidirectional else {}
    if operator == "GRU":
        options["linear_before_reset"] = 1
    if getattr(module, "nonlinearity", "tanh") == "relu":
        options["activations"] = ["Relu"] * (2 if module.bidirectional else 1)
    path.write_bytes(onnx_model(operator, onnx_arrays(module, operator), **options))


def write_keras(module: nn.Module, path: Path) -> None:
    """As Keras lays the weights of one layer out, under its oldest names."""
    import h5py

    order = {"GRU": (1, 0, 2), "LSTM": (0, 1, 2, 3), "RNN": (0,)}[type(module).__name__]

    def columns(name: str) -> np.ndarray:
        blocks = np.split(getattr(module, f"{name}_l0").detach().numpy(), len(order))
        return np.concatenate([blocks[gate] for gate in order]).T

    biases = np.stack([columns("bias_ih"), columns("bias_hh")])
    with h5py.File(path, "w") as file:
        group = file.create_group("rnn/rnn")
        group["kernel:0"], group["recurrent_kernel:0"] = columns("weight_ih"), columns("weight_hh")
        group["bias:0"] = biases if len(order) == 3 else biases.sum(0)


class Named(nn.Module):
    """A module that holds the layer under the name net.rnn."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.net = nn.ModuleDict({"rnn": layer})

    def forward(self, x):
        return self.net["rnn"](x)[0]


def write_pt2(module: nn.Module, path: Path) -> None:
    size = module.input_size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(Named(module), (torch.zeros(2, 1, size, dtype=module.weight_ih_l0.dtype),))
        with open(path, "wb") as file:
            torch.export.save(program, file)


WRITERS: dict[str, Callable[[nn.Module, Path], None]] = {
    "torch.export archive (.pt2)": write_pt2,
    "PyTorch state dict (.pt, .pth, .bin, .ckpt)": write_state_dict,
    "safetensors (.safetensors)": write_safetensors,
    "numpy arrays (.npz)": write_npz,
    "ONNX (.onnx)": write_onnx,
    "Keras (.keras, .h5, .hdf5)": write_keras,
}
NAMED_AS_TORCH = [name for name in WRITERS if not name.startswith(("ONNX", "Keras"))]
ASKED = ("numpy", "Keras")  # files that do not say the cell
every_format = pytest.mark.parametrize("name", WRITERS)


def test_every_importer_is_tested_here():
    assert set(importer.registry()) == set(WRITERS)


@every_format
@pytest.mark.parametrize("kind", TORCH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_layer_runs_as_torchs_own(name, kind, dtype, tmp_path):
    torch.manual_seed(0)
    module = TORCH[kind](D, H).to(dtype)
    path = tmp_path / "weights.of-no-known-suffix"
    WRITERS[name](module, path)
    asked = (kind.startswith("rnn") and name in NAMED_AS_TORCH) or name.startswith(ASKED)
    layer = tt.load(path, **({"cell": kind} if asked else {}))
    x = torch.randn(T, B, D, dtype=dtype)
    output, last = layer(x)
    expected, states = module(x)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(last, states, rtol=1e-5, atol=1e-6)
    assert output.dtype == dtype
    with tt.record(layer) as rec:
        layer(x)[0][-1].sum().backward()
    assert rec.flow().residual < 1e-4


@pytest.mark.parametrize("name", NAMED_AS_TORCH)
def test_several_layers_are_listed_and_one_is_named(name, tmp_path):
    torch.manual_seed(0)
    stack, path = nn.GRU(D, H, num_layers=2, bidirectional=True), tmp_path / "stack"
    WRITERS[name](stack, path)
    under = "model_state.net.rnn" if write_state_dict is WRITERS[name] else "net.rnn"
    names = [f"{under}_l{level}{way}" for level in (0, 1) for way in ("", "_reverse")]
    assert sorted(each.name for each in layers(path)) == sorted(names)
    with pytest.raises(tt.ThroughtimeError, match=r"'rnn'.*net\.rnn_l1"):
        tt.load(path, layer="rnn", cell="gru")
    x = torch.randn(T, B, D)
    below = [tt.load(path, layer=each, cell="gru") for each in names[:2]]
    halves = torch.cat([layer(x)[0] for layer in below], dim=-1)
    above = [tt.load(path, layer=each, cell="gru") for each in names[2:]]
    whole = torch.cat([layer(halves)[0] for layer in above], dim=-1)
    torch.testing.assert_close(whole, stack(x)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMED_AS_TORCH)
@pytest.mark.parametrize("kind", TORCH)
@pytest.mark.parametrize(
    "options", [{"num_layers": 3}, {"bidirectional": True}, {"num_layers": 2, "bidirectional": True}]
)
def test_a_whole_stack_runs_as_torchs_own(name, kind, options, tmp_path):
    torch.manual_seed(0)
    stack, path, x = TORCH[kind](D, H, **options).double(), tmp_path / "stack", torch.randn(T, B, D).double()
    WRITERS[name](stack, path)
    under = "model_state.net.rnn" if write_state_dict is WRITERS[name] else "net.rnn"
    asked = {"cell": kind} if kind.startswith("rnn") or name.startswith(ASKED) else {}
    for layer in (None, under):
        made = tt.load(path, layer=layer, **asked)
        assert type(made) is type(stack)
        assert repr(made) == repr(stack)
        output, states = made(x)
        expected, theirs = stack(x)
        torch.testing.assert_close(output, expected, rtol=0, atol=0)
        torch.testing.assert_close(states, theirs, rtol=0, atol=0)
    assert f"{under}_l0 (part of {under}): " in CliRunner().invoke(main, ["inspect", str(path)]).output


@pytest.mark.parametrize("name", [name for name in NAMED_AS_TORCH if not name.startswith(ASKED)])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}])
def test_projections_run_as_torchs_own(name, options, tmp_path):
    torch.manual_seed(0)
    stack, path = nn.LSTM(D, H, proj_size=2, **options).double(), tmp_path / "stack"
    WRITERS[name](stack, path)
    made, x = tt.load(path), torch.randn(T, B, D).double()
    assert repr(made) == repr(stack)
    torch.testing.assert_close(made(x), stack(x), rtol=0, atol=0)
    assert tt.diagnose(made, x).flow.residual < 1e-10
    assert "lstm, 3 inputs, 5 units" in CliRunner().invoke(main, ["inspect", str(path)]).output
    if options.get("bidirectional"):
        under = next(iter(layers(path)[0].stacks))
        back = tt.load(path, layer=f"{under}_l0_reverse")(x)[0]
        lower = nn.LSTM(D, H, proj_size=2, bidirectional=True).double()
        lower.load_state_dict({key: value for key, value in stack.state_dict().items() if "_l0" in key})
        torch.testing.assert_close(back, lower(x)[0][..., 2:], rtol=1e-9, atol=1e-12)


def test_a_projection_that_does_not_fit_is_said(tmp_path):
    state = state_of(nn.LSTM(D, H, proj_size=2)) | {"weight_hr_l0": torch.zeros(3, H)}
    torch.save(state, tmp_path / "file.pt")
    with pytest.raises(tt.ThroughtimeError, match=r"weight_hr \(3, 5\) beside weight_hh \(20, 2\)"):
        tt.load(tmp_path / "file.pt")


@pytest.mark.parametrize(
    ("change", "said", "words"),
    [
        (lambda state: [state.pop(name) for name in list(state) if name.endswith("_l1_reverse")], {}, "every"),
        (lambda state: None, {"reset": "before"}, "reset=before"),
        (lambda state: state.update(weight_ih_l1=torch.zeros(3 * H, 7)), {}, "7 inputs"),
        (lambda state: state.update({f"weight_{way}_l999999": state[f"weight_{way}_l0"] for way in ("ih", "hh")}), {}, "every"),
    ],
    ids=["missing", "reset before", "width", "level"],
)  # fmt: skip
def test_a_stack_that_is_none_of_torchs_is_refused(change, said, words, tmp_path):
    state = state_of(nn.GRU(D, H, num_layers=2, bidirectional=True))
    change(state)
    np.savez(tmp_path / "stack.npz", **{name: value.numpy() for name, value in state.items()})
    with pytest.raises(tt.ThroughtimeError, match=words):
        tt.load(tmp_path / "stack.npz", cell="gru", **said)


def test_a_reverse_layer_takes_and_returns_its_state_as_torch_does(tmp_path):
    torch.manual_seed(0)
    both, path, x = nn.LSTM(D, H, bidirectional=True), tmp_path / "both.pt", torch.randn(T, B, D)
    write_state_dict(both, path)
    state = (torch.randn(2, B, H), torch.randn(2, B, H))
    output, (h, c) = tt.load(path, layer="model_state.net.rnn_l0_reverse")(x, tuple(part[1] for part in state))
    expected, (last_h, last_c) = both(x, state)
    torch.testing.assert_close(output, expected[..., H:], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close((h[0], c[0]), (last_h[1], last_c[1]), rtol=1e-5, atol=1e-6)


def test_single_step_cells_are_read(tmp_path):
    torch.manual_seed(0)
    cell, x = nn.LSTMCell(D, H), torch.randn(T, B, D)
    torch.save({"decoder": {"rnn": cell.state_dict()}}, tmp_path / "cell.pt")
    layer, state = tt.load(tmp_path / "cell.pt"), (torch.zeros(B, H), torch.zeros(B, H))
    for step in x:
        state = cell(step, state)
    torch.testing.assert_close(layer(x)[0][-1], state[0], rtol=1e-5, atol=1e-6)


def test_half_precision_is_read_as_float32(tmp_path):
    torch.manual_seed(0)
    module = nn.GRU(D, H).half()
    write_state_dict(module, tmp_path / "half.pt")
    assert tt.load(tmp_path / "half.pt")(torch.randn(T, B, D))[0].dtype == torch.float32


def test_a_file_before_torch_1_6_is_read(tmp_path):
    module = nn.GRU(D, H)
    torch.save(module.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    x = torch.randn(T, B, D)
    torch.testing.assert_close(tt.load(tmp_path / "old.pth")(x)[0], module(x)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "asked", "words"),
    [
        (lambda: nn.GRU(D, H), {"cell": "lstm"}, "cell=gru, which the file states"),
        (lambda: nn.GRU(D, H), {"gates": "zrn"}, "gates=rzn, which the file states"),
        (lambda: nn.GRU(D, H), {"order": "zrn"}, "options of cell, gates"),
        (lambda: nn.RNN(D, H), {}, "one of rnn-tanh, rnn-relu"),
        (lambda: nn.RNN(D, H), {"cell": "gru"}, "one of rnn-tanh, rnn-relu"),
        (lambda: nn.Linear(D, H), {}, "no array is named as a recurrent layer's"),
    ],
)
def test_what_does_not_fit_is_said(make, asked, words, tmp_path):
    write_state_dict(make(), tmp_path / "file.pt")
    with pytest.raises(tt.ThroughtimeError) as error:
        tt.load(tmp_path / "file.pt", **asked)
    assert words in str(error.value)
    assert "do this: " in str(error.value)


# --- ONNX --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["initializers", "constants", "nested"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(
    ("operator", "options"),
    [
        ("GRU", {"linear_before_reset": 0}),
        ("GRU", {"linear_before_reset": 1}),
        ("LSTM", {}),
        ("RNN", {}),
        ("RNN", {"activations": ["Relu"]}),
        ("GRU", {"linear_before_reset": 0, "activations": ["HardSigmoid", "Tanh"]}),
        ("LSTM", {"activations": ["HardSigmoid", "Relu", "Relu"]}),
        ("LSTM", {"activations": ["Sigmoid", "Tanh", "Relu"]}),
        ("LSTM", {"activations": ["HardSigmoid", "Relu", "Tanh"]}),
    ],
    ids=[
        "gru before",
        "gru after",
        "lstm",
        "rnn tanh",
        "rnn relu",
        "gru hard",
        "lstm hard relu",
        "lstm tanh relu",
        "lstm hard relu tanh",
    ],
)
def test_onnx_operators_run_as_onnxruntime_runs_them(operator, options, direction, where, tmp_path):
    import onnxruntime

    ways, gates = (2 if direction == "bidirectional" else 1), len(ORDER[operator])
    rng = np.random.default_rng(0)
    shapes = {"W": (ways, gates * H, D), "R": (ways, gates * H, H), "B": (ways, 2 * gates * H)}
    arrays = {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    options = options | {"direction": direction}
    if "activations" in options:
        options["activations"] = options["activations"] * ways
    content = onnx_model(operator, arrays, where, **options)
    (tmp_path / "model.onnx").write_bytes(content)
    x = rng.normal(size=(T, B, D)).astype(np.float32)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": x} | ({"yes": np.array(True)} if where == "nested" else {}))
    found = layers(tmp_path / "model.onnx")
    names = [each.name for each in found]
    if where == "nested":  # one in each branch, under the same name
        assert names[ways:] == [name.replace("net.rnn", "net.rnn#2") for name in names[:ways]]
        names = names[:ways]
    assert names == (["net.rnn"] if ways == 1 else ["net.rnn_l0", "net.rnn_l0_reverse"])
    others = {"HardSigmoid", "Relu"} & set(options.get("activations", [])) and operator != "RNN"
    if ways == 2 and (options.get("linear_before_reset") == 0 or others):
        with pytest.raises(tt.ThroughtimeError, match=r"reset=before|gate=hard-sigmoid|output_activation=relu"):
            tt.load(tmp_path / "model.onnx", layer="net.rnn")
    elif ways == 2:
        both = tt.load(tmp_path / "model.onnx", layer="net.rnn")(torch.from_numpy(x))[0]
        np.testing.assert_allclose(both.detach(), np.concatenate([expected[:, 0], expected[:, 1]], axis=-1), atol=1e-5)
    for way, name in enumerate(names):
        layer = tt.load(tmp_path / "model.onnx", layer=name)
        output, last = layer(torch.from_numpy(x))
        np.testing.assert_allclose(output.detach(), expected[:, way], atol=1e-5)
        backwards = direction == "reverse" or way == 1
        np.testing.assert_allclose(
            (last[0] if operator == "LSTM" else last)[0].detach(), expected[0 if backwards else -1, way], atol=1e-5
        )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"activations": ["Softsign", "Tanh"]}, "activations Softsign, Tanh"),
        ({"activations": ["HardSigmoid", "Tanh"], "activation_alpha": [0.3]}, "activations HardSigmoid, Tanh"),
        ({"clip": 3.0}, "clipped pre-activations"),
        ({"direction": "bidirectional"}, "'bidirectional' with 1 sets of weights"),
    ],
)
def test_what_an_onnx_operator_has_more_is_refused_by_name(change, words, tmp_path):
    arrays = onnx_arrays(nn.GRU(D, H), "GRU")
    (tmp_path / "model.onnx").write_bytes(onnx_model("GRU", arrays, **change))
    with pytest.raises(tt.ThroughtimeError, match=words):
        tt.load(tmp_path / "model.onnx")


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_peepholes_run_as_onnxruntime_runs_them(direction, tmp_path):
    import onnxruntime
    from onnx import load_from_string, numpy_helper

    ways, rng = (2 if direction == "bidirectional" else 1), np.random.default_rng(2)
    shapes = {"W": (ways, 4 * H, D), "R": (ways, 4 * H, H), "B": (ways, 8 * H)}
    arrays = {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    model = load_from_string(onnx_model("LSTM", arrays, direction=direction))
    model.graph.node[0].input.extend(["", "", "", "P"])
    model.graph.initializer.append(numpy_helper.from_array(rng.normal(size=(ways, 3 * H)).astype(np.float32), "P"))
    content = model.SerializeToString()
    (tmp_path / "model.onnx").write_bytes(content)
    x = rng.normal(size=(T, B, D)).astype(np.float32)
    (expected,) = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    for way, name in enumerate(["net.rnn"] if ways == 1 else ["net.rnn_l0", "net.rnn_l0_reverse"]):
        output = tt.load(tmp_path / "model.onnx", layer=name)(torch.from_numpy(x))[0]
        np.testing.assert_allclose(output.detach(), expected[:, way], atol=1e-5)


PEEPHOLES = {
    "one array": lambda i, f, o: ({"rnn.peephole": np.concatenate((i, f, o))}, {}),
    "one array of rows": lambda i, f, o: ({"rnn.peephole": np.stack((i, f, o))}, {}),
    "peephole_i": lambda i, f, o: ({"rnn.peephole_i": i, "rnn.peephole_f": f, "rnn.peephole_o": o}, {}),
    "w_ci": lambda i, f, o: ({"rnn.w_co": o, "rnn.w_ci": i, "rnn.w_cf": f}, {}),
    "W_ci": lambda i, f, o: ({"rnn.W_ci": i, "rnn.W_cf": f, "rnn.W_co": o}, {}),
    "weight_ci_l0": lambda i, f, o: ({"rnn.weight_ci_l0": i, "rnn.weight_cf_l0": f, "rnn.weight_co_l0": o}, {}),
    "TensorFlow's": lambda i, f, o: ({"rnn.w_f_diag": f, "rnn.w_i_diag": i, "rnn.w_o_diag": o}, {}),
    "named": lambda i, f, o: ({"p0": i, "p1": f, "p2": o}, {"peephole": "p0,p1,p2"}),
    "one named": lambda i, f, o: ({"p": np.concatenate((i, f, o)), "rnn.w_ci": o}, {"peephole": "p"}),
}
"""Arrays and options, from the peepholes of i, f and o."""


@pytest.mark.parametrize("how", PEEPHOLES)
@pytest.mark.parametrize("form", ["state dict", "safetensors", "npz"])
def test_peepholes_by_their_names(how, form, tmp_path):
    """The same LSTM in onnxruntime is the truth."""
    import onnxruntime
    from onnx import load_from_string, numpy_helper
    from safetensors.numpy import save_file

    torch.manual_seed(0)
    rnn, rng = nn.LSTM(D, H), np.random.default_rng(3)
    i, f, o = rng.normal(size=(3, H)).astype(np.float32)
    model = load_from_string(onnx_model("LSTM", onnx_arrays(rnn, "LSTM")))
    model.graph.node[0].input.extend(["", "", "", "P"])
    model.graph.initializer.append(numpy_helper.from_array(np.concatenate((i, o, f))[None], "P"))
    x = rng.normal(size=(T, B, D)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": x})
    arrays, said = PEEPHOLES[how](i, f, o)
    arrays |= {f"rnn.{name}": value.numpy() for name, value in state_of(rnn).items()}
    path = tmp_path / "file.npz"
    if form == "npz":
        np.savez(path, **arrays)
        said |= {"cell": "lstm"}
    elif form == "safetensors":
        save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, path)
    else:
        torch.save({name: torch.from_numpy(value) for name, value in arrays.items()}, path)
    made = tt.load(path, **said)
    np.testing.assert_allclose(made(torch.from_numpy(x))[0].detach(), expected[:, 0], atol=1e-5)
    with tt.record(made) as record:
        made(torch.from_numpy(x))[0][-1].sum().backward()
    assert record.flow().residual < 1e-4
    if "peephole" in said:
        words = ["inspect", str(path), *[f"--{name}={word}" for name, word in said.items()]]
        assert f"rnn: lstm, {D} inputs, {H} units" in CliRunner().invoke(main, words).output


@pytest.mark.parametrize(
    ("arrays", "said", "words"),
    [
        ({"w_ci": (H,)}, {}, r"peephole_i \(5,\).*--peephole"),
        ({"w_ci": (H,), "w_cf": (H,), "w_co": (1, H)}, {}, r"peephole_o \(1, 5\)"),
        ({"w_ci": (H, H), "w_cf": (H, H), "w_co": (H, H)}, {}, r"peephole_i \(5, 5\)"),
        ({"p": (H,)}, {"peephole": "p"}, r"peephole \(5,\)"),
        ({"p": (H,), "q": (H,)}, {"peephole": "p,q"}, "in the order i, f, o"),
        ({"p": (H,)}, {"peephole": "p,p,q"}, "peephole=q; expected the name of an array"),
        ({"peephole": (2, H)}, {}, r"peephole \(2, 5\)"),
    ],
)
def test_peepholes_that_do_not_tell_are_asked(arrays, said, words):
    made = state_of(nn.LSTM(D, H)) | {name: torch.ones(shape) for name, shape in arrays.items()}
    with pytest.raises(tt.ThroughtimeError, match=words):
        tt.load(made, **said)
    with pytest.raises(tt.ThroughtimeError, match=r"for gru|name of an array in the file"):
        tt.load({name: value.numpy() for name, value in state_of(nn.GRU(D, H)).items()} | {"p": np.ones(3 * H, np.float32)},
                cell="gru", peephole="p")  # fmt: skip


def test_weights_from_elsewhere_are_refused(tmp_path):
    from onnx import TensorProto, helper, load_from_string

    for change, words in (
        ("peepholes", "peepholes that are no constants"),
        ("external", "external data"),
        ("computed", "computed in the graph"),
        ("initial", "a learned initial state"),
        ("quantized", "a DynamicQuantizeLSTM"),
    ):
        model = load_from_string(onnx_model("LSTM", onnx_arrays(nn.LSTM(D, H), "LSTM")))
        if change == "peepholes":
            model.graph.node[0].input.extend(["", "", "", "P"])
            model.graph.input.append(helper.make_tensor_value_info("P", TensorProto.FLOAT, [1, 3 * H]))
        elif change == "initial":
            model.graph.node[0].input.extend(["", "h"])
            model.graph.node.insert(0, helper.make_node("Tanh", ["h0"], ["h"]))
            model.graph.initializer.append(helper.make_tensor("h0", TensorProto.FLOAT, [1, 1, H], [0.1] * H))
        elif change == "quantized":
            model.graph.node[0].op_type, model.graph.node[0].domain = "DynamicQuantizeLSTM", "com.microsoft"
        elif change == "computed":
            del model.graph.initializer[1]
        else:
            outside = model.graph.initializer[0]
            outside.ClearField("raw_data")
            outside.data_location = TensorProto.EXTERNAL
            outside.external_data.add(key="location", value="/etc/passwd")
        (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(tt.ThroughtimeError, match=words):
            tt.load(tmp_path / "model.onnx")


# --- Keras -------------------------------------------------------------------------------------------------------------


def keras_layers(keras: ModuleType) -> list:
    made = keras.layers
    return [
        made.LSTM(H, return_sequences=True, name="first", bias_initializer="random_normal"),
        made.GRU(4, return_sequences=True, bias_initializer="random_normal"),
        made.GRU(3, return_sequences=True, reset_after=False, bias_initializer="random_normal", name="second"),
        made.SimpleRNN(4, return_sequences=True, activation="relu", bias_initializer="random_normal"),
        made.GRU(4, return_sequences=True, use_bias=False),
        made.Bidirectional(made.LSTM(3, return_sequences=True, bias_initializer="random_normal")),
    ]


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".weights.h5"])
@pytest.mark.filterwarnings("ignore")
def test_keras_layers_run_as_kerass_own(suffix, keras, tmp_path):
    keras.utils.set_random_seed(0)
    model, path = keras.Sequential([keras.Input((T, D)), *keras_layers(keras)]), tmp_path / f"model{suffix}"
    model.save_weights(path) if suffix == ".weights.h5" else model.save(path)
    x = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
    names = ["first", "gru", "second", "simple_rnn", "gru_2", "bidirectional"]
    if suffix != ".h5":  # named by class and place
        names = ["lstm", "gru", "gru_1", "simple_rnn", "gru_2", "bidirectional"]
    else:
        names = [layer.name for layer in model.layers]
    cells = ["lstm", "gru", "gru", "rnn-relu", "gru", "lstm"]
    for place, (name, cell, layer) in enumerate(zip(names, cells, model.layers, strict=True)):
        expected = np.asarray(layer(x).detach().cpu())
        bare = suffix == ".weights.h5"
        if bare and place == 4:  # neither bias nor configuration says where it resets
            with pytest.raises(tt.ThroughtimeError, match="does not say where it resets"):
                tt.load(path, layer=name, cell=cell)
            x = expected
            continue
        found = [each for each in layers(path) if each.name.split("/")[0] == name]
        asked = {"cell": cell} if bare else {}
        halves = [tt.load(path, layer=each.name, **asked) for each in sorted(found, key=lambda each: each.reverse)]
        outputs = [half(torch.from_numpy(x.transpose(1, 0, 2)))[0] for half in halves]
        output = torch.cat(outputs, dim=-1).detach().numpy().transpose(1, 0, 2)
        np.testing.assert_allclose(output, expected, atol=1e-5)
        if bare:
            with pytest.raises(tt.ThroughtimeError, match="which the file does not state"):
                tt.load(path, layer=found[0].name)
        x = expected


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["concat", "sum", "mul", "ave", None])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_a_whole_bidirectional_layer_runs_as_kerass_own(kind, mode, keras, tmp_path):
    keras.utils.set_random_seed(0)
    inner = getattr(keras.layers, kind)(H, return_sequences=True, bias_initializer="random_normal")
    both = keras.layers.Bidirectional(inner, merge_mode=mode, name="both")
    inputs = keras.Input((T, D))
    model = keras.Model(inputs, both(inputs))
    model.save(tmp_path / "model.keras")
    if mode is None:
        with pytest.raises(tt.ThroughtimeError, match="merge_mode none"):
            tt.load(tmp_path / "model.keras")
        return
    x = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
    expected = model(x).detach().cpu().transpose(0, 1)
    for layer in (None, "bidirectional"):  # .keras has names of classes
        made = tt.load(tmp_path / "model.keras", layer=layer)
        torch.testing.assert_close(made(torch.from_numpy(x).transpose(0, 1))[0], expected, rtol=1e-5, atol=1e-6)
    assert tt.diagnose(made, torch.from_numpy(x).transpose(0, 1).contiguous()).flow.residual < 1e-4


def test_each_direction_has_its_own_configuration(keras, tmp_path):
    inputs = keras.Input((T, D))
    back = keras.layers.GRU(H, activation="softsign", go_backwards=True)
    both = keras.layers.Bidirectional(keras.layers.GRU(H), backward_layer=back)
    keras.Model(inputs, both(inputs)).save(tmp_path / "model.keras")
    found = {each.name: each for each in layers(tmp_path / "model.keras")}
    assert {each.reverse: bool(each.refused) for each in found.values()} == {False: False, True: True}
    with pytest.raises(tt.ThroughtimeError, match="softsign"):
        tt.load(tmp_path / "model.keras")


def test_other_activations_of_keras_are_refused_by_name(keras, tmp_path):
    layer = keras.layers.LSTM(H, recurrent_activation="softmax")
    keras.Sequential([keras.Input((T, D)), layer]).save(tmp_path / "model.keras")
    with pytest.raises(tt.ThroughtimeError, match="activations softmax and tanh"):
        tt.load(tmp_path / "model.keras")


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("functions", [("hard_sigmoid", "tanh"), ("sigmoid", "relu"), ("hard_sigmoid", "relu")])
@pytest.mark.parametrize("end", [".keras", ".h5"])
def test_functions_of_keras_run_as_keras_runs_them(keras, kind, functions, end, tmp_path):
    gate, candidate = functions
    layer = getattr(keras.layers, kind)(
        H, activation=candidate, recurrent_activation=gate, kernel_initializer=keras.initializers.RandomNormal(stddev=2.0),
        return_sequences=True,
    )  # fmt: skip
    model = keras.Sequential([keras.Input((T, D)), layer])
    model.save(tmp_path / f"model{end}")
    x = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
    expected = np.asarray(model(x).detach())
    output = tt.load(tmp_path / f"model{end}")(torch.from_numpy(x).transpose(0, 1))[0].transpose(0, 1)
    np.testing.assert_allclose(output.detach(), expected, rtol=1e-5, atol=1e-5)


def test_a_hard_sigmoid_of_an_unknown_keras_is_refused(keras, tmp_path):
    import h5py

    layer = keras.layers.LSTM(H, recurrent_activation="hard_sigmoid")
    keras.Sequential([keras.Input((T, D)), layer]).save(tmp_path / "model.h5")
    with h5py.File(tmp_path / "model.h5", "r+") as file:
        del file.attrs["keras_version"]
    with pytest.raises(tt.ThroughtimeError, match="hard_sigmoid and tanh"):
        tt.load(tmp_path / "model.h5")
    with h5py.File(tmp_path / "model.h5", "r+") as file:
        file.attrs["keras_version"] = "2.4.0"
    assert tt.load(tmp_path / "model.h5").cell.gate == "hard-sigmoid"


def write_cudnn(module: nn.Module, path: Path, config: dict | None = None) -> None:
    """As Keras 2 saved a CuDNN layer: cuDNN's parameters in memory, row-major (H, D) a gate, cut and set side by side."""
    import h5py

    order, units = {"GRU": (1, 0, 2), "LSTM": (0, 1, 2, 3)}[type(module).__name__], module.hidden_size

    def blocks(name: str) -> list[np.ndarray]:
        split = np.split(getattr(module, f"{name}_l0").detach().numpy(), len(order))
        return [split[gate] for gate in order]

    def side_by_side(name: str) -> np.ndarray:
        memory = [np.frombuffer(block.tobytes(), block.dtype) for block in blocks(name)]
        return np.hstack([flat.reshape(len(flat) // units, units) for flat in memory])

    with h5py.File(path, "w") as file:
        group = file.create_group("rnn_1/rnn_1")
        group["kernel:0"], group["recurrent_kernel:0"] = side_by_side("weight_ih"), side_by_side("weight_hh")
        group["bias:0"] = np.concatenate(blocks("bias_ih") + blocks("bias_hh"))
        if config is not None:
            file.attrs["model_config"] = json.dumps({"config": {"layers": [config]}})


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_cudnn_layers_of_keras_run_as_cudnn_runs_them(kind, tmp_path):
    torch.manual_seed(0)
    module, x, path = TORCH[kind](D, H), torch.randn(T, B, D), tmp_path / "weights.hdf5"
    write_cudnn(module, path)
    torch.testing.assert_close(tt.load(path)(x)[0], module(x)[0], rtol=1e-5, atol=1e-6)  # nothing is asked
    told = CliRunner().invoke(main, ["inspect", str(path)])
    assert "layout cudnn" in told.output
    with pytest.raises(tt.ThroughtimeError, match="layout=cudnn, which the file states"):
        tt.load(path, layout="x@W")
    arrays = dict(layers(path)[0].arrays)
    np.savez(tmp_path / "bare.npz", **arrays)
    gates = {"gru": "zrn", "lstm": "ifgo"}[kind]
    said = {"cell": kind, "gates": gates, "layout": "cudnn"}
    torch.testing.assert_close(tt.load(tmp_path / "bare.npz", **said)(x)[0], module(x)[0], rtol=1e-5, atol=1e-6)
    del arrays["bias_ih"]
    np.savez(tmp_path / "bare.npz", **arrays)
    with pytest.raises(tt.ThroughtimeError, match="layout='cudnn'"):
        tt.load(tmp_path / "bare.npz", **said)


def test_a_cudnn_layers_configuration_is_heeded(tmp_path):
    module, path = nn.LSTM(D, H), tmp_path / "model.h5"
    own = {"class_name": "CuDNNLSTM", "config": {"name": "rnn_1", "go_backwards": True}}
    write_cudnn(module, path, own)
    x = torch.randn(T, B, D)
    torch.testing.assert_close(tt.load(path)(x)[0], module(x.flip(0))[0].flip(0), rtol=1e-5, atol=1e-6)
    hard = {"class_name": "LSTM", "config": {"name": "rnn_1", "recurrent_activation": "hard_sigmoid"}}
    write_cudnn(module, path, hard)
    with pytest.raises(tt.ThroughtimeError, match="hard_sigmoid and tanh, which cuDNN does not have"):
        tt.load(path)
    import h5py

    write_cudnn(module, path, own)
    with h5py.File(path, "r+") as file:
        del file["rnn_1/rnn_1/bias:0"]
        file["rnn_1/rnn_1/bias:0"] = np.zeros(4 * H, np.float32)
    with pytest.raises(tt.ThroughtimeError, match=r"CuDNNLSTM with a bias of shape \(20,\)"):
        tt.load(path)


@pytest.mark.parametrize("kind", ["soft", "external", "virtual", "storage", "absurd"])
def test_hdf5_opens_no_other_file_and_reads_no_more_than_there_is(kind, tmp_path):
    import h5py

    path = tmp_path / "model.h5"
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["kernel"] = np.zeros((D, 3 * H))
    with h5py.File(path, "w") as file:
        group = file.create_group("gru/gru")
        group["recurrent_kernel:0"] = np.zeros((H, 3 * H))
        if kind == "soft":
            group["kernel:0"] = h5py.SoftLink("/gru/gru/recurrent_kernel:0")
        elif kind == "external":
            group["kernel:0"] = h5py.ExternalLink("other.h5", "/kernel")
        elif kind == "virtual":
            layout = h5py.VirtualLayout((D, 3 * H), dtype=float)
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "kernel", shape=(D, 3 * H))
            group.create_virtual_dataset("kernel:0", layout)
        elif kind == "storage":
            group.create_dataset("kernel:0", (4, 3 * H), dtype="u1", external=[("/etc/passwd", 0, 12 * H)])
        else:
            group.create_dataset("kernel:0", (100_000, 300_000), dtype="f8", chunks=(10, 10))
    with pytest.raises(tt.ThroughtimeError, match=r"link|outside of the file|at most"):
        tt.load(path, cell="gru")


# --- untrusted files ---------------------------------------------------------------------------------------------------


class Runs:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Whole(nn.Module):
    """A module that a pickle can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(D, H)

    def forward(self, x):
        return self.rnn(x)[0]


def test_nothing_in_a_pickle_runs(tmp_path):
    ran = tmp_path / "ran"
    torch.save({"model": Runs(ran), "rnn": nn.GRU(D, H).state_dict()}, tmp_path / "evil.pt")
    with pytest.raises(tt.ThroughtimeError, match="--trust"):
        tt.load(tmp_path / "evil.pt")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Runs(ran)))
    with pytest.raises(tt.ThroughtimeError):
        tt.load(tmp_path / "plain.pkl", trust=True)
    np.savez(tmp_path / "evil.npz", weight_ih=np.array([Runs(ran)], dtype=object), weight_hh=np.zeros((3, 1)))
    with pytest.raises(tt.ThroughtimeError):
        tt.load(tmp_path / "evil.npz", cell="gru", trust=True)
    assert not ran.exists()


@pytest.mark.parametrize("kind", ["module", "script"])
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_modules_and_torchscript_only_with_the_users_word(kind, tmp_path):
    torch.manual_seed(0)
    model, path, x = Whole(), tmp_path / "model.pt", torch.randn(T, B, D)
    torch.jit.script(model).save(str(path)) if kind == "script" else torch.save(model, path)
    with pytest.raises(tt.ThroughtimeError, match=r"run code.*--trust"):
        tt.load(path)
    torch.testing.assert_close(tt.load(path, trust=True)(x)[0], model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"use_pickle": True}, "pickled"),
        ({"sizes": [{"as_int": 1_000_000}, {"as_int": 1_000_000}]}, "a tensor within its data"),
        ({"storage_offset": {"as_int": -1}}, "a tensor within its data"),
        ({"strides": [{"as_int": 0}, {"as_int": 0}]}, "a tensor within its data"),
        (
            {"sizes": [{"as_int": 8}, {"as_int": 60}], "strides": [{"as_int": 1}, {"as_int": 1}]},
            "a tensor within its data",
        ),
        ({"path_name": "../../byteorder"}, "cannot be read"),
        ({"dtype": "float"}, "no dense tensor"),
        ({"sizes": "many"}, "cannot be read"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_table_of_an_export_archive_that_lies(change, words, tmp_path):
    write_pt2(nn.GRU(D, H), tmp_path / "whole.pt2")
    with zipfile.ZipFile(tmp_path / "whole.pt2") as old, zipfile.ZipFile(tmp_path / "lies.pt2", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("model_weights_config.json"):
                table = json.loads(content)
                told = table["config"]["net.rnn.weight_hh_l0"]
                for key, value in change.items():
                    (told if key in told else told["tensor_meta"])[key] = value
                content = json.dumps(table).encode()
            new.writestr(name, content)
    with pytest.raises(tt.ThroughtimeError, match=words):
        tt.load(tmp_path / "lies.pt2")


def write_pt2_before(module: nn.Module, path: Path, name: str = "serialized_state_dict.pt") -> None:
    """The layout of torch before 2.8, which torch.export.load reads still."""
    from torch._export.serde.serialize import serialize

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(Named(module), (torch.zeros(2, 1, module.input_size),))
        parts = serialize(program)
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("version", "8.8")
        packed.writestr("serialized_exported_program.json", parts.exported_program)
        packed.writestr(name, parts.state_dict)
        packed.writestr(name.replace("state_dict", "constants"), parts.constants)
        packed.writestr("serialized_example_inputs.pt", parts.example_inputs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["gru", "lstm"])
@pytest.mark.parametrize("name", ["serialized_state_dict.pt", "serialized_state_dict.json"])
def test_an_export_archive_of_an_older_torch_runs_as_torch_runs_it(kind, name, tmp_path):
    torch.manual_seed(0)
    x, path = torch.randn(2, 1, D), tmp_path / "old.pt2"
    write_pt2_before(TORCH[kind](D, H, 2), path, name)
    expected = torch.export.load(path).module()(x)
    made = tt.load(path)
    assert isinstance(made, TORCH[kind])
    torch.testing.assert_close(made(x)[0], expected)


def test_an_export_archive_of_an_older_torch_runs_nothing(tmp_path, monkeypatch):
    for content in (pickle.dumps(Runs(tmp_path / "ran"), 2), pickled := BytesIO()):
        if isinstance(content, BytesIO):
            torch.save({"rnn.weight_ih_l0": Runs(tmp_path / "ran")}, pickled)
            content = pickled.getvalue()
        with zipfile.ZipFile(tmp_path / "old.pt2", "w") as packed:
            packed.writestr("serialized_exported_program.json", "{}")
            packed.writestr("serialized_state_dict.pt", content)
        with pytest.raises(tt.ThroughtimeError, match="an older torch with a pickle of more than weights"):
            tt.load(tmp_path / "old.pt2", trust=True)
    assert not (tmp_path / "ran").exists()
    bomb = BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("archive/data.pkl", b"\0" * 5_000_000)
    with zipfile.ZipFile(tmp_path / "old.pt2", "w") as packed:
        packed.writestr("serialized_exported_program.json", "{}")
        packed.writestr("serialized_state_dict.pt", bomb.getvalue())
    monkeypatch.setattr(importer, "LARGEST", 1_000_000)
    with pytest.raises(tt.ThroughtimeError, match=r"5,000,000 bytes in an archive in the file.*at most"):
        tt.load(tmp_path / "old.pt2")


def test_a_tensor_that_claims_more_than_there_is(tmp_path):
    state = nn.GRU(D, H).state_dict()
    state["weight_hh_l0"] = torch.zeros(1).expand(3 * 100_000, 100_000)
    torch.save(state, tmp_path / "wide.pt")
    with pytest.raises(tt.ThroughtimeError, match="at most"):
        tt.load(tmp_path / "wide.pt")


def test_zip_bombs_are_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(importer, "LARGEST", 1_000_000)
    for name, inner in (("bomb.npz", "weight_ih.npy"), ("bomb.pt", "archive/data.pkl")):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(inner, b"\0" * 5_000_000)
        with pytest.raises(tt.ThroughtimeError, match=r"5,000,000.*at most"):
            tt.load(tmp_path / name, cell="gru")


@pytest.mark.parametrize("content", [b"", b"PK", b"\x80\x02", b"{}", b"\x93NUMPY", b"\x89HDF\r\n\x1a\n", b"hello"])
def test_what_is_no_file_of_weights_is_said(content, tmp_path):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(tt.ThroughtimeError, match=r"got .+; expected .+; do this: .+"):
        tt.load(tmp_path / "file")
    with pytest.raises(tt.ThroughtimeError, match="cannot be opened"):
        tt.load(tmp_path)
    with pytest.raises(tt.ThroughtimeError, match="cannot be opened"):
        tt.load(tmp_path / "nowhere")


def write_stack(module: nn.Module, path: Path) -> None:
    """A stack of two layers in both directions."""
    write_state_dict(type(module)(1, 2, num_layers=2, bidirectional=True), path)


def write_peepholes(module: nn.Module, path: Path) -> None:
    """An LSTM with peepholes under TensorFlow's names."""
    torch.save(state_of(nn.LSTM(1, 2)) | {f"w_{gate}_diag": torch.ones(2) for gate in "ifo"}, path)


VARIANTS: dict[str, Callable[[nn.Module, Path], None]] = {
    "Keras in cuDNN's layout": write_cudnn,
    "a stack, as a state dict": write_stack,
    "peepholes, as a state dict": write_peepholes,
    "torch.export before torch 2.8": write_pt2_before,
}
"""What a format has besides: fuzzed as the formats are."""


@cache
def whole(name: str) -> bytes:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        (WRITERS | VARIANTS)[name](nn.GRU(1, 2), path)
        return path.read_bytes()


@pytest.mark.parametrize("name", WRITERS | VARIANTS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_end_in_the_librarys_own_error(name, data, tmp_path):
    content = bytearray(whole(name))
    for _ in range(data.draw(st.integers(0, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    path = tmp_path / "damaged"
    path.write_bytes(bytes(content[:cut]))
    with contextlib.suppress(tt.ThroughtimeError):  # and no other
        layer = tt.load(path, **({"cell": "gru"} if name.startswith(ASKED) and name in WRITERS else {}))
        layer(torch.zeros(2, 1, layer.input_size, dtype=layer.weight_hh_l0.dtype))


def test_inspect_lists_layers_and_what_the_weights_tell(tmp_path):
    torch.manual_seed(0)
    model = nn.ModuleDict({"lstm": nn.LSTM(D, H), "plain": nn.RNN(D, H), "gru": nn.GRU(D, H)})
    nn.init.orthogonal_(model["gru"].weight_hh_l0)
    for bias in (model["lstm"].bias_ih_l0, model["lstm"].bias_hh_l0):
        nn.init.ones_(bias.data[H : 2 * H])
    torch.save(model.state_dict(), tmp_path / "model.pt")
    told = CliRunner().invoke(main, ["inspect", str(tmp_path / "model.pt")])
    assert told.exit_code == 0, told.output
    lines = told.output.splitlines()
    assert lines[0] == f"lstm: lstm, {D} inputs, {H} units; gates ifgo, layout W@x"
    assert "TT402" in lines[1]
    assert lines[2].startswith("plain: layer 'plain'")
    assert "rnn-tanh, rnn-relu" in lines[2]
    assert lines[3] == f"gru: gru, {D} inputs, {H} units; gates rzn, layout W@x, reset after, z keeps"
    assert "TT401" in lines[4]
    assert len(lines) == 5
    document = json.loads(CliRunner().invoke(main, ["inspect", str(tmp_path / "model.pt"), "--format", "json"]).output)
    assert [each["name"] for each in document] == ["lstm", "plain", "gru"]
    assert document[0]["findings"][0]["code"] == "TT402"


def test_inspect_gives_a_stack_its_own_line(tmp_path):
    module = nn.LSTM(D, H, 2, bidirectional=True)
    torch.save({f"rnn.{name}": value for name, value in module.state_dict().items()}, tmp_path / "model.pt")
    lines = CliRunner().invoke(main, ["inspect", str(tmp_path / "model.pt")]).output.splitlines()
    parts = ["rnn_l0", "rnn_l0_reverse", "rnn_l1", "rnn_l1_reverse"]
    assert lines[0] == f"rnn (the whole of {', '.join(parts)}): lstm, {D} inputs, {H} units; gates ifgo, layout W@x"
    assert [line.split(" ")[0].rstrip(":") for line in lines if not line.startswith("  ")] == ["rnn", *parts]
    document = json.loads(CliRunner().invoke(main, ["inspect", str(tmp_path / "model.pt"), "--format", "json"]).output)
    assert document[0]["parts"] == parts
    torch.save({f"rnn.{name}": value for name, value in module.state_dict().items() if "l1_reverse" not in name},
               tmp_path / "model.pt")  # fmt: skip
    first = CliRunner().invoke(main, ["inspect", str(tmp_path / "model.pt")]).output.splitlines()[0]
    assert first.startswith("rnn (the whole of rnn_l0, rnn_l0_reverse, rnn_l1): ")
    assert "every layer of the stack, in as many directions" in first
