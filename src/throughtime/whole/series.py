"""Total lag where one sweep in lag order does not do: stacks in both directions, several modules in series.

A gradient that enters at step t of the sequence, in its own real time, may reach a layer at an earlier or at a later step k:
its **offset** is δ = t − k, from the past where it is positive, from ahead where it is negative. Origins go through the parts
in blocks, from the top: each part streams all of its steps, tells its terms, and sends what its inputs get to what lies
below. Nothing of the size steps × steps × batch × units is ever held. Sums and results: `throughtime.whole.offsets`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from throughtime.cells.cell import Pulled, Weights
from throughtime.linearize import Linearization
from throughtime.recording.layout import flipped
from throughtime.recording.run import Run
from throughtime.recording.traces import at_carries, parts_of
from throughtime.scaled import norms
from throughtime.trace import Trace

BLOCK = 2**22
"""Numbers that one array of a block of origins may hold; a block has one origin a sequence at least."""


@dataclass(frozen=True)
class Part:
    """One layer and direction: its trace, time running as it does in it, and what enters its carries (T, B, C) from
    outside of the series."""

    trace: Trace
    entering: Tensor

    @cached_property
    def real(self) -> Tensor:
        """(T, B) the step of the sequence at each of its own steps, and the other way round; padding stays where it is."""
        trace = self.trace
        step = torch.arange(trace.steps, device=trace.x.device)[:, None].expand(-1, trace.batch)
        if not trace.reverse:
            return step
        lengths = torch.full((trace.batch,), trace.steps) if trace.lengths is None else trace.lengths
        lengths = lengths.to(step.device)
        return torch.where(step < lengths, lengths - 1 - step, step)

    def turned(self, value: Tensor) -> Tensor:
        """(T, S, B, …) from the part's own time to that of the sequence, or back."""
        if not self.trace.reverse:
            return value
        at = self.real[:, None, :].reshape(*self.real.shape[:1], 1, -1, *(1,) * (value.ndim - 3))
        return value.gather(0, at.expand(value.shape))


@dataclass(frozen=True)
class Sent:
    """To a level: (T, S, B, W) at its outputs, in the time of the sequence; or, where part and state are given, (S, B, width)
    at the last state that this part makes. moved: whether some of it may have come from another step."""

    level: int
    value: Tensor
    part: int | None = None
    state: int = 0
    moved: bool = False


class Way(Protocol):
    """What lies between the inputs of a level and what is below."""

    def back(self, at_input: Tensor) -> Iterator[Sent]:
        """What lower levels get of (T, S, B, D) at the inputs, S origins a sequence."""
        ...


@dataclass(frozen=True)
class Level:
    """Parts that read one input: one, or both directions, whose outputs stand side by side. below: ways to lower levels."""

    parts: tuple[Part, ...]
    below: tuple[Way, ...] = ()


@dataclass(frozen=True)
class Masked:
    """A layer of a stack: the next level, through the mask (T, B, W) of the dropout between them, or None."""

    place: int
    mask: Tensor | None

    def back(self, at_input: Tensor) -> Iterator[Sent]:
        yield Sent(self.place, at_input if self.mask is None else at_input * self.mask[:, None])


@dataclass(frozen=True)
class Series:
    """Levels from the highest. name: of the whole. module: that it is, or "". kind: what it is made of, in words. source:
    (T, B, D) the input that demand looks at; at_output: (T, B, W) what enters at the outputs of the top, or None where
    sequences stand in different orders. lag: see `Trace`. together: whether the sequences of an origin must be of one step,
    since what lies between may mix them. range: log10 of the smallest number told beside the largest.
    """

    name: str
    module: str
    kind: Mapping[str, str]
    levels: tuple[Level, ...]
    source: Tensor
    at_output: Tensor | None
    lag: str = "total"
    together: bool = False
    range: float = -math.inf

    @property
    def parts(self) -> list[Part]:
        return [part for level in self.levels for part in level.parts]

    @property
    def steps(self) -> int:
        return self.source.shape[0]

    @property
    def batch(self) -> int:
        return self.source.shape[1]

    @cached_property
    def lengths(self) -> Tensor:
        """(B,) steps of each sequence."""
        given = self.parts[0].trace.lengths
        device = self.source.device
        return torch.full((self.batch,), self.steps, device=device) if given is None else given.to(device)

    @cached_property
    def entered(self) -> Tensor:
        """(T, B) ‖g‖²: what enters at each step of the sequence, in all parts together, float64."""
        squares = [
            part.turned(part.entering.double().square().sum(-1)[:, None, :, None])[:, 0, :, 0] for part in self.parts
        ]
        return torch.stack(squares).sum(0)

    @cached_property
    def pairs(self) -> Tensor:
        """(T, B) bool: where a gradient enters."""
        marks = [part.turned((part.entering.abs().amax(-1) != 0)[:, None, :, None])[:, 0, :, 0] for part in self.parts]
        return torch.stack(marks).any(0)

    @cached_property
    def slots(self) -> Tensor:
        """(S, B) origins: in each slot one step of every sequence, −1 where a sequence has fewer."""
        on = self.pairs
        if self.together:
            return on.any(1).nonzero().expand(-1, self.batch)
        count = int(on.sum(0).max())
        step = torch.arange(self.steps, device=on.device)[:, None]
        return torch.where(on, step, -1).sort(0, descending=True).values[:count].flip(0)


def series_of(run: Run) -> Series | None:
    """The series that a run is: a stack of several layers in both directions. None for others, which one sweep tells."""
    return stack_of(run) if run.form.layers > 1 and run.form.directions > 1 else None


def stack_of(run: Run) -> Series:
    """A run's layers as levels."""
    levels = levels_of(run, run)
    kind = {"layers": str(run.form.layers), "directions": str(run.form.directions)}
    return Series(run.layer, run.layer, kind, tuple(levels), run.x, outputs_of(levels[0]))


def levels_of(run: Run, outside: Run, first: int = 0, below: tuple[Way, ...] = ()) -> list[Level]:
    """The layers of a run, the highest first. outside: the same with only what enters from outside of the series. first: the
    place of the highest in it; below: the ways from the lowest to other modules."""
    form, parts = run.form, parts_of(run)
    levels: list[Level] = []
    for layer in reversed(range(form.layers)):
        width = run.outputs[layer].shape[-1] // form.directions
        made = []
        for direction in range(form.directions):
            trace = parts[layer * form.directions + direction]
            given = outside.at_output[..., direction * width : (direction + 1) * width]
            given = given if layer == form.layers - 1 else torch.zeros_like(given)
            made.append(Part(trace, at_carries(outside, layer, direction, given, trace.carries.shape[-1])))
        way = Masked(first + len(levels) + 1, run.masks[layer - 1] if run.masks else None)
        levels.append(Level(tuple(made), (way,) if layer else below))
    return levels


def outputs_of(level: Level) -> Tensor:
    """(T, B, W) what enters from outside at the outputs of a level, in the time of the sequence."""
    beside = []
    for part in level.parts:
        given = part.trace.cell.output(part.entering)
        beside.append(flipped(given, part.trace.lengths) if part.trace.reverse else given)
    return torch.cat(beside, dim=-1)


@dataclass(frozen=True)
class Rows:
    """What a block of origins (S, B) gives one part, in its own time.

    pre: by bank (T, S, B, P, H), adjoints of the pre-activations. size: (T, S, B) norm of the adjoint of the carry, before
    what comes from above at the same step is added to it; with all that comes from above, but at the origin itself, where
    some of it may come from other steps. adjoint: (T, S, B, C) with it; None where nobody reads it.
    """

    part: Part
    linearization: Linearization
    origins: Tensor
    pre: tuple[Tensor, ...]
    size: Tensor
    adjoint: Tensor | None


def walk(
    series: Series,
    consume: Callable[[int, Rows], None],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Take all origins through the series; `consume(place of the part, rows)` for each block and part."""
    lins = [Linearization(widened(part.trace)) for part in series.parts]
    slots, room = series.slots, room_of(series)
    for start in range(0, len(slots), room):
        origins = slots[start : start + room]
        injected: dict[int, Tensor] = {}
        moved: set[int] = set()
        ends: dict[tuple[int, int], list[Sent]] = {}
        place = 0
        for depth, level in enumerate(series.levels):
            above = injected.pop(depth, None)
            width = 0
            at_input: Tensor | None = None
            for number, part in enumerate(level.parts):
                lin = lins[place]
                own = lin.cell.output(lin.trace.carries).shape[-1]
                given = None if above is None else part.turned(above[..., width : width + own])
                rows = _streamed(part, lin, origins, given, ends.pop((depth, number), []), depth in moved)
                consume(place, rows)
                if level.below:
                    sent = part.turned(lin.cell.to_input(lin.trace.weights, rows.pre))
                    at_input = sent if at_input is None else at_input + sent
                place, width = place + 1, width + own
            for way in level.below:
                assert at_input is not None
                for sent in way.back(at_input):
                    moved |= {sent.level} if sent.moved else set()
                    if sent.part is not None:
                        ends.setdefault((sent.level, sent.part), []).append(sent)
                    elif sent.level in injected:
                        injected[sent.level] = injected[sent.level] + sent.value
                    else:
                        injected[sent.level] = sent.value
        if progress:
            progress(min(start + room, len(slots)), len(slots))


def room_of(series: Series) -> int:
    """Origins a sequence in one block."""
    widest = max(
        max(part.trace.cell.carry_size(part.trace.weights) * 4, part.trace.x.shape[-1]) for part in series.parts
    )
    return max(1, BLOCK // (series.steps * series.batch * widest))


def widened(trace: Trace) -> Trace:
    """The trace in float64: its adjoints need no powers of two down to 1e-308."""

    def wide(value: Tensor) -> Tensor:
        return value.double()

    return replace(
        trace,
        weights=Weights(**{name: wide(value) for name, value in trace.weights.tensors().items()}),
        x=wide(trace.x),
        carries=wide(trace.carries),
        gradient=wide(trace.gradient),
        noise=None if trace.noise is None else wide(trace.noise),
    )


def _streamed(
    part: Part, lin: Linearization, origins: Tensor, injected: Tensor | None, ends: list[Sent], moved: bool
) -> Rows:
    """All steps of a part, last one first. From above come injected (T, S, B, H), in the part's own time, and `ends` at the
    last states. moved: see `Sent`."""
    trace, cell = lin.trace, lin.cell
    entering = part.entering.double()
    adjoint = trace.carries.new_zeros(*origins.shape, trace.carries.shape[-1])
    plain = any(not cell.blocks(name) for name in trace.weights.tensors())
    last = torch.full((trace.batch,), trace.steps) if trace.lengths is None else trace.lengths
    last = last.to(origins.device) - 1
    sizes, adjoints, pulled = [], [], []
    for step in reversed(range(trace.steps)):
        here = (origins == part.real[step]).unsqueeze(-1)
        adjoint = torch.where(here, adjoint + entering[step], adjoint)
        sizes.append(norms(adjoint))
        if injected is not None:
            adjoint = adjoint.clone()
            cell.output(adjoint).add_(injected[step])
        if ends:
            adjoint = adjoint.clone()
            for sent in ends:
                cell.split(adjoint)[sent.state].add_(torch.where((last == step)[:, None], sent.value, 0.0))
        if moved:
            sizes[-1] = torch.where(here.squeeze(-1), sizes[-1], norms(adjoint))
        if plain:
            adjoints.append(adjoint)
        got = _pulled(lin, step, adjoint)
        pulled.append(got.pre)
        adjoint = got.carry
    banks = tuple(torch.stack(each[::-1]) for each in zip(*pulled, strict=True))
    return Rows(
        part,
        lin,
        origins,
        banks,
        torch.stack(sizes[::-1]),
        torch.stack(adjoints[::-1]) if plain else None,
    )


def _pulled(lin: Linearization, step: int, adjoint: Tensor) -> Pulled:
    """Adjoints (S, B, C) back through one step."""
    count = adjoint.shape[0]
    return lin.pull(lin.whole, lambda array: array[step].expand(count, *array.shape[1:]), adjoint, paths=False)
