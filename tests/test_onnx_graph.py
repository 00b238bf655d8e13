"""ONNX graphs around a recurrent operator: onnxruntime, which runs the whole file, is the truth."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import throughtime as tt
from throughtime.cli import main
from throughtime.importers import importer
from throughtime.importers.onnx_run import arguments_of, input_of

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


# The graph around the operator: x = relu(a + b), transposed; b is not needed by a second operator.
def before(x: str, suffix: str = "") -> list:
    return [
        helper.make_node("Add", ["a", "b"], [f"sum{suffix}"]),
        helper.make_node("Relu", [f"sum{suffix}"], [f"relu{suffix}"]),
        helper.make_node("Transpose", [f"relu{suffix}"], [x], perm=[1, 0, 2]),
    ]


WEIGHTS = [tensor("W", W[None]), *FIXED]
INPUTS = [value("a", [B, T, D]), value("b", [D])]
GIVEN = {"a": RNG.normal(size=(B, T, D)).astype(np.float32), "b": RNG.normal(size=D).astype(np.float32)}


def saved(made: onnx.ModelProto, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(made.SerializeToString())
    return path


def test_the_layers_own_input_is_that_of_the_whole_graph(tmp_path):
    nodes = [*before("x"), lstm(), helper.make_node("Neg", ["y"], ["last"])]
    made = model(nodes, WEIGHTS, INPUTS, [value("last", None), value("x", None), value("y", None)])
    _, x, y = run(made, GIVEN)
    path = saved(made, tmp_path)
    mine = input_of(path, GIVEN)
    np.testing.assert_array_equal(mine, x)
    np.testing.assert_allclose(tt.load(path)(mine)[0].detach(), y[:, 0], atol=1e-6)
    with pytest.raises(tt.ThroughtimeError, match="no data for the graph's input b"):
        input_of(path, {"a": GIVEN["a"]})
    with pytest.raises(tt.ThroughtimeError, match=r"data named 'c'.*names of the graph's inputs: a, b"):
        input_of(path, GIVEN | {"c": GIVEN["b"]})
    with pytest.raises(tt.ThroughtimeError, match="does not run on these data"):
        input_of(path, GIVEN | {"b": GIVEN["b"].astype(np.int64)})
    with pytest.raises(tt.ThroughtimeError, match="of type ndarray"):
        input_of(path, GIVEN["a"])  # type: ignore[arg-type]
    with pytest.raises(tt.ThroughtimeError, match="one of rnn"):
        input_of(path, GIVEN, "other")


def branched() -> onnx.ModelProto:
    """An operator in each branch of an If, behind an If of its own; else comes first in the node, so its operator is "rnn"."""

    def inner(scale: float, name: str):
        constant = helper.make_node("Constant", [], [f"s{name}"], value=tensor("", np.float32(scale)))
        always = helper.make_node("Constant", [], [f"t{name}"], value=tensor("", np.array(True)))
        side = helper.make_graph(
            [helper.make_node("Mul", ["x", f"s{name}"], [f"m{name}"])], "side", [], [value(f"m{name}", None)]
        )
        other = helper.make_graph([helper.make_node("Neg", ["x"], [f"n{name}"])], "o", [], [value(f"n{name}", None)])
        chosen = helper.make_node("If", [f"t{name}"], [f"x{name}"], then_branch=side, else_branch=other)
        node = helper.make_node("LSTM", [f"x{name}", "W", "R", "B"], [f"y{name}"], name="rnn", hidden_size=H)
        outputs = [value(f"y{name}", None), value(f"x{name}", None)]
        return helper.make_graph([constant, always, chosen, node], name, [], outputs)

    top = helper.make_node(
        "If", ["yes"], ["y", "seen"], name="which", then_branch=inner(2.0, "A"), else_branch=inner(3.0, "B")
    )
    rate = [
        helper.make_node("Constant", [], ["wanted"], value=tensor("", np.int64(16))),
        helper.make_node("Equal", ["rate", "wanted"], ["yes"]),
    ]
    inputs = [*INPUTS, value("rate", [], TensorProto.INT64)]
    return model([*rate, *before("x"), top], WEIGHTS, inputs, [value("y", None), value("seen", None)])


@pytest.mark.parametrize(("rate", "layer", "other"), [(16, "rnn#2", "rnn"), (8, "rnn", "rnn#2")])
def test_an_operator_in_the_branch_taken(rate, layer, other, tmp_path):
    made, given = branched(), GIVEN | {"rate": np.array(rate)}
    path = saved(made, tmp_path)
    y, x = run(made, given)
    mine = input_of(path, given, layer)
    np.testing.assert_array_equal(mine, x)
    np.testing.assert_allclose(tt.load(path, layer)(mine)[0].detach(), y[:, 0], atol=1e-6)
    with pytest.raises(tt.ThroughtimeError, match="which takes its other branch"):
        input_of(path, given, other)
    with pytest.raises(tt.ThroughtimeError, match="2 recurrent operators"):
        input_of(path, given)


def test_batch_first_operators(tmp_path):
    node = lstm()
    node.attribute.append(helper.make_attribute("layout", 1))
    made = model([node], WEIGHTS, [value("x", [B, T, D])], [value("y", None)])
    given = np.ascontiguousarray(X.swapaxes(0, 1))
    np.testing.assert_array_equal(input_of(saved(made, tmp_path), {"x": given}), X)


def test_external_data_other_domains_and_loops_are_refused(tmp_path):
    """A file says where its data lie: nothing but the file is opened."""
    far = tensor("far", np.zeros(D, np.float32))
    far.ClearField("raw_data")
    far.data_location = TensorProto.EXTERNAL
    far.external_data.add(key="location", value="/etc/hostname")
    nodes = [helper.make_node("Add", ["x0", "far"], ["x"]), lstm()]
    made = model(nodes, [far, *WEIGHTS], [value("x0", [T, B, D])], [value("y", None)])
    with pytest.raises(tt.ThroughtimeError, match="far, whose data lie in another file"):
        input_of(saved(made, tmp_path), {"x0": X})
    hidden = helper.make_node("Constant", [], ["far"], value=far)  # in an attribute
    made = model([hidden, *nodes], WEIGHTS, [value("x0", [T, B, D])], [value("y", None)])
    with pytest.raises(tt.ThroughtimeError, match="whose data lie in another file"):
        input_of(saved(made, tmp_path), {"x0": X})
    made = model(
        [helper.make_node("Gelu", ["x0"], ["x"], domain="com.microsoft"), lstm()],
        WEIGHTS,
        [value("x0", [T, B, D])],
        [value("y", None)],
    )
    with pytest.raises(tt.ThroughtimeError, match=r"com\.microsoft\.Gelu"):
        input_of(saved(made, tmp_path), {"x0": X})
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), lstm()],
        "body",
        [value("n", [], TensorProto.INT64), value("go", [], TensorProto.BOOL)],
        [value("on", [], TensorProto.BOOL), value("y", None)],
    )
    loop = helper.make_node("Loop", ["times", ""], ["ys"], body=body)
    made = model([loop], WEIGHTS, [value("x", [T, B, D]), value("times", [], TensorProto.INT64)], [value("ys", None)])
    with pytest.raises(tt.ThroughtimeError, match="inside a Loop"):
        input_of(saved(made, tmp_path), {"x": X, "times": np.array(2)})


# --- states and lengths ------------------------------------------------------------------------------------------------

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
WAYS = {"forward": 1, "reverse": 1, "bidirectional": 2}


def stateful(operator: str, direction: str, depth: int = 1) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Operators whose states and lengths the graph makes of its inputs, and data; outputs y, h and perhaps c of each."""
    rng, ways, gates = np.random.default_rng(7), WAYS[direction], GATES[operator]
    states = ["h", "c"][: 1 + (operator == "LSTM")]
    nodes, constants, outputs, last = [], [tensor("two", np.float32(2)), tensor("shape", np.array([0, 0, -1]))], [], "x"
    given = {"x": X, "lengths": np.array([T, 4], np.int32)}
    for level in range(depth):
        inputs = D if not level else ways * H
        for name, shape in (("W", (gates * H, inputs)), ("R", (gates * H, H)), ("B", (2 * gates * H,))):
            constants.append(tensor(f"{name}{level}", rng.normal(0, 0.5, (ways, *shape)).astype(np.float32)))
        for state in states:
            given[f"{state}{level}"] = rng.normal(size=(ways, B, H)).astype(np.float32)
            nodes.append(helper.make_node("Mul", [f"{state}{level}", "two"], [f"{state}{level}_twice"]))
        made = [f"y{level}", *(f"last_{state}{level}" for state in states)]
        read = [last, f"W{level}", f"R{level}", f"B{level}", "lengths", *(f"{state}{level}_twice" for state in states)]
        options = {"direction": direction, "hidden_size": H} | ({"linear_before_reset": 1} if operator == "GRU" else {})
        nodes.append(helper.make_node(operator, read, made, name=f"rnn{level}", **options))
        turned = helper.make_node("Transpose", [f"y{level}"], [f"t{level}"], perm=[0, 2, 1, 3])
        nodes += [turned, helper.make_node("Reshape", [f"t{level}", "shape"], [f"x{level}"])]
        outputs, last = [*outputs, *made, f"x{level}"], f"x{level}"
    inputs = [
        value(name, each.shape, TensorProto.INT32 if name == "lengths" else FLOATS) for name, each in given.items()
    ]
    return model(nodes, constants, inputs, [value(name, None) for name in outputs]), given


def told(result: tuple) -> tuple[np.ndarray, list[np.ndarray]]:
    """Output (T, B, ·) and states (N, B, H) as arrays."""
    output, last = result
    states = last if isinstance(last, tuple) else (last,)
    return output.detach().numpy(), [each.detach().numpy() for each in states]


@pytest.mark.parametrize("operator", GATES)
@pytest.mark.parametrize("direction", WAYS)
@pytest.mark.parametrize("depth", [1, 2])
def test_states_and_lengths_are_those_that_the_operator_is_given(operator, direction, depth, tmp_path):
    """Output and last states of every layer are onnxruntime's, for sequences of several lengths."""
    made, given = stateful(operator, direction, depth)
    path = saved(made, tmp_path)
    names = [each.name for each in made.graph.output]
    truth = dict(zip(names, run(made, given), strict=True))
    states = ["h", "c"][: 1 + (operator == "LSTM")]
    if depth == 1 or direction != "reverse":  # torch stacks no layers that read from the end alone
        arguments = arguments_of(path, given)
        assert arguments.lengths is not None
        assert arguments.state is not None
        output, last = told(arguments.given_to(tt.load(path))(arguments.x))
        np.testing.assert_allclose(output, truth[f"x{depth - 1}"], atol=1e-5)
        for state, mine in zip(states, last, strict=True):
            whole = np.concatenate([truth[f"last_{state}{level}"] for level in range(depth)])
            np.testing.assert_allclose(mine, whole, atol=1e-5)
    for level in range(depth):
        for way, end in enumerate(["_l0", "_l0_reverse"] if direction == "bidirectional" else [""]):
            arguments = arguments_of(path, given, f"rnn{level}{end}")
            np.testing.assert_allclose(arguments.x, truth["x0"] if level else X, atol=1e-6)
            output, last = told(arguments.given_to(tt.load(path, f"rnn{level}{end}"))(arguments.x))
            np.testing.assert_allclose(output, truth[f"y{level}"][:, way], atol=1e-5)
            for state, mine in zip(states, last, strict=True):
                np.testing.assert_allclose(mine[0], truth[f"last_{state}{level}"][way], atol=1e-5)


def test_what_is_zero_or_whole_or_stands_in_the_file_is_not_handed_on(tmp_path):
    made, given = stateful("LSTM", "forward")
    path = saved(made, tmp_path)
    nothing = {
        "h0": np.zeros_like(given["h0"]),
        "c0": np.zeros_like(given["c0"]),
        "lengths": np.array([T, T], np.int32),
    }
    arguments = arguments_of(path, given | nothing)
    assert (arguments.state, arguments.lengths) == (None, None)
    layer = tt.load(path)
    assert arguments.given_to(layer) is layer
    made.graph.initializer.extend([tensor(name, given[name][:, :1].repeat(B, 1)) for name in ("h0", "c0")])
    for each in made.graph.node[:2]:  # the states as they stand, not twice
        each.op_type = "Identity"
        del each.input[1]
    kept = [each for each in made.graph.input if each.name in ("x", "lengths")]
    del made.graph.input[:]
    made.graph.input.extend(kept)
    path = saved(made, tmp_path)
    arguments = arguments_of(path, {name: given[name] for name in ("x", "lengths")})
    assert arguments.state is None
    (y,) = run(made, {name: given[name] for name in ("x", "lengths")}, ["y0"])
    output, _ = told(arguments.given_to(tt.load(path))(arguments.x))
    np.testing.assert_allclose(output, y[:, 0], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lengths": np.array([T, 0], np.int32)}, r"lengths \[6, 0\].*2 from 1 to 6"),
        ({"lengths": np.array([T + 1, 1], np.int32)}, r"lengths \[7, 1\]"),
        ({"lengths": np.array([T], np.int32)}, r"lengths \[6\]"),
        ({"h0": np.ones((1, B + 1, H), np.float32)}, r"a state of rnn0 of shape \(1, 3, 4\)"),
    ],
)
def test_states_and_lengths_that_do_not_fit_are_said(change, words, tmp_path):
    made, given = stateful("GRU", "forward")
    for each in made.graph.input:  # any shape
        each.type.tensor_type.ClearField("shape")
    with pytest.raises(tt.ThroughtimeError, match=words):
        arguments_of(saved(made, tmp_path), given | change)


def test_a_shell_analyses_what_the_operator_was_given(tmp_path):
    made, given = stateful("LSTM", "forward")
    path = saved(made, tmp_path)
    np.savez(tmp_path / "input.npz", **given)
    words = ["diagnose", str(path), "--data", str(tmp_path / "input.npz"), "--format", "json", "--fail-on", "never"]
    result = CliRunner().invoke(main, [*words, "--run-graph"])
    assert result.exit_code == 0, result.output
    arguments = arguments_of(path, given)
    expected = tt.diagnose(arguments.given_to(tt.load(path)), arguments.x).flow
    found = json.loads(result.stdout)["layers"][0]
    (own,) = expected.layers.values()
    assert found["residual"] < 1e-4
    np.testing.assert_allclose(found["adjoint"]["log10_norm"], own.adjoint.log10_norm, rtol=1e-5)
    without = tt.diagnose(tt.load(path), arguments.x).flow.layers["rnn"].adjoint.log10_norm
    assert np.nanmax(np.abs(without - own.adjoint.log10_norm)) > 1e-3


def test_a_shell_runs_the_graph_only_when_told(tmp_path):
    nodes = [*before("x"), lstm()]
    path = saved(model(nodes, WEIGHTS, INPUTS, [value("y", None)]), tmp_path)
    np.savez(tmp_path / "input.npz", **GIVEN)
    words = ["diagnose", str(path), "--data", str(tmp_path / "input.npz"), "--format", "json", "--fail-on", "never"]
    refused = CliRunner().invoke(main, words)
    assert refused.exit_code == 2
    told = CliRunner().invoke(main, [*words, "--run-graph"])
    assert told.exit_code == 0, told.output
    expected = tt.diagnose(tt.load(path), input_of(path, GIVEN)).flow
    found = json.loads(told.stdout)
    assert found["steps"] == T
    np.testing.assert_allclose(
        found["layers"][0]["adjoint"]["log10_norm"], expected.layers["rnn"].adjoint.log10_norm, rtol=1e-5
    )
    wrong = CliRunner().invoke(main, ["diagnose", "torch:nn", "--data", str(tmp_path / "input.npz"), "--run-graph"])
    assert wrong.exit_code == 2
