"""ONNX operators that are one stack, and states in the graph: onnxruntime, which runs the whole file, is the truth."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from functools import cache
from itertools import pairwise

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import throughtime as tt
from throughtime.cli import main
from throughtime.importers.load import layers

D, H, T, B = 3, 4, 6, 2
X = np.random.default_rng(1).normal(size=(T, B, D)).astype(np.float32)
KINDS = {"GRU": nn.GRU, "LSTM": nn.LSTM}


class Model(nn.Module):
    """A stack, perhaps with a learned state, and an output in torch's layout."""

    def __init__(self, kind: str, learned: bool = False, **options) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn = KINDS[kind](D, H, **options)
        self.learned = learned
        rows = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
        for name in ("h0", "c0") if learned else ():
            setattr(self, name, nn.Parameter(torch.randn(rows, 1, H)))

    def forward(self, x: Tensor) -> Tensor:
        if not self.learned:
            return self.rnn(x)[0]
        batch = x.shape[0 if self.rnn.batch_first else 1]
        h, c = (each.expand(-1, batch, -1).contiguous() for each in (self.h0, self.c0))
        return self.rnn(x, (h, c) if isinstance(self.rnn, nn.LSTM) else h)[0]


def exported(model: Model, dynamic: bool = True) -> bytes:
    """By torch, whose exporter makes one operator of each layer."""
    file = io.BytesIO()
    x = torch.from_numpy(X).transpose(0, 1) if model.rnn.batch_first else torch.from_numpy(X)
    axes = {"x": {0: "first", 1: "second"}} if dynamic else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model.eval(), (x,), file, dynamo=False, input_names=["x"], dynamic_axes=axes)
    return file.getvalue()


def run(content: bytes, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


DEEP = [
    {"num_layers": 2},
    {"num_layers": 3, "bidirectional": True, "dropout": 0.5},
    {"num_layers": 2, "batch_first": True},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", DEEP)
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_stack_that_torch_exported_is_loaded_whole(kind, options, learned, dynamic, tmp_path):
    path, first = tmp_path / "model.onnx", options.get("batch_first", False)
    content = exported(Model(kind, learned, **options), dynamic)
    path.write_bytes(content)
    expected = run(content, X.swapaxes(0, 1) if first else X)
    expected = expected.swapaxes(0, 1) if first else expected
    depth, both = options["num_layers"], "bidirectional" in options
    names = [f"/rnn/{kind}" + (f"_{place}" if place else "") for place in range(depth)]
    whole = f"{names[0]}..{names[-1]}"
    for name in (None, whole):
        made = tt.load(path, layer=name)
        np.testing.assert_allclose(made(torch.from_numpy(X))[0].detach(), expected, atol=1e-5)
        inner = made.rnn if learned else made
        assert isinstance(inner, KINDS[kind])
        assert (inner.num_layers, inner.bidirectional) == (depth, both)
    x = torch.from_numpy(X)
    for name in names:  # each by itself too
        x = tt.load(path, layer=name)(x)[0]
    np.testing.assert_allclose(x.detach(), expected, atol=1e-5)
    lines = CliRunner().invoke(main, ["inspect", str(path)]).output.splitlines()
    parts = [name + end for name in names for end in (["_l0", "_l0_reverse"] if both else [""])]
    assert lines[0].startswith(f"{whole} (the whole of {', '.join(parts)}): {kind.lower()}, {D} inputs, {H} units")
    assert lines[0].endswith("begins at a state of the file") == learned


def test_the_terms_of_a_stack_are_those_of_torchs_own(tmp_path):
    """In a record the loaded stack is the model: total lags through both layers, and the state at which it begins."""
    model = Model("GRU", True, num_layers=2)
    (tmp_path / "model.onnx").write_bytes(exported(model))
    flows = []
    for each in (model, tt.load(tmp_path / "model.onnx")):
        with tt.record(each) as record:
            out = each(torch.from_numpy(X))
            (out[0] if isinstance(out, tuple) else out)[-1].square().sum().backward()
        flows.append(list(record.flow(demand=False).layers.values()))
    assert [each.lag for each in flows[0]] == [each.lag for each in flows[1]]
    for theirs, mine in zip(*flows, strict=True):
        assert mine.residual < 1e-4
        for one, other in zip(theirs.parameters.values(), mine.parameters.values(), strict=True):
            np.testing.assert_allclose(other.share, one.share, rtol=1e-3, atol=1e-5)
        for one, other in zip(theirs.initial_state.values(), mine.initial_state.values(), strict=True):
            np.testing.assert_allclose(other.share, one.share, rtol=1e-3, atol=1e-5)


# --- graphs by hand ------------------------------------------------------------------------------------------------------


def tensor(name: str, value) -> TensorProto:
    return numpy_helper.from_array(np.asarray(value), name)


def weights(place: int, ways: int, inputs: int) -> list[TensorProto]:
    rng = np.random.default_rng(place)
    shapes = {"W": (ways, 3 * H, inputs), "R": (ways, 3 * H, H), "B": (ways, 6 * H)}
    return [tensor(f"{name}{place}", rng.normal(0, 0.5, shape).astype(np.float32)) for name, shape in shapes.items()]


def gru(place: int, x: str, ways: int = 1, **options) -> onnx.NodeProto:
    names = [x, f"W{place}", f"R{place}", f"B{place}", options.pop("lengths", ""), options.pop("state", "")]
    options |= {"direction": "bidirectional"} if ways == 2 else {}
    return helper.make_node(
        "GRU", names, [f"y{place}"], name=f"gru{place}", hidden_size=H, linear_before_reset=1, **options
    )


def graph(nodes: list, constants: list[TensorProto], result: str, opset: int = 17, more: tuple = ()) -> bytes:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, None, D])
    y = helper.make_tensor_value_info(result, TensorProto.FLOAT, None)
    made = helper.make_graph(nodes, "graph", [x, *more], [y], initializer=constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8).SerializeToString()


def two(between: Callable[[str], list], ways: int = 1, more: tuple = (), **options) -> bytes:
    """Two GRUs, and between them what makes x1 of y0."""
    low, high = options.pop("low", {}), options.pop("high", {})
    constants = [*weights(0, ways, D), *weights(1, ways, ways * H)]
    constants += [tensor(name, value) for name, value in options.items()]
    return graph([gru(0, "x", ways, **low), *between("y0"), gru(1, "x1", ways, **high)], constants, "y1", more=more)


def node(kind: str, given: list[str], made: str, **options) -> onnx.NodeProto:
    return helper.make_node(kind, given, [made], **options)


ONE, SHAPE, TURNED = np.array([1]), np.array([0, 0, -1]), {"perm": [0, 2, 1, 3]}
CHAINED: dict[str, tuple[Callable[[str], list], int, dict]] = {
    "squeeze": (lambda y: [node("Squeeze", [y, "one"], "x1")], 1, {"one": ONE}),
    "reshape": (lambda y: [node("Transpose", [y], "t", **TURNED), node("Reshape", ["t", "shape"], "x1")], 2, {"shape": SHAPE}),
    "dropout": (
        lambda y: [node("Squeeze", [y, "one"], "s"), node("Dropout", ["s", "half", "no"], "x1")],
        1,
        {"one": ONE, "half": np.float32(0.5), "no": np.array(False)},
    ),
    "batch first": (
        lambda y: [node("Squeeze", [y, "one"], "s"), node("Identity", ["s"], "i"),
                   node("Transpose", ["i"], "t", perm=[1, 0, 2]), node("Transpose", ["t"], "x1", perm=[1, 0, 2])],
        1,
        {"one": ONE},
    ),
}  # fmt: skip
APART: dict[str, tuple[Callable[[str], list], int, dict]] = {
    "relu": (lambda y: [node("Squeeze", [y, "one"], "s"), node("Relu", ["s"], "x1")], 1, {"one": ONE}),
    "turned in time": (
        lambda y: [node("Squeeze", [y, "one"], "s"), node("Slice", ["s", "last", "least", "zero", "back"], "x1")],
        1,
        {"one": ONE, "last": np.array([-1]), "least": np.array([-(2**31)]), "zero": np.array([0]), "back": np.array([-1])},
    ),
    "time and sequence swapped": (
        lambda y: [node("Squeeze", [y, "one"], "s"), node("Transpose", ["s"], "x1", perm=[1, 0, 2])],
        1,
        {"one": ONE},
    ),
    "directions mixed": (lambda y: [node("Reshape", [y, "mixed"], "x1")], 2, {"mixed": np.array([0, -1, 2 * H])}),
    "directions swapped": (
        lambda y: [node("Transpose", [y], "t", perm=[0, 2, 3, 1]), node("Reshape", ["t", "shape"], "x1")],
        2,
        {"shape": SHAPE},
    ),
    "dropout in training": (
        lambda y: [node("Squeeze", [y, "one"], "s"), node("Dropout", ["s", "half", "yes"], "x1")],
        1,
        {"one": ONE, "half": np.float32(0.5), "yes": np.array(True)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", CHAINED)
def test_what_only_lays_out_anew_is_a_stack(how, tmp_path):
    between, ways, constants = CHAINED[how]
    content = two(between, ways, **constants)
    (tmp_path / "model.onnx").write_bytes(content)
    expected = run(content, X)
    expected = np.concatenate([expected[:, way] for way in range(ways)], axis=-1)
    made = tt.load(tmp_path / "model.onnx")
    assert isinstance(made, nn.GRU)
    np.testing.assert_allclose(made(torch.from_numpy(X))[0].detach(), expected, atol=1e-5)


@pytest.mark.parametrize("how", APART)
def test_what_does_anything_else_is_none(how, tmp_path):
    """Each operator is its own layer still."""
    between, ways, constants = APART[how]
    (tmp_path / "model.onnx").write_bytes(two(between, ways, **constants))
    assert not any(".." in name for each in layers(tmp_path / "model.onnx") for name in each.stacks)
    with pytest.raises(tt.ThroughtimeError, match=r"recurrent layers in .*name one"):
        tt.load(tmp_path / "model.onnx")
    assert tt.load(tmp_path / "model.onnx", layer="gru1").hidden_size == H


def test_operators_that_are_not_alike_are_none(tmp_path):
    lengths = helper.make_tensor_value_info("lengths", TensorProto.INT32, [None])
    between, ways, constants = CHAINED["squeeze"]
    for options, more in (
        ({"high": {"direction": "reverse"}}, ()),
        ({"low": {"lengths": "lengths"}}, (lengths,)),
    ):
        (tmp_path / "model.onnx").write_bytes(two(between, ways, more, **options, **constants))
        with pytest.raises(tt.ThroughtimeError, match="2 recurrent layers"):
            tt.load(tmp_path / "model.onnx")
    both = {"low": {"lengths": "lengths"}, "high": {"lengths": "lengths"}}
    (tmp_path / "model.onnx").write_bytes(two(between, ways, (lengths,), **both, **constants))
    assert isinstance(tt.load(tmp_path / "model.onnx"), nn.GRU)


def test_a_layer_that_feeds_two_is_the_last_of_its_stack(tmp_path):
    constants = [*weights(0, 1, D), *weights(1, 1, H), *weights(2, 1, H), *weights(3, 1, H), tensor("one", ONE)]
    nodes = [gru(0, "x"), node("Squeeze", ["y0", "one"], "x1"), gru(1, "x1"), node("Squeeze", ["y1", "one"], "x2"),
             gru(2, "x2"), gru(3, "x2")]  # fmt: skip
    (tmp_path / "model.onnx").write_bytes(graph(nodes, constants, "y3"))
    assert [dict(each.stacks) for each in layers(tmp_path / "model.onnx")] == [
        {"gru0..gru1": 0},
        {"gru0..gru1": 1},
        {},
        {},
    ]
    with pytest.raises(tt.ThroughtimeError, match=r"one of gru0, gru1, gru2, gru3, gru0\.\.gru1"):
        tt.load(tmp_path / "model.onnx")
    assert tt.load(tmp_path / "model.onnx", layer="gru0..gru1").num_layers == 2


def test_a_stack_of_other_cells_is_loaded_part_by_part(tmp_path):
    """torch stacks no GRU that resets before the product."""
    between, ways, constants = CHAINED["squeeze"]
    made = onnx.load_from_string(two(between, ways, **constants))
    for each in made.graph.node:
        kept = [attribute for attribute in each.attribute if attribute.name != "linear_before_reset"]
        del each.attribute[:]
        each.attribute.extend(kept)
    (tmp_path / "model.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(tt.ThroughtimeError, match=r"gru0\.\.gru1.*one by one"):
        tt.load(tmp_path / "model.onnx")


# --- states --------------------------------------------------------------------------------------------------------------

START = np.random.default_rng(5).normal(size=(2, 1, H)).astype(np.float32)
SIZE = [node("Shape", ["x"], "all"), node("Gather", ["all", "one"], "batch"),
        node("Concat", ["two", "batch", "width"], "wanted", axis=0)]  # fmt: skip
LENGTHS = {"one": ONE, "two": np.array([2]), "width": np.array([H])}
BEGUN: dict[str, tuple[list, dict, dict]] = {
    "as it stands": ([], {"h": START.repeat(B, 1)}, {}),
    "expanded": ([*SIZE, node("Expand", ["h0", "wanted"], "h")], {"h0": START, **LENGTHS}, {}),
    "batch first": ([], {"h": START.repeat(B, 1).swapaxes(0, 1)}, {"layout": 1}),
}


@pytest.mark.parametrize("how", BEGUN)
def test_a_state_in_the_graph(how, tmp_path):
    """onnxruntime runs no operator that is batch first: there the same state, time first, is the truth."""
    nodes, constants, options = BEGUN[how]
    (tmp_path / "model.onnx").write_bytes(content(nodes, constants, options))
    truth = BEGUN["as it stands"] if options else BEGUN[how]
    expected = run(content(*truth), X)
    made = tt.load(tmp_path / "model.onnx")
    output = made(torch.from_numpy(X))[0].detach()
    np.testing.assert_allclose(output, np.concatenate([expected[:, 0], expected[:, 1]], axis=-1), atol=1e-5)
    for way, end in enumerate(("", "_reverse")):
        one = tt.load(tmp_path / "model.onnx", layer=f"gru0_l0{end}")(torch.from_numpy(X))[0]
        np.testing.assert_allclose(one.detach(), expected[:, way], atol=1e-5)
    zero = tt.load(tmp_path / "model.onnx", initial_h="zero")(torch.from_numpy(X))[0].detach()
    assert (zero - output).abs().max() > 0.01


def content(nodes: list, constants: dict, options: dict) -> bytes:
    made = [tensor(name, value) for name, value in constants.items()]
    return graph([*nodes, gru(0, "x", 2, state="h", **options)], [*weights(0, 2, D), *made], "y0")


@pytest.mark.parametrize(
    ("nodes", "constants", "words"),
    [
        ([], {"h": np.concatenate([START, 2 * START], axis=1)}, "of its own for each of 2 sequences"),
        ([], {"h": START[:1]}, r"an initial state of shape \(1, 1, 4\)"),
        ([*SIZE, node("Expand", ["h0", "wanted"], "h")], {"h0": START[0], **LENGTHS}, r"of shape \(1, 2, 4\)"),
        ([node("Tanh", ["h0"], "h")], {"h0": START}, "that the graph computes"),
        ([*SIZE, node("ConstantOfShape", ["wanted"], "h", value=tensor("", np.float32([0.5])))], LENGTHS,
         "that the graph computes"),
        ([node("Reshape", ["e", "shape"], "h"), node("Expand", ["h0", "wanted"], "e")],
         {"h0": START, "wanted": np.array([2, 3, H]), "shape": np.array([2, 3, H])}, "that the graph computes"),
    ],
    ids=["by sequence", "shape", "expanded from fewer", "computed", "filled", "of fixed size"],
)  # fmt: skip
def test_states_that_are_not_read_are_refused_by_name(nodes, constants, words, tmp_path):
    (tmp_path / "model.onnx").write_bytes(content(nodes, constants, {}))
    with pytest.raises(tt.ThroughtimeError, match=words):
        tt.load(tmp_path / "model.onnx")


def test_a_state_of_zeros_and_one_that_is_given_are_none(tmp_path):
    for nodes, constants, more in (
        ([*SIZE, node("ConstantOfShape", ["wanted"], "h")], LENGTHS, ()),
        ([], {}, (helper.make_tensor_value_info("h", TensorProto.FLOAT, [2, None, H]),)),
    ):
        made = [tensor(name, value) for name, value in constants.items()]
        nodes = [*nodes, gru(0, "x", 2, state="h")]
        (tmp_path / "model.onnx").write_bytes(graph(nodes, [*weights(0, 2, D), *made], "y0", more=more))
        assert isinstance(tt.load(tmp_path / "model.onnx"), nn.GRU)


@cache
def whole() -> bytes:
    return exported(Model("GRU", True, num_layers=2, bidirectional=True))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_stacks_end_in_the_librarys_own_error(data, tmp_path):
    damaged = bytearray(whole())
    for _ in range(data.draw(st.integers(0, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "model.onnx").write_bytes(bytes(damaged))
    with contextlib.suppress(tt.ThroughtimeError):  # and no other
        tt.load(tmp_path / "model.onnx")


def test_a_ring_of_operators_ends(tmp_path):
    """A damaged graph may feed an operator with itself."""
    nodes = [node("Squeeze", ["y0", "one"], "x0"), gru(0, "x0"), node("Identity", ["a"], "b"), node("Identity", ["b"], "a"),
             gru(1, "a", state="b")]  # fmt: skip
    constants = [*weights(0, 1, H), *weights(1, 1, H), tensor("one", ONE)]
    (tmp_path / "model.onnx").write_bytes(graph(nodes, constants, "y0"))
    assert [each.name for each in layers(tmp_path / "model.onnx")] == ["gru0", "gru1"]


def test_a_small_file_makes_no_large_layout(tmp_path):
    """Units that are claimed, arrays that double, and long ways between two operators: no stack, at once, in little memory."""
    between, ways, constants = CHAINED["squeeze"]
    made = onnx.load_from_string(two(between, ways, **constants))
    for each in made.graph.node:
        for attribute in each.attribute:
            if attribute.name == "hidden_size":
                attribute.i = 10**15

    def doubled(y: str) -> list:
        pairs = pairwise([*(f"d{place}" for place in range(60)), "x1"])
        return [node("Squeeze", [y, "one"], "d0"), *(node("Concat", [low, low], high, axis=2) for low, high in pairs)]

    def long(y: str) -> list:
        pairs = pairwise([*(f"i{place}" for place in range(1000)), "x1"])
        return [node("Squeeze", [y, "one"], "i0"), *(node("Identity", [low], high) for low, high in pairs)]

    for content in (
        made.SerializeToString(),
        two(doubled, ways, **constants),
        two(long, ways, **constants),
    ):
        (tmp_path / "model.onnx").write_bytes(content)
        assert [each.name for each in layers(tmp_path / "model.onnx")] == ["gru0", "gru1"]
        with pytest.raises(tt.ThroughtimeError, match="2 recurrent layers"):
            tt.load(tmp_path / "model.onnx")
