"""What a recurrent operator is really given: an ONNX graph run up to it (extra: onnx), only at the user's word.

The operators that lead to the operator's input X, its initial states and the lengths of its sequences are taken out of the
file and run by onnxruntime, nothing else of it. Where the operator stands in the branch of an If, the condition is run first,
and the branch must be the one taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from throughtime.errors import InputError, MissingExtraError, UnsupportedError
from throughtime.importers.onnx import DEEPEST, Operator, operators, read
from throughtime.importers.onnx_chain import chains
from throughtime.importers.onnx_fold import Folder
from throughtime.importers.onnx_state import initial_state

STANDARD = ("", "ai.onnx")


class Arguments(NamedTuple):
    """What an operator is given, for the layer that `throughtime.load` makes of it.

    x: (T, B, D). state: (N, B, H), a pair for an LSTM; None where it is zero, or stands in the file, where the layer begins
    anyhow. lengths: (B,) of the sequences, None where all are T.
    """

    x: Tensor
    state: Tensor | tuple[Tensor, Tensor] | None
    lengths: Tensor | None

    def given_to(self, layer: nn.Module) -> nn.Module:
        """The layer as a module that is called with x alone, and is given the rest; itself where there is no more."""
        return layer if self.state is None and self.lengths is None else AsInGraph(layer, self.state, self.lengths)


class AsInGraph(nn.Module):
    """A layer given its operator's states and lengths: x (T, B, D) to (output, states); outputs beyond a length are zero."""

    def __init__(self, layer: nn.Module, state: Tensor | tuple[Tensor, Tensor] | None, lengths: Tensor | None) -> None:
        super().__init__()
        self.rnn, self.state, self.lengths = layer, state, lengths

    def forward(self, x: Tensor) -> tuple:
        """See the class."""
        if self.lengths is None:
            return self.rnn(x, self.state)
        output, last = self.rnn(pack_padded_sequence(x, self.lengths, enforce_sorted=False), self.state)
        return pad_packed_sequence(output, total_length=len(x))[0], last


def input_of(file: str | Path, data: Mapping[str, np.ndarray], layer: str | None = None) -> Tensor:
    """What the operator reads when the graph is given `data`: x (T, B, D) of `arguments_of`."""
    return arguments_of(file, data, layer).x


def arguments_of(file: str | Path, data: Mapping[str, np.ndarray], layer: str | None = None) -> Arguments:
    """All that the operator is given when the graph is given `data`, for the layer that `throughtime.load` makes.

    data: arrays by the names of the graph's inputs; those that are not needed may be left out. layer: as of
    `throughtime.load`; may be left out where the file holds one operator, or one stack. The operators run are the file's own
    and take the memory that they ask for.

    Raises InputError for names, shapes and types that do not fit, and where the operator stands in a branch not taken;
    UnsupportedError for loops around it, external data, and operators that are not the standard's.
    """
    path = Path(file)
    model = read(path)
    run, ways = _named(operators(model.graph), layer, str(path))
    first = run[0]
    if not isinstance(data, Mapping):
        raise InputError(f"data of type {type(data).__name__}", "arrays by the graph's inputs", "pass a dict, or .npz")
    given = {name: np.asarray(value) for name, value in data.items()}
    unknown = sorted(set(given) - {each.name for each in model.graph.input})
    if unknown:
        names = ", ".join(each.name for each in model.graph.input)
        raise InputError(
            f"data named {', '.join(map(repr, unknown))}", f"names of the graph's inputs: {names}", "rename the arrays"
        )
    graphs = [model.graph]
    for node, branch, inner in first.around:
        if node.op_type != "If" or node.domain not in STANDARD:
            raise UnsupportedError(
                f"{first.name}, inside a {node.op_type}", "an operator outside of loops", "give the layer's own input"
            )
        taken = bool(np.all(_run(model, graphs, node.input[0], given)))
        if branch != ("then_branch" if taken else "else_branch"):
            raise InputError(
                f"data for which {node.name or 'an If'} takes its other branch than that of {first.name}",
                "data that reach the operator",
                "name the operator of the other branch (--layer), or change the data",
            )
        graphs.append(inner)
    x = _run(model, graphs, first.node.input[0], given)
    if x.ndim != 3 or x.dtype.kind != "f":
        raise InputError(
            f"an input of {first.name} of shape {x.shape}, {x.dtype}", "floats (T, B, D)", "check the file"
        )
    x = _float(x.swapaxes(0, 1) if _batch_first(first) else x)
    return Arguments(
        x, _states(model, graphs, run, ways, given, x.shape[1]), _lengths(model, graphs, first, given, x.shape[:2])
    )


def _states(
    model: Any, graphs: list[Any], run: list[Operator], ways: slice, given: Mapping[str, np.ndarray], sequences: int
) -> Tensor | tuple[Tensor, Tensor] | None:
    """The states (N, B, H) that the operators are given, see `Arguments`. Raises InputError as `arguments_of` does."""
    told, rows = False, []
    for place in (5, 6) if run[0].node.op_type == "LSTM" else (5,):
        rows.append([])
        for each in run:
            name = _read(each, place)
            value = _run(model, graphs, name, given) if name else None
            if value is not None:
                value = value.swapaxes(0, 1) if _batch_first(each) and value.ndim == 3 else value
                if value.ndim != 3 or value.shape[1] != sequences or value.dtype.kind != "f":
                    raise InputError(
                        f"a state of {each.name} of shape {value.shape}, {value.dtype}",
                        f"floats (directions, {sequences}, H)",
                        "check the file",
                    )
                stands = initial_state(name, each.scope, Folder(), len(value), _batch_first(each))[0]
                told |= stands is None and bool(value.any())
            rows[-1].append(None if value is None else _float(value[ways]))
    if not told:
        return None
    like = next(part for row in rows for part in row if part is not None)
    whole = [torch.cat([torch.zeros_like(like) if part is None else part for part in row]) for row in rows]
    return whole[0] if len(whole) == 1 else (whole[0], whole[1])


def _lengths(
    model: Any, graphs: list[Any], operator: Operator, given: Mapping[str, np.ndarray], shape: tuple[int, ...]
) -> Tensor | None:
    """The lengths (B,) of sequences of shape (T, B), None where all are T. Raises InputError for others."""
    name = _read(operator, 4)
    if not name:
        return None
    value = _run(model, graphs, name, given)
    if value.shape != shape[1:] or value.dtype.kind not in "iu" or value.min() < 1 or value.max() > shape[0]:
        raise InputError(
            f"lengths {value.tolist()} of {operator.name}", f"{shape[1]} from 1 to {shape[0]}", "change the data"
        )
    return None if (value == shape[0]).all() else torch.from_numpy(value.astype(np.int64))


def _read(operator: Operator, place: int) -> str:
    """The name of an operand, or ""."""
    return operator.node.input[place] if len(operator.node.input) > place else ""


def _batch_first(operator: Operator) -> bool:
    return any(each.name == "layout" and bool(each.i) for each in operator.node.attribute)


def _float(value: np.ndarray) -> Tensor:
    """A copy, half precision as float32."""
    return torch.from_numpy(np.array(value, np.float32 if value.dtype == np.float16 else value.dtype, order="C"))


def _named(held: list[Operator], layer: str | None, file: str) -> tuple[list[Operator], slice]:
    """The operators of that layer, those of a stack from the input on, and which of their directions it is."""
    stacks = chains(held)
    for name, run in stacks.items():
        if layer == name or (layer is None and len(run) == len(held)):
            return run, slice(None)
    ends = {"": slice(None), "_l0": slice(0, 1), "_l0_reverse": slice(1, 2)}
    fit = [(each, end) for each in held for end in ends if layer is None or layer == each.name + end]
    if len({each.name for each, _ in fit}) != 1:
        names = ", ".join([each.name for each in held] + list(stacks))
        raise InputError(
            f"{len(held)} recurrent operators in {file}" if layer is None else f"layer {layer!r}",
            f"one of {names}" if names else "a GRU, LSTM or RNN operator",
            "name one: layer (--layer)",
        )
    return [fit[0][0]], ends[fit[0][1]]


def _run(model: Any, graphs: list[Any], name: str, given: Mapping[str, np.ndarray]) -> np.ndarray:
    """The value of a name in these graphs, each inside the one before. Raises InputError and UnsupportedError."""
    if name in given:
        return given[name]
    part = _part(model, graphs, name)
    missing = [each.name for each in part.graph.input if each.name not in given]
    if missing:
        raise InputError(f"no data for the graph's input {', '.join(missing)}", f"arrays named {', '.join(missing)}",
                         "add them to the data")  # fmt: skip
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError(
            "no module onnxruntime", "the extra [onnx]", "pip install 'throughtime[onnx]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        content = part.SerializeToString()
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return np.asarray(session.run([name], {each.name: given[each.name] for each in part.graph.input})[0])
    except Exception as error:  # onnxruntime's own: shapes, types, operators that it lacks
        said = (str(error) or type(error).__name__).partition("\n")[0]
        raise InputError(
            f"a graph that does not run on these data: {said[:300]}", "data as the graph declares it", "check them"
        ) from error


def _part(model: Any, graphs: list[Any], name: str) -> Any:
    """A model of the operators alone that lead to this name."""
    from onnx import helper

    inputs = {each.name: each for each in graphs[0].input}
    tensors = {each.name: each for graph in graphs for each in graph.initializer}
    nodes = [node for graph in graphs for node in graph.node]
    makers = {output: place for place, node in enumerate(nodes) for output in node.output if output}
    needed, places, waiting = set(), set(), [name]
    while waiting:
        each = waiting.pop()
        if each in needed:
            continue
        needed.add(each)
        if each in makers and makers[each] not in places:
            places.add(makers[each])
            waiting += _reads(nodes[makers[each]])
        elif each not in makers and each not in tensors and each not in inputs:
            raise InputError(f"{each!r}, which nothing in the graph makes", "a whole graph", "export it anew")
    graph = helper.make_graph(
        [nodes[place] for place in sorted(places)],
        "part",
        [value for key, value in inputs.items() if key in needed and key not in tensors],
        [helper.make_empty_tensor_value_info(name)],
        initializer=[value for key, value in tensors.items() if key in needed and key not in makers],
    )
    opsets = [each for each in model.opset_import if each.domain in STANDARD]
    part = helper.make_model(graph, opset_imports=opsets, ir_version=model.ir_version)
    for message in _messages(part):
        kind = message.DESCRIPTOR.name
        if kind == "TensorProto" and (message.data_location == message.EXTERNAL or message.external_data):
            raise UnsupportedError(
                f"{message.name or 'a tensor'}, whose data lie in another file",
                "weights in the file itself",
                "save it as one file: onnx.save(model, path)",
            )
        if kind == "NodeProto" and message.domain not in STANDARD:
            raise UnsupportedError(
                f"the operator {message.domain}.{message.op_type}",
                "the standard's operators alone",
                "give the layer's own input instead",
            )
    return part


def _reads(node: Any, depth: int = 0) -> Iterator[str]:
    """The names that a node reads: its inputs, and what its nested graphs take from around them."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for graph in [attribute.g] if attribute.HasField("g") else list(attribute.graphs):
            if depth > DEEPEST:
                raise UnsupportedError(f"more than {DEEPEST} graphs in one another", "fewer", "check the file")
            own = {each.name for each in [*graph.input, *graph.initializer]}
            own |= {output for each in graph.node for output in each.output}
            read = {name for each in graph.node for name in _reads(each, depth + 1)}
            yield from (read | {each.name for each in graph.output}) - own


def _messages(message: Any) -> Iterator[Any]:
    """A message and all those in it."""
    waiting = [message]
    while waiting:
        each = waiting.pop()
        yield each
        for described, value in each.ListFields():
            if described.message_type is not None:
                waiting += [value] if hasattr(value, "ListFields") else list(value)
