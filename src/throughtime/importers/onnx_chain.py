"""Recurrent operators of an ONNX graph that are one stack: what the one puts out is the next one's input, only laid out anew.

Torch exports num_layers > 1 so: an operator a layer, between them Squeeze, or Transpose and Reshape for both directions, and
Dropout, which does nothing at inference. That nothing else happens is shown by laying out numbers that say where they were.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from throughtime.importers.onnx_fold import Folder

MOVES = {"Identity", "Transpose", "Squeeze", "Unsqueeze", "Reshape", "Concat", "Dropout"}
"""Operators that may stand between: none that leaves out or takes twice."""
SIZES = ((3, 2), (2, 5))
"""Steps and sequences at which the layout is tried."""
STANDARD = ("", "ai.onnx")
MOST, WIDEST, LONGEST = 1_000, 2**16, 100
"""Operators, units and names between two operators beyond which no stack is looked for: a small file may claim any."""


@dataclass
class Between(Folder):
    """A folder to which the value of one name is given."""

    given: dict[str, np.ndarray] = field(default_factory=dict)

    def value(self, name: str, scope: Mapping[str, Any], depth: int = 0) -> np.ndarray | None:
        """As of `Folder`."""
        return self.given[name] if name in self.given else super().value(name, scope, depth)

    def _make(self, maker: Any, scope: Mapping[str, Any], depth: int) -> np.ndarray | None:
        kind = getattr(maker, "op_type", "Constant")
        if kind == "Dropout" and maker.domain in STANDARD:
            training = (
                self.value(maker.input[2], scope, depth + 1) if len(maker.input) > 2 and maker.input[2] else False
            )
            return None if training is None or np.any(training) else self.value(maker.input[0], scope, depth + 1)
        return super()._make(maker, scope, depth) if kind == "Constant" or kind in MOVES else None


@dataclass(frozen=True)
class Shape:
    """What a recurrent operator says of its arrays. units: H. lengths: the name of sequence_lens, or ""."""

    kind: str
    units: int
    directions: int
    batch_first: bool
    lengths: str


def shape_of(node: Any) -> Shape | None:
    """The operator's, None for one that reads only from the end, or does not say its units."""
    from onnx.helper import get_attribute_value

    said = {each.name: get_attribute_value(each) for each in node.attribute}
    ways = {b"forward": 1, b"bidirectional": 2}.get(said.get("direction", b"forward"))
    units = said.get("hidden_size")
    if not ways or not isinstance(units, int) or not 1 <= units <= WIDEST:
        return None
    lengths = node.input[4] if len(node.input) > 4 else ""
    return Shape(node.op_type, units, ways, bool(said.get("layout", 0)), lengths)


def chains(held: list[Any]) -> dict[str, list[Any]]:
    """Operators (`throughtime.importers.onnx.Operator`) that are one stack, from the input on, by a name for each stack."""
    if len(held) > MOST:
        return {}
    shapes = [shape_of(each.node) for each in held]
    makers = {id(each.node): place for place, each in enumerate(held)}
    below = {place: _below(held, shapes, makers, place) for place in range(len(held))}
    read = Counter(place for place in below.values() if place is not None)
    above = {low: place for place, low in below.items() if low is not None and read[low] == 1}
    made = {}
    for start in range(len(held)):
        if start not in above or below[start] in above:
            continue
        run = [start]
        while run[-1] in above:
            run.append(above[run[-1]])
        made[f"{held[run[0]].name}..{held[run[-1]].name}"] = [held[place] for place in run]
    return made


def _below(held: list[Any], shapes: list[Shape | None], makers: dict[int, int], place: int) -> int | None:
    """The operator whose whole output is the input of this one, and of the same kind; None where there is none."""
    each, mine = held[place], shapes[place]
    if mine is None or not each.node.input:
        return None
    name = _source(each.node.input[0], each.scope, makers)
    if name is None:
        return None
    low = makers[id(each.scope[name])]
    theirs = shapes[low]
    alike = theirs is not None and (theirs.kind, theirs.units, theirs.directions) == (
        mine.kind,
        mine.units,
        mine.directions,
    )
    if not alike or theirs is None or theirs.lengths != mine.lengths or held[low].around != each.around:
        return None
    return low if all(_lies(each, name, theirs, mine, *sizes) for sizes in SIZES) else None


def _source(name: str, scope: Mapping[str, Any], makers: dict[int, int]) -> str | None:
    """The one recurrent operator's output of which this name is made by `MOVES` and constants alone."""
    waiting, seen, found = [name], set(), set()
    while waiting:
        each = waiting.pop()
        if not each or each in seen:
            continue
        if len(seen) == LONGEST:
            return None
        seen.add(each)
        maker: Any = scope.get(each)
        if id(maker) in makers and each == maker.output[0]:
            found.add(each)
        elif (
            hasattr(maker, "op_type")
            and maker.op_type in MOVES
            and maker.domain in STANDARD
            and each == maker.output[0]
        ):
            waiting += maker.input
        elif maker is None or (hasattr(maker, "op_type") and maker.op_type != "Constant"):
            return None
    return found.pop() if len(found) == 1 else None


def _lies(each: Any, name: str, low: Shape, high: Shape, steps: int, sequences: int) -> bool:
    """Whether the input holds every number of that output at its own step and sequence, directions side by side."""
    where = np.arange(steps * sequences * low.directions * low.units).reshape(
        steps, sequences, low.directions, low.units
    )
    wanted = where.reshape(steps, sequences, -1)
    given = where.swapaxes(0, 1) if low.batch_first else where.transpose(0, 2, 1, 3)
    try:
        made = Between(left=LONGEST * given.nbytes, given={name: given}).value(each.node.input[0], each.scope)
    except (
        Exception
    ):  # numpy's, for sizes that a graph does not allow, onnx's, for damaged operators, and too many bytes
        return False
    return made is not None and np.array_equal(made.swapaxes(0, 1) if high.batch_first else made, wanted)
