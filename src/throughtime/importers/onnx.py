"""ONNX: the GRU, LSTM and RNN operators of a graph, at any depth (extra: onnx). Nothing is run, and no other file is opened.

W (directions, G·H, D), R (directions, G·H, H) and B (directions, 2·G·H) must stand in the file, as initializers or Constants,
perhaps rearranged by operators that only move numbers (`throughtime.importers.onnx_fold`).
Gates are stacked z, r, h (GRU) and i, o, f, c (LSTM); `linear_before_reset` says where a GRU resets; z keeps. Source: the
operators' specification, https://onnx.ai/onnx/operators/.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from throughtime.cells.activations import CANDIDATES, told
from throughtime.cells.activations import GATES as GATE_FUNCTIONS
from throughtime.errors import InputError, MissingExtraError
from throughtime.importers import importer
from throughtime.importers.convention import PEEPHOLE
from throughtime.importers.importer import Found, Importer
from throughtime.importers.onnx_chain import chains
from throughtime.importers.onnx_fold import Folder
from throughtime.importers.onnx_state import initial_state

GATES = {"GRU": "zrn", "LSTM": "iofg", "RNN": ""}
PLAIN = {"GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}
"""Activations of one direction that are the cell's own."""
FUNCTIONS = {"Sigmoid": "sigmoid", "HardSigmoid": "hard-sigmoid", "Tanh": "tanh", "Relu": "relu"}
RECURRENT = {"RNN": {"Tanh": "rnn-tanh", "Relu": "rnn-relu"}}
QUANTIZED = "DynamicQuantizeLSTM"
DEEPEST = 20  # levels of nested graphs that are looked into
REFUSED = {"clip": "clipped pre-activations", "input_forget": "coupled input and forget gates"}


class Onnx(Importer):
    """A .onnx file: a serialized ModelProto."""

    name: ClassVar[str] = "ONNX (.onnx)"
    extra: ClassVar[str] = "onnx"
    refuses: ClassVar[str] = (
        "clip, input_forget, other activations, initial states that are computed, DynamicQuantizeLSTM, external data"
    )

    def reads(self, path: Path, head: bytes) -> bool:
        # Field 1 of a ModelProto, its version, a small varint; the format has no magic number.
        return (
            len(head) > 4
            and head[0] == 0x08
            and head[1] < 0x20
            and head[2] in (0x12, 0x1A, 0x22, 0x2A, 0x32, 0x3A, 0x42)
        )

    def layers(self, path: Path, trust: bool, also: frozenset[str] = frozenset()) -> list[Found]:
        graph = read(path).graph
        try:
            folder, held = Folder(), operators(graph)
            place = {each.name: {name: level} for name, run in chains(held).items() for level, each in enumerate(run)}
            return [
                replace(layer, stacks=place.get(each.name, {}) | dict(layer.stacks))
                for each in held
                for layer in _layers(each, folder)
            ]
        except InputError:
            raise
        except (
            Exception
        ) as error:  # a message may be whole and its parts of any kind: names that are no text, no lengths
            said = (str(error) or type(error).__name__).partition("\n")[0]
            raise InputError(
                f"{path}, a damaged graph: {said[:200]}", "a whole .onnx file", "export it anew"
            ) from error


def read(path: Path) -> Any:
    """The model of the file, as onnx has it. Raises InputError for what cannot be read, MissingExtraError without onnx."""
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("no module onnx", "the extra [onnx]", "pip install 'throughtime[onnx]'") from error
    size = path.stat().st_size
    if size > importer.LARGEST:
        raise InputError(f"{size:,} bytes in {path}", f"at most {importer.LARGEST:,}", "check the file")
    try:
        return onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own
        said = (str(error) or type(error).__name__).partition("\n")[0]
        raise InputError(
            f"{path}, which cannot be read: {said[:200]}", "a whole .onnx file", "export it anew"
        ) from error


class Operator(NamedTuple):
    """A recurrent operator of a graph, at any depth.

    scope: what makes each name that it can see, an initializer or a node. around: the nodes whose nested graphs it stands
    in, the outermost first, each with the attribute and the graph.
    """

    name: str
    node: Any
    scope: dict[str, Any]
    around: tuple[tuple[Any, str, Any], ...]


def operators(graph: Any) -> list[Operator]:
    """Every recurrent operator, in the graph's order; the branches of an If may use the same names, which are numbered."""
    seen, made = Counter(), []
    for each in _operators(graph, {}, ()):
        seen[each.name] += 1
        number = seen[each.name]
        made.append(each._replace(name=each.name + (f"#{number}" if number > 1 else "")))
    return made


def _operators(graph: Any, above: dict[str, Any], around: tuple[tuple[Any, str, Any], ...]) -> Iterator[Operator]:
    hidden = dict.fromkeys([each.name for each in graph.input] if around else [])  # a body's inputs are no constants
    scope = above | hidden | {each.name: each for each in graph.initializer}
    for node in graph.node:
        scope |= dict.fromkeys(filter(None, node.output), node)
    for place, node in enumerate(graph.node):
        name = node.name or f"{node.op_type}_{place}"
        if (node.op_type in GATES and node.domain in ("", "ai.onnx")) or node.op_type == QUANTIZED:
            yield Operator(name, node, scope, around)
        for attribute in node.attribute if len(around) < DEEPEST else ():
            for inner in [attribute.g] if attribute.HasField("g") else list(attribute.graphs):
                yield from _operators(inner, scope, (*around, (node, attribute.name, inner)))


def _layers(operator: Operator, folder: Folder) -> Iterator[Found]:
    """One layer a direction."""
    from onnx.helper import get_attribute_value

    name, node = operator.name, operator.node
    if node.op_type == QUANTIZED:
        yield Found(name, {}, refused="a DynamicQuantizeLSTM, whose weights are integers of onnxruntime's own")
        return
    said = {each.name: get_attribute_value(each) for each in node.attribute}
    given = [*node.input, *[""] * 8]
    direction = said.get("direction", b"forward").decode()
    names = {"forward": [""], "reverse": [""], "bidirectional": ["", "_reverse"]}.get(direction, [])
    arrays = (folder.value(given[place], operator.scope) for place in (1, 2, 3, 7))
    W, R, B, P = (None if each is None else _weights(each) for each in arrays)
    refused = _why_not(said, given, [W, R, B], len(names))
    states: dict[str, np.ndarray] = {}
    for place, role in ((5, "initial_h"), (6, "initial_c")):
        batch_first = bool(said.get("layout", 0))
        state, why = initial_state(given[place], operator.scope, folder, len(names), batch_first)
        refused = refused or why
        if state is not None:
            states[role] = _weights(state)
    if given[7] and not refused and (P is None or P.ndim != 2 or len(P) != len(names) or P.shape[1] % 3):
        refused = "peepholes that are no constants of the graph, or not of the operator's shape"
    if refused or W is None or R is None:
        yield Found(name, {}, refused=refused)
        return
    activations = [each.decode() for each in said.get("activations", [])]
    kinds = len(activations) // len(names) if activations else 0
    for place, way in enumerate(names):
        roles = {"weight_ih": W[place], "weight_hh": R[place]}
        if B is not None:
            roles["bias_ih"], roles["bias_hh"] = np.split(B[place], 2)
        roles |= {role: state[place] for role, state in states.items()}
        if P is not None:
            i, o, f = np.split(P[place], 3)
            roles[PEEPHOLE] = np.concatenate((i, f, o))
        own = activations[place * kinds : (place + 1) * kinds] or PLAIN.get(node.op_type, ["Tanh"])
        stated = {
            "layout": "W@x",
            "cell": RECURRENT["RNN"].get(own[0], "") if node.op_type == "RNN" else node.op_type.lower(),
        }
        if node.op_type == "GRU":
            stated |= {"reset": "after" if said.get("linear_before_reset", 0) else "before", "z": "keeps"}
        if GATES[node.op_type]:
            stated["gates"] = GATES[node.op_type]
        functions = _functions(own, said) if node.op_type in PLAIN else {}
        stated |= functions or {}
        other = functions is None or not stated["cell"]
        words = f"activations {', '.join(own)}, which cannot be explained yet" if other else ""
        backwards, stacks = direction == "reverse" or bool(way), {name: 0} if len(names) > 1 else {}
        own_name = f"{name}_l0{way}" if stacks else name
        yield Found(own_name, roles, stated, reverse=backwards, refused=words, stacks=stacks)


def _functions(own: list[str], said: dict[str, Any]) -> dict[str, str] | None:
    """The functions of the gate, the candidate and an LSTM's output, those of our cells that they are; {} for the usual
    ones, None for others."""
    gate, candidate, *shown = (FUNCTIONS.get(name) for name in own)
    if gate not in GATE_FUNCTIONS or not {candidate, *shown} <= set(CANDIDATES):
        return None
    if gate == "hard-sigmoid" and (said.get("activation_alpha") or said.get("activation_beta")):
        return None  # of another slope
    return told(str(gate), str(candidate), str(shown[0]) if shown else "")


def _why_not(
    said: dict[str, Any],
    given: list[str],
    stacked: list[np.ndarray | None],
    directions: int,
) -> str:
    """Why an operator cannot be loaded, or "". given: names of its inputs; stacked: W, R and B."""
    if any(value is None for value, name in zip(stacked, given[1:4], strict=True) if name):
        return "whose weights do not stand in the file (computed in the graph, or external data)"
    sets = {len(value) for value in stacked if value is not None}
    if sets != {directions}:
        return f"direction {said.get('direction', b'forward').decode()!r} with {min(sets)} sets of weights"
    for option, words in REFUSED.items():
        if said.get(option):
            return f"{words}, which cannot be explained yet"
    return ""


def _weights(value: np.ndarray) -> np.ndarray:
    """Half precision as float32."""
    return value.astype(np.float32) if value.dtype == np.float16 else value
