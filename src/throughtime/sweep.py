"""The only loop: every origin's adjoint, one step further back at each turn.

The block Λ(τ) holds the adjoints of all origins at lag τ, row t standing at step t − τ, so that one pullback moves every
origin a step back. Rows are carried with powers of two, which is exact. When every row has fallen below the tolerance, or at
`max_lag`, the rows left are added up by step and swept once more as one stream, the tail: totals stay exact, only the tail's
lags are not told apart (an adjoint can die and grow again, so nothing is thrown away). One final loss is the same loop
with one row. What is worked on at once fits the cache: several lags of few rows make one block, many rows go through in
lanes of some sequences each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from throughtime.block import EVERYONE, Block, contiguous
from throughtime.cells.cell import Pulled
from throughtime.compiled import chunk_of
from throughtime.linearize import Linearization, Window
from throughtime.scaled import ALIKE, DEAD, NEAR, march, shifted, shifts
from throughtime.trace import slices

BLOCK_ENTRIES = 2**17  # numbers of one carry that a block may hold: it and its factors stay in cache
DEVICE_ENTRIES = 2**24  # the same on a GPU, where few large operations are better
PATIENCE = 16  # lags between two looks, on a GPU, at whether all rows are below the tolerance: the host waits for each


class Consumer(Protocol):
    """What a sweep feeds: reducers. paths: whether it reads `Block.paths`, so that the sweep had better keep them."""

    paths: bool

    def update(self, block: Block) -> None:
        """Blocks in the order of lags, every (origin, lag, sequence) once."""
        ...

    def tail(self, block: Block) -> None:
        """Blocks of the tail's stream."""
        ...

    def initial(self, lag: int | None, adjoint: Tensor, exponent: Tensor) -> None:
        """The adjoint (B, S·H) · 2^exponent (B,) of the initial state, of one origin, or of the whole tail (lag None)."""
        ...


@dataclass
class _Lane:
    """The rows of some origins and sequences: rows (R, B, S·H) · 2^exponent (R, B) of `origins` (R,), ascending.

    places: the origins where the rows are.
    """

    lin: Linearization
    sequences: slice
    origins: Tensor
    places: Tensor
    rows: Tensor
    exponent: Tensor

    def first(self) -> _Lane:
        """Take the earliest origin out."""
        each = self.origins, self.places, self.rows, self.exponent
        taken = _Lane(self.lin, self.sequences, *(part[:1] for part in each))
        self.origins, self.places, self.rows, self.exponent = (part[1:] for part in each)
        return taken

    def at(self, back: int) -> slice | Tensor:
        """What picks the places of the rows, `back` steps before their origins, along an axis of steps."""
        first, last = int(self.origins[0]), int(self.origins[-1])
        in_a_row = last - first == len(self.origins) - 1
        return slice(first - back, last - back + 1) if in_a_row else self.places - back


def sweep(
    linearization: Linearization,
    consumers: Sequence[Consumer],
    tolerance: float = 1e-12,
    max_lag: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int | None:
    """Sweep all origins back. Returns the first lag of the tail, None when every lag was told apart.

    tolerance: what is left goes to the tail at the first lag at which every row has fallen below it, relative to the largest
    adjoint met so far; 0 keeps every lag. One origin alone is always told apart to the end, for nothing would be saved.
    progress(done, of).
    """
    trace = linearization.trace
    lanes = _lanes(linearization)
    lag, length = 0, trace.steps
    watch = None if len(trace.origins()) == 1 or tolerance == 0 else _Watch(tolerance, trace.gradient.device)
    paths = any(consumer.paths for consumer in consumers)
    with torch.no_grad():
        while lanes and (max_lag is None or lag <= max_lag):
            peaks = [lane.rows.abs().amax(-1) for lane in lanes]
            if watch is not None and watch.fallen(_largest(peaks, lanes), lag) is not None:
                if watch.size > -math.inf:
                    break
                origins, rows, exponent = _joined(lanes, trace.batch)  # one row of zeros tells the lags that remain
                for place, origin in enumerate(origins[:-1].tolist()):
                    _tell_initial(consumers, origin + 1, rows[place], exponent[place])
                last = origins[-1:]
                lanes = [_Lane(linearization, EVERYONE, last, last.to(rows.device), rows[-1:], exponent[-1:])]
                peaks, watch = [rows.new_zeros(exponent[-1:].shape)], None
            room = 1
            if len(lanes) == 1:
                lane = lanes[0]
                room = max(1, _entries(linearization) // max(1, lane.rows.numel()))
                room = min(room, int(lane.origins[0]) - lag + 1, length if max_lag is None else max_lag - lag + 1)
                block = _several_lags(lane, lag, room, paths, watch)
                room = len(block.steps)
                for consumer in consumers:
                    consumer.update(block)
                del block  # its memory is that of the next one
            else:
                _one_lag(lanes, peaks, lag, paths, consumers)
            lag += room
            passed = [lane for lane in lanes if int(lane.origins[0]) < lag]
            if passed:  # the earliest origin has passed step 0 and stands at the initial state
                first = [lane.first() for lane in passed]
                _, adjoint, exponent = _joined(first, trace.batch)
                _tell_initial(consumers, lag, adjoint[0], exponent[0])
                lanes = [lane for lane in lanes if len(lane.origins)]
            if progress:
                progress(min(lag, length), length)
        if not lanes:
            return None
        origins, rows, exponent = _joined(lanes, trace.batch)
        lanes = []
        stream(linearization, rows, exponent, origins - lag, consumers)
    if progress:
        progress(length, length)
    return lag


def _lanes(lin: Linearization) -> list[_Lane]:
    """All origins of all sequences: in one lane where they are few, else in lanes of about `BLOCK_ENTRIES`."""
    steps = lin.trace.origins()
    if not steps:
        return []
    entries = _entries(lin)
    count, batch, width = len(steps), lin.trace.batch, lin.trace.carries.shape[-1]
    if count * batch * width <= entries or count == 1:
        return [_lane(lin, EVERYONE, torch.tensor(steps))]
    most = max(1, entries // width)  # rows a lane
    abreast = -(-batch // -(-batch // max(1, most // count)))  # evenly
    lanes = []
    for sequences in slices(batch, abreast):
        part = lin.part(sequences)
        there = torch.tensor(
            part.trace.origins(), dtype=torch.int64
        )  # nothing enters at the padding of short sequences
        lanes += [_lane(part, sequences, of) for of in there.split(most) if len(of)]
    return lanes


def _lane(lin: Linearization, sequences: slice, origins: Tensor) -> _Lane:
    rows = lin.trace.rows(origins.tolist())
    exponent = torch.zeros(rows.shape[:2], dtype=torch.int64, device=rows.device)
    return _Lane(lin, sequences, origins, origins.to(rows.device), rows, exponent)


def _entries(lin: Linearization) -> int:
    """Numbers of one carry that a block may hold."""
    default = BLOCK_ENTRIES if lin.trace.x.device.type == "cpu" else DEVICE_ENTRIES
    return default if lin.room is None else min(default, lin.room.entries)


def _joined(lanes: list[_Lane], batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Origins, rows and exponents of all lanes together."""
    if len(lanes) == 1 and lanes[0].sequences == EVERYONE:
        return lanes[0].origins, lanes[0].rows, lanes[0].exponent
    origins = torch.cat([lane.origins for lane in lanes]).unique()
    rows = lanes[0].rows.new_zeros(len(origins), batch, lanes[0].rows.shape[-1])
    exponent = lanes[0].exponent.new_full((len(origins), batch), DEAD)
    for lane in lanes:
        at = contiguous(torch.searchsorted(origins, lane.origins)[None])
        at = at if isinstance(at, slice) else at.to(rows.device)
        rows[at, lane.sequences], exponent[at, lane.sequences] = lane.rows, lane.exponent
    return origins, rows, exponent


def _tell_initial(consumers: Sequence[Consumer], lag: int | None, adjoint: Tensor, exponent: Tensor) -> None:
    for consumer in consumers:
        consumer.initial(lag, adjoint, exponent)


class _Watch:
    """Sees when all rows have fallen below the tolerance, relative to the largest adjoint met so far.

    size: log2 of the largest adjoint at the last lag that was looked at.
    """

    def __init__(self, tolerance: float, device: torch.device) -> None:
        self.under, self.size, self._look = math.log2(tolerance), math.inf, 0
        self._patience = 0 if device.type == "cpu" else PATIENCE
        self._highest = torch.full((1,), -math.inf, dtype=torch.float64, device=device)

    def fallen(self, sizes: Tensor, lag: int) -> int | None:
        """The first of these lags at which they have. sizes: (L,) log2 of the largest adjoint at the lags from `lag` on."""
        highest = torch.cat((self._highest, sizes)).cummax(0).values
        self._highest = highest[-1:]
        if lag + len(sizes) < self._look:
            return None
        self._look = lag + len(sizes) + self._patience
        below, (self.size,) = (sizes < highest[1:] + self.under).tolist(), sizes[-1:].tolist()
        if True not in below:
            return None
        self._look = 0  # the block ends there, and the next look is at the lag behind it
        return below.index(True)


def _largest(peaks: list[Tensor], lanes: list[_Lane]) -> Tensor:
    """(1,) log2 of the largest entry of any row."""
    return torch.stack([_log2(peak, lane.exponent).max() for peak, lane in zip(peaks, lanes, strict=True)]).amax(
        0, True
    )


def _log2(peak: Tensor, exponent: Tensor) -> Tensor:
    return torch.log2(peak.double()) + exponent


def _one_lag(lanes: list[_Lane], peaks: list[Tensor], lag: int, paths: bool, consumers: Sequence[Consumer]) -> None:
    """Take every lane one step back and tell what was passed, lane by lane. peaks: the largest entry of each row."""
    moved = shifts(torch.cat([peak.flatten() for peak in peaks]), NEAR, ALIKE)
    if moved is not None:
        for lane, shift in zip(lanes, moved.split([peak.numel() for peak in peaks]), strict=True):
            shift = shift.view_as(lane.exponent)
            lane.rows, lane.exponent = shifted(lane.rows, shift), lane.exponent + shift
    exponents = [torch.where(peak > 0, lane.exponent, DEAD) for peak, lane in zip(peaks, lanes, strict=True)]
    common = torch.stack([exponent.amax() for exponent in exponents]).amax(0, keepdim=True)
    told = torch.tensor([lag])
    following = [*(lane.sequences for lane in lanes[1:]), None]
    for lane, exponent, after in zip(lanes, exponents, following, strict=True):
        window = lane.lin.around(lane.origins - lag)
        at = window.at(lane.at(lag))
        pulled = lane.lin.pull(window, lambda array, at=at: array[at], lane.rows, paths)
        block = Block(
            lane.lin,
            window,
            told,
            lane.origins,
            (lane.origins - lag)[None],
            at,
            lane.rows[None],
            exponent[None],
            common,
            [pulled],
            lane.sequences,
            last=after is None,
            complete=after != lane.sequences,
        )
        for consumer in consumers:
            consumer.update(block)
        lane.rows = pulled.carry


def _several_lags(lane: _Lane, lag: int, lags: int, paths: bool, watch: _Watch | None) -> Block:
    """Take the lane's rows `lags` steps back; the block of what was passed.

    The block ends before the first lag at which all rows have fallen below the tolerance, so that the tail begins at the
    same lag whatever a block holds. A single origin's block is stored in the order of its steps, so that slices of the factors
    fit it.
    """
    lin, single = lane.lin, len(lane.origins) == 1
    top = int(lane.origins[0]) - lag
    window = lin.window(top - lags + 1, top + 1) if single else lin.around(lane.origins - lag, lags)

    def step(turn: int, rows: Tensor) -> tuple[Tensor, Pulled]:
        if single:
            pulled = lin.pull_step(window, top - window.first - turn, rows, paths)
        else:
            at = window.at(lane.at(lag + turn))
            pulled = lin.pull(window, lambda array: array[at], rows, paths)
        return pulled.carry, pulled

    chunk = chunk_of(lin, window, lane.rows, paths) if single and watch is None else None
    adjoints, exponents, pulled, lane.rows, lane.exponent = march(step, lane.rows, lane.exponent, lags, chunk=chunk)
    if watch is not None and lags > 1:
        peaks = torch.stack([rows.abs().amax(-1) for rows in adjoints])
        end = watch.fallen(_log2(peaks, torch.stack(exponents)).flatten(1).amax(1), lag)
        if end is not None:
            lags = max(1, end)  # on a GPU the block may begin below it
            lane.rows, lane.exponent = adjoints[lags], exponents[lags]
            adjoints, exponents, pulled = adjoints[:lags], exponents[:lags], pulled[:lags]
    told = torch.arange(lag, lag + lags)
    if single:
        at = slice(top - lags + 1 - window.first, top + 1 - window.first)
        adjoints, exponents, pulled, told = adjoints[::-1], exponents[::-1], pulled[::-1], told.flip(0)
    else:
        at = window.at(lane.at(lag) if lags == 1 else torch.cat([lane.places - back for back in told.tolist()]))
    adjoint, exponent = torch.stack(adjoints), torch.stack(exponents)
    common = exponent.flatten(1).amax(1)
    steps = lane.origins - told[:, None]
    return Block(lin, window, told, lane.origins, steps, at, adjoint, exponent, common, pulled, lane.sequences)


def stream(lin: Linearization, rows: Tensor, exponent: Tensor, steps: Tensor, consumers: Sequence[Consumer]) -> None:
    """Add the rows (R, B, S·H) · 2^exponent (R, B) up by step, as they stand at `steps` (R,) ascending, and sweep the sum
    to the start."""
    adjoint, power = torch.zeros_like(rows[:1]), torch.full_like(exponent[:1], DEAD)
    room = max(1, _entries(lin) // adjoint.numel())
    last = int(steps[-1]) + 1
    while last > 0:
        first = max(0, last - room)
        window = lin.window(first, last)
        here = ((steps >= first) & (steps < last)).nonzero().flatten()
        turn, here = (last - 1 - steps[here]).to(rows.device), here.to(rows.device)
        entering = rows.new_zeros(last - first, *adjoint.shape), exponent.new_full((last - first, *power.shape), DEAD)
        entering[0][turn, 0], entering[1][turn, 0] = rows[here], exponent[here]

        def step(turn: int, rows: Tensor, window: Window = window) -> tuple[Tensor, Pulled]:
            pulled = lin.pull_step(window, window.last - 1 - turn - window.first, rows, paths=False)
            return pulled.carry, pulled

        chunk = chunk_of(lin, window, adjoint, paths=False, entering=True)
        passed, powers, pulled, adjoint, power = march(step, adjoint, power, last - first, entering, chunk)
        adjoints, exponents = torch.stack(passed[::-1]), torch.stack(powers[::-1])
        passed_steps, at = torch.arange(first, last)[:, None], slice(0, last - first)
        common = exponents.flatten(1).amax(1)
        block = Block(lin, window, None, steps, passed_steps, at, adjoints, exponents, common, pulled[::-1])
        for consumer in consumers:
            consumer.tail(block)
        last = first
    _tell_initial(consumers, None, adjoint[0], power[0])
