"""The only loop: every origin's adjoint, one step further back at each turn.

The block Λ(τ) holds the adjoints of all origins at lag τ, row t standing at step t − τ, so that one pullback moves every
origin a step back. Rows are carried with powers of two, which is exact. When every row has fallen below the tolerance, or at
`max_lag`, the rows left are added up by step and swept once more as one stream, the tail: totals stay exact, only the tail's
lags are not told apart (an adjoint can die and grow again, so nothing is thrown away). One final loss is the same loop
with one row; several lags of few rows make one block, so that reducers work on many at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from throughtime.cells.cell import Pulled, Tensors, gradients_by_autograd
from throughtime.linearize import Linearization, Window
from throughtime.scaled import DEAD, march, power_of_two, rescale

BLOCK_ENTRIES = 2**17  # numbers of one carry that a block of several lags may hold: its factors stay in cache


@dataclass(frozen=True)
class Block:
    """Adjoints of R origins over L lags; row (l, r) stands at `steps[l, r]`.

    adjoint: (L, R, B, S·H), times 2^exponent (L, R, B), `DEAD` for rows that are zero. lags: (L,), None in the tail's
    stream, where lags are mixed. origins: (R,). pulled: what the sweep saw when it pulled these rows back, if it was kept.
    """

    linearization: Linearization
    window: Window
    lags: Tensor | None
    origins: Tensor
    steps: Tensor
    adjoint: Tensor
    exponent: Tensor
    pulled: list[Pulled] | None = None

    @cached_property
    def _at(self) -> slice | Tensor:
        """Picks the rows out of a window; a slice, which costs nothing, where they are contiguous."""
        inside = (self.steps - self.window.first).flatten()
        first, last = int(inside[0]), int(inside[-1])
        return slice(first, last + 1) if last - first == inside.numel() - 1 and 1 in self.steps.shape else inside

    def take(self, array: Tensor, axis: int = 0) -> Tensor:
        """The window's array (steps, B, …) at the rows: (L, R, B, …). axis: where its steps are."""
        taken = array[(slice(None),) * axis + (self._at,)]
        return taken.unflatten(axis, self.steps.shape)

    @cached_property
    def common(self) -> Tensor:
        """(L,) the largest exponent of a lag's rows."""
        return self.exponent.flatten(1).amax(1)

    @cached_property
    def _shift(self) -> Tensor | None:
        """(L, R, B) the power of two from a row's exponent to its lag's; None where all are the same."""
        shift = self.exponent - self.common[:, None, None]
        return power_of_two(shift, self.adjoint.dtype) if shift.any() else None

    def _align(self, rows: Tensor) -> Tensor:
        """(..., L, R, B, N) to one exponent a lag."""
        return rows if self._shift is None else rows * self._shift.unsqueeze(-1)

    @cached_property
    def aligned(self) -> Tensor:
        """(L, R, B, S·H): the adjoints, times 2^common: one exponent a lag, so that rows can be added up."""
        return self._align(self.adjoint)

    @cached_property
    def factors(self) -> Tensors:
        """The factors of the rows' steps."""
        return {name: self.take(value) for name, value in self.window.factors.items()}

    @cached_property
    def total(self) -> Tensor:
        """(L, R, B, H): the aligned adjoints in the space in which paths, units and hops are told."""
        lin = self.linearization
        return lin.cell.total(lin.trace.weights, self.aligned, self.factors)

    def _pull(self, paths: bool) -> Pulled:
        return self.linearization.pull(self.window, self.take, self.aligned, paths)

    @cached_property
    def pre(self) -> tuple[Tensor, ...]:
        """(L, R, B, P, H) for each bank: aligned adjoints of the pre-activations; in memory P comes first."""
        if self.pulled is None:
            return self._pull(paths=False).pre
        banks = zip(*(each.pre for each in self.pulled), strict=True)
        return tuple(
            self._align(torch.stack([each.movedim(-2, 0) for each in bank], dim=1)).movedim(0, -2) for bank in banks
        )

    def rows_by_autograd(self, rows: slice) -> list[Tensors]:
        """For each lag, the terms of the parameters that stand in none of the cell's products, of these sequences alone.

        In units of 2^common.
        """
        lin = self.linearization
        names = [name for name in lin.trace.weights.tensors() if not lin.cell.blocks(name)]
        x, before = self.take(self.window.x), self.take(self.window.before)
        return [
            dict(
                zip(
                    names,
                    gradients_by_autograd(lin.cell, lin.trace.weights, names, *(each[:, rows] for each in at_lag)),
                    strict=True,
                )
            )
            for at_lag in zip(x, before, self.aligned, strict=True)
        ]

    @cached_property
    def by_autograd(self) -> list[Tensors]:
        """The same of all sequences together."""
        return self.rows_by_autograd(slice(None))

    @cached_property
    def paths(self) -> Tensors:
        """Port → (L, R, B, H): the aligned adjoints one step back, by path."""
        if self.pulled is None or not self.pulled[0].paths:
            return self._pull(paths=True).paths
        ports = self.pulled[0].paths
        return {port: self._align(torch.stack([each.paths[port] for each in self.pulled])) for port in ports}


class Consumer(Protocol):
    """What a sweep feeds: reducers. paths: whether it reads `Block.paths`, so that the sweep had better keep them."""

    paths: bool

    def update(self, block: Block) -> None:
        """Blocks in the order of lags, every (origin, lag) once."""
        ...

    def tail(self, block: Block) -> None:
        """Blocks of the tail's stream."""
        ...

    def initial(self, lag: int | None, adjoint: Tensor, exponent: Tensor) -> None:
        """The adjoint (B, S·H) · 2^exponent (B,) of the initial state, of one origin, or of the whole tail (lag None)."""
        ...


def sweep(
    linearization: Linearization,
    consumers: Sequence[Consumer],
    tolerance: float = 1e-12,
    max_lag: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int | None:
    """Sweep all origins back. Returns the first lag of the tail, None when every lag was told apart.

    tolerance: what is left goes to the tail when every row has fallen below it, relative to the largest adjoint met so far;
    0 keeps every lag. One origin alone is always told apart to the end, for nothing would be saved. progress(done, of).
    """
    trace = linearization.trace
    steps = trace.origins()
    if not steps:
        return None
    rows = trace.rows(steps)
    at = torch.tensor(steps)
    exponent = torch.zeros(rows.shape[:2], dtype=torch.int64, device=rows.device)
    highest, lag, length = -torch.inf, 0, trace.steps
    few = len(steps) == 1
    paths = any(consumer.paths for consumer in consumers)
    with torch.no_grad():
        while len(at):
            if max_lag is not None and lag > max_lag:
                break
            if not few and tolerance > 0:
                size = _log2_peak(rows, exponent)
                highest = max(highest, size)
                if size == -torch.inf:  # nothing is left: one row of zeros tells the lags that remain
                    _end(at[:-1], rows[:-1], exponent[:-1], consumers)
                    at, rows, exponent, few = at[-1:], rows[-1:], exponent[-1:], True
                elif size < highest + float(torch.log2(torch.tensor(tolerance))):
                    break
            room = max(1, BLOCK_ENTRIES // rows.numel())
            room = min(room, int(at[0]) - lag + 1, length if max_lag is None else max_lag - lag + 1)
            block, rows, exponent = _advance(linearization, at, lag, rows, exponent, room, paths)
            for consumer in consumers:
                consumer.update(block)
            lag += room
            if int(at[0]) < lag:  # the earliest origin has passed step 0 and stands at the initial state
                for consumer in consumers:
                    consumer.initial(lag, rows[0], exponent[0])
                at, rows, exponent = at[1:], rows[1:], exponent[1:]
            if progress:
                progress(min(lag, length), length)
        if not len(at):
            return None
        stream(linearization, rows, exponent, at - lag, consumers)
    if progress:
        progress(length, length)
    return lag


def _end(origins: Tensor, rows: Tensor, exponent: Tensor, consumers: Sequence[Consumer]) -> None:
    """Tell the initial state of rows that are zero before they get there."""
    for place, origin in enumerate(origins.tolist()):
        for consumer in consumers:
            consumer.initial(origin + 1, rows[place], exponent[place])


def _log2_peak(rows: Tensor, exponent: Tensor) -> float:
    peak = torch.linalg.vector_norm(rows, ord=float("inf"), dim=-1)
    return float((torch.log2(peak.double()) + exponent).max())


def _advance(
    lin: Linearization, origins: Tensor, lag: int, rows: Tensor, exponent: Tensor, lags: int, paths: bool
) -> tuple[Block, Tensor, Tensor]:
    """Take the rows `lags` steps back; the block of what was passed, and the rows after it.

    A single origin's block is stored in the order of its steps, so that slices of the factors fit it.
    """
    single = len(origins) == 1
    top = origins - lag
    window = lin.window(int(top[0]) - lags + 1, int(top[0]) + 1) if single else lin.whole
    first, last = int(top[0]) - window.first, int(top[-1]) - window.first
    contiguous = last - first == len(top) - 1

    def step(turn: int, rows: Tensor) -> tuple[Tensor, Pulled]:
        if single:
            pulled = lin.pull_step(window, first - turn, rows, paths)
        else:
            at = slice(first - turn, last - turn + 1) if contiguous else top - turn - window.first
            pulled = lin.pull(window, lambda array: array[at], rows, paths)
        return pulled.carry, pulled

    adjoints, exponents, pulled, rows, exponent = march(step, rows, exponent, lags)
    told = torch.arange(lag, lag + lags)
    if single:
        adjoints, exponents, pulled, told = adjoints[::-1], exponents[::-1], pulled[::-1], told.flip(0)
    stacked = torch.stack(adjoints), torch.stack(exponents)
    return Block(lin, window, told, origins, origins - told[:, None], *stacked, pulled), rows, exponent


def stream(lin: Linearization, rows: Tensor, exponent: Tensor, steps: Tensor, consumers: Sequence[Consumer]) -> None:
    """Add the rows (R, B, S·H) · 2^exponent up by step, as they stand at `steps` ascending, and sweep the sum to the start."""
    entering = {int(step): place for place, step in enumerate(steps)}
    adjoint, power = torch.zeros_like(rows[0]), torch.full_like(exponent[0], DEAD)
    room = max(1, BLOCK_ENTRIES // adjoint.numel())
    last = int(steps[-1]) + 1
    while last > 0:
        first = max(0, last - room)
        window = lin.window(first, last)
        adjoints, powers = rows.new_empty(last - first, *adjoint.shape), power.new_empty(last - first, *power.shape)
        for step in reversed(range(first, last)):
            if step in entering:
                place = entering[step]
                new = torch.maximum(power, exponent[place])
                adjoint = _shift(adjoint, power - new) + _shift(rows[place], exponent[place] - new)
                power = new
            peak = torch.linalg.vector_norm(adjoint, ord=float("inf"), dim=-1)
            adjoint, power = rescale(adjoint, power, peak)
            power = torch.where(peak > 0, power, DEAD)
            adjoints[step - first], powers[step - first] = adjoint, power
            adjoint = lin.pull(window, lambda array, at=step - first: array[at], adjoint, paths=False).carry
        at = torch.arange(first, last)
        block = Block(lin, window, None, steps, at[:, None], adjoints[:, None], powers[:, None])
        for consumer in consumers:
            consumer.tail(block)
        last = first
    for consumer in consumers:
        consumer.initial(None, adjoint, power)


def _shift(rows: Tensor, exponent: Tensor) -> Tensor:
    return rows * power_of_two(exponent, rows.dtype).unsqueeze(-1)
