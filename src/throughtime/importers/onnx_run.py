"""The real input of a recurrent operator: an ONNX graph run up to it (extra: onnx), only at the user's word.

The operators that lead to the operator's input X are taken out of the file and run by onnxruntime, nothing else of it. Where
the operator stands in the branch of an If, the condition is run first, and the branch must be the one taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from throughtime.errors import InputError, MissingExtraError, UnsupportedError
from throughtime.importers.onnx import DEEPEST, Operator, operators, read

STANDARD = ("", "ai.onnx")


def input_of(file: str | Path, data: Mapping[str, np.ndarray], layer: str | None = None) -> Tensor:
    """What the operator reads when the graph is given `data`: x (T, B, D), for the layer that `throughtime.load` makes.

    data: arrays by the names of the graph's inputs; those that X does not need may be left out. layer: as of
    `throughtime.load`; may be left out where the file holds one operator. The operators run are the file's own and take
    the memory that they ask for. States that the graph is given are not part of x: the loaded layer begins at zero.

    Raises InputError for names, shapes and types that do not fit, and where the operator stands in a branch not taken;
    UnsupportedError for loops around it, external data, and operators that are not the standard's.
    """
    path = Path(file)
    model = read(path)
    found = _named(operators(model.graph), layer, str(path))
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
    for node, branch, inner in found.around:
        if node.op_type != "If" or node.domain not in STANDARD:
            raise UnsupportedError(
                f"{found.name}, inside a {node.op_type}", "an operator outside of loops", "give the layer's own input"
            )
        taken = bool(np.all(_run(model, graphs, node.input[0], given)))
        if branch != ("then_branch" if taken else "else_branch"):
            raise InputError(
                f"data for which {node.name or 'an If'} takes its other branch than that of {found.name}",
                "data that reach the operator",
                "name the operator of the other branch (--layer), or change the data",
            )
        graphs.append(inner)
    x = _run(model, graphs, found.node.input[0], given)
    if x.ndim != 3 or x.dtype.kind != "f":
        raise InputError(
            f"an input of {found.name} of shape {x.shape}, {x.dtype}", "floats (T, B, D)", "check the file"
        )
    if any(each.name == "layout" and each.i for each in found.node.attribute):
        x = x.swapaxes(0, 1)
    return torch.from_numpy(np.ascontiguousarray(x.astype(np.float32) if x.dtype == np.float16 else x))


def _named(held: list[Operator], layer: str | None, file: str) -> Operator:
    """The operator of that layer: its own name, or that of one of its directions."""
    ends = ("", "_l0", "_l0_reverse")
    fit = [each for each in held if layer is None or layer in [each.name + end for end in ends]]
    if len(fit) != 1:
        names = ", ".join(each.name for each in held)
        raise InputError(
            f"{len(held)} recurrent operators in {file}" if layer is None else f"layer {layer!r}",
            f"one of {names}" if names else "a GRU, LSTM or RNN operator",
            "name one: layer (--layer)",
        )
    return fit[0]


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
