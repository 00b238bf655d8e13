"""Numbers that leave the range of floats: a value times a power of two for each lag.

Products of Jacobians over hundreds of steps reach 1e-60 and less, their squares 1e-120. Scaling by powers of two is exact,
so everything that is summed by lag is kept as a float64 mantissa and an integer exponent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

Kept = TypeVar("Kept")

WAITING = 2**18  # numbers that may wait to be added up: 2 MiB
ASIDE = 128  # numbers that the tensors of one addition take besides its own
EMPTY = -(2**40)  # the exponent of a sum to which nothing was added; far below any real one


class Later:
    """Numbers on their way to the host. Those of many lags come from a GPU in one transfer, for which the host must wait."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Tensor, Callable[[Tensor], object]]] = []
        self._held = 0

    def tell(self, value: Tensor, then: Callable[[Tensor], object]) -> None:
        """Call then(value) with the value as float64 on the host: now, or when `settle` is called, in this order."""
        if value.device.type == "cpu":
            then(value.double())
            return
        self._waiting.append((value, then))
        self._held += value.numel()
        if self._held > WAITING:
            self.settle()

    def settle(self) -> None:
        """All that waits."""
        waiting, self._waiting, self._held = self._waiting, [], 0
        if waiting:
            told = torch.cat([value.double().flatten() for value, _ in waiting]).cpu()
            sizes = [value.numel() for value, _ in waiting]
            for part, (value, then) in zip(told.split(sizes), waiting, strict=True):
                then(part.view(value.shape))


class Scaled:
    """mantissa (..., N) float64 times 2^exponent (N,), int64. Sums may be added to each other.

    What is added is kept as it comes, and added up when a number is asked for, or when much of it waits: a sweep adds at every
    lag, and for each of its lanes.
    """

    def __init__(self, mantissa: Tensor, exponent: Tensor) -> None:
        self._mantissa, self._exponent = mantissa, exponent
        self._waiting: dict[tuple[int | None, int | None], list[tuple[Tensor, Tensor, Tensor]]] = {}
        self._held, self.most = 0, WAITING  # numbers that wait, and that may

    @staticmethod
    def zeros(*shape: int) -> Scaled:
        """Nothing summed yet."""
        return Scaled(torch.zeros(shape, dtype=torch.float64), torch.full(shape[-1:], EMPTY, dtype=torch.int64))

    def add_at(self, index: Tensor, value: Tensor, exponent: Tensor, rows: slice = slice(None)) -> None:
        """Add value (..., L) · 2^exponent (L,) to the entries `index` (L,), each named once; of some rows (first axis)."""
        self._waiting.setdefault((rows.start, rows.stop), []).append((index, value, exponent))
        self._held += value.numel() + ASIDE
        if self._held > self.most:
            self._settle()

    @property
    def mantissa(self) -> Tensor:
        self._settle()
        return self._mantissa

    @property
    def exponent(self) -> Tensor:
        self._settle()
        return self._exponent

    def _settle(self) -> None:
        waiting, self._waiting, self._held = self._waiting, {}, 0
        for bounds, added in waiting.items():
            index, exponent = (torch.cat([each[place] for each in added]).long().cpu() for place in (0, 2))
            value = torch.cat([each[1].detach().double() for each in added], dim=-1).cpu()
            if len(added) == 1:
                self._add(slice(*bounds), index, value, exponent)
                continue
            turn = _turn(index)
            for number in range(int(turn.max()) + 1 if len(turn) else 0):  # what names the same entry goes one by one
                here = turn == number
                self._add(slice(*bounds), index[here], value[..., here], exponent[here])

    def _add(self, rows: slice, index: Tensor, value: Tensor, exponent: Tensor) -> None:
        own = self._mantissa[rows] if self._mantissa.ndim > 1 else self._mantissa  # a view
        new = torch.maximum(self._exponent[index], exponent)
        self._mantissa[..., index] = self._mantissa[..., index] * power_of_two(self._exponent[index] - new)
        own[..., index] += value * power_of_two(exponent - new)
        self._exponent[index] = new

    def __add__(self, other: Scaled) -> Scaled:
        new = torch.maximum(self.exponent, other.exponent)
        mantissa = self.mantissa * power_of_two(self.exponent - new) + other.mantissa * power_of_two(
            other.exponent - new
        )
        return Scaled(mantissa, new)

    def beside(self, other: Scaled) -> Scaled:
        """The rows (first axis) of both, with common exponents."""
        new = torch.maximum(self.exponent, other.exponent)
        parts = (part.mantissa * power_of_two(part.exponent - new) for part in (self, other))
        return Scaled(torch.cat(list(parts)), new)

    def rows(self, places: list[int] | slice) -> Scaled:
        """Some rows (first axis)."""
        return Scaled(self.mantissa[places], self.exponent)

    def total(self) -> Scaled:
        """The sum over the rows."""
        return Scaled(self.mantissa.sum(0), self.exponent)

    def in_units(self, unit: int) -> Scaled:
        """The numbers in units of 2^unit."""
        return Scaled(self.mantissa, torch.where(self.exponent == EMPTY, EMPTY, self.exponent - unit))

    def log10(self) -> np.ndarray:
        """log10 of the numbers; −inf for zero, NaN where nothing was added."""
        with np.errstate(divide="ignore", invalid="ignore"):
            value = np.log10(self.mantissa.numpy())
        value += self.exponent.numpy() * np.log10(2)
        value[..., self.exponent.numpy() == EMPTY] = np.nan
        return value

    def over(self, other: Scaled) -> np.ndarray:
        """The ratio to another sum, NaN for 0/0 and where nothing was added."""
        ratio = (self.mantissa / other.mantissa * power_of_two(self.exponent - other.exponent)).numpy()
        ratio[..., ((self.exponent == EMPTY) | (other.exponent == EMPTY)).numpy()] = np.nan
        return ratio

    def value(self) -> Tensor:
        """The numbers as float64, 0 or infinite where they leave its range."""
        return torch.where(self.mantissa == 0, 0.0, self.mantissa * power_of_two(self.exponent))


def _turn(index: Tensor) -> Tensor:
    """For each entry, how often it was named before."""
    order = torch.argsort(index, stable=True)
    first = torch.searchsorted(index[order], index[order])
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order)) - first)


def scaled_of(sums: Mapping[str, Scaled | Tensor], name: str) -> Scaled:
    """The sum of this name, which is one by lag."""
    value = sums[name]
    assert isinstance(value, Scaled)
    return value


def tensor_of(sums: Mapping[str, Scaled | Tensor], name: str) -> Tensor:
    """The sum of this name, which is a plain tensor."""
    value = sums[name]
    assert isinstance(value, Tensor)
    return value


def exponent_of(parts: Iterable[Tensor]) -> int:
    """Of the power of two next to the largest number in all parts; 0 where all are zero or one is not finite.

    In units of it, squares of numbers of any size stay in the range of floats.
    """
    peak = _peak(parts)
    most = 1000 if peak.dtype == torch.float64 else 120
    return int(torch.frexp(peak).exponent.clamp(-most, most)) if peak > 0 and torch.isfinite(peak) else 0


def _peak(parts: Iterable[Tensor]) -> Tensor:
    peaks = [part.abs().amax() for part in parts if part.numel()]
    return torch.stack(peaks).amax() if peaks else torch.zeros(())


def least(dtype: torch.dtype) -> float:
    """The size from which on what is smaller by the rounding is a normal number still; sums below it round coarsely."""
    info = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32)
    return info.tiny / info.eps


def is_small(parts: Iterable[Tensor], small: float) -> bool:
    """Whether all numbers in all parts are smaller, and some are not zero."""
    return bool(0 < _peak(parts) < small)


def power_of_two(exponent: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """2^exponent in floating point, exactly; 0 below the range of `dtype` (of its normal numbers), infinite above."""
    # A normal number 2^e is nothing but e + bias in the place of its exponent bits; there 0 is zero, all ones are infinity.
    bits, bias, whole = (52, 1023, torch.int64) if dtype == torch.float64 else (23, 127, torch.int32)
    biased = exponent.clamp(-bias, bias + 1).to(whole) + bias
    return (biased << bits).view(torch.float64 if dtype == torch.float64 else torch.float32).to(dtype)


DEAD = -(2**20)  # the exponent of a row that is zero
NEAR, RANGE = 2.0**12, 2.0**24  # a run starts with its rows within the first and ends where one has left the second
ALIKE = 10  # rows whose exponents differ by less share one, so that they can be added up as they are
LONGEST = 24  # steps between two looks at the rows


def norms(rows: Tensor) -> Tensor:
    """The norm over the last axis; squares of tiny numbers do not leave float64."""
    peak = rows.abs().amax(-1, keepdim=True)
    safe = torch.where(peak > 0, peak, 1.0)
    return (rows / safe).norm(dim=-1) * peak.squeeze(-1)


def ratio(value: float, unit: float) -> float:
    """value / unit with 0/0 = 0."""
    if value == 0:
        return 0.0
    return value / unit if unit else float("inf")


def rescale(
    rows: Tensor, exponent: Tensor, peak: Tensor, limit: float = RANGE, alike: int = 0
) -> tuple[Tensor, Tensor]:
    """Bring rows (..., N) · 2^exponent (...) back near 1 by `shifts`; `peak` (...) is the largest entry of each."""
    shift = shifts(peak, limit, alike)
    return (rows, exponent) if shift is None else (shifted(rows, shift), exponent + shift)


def shifts(peak: Tensor, limit: float = RANGE, alike: int = 0) -> Tensor | None:
    """The powers of two (...) by which rows leave 1, told when the largest entry of any, `peak` (...), has left limit^±1.

    A row that is zero stays as it is. Rows that would end within 2^alike of each other, as they were, are moved by the same.
    On a GPU the rows are moved whenever this is asked: to look at them first would make the host wait.
    """
    alive = torch.where(peak > 0, peak, 1.0)
    if peak.device.type == "cpu":
        low, high = torch.aminmax(alive)
        if low.item() > 1 / limit and high.item() < limit:
            return None
    shift = torch.frexp(alive).exponent
    if alike:
        top = torch.where(peak > 0, shift, DEAD).max()
        top = torch.where(top == DEAD, 0, top)  # all rows are zero
        shift = torch.where((peak == 0) | (shift > top - alike), top, shift)
    return shift


def shifted(rows: Tensor, shift: Tensor) -> Tensor:
    """Rows (..., N) · 2^−shift (...), exactly: in two steps, since 2^130 is no float32."""
    half = shift // 2
    for part in (half, shift - half):
        rows = rows * power_of_two(-part, rows.dtype).unsqueeze(-1)
    return rows


@dataclass(frozen=True)
class Chunk(Generic[Kept]):
    """Several steps of a march at once.

    take(turn, rows, what enters before each of them (steps, ..., N) or None) → the rows at each step, what to keep of them all,
    the next rows.
    """

    steps: int
    take: Callable[[int, Tensor, Tensor | None], tuple[list[Tensor], Kept, Tensor]]


def march(
    step: Callable[[int, Tensor], tuple[Tensor, Kept]],
    rows: Tensor,
    exponent: Tensor,
    count: int,
    entering: tuple[Tensor, Tensor] | None = None,
    chunk: Chunk[Kept] | None = None,
) -> tuple[list[Tensor], list[Tensor], list[Kept], Tensor, Tensor]:
    """Apply a linear step `count` times to rows (..., N) · 2^exponent (...), rescaled wherever a row leaves `RANGE`.

    step(turn, rows) → (the next rows, what to keep of the turn). entering: rows (count, ..., N) and exponents (count, ...)
    that are added before each step. chunk: the same steps several at once, taken where as many are left in a run. Returns
    rows and exponents (`DEAD` where a row is zero) by turn, what was kept by turn or chunk, then rows and exponent after the
    last. Several steps are taken before their rows are looked at; a run in which one has left the range is taken back to
    there, or to the begin of its chunk, so no step that is kept starts from rows beyond it.
    """
    passed: list[Tensor] = []
    powers: list[Tensor] = []
    told: list[Kept] = []
    # On a GPU a short run is rescaled at every step: looking at it would make the host wait.
    reach = longest = LONGEST if rows.device.type == "cpu" or count >= LONGEST else 1
    while len(passed) < count:
        rows, exponent = rescale(rows, exponent, rows.abs().amax(-1), NEAR, ALIKE)
        start = len(passed)
        stop = min(start + reach, count)
        before, added, each = [], None, []  # before: turn and rows at the begin of each step or chunk
        if entering is not None:
            powers_in = entering[1][start:stop]
            unit = torch.maximum(exponent, powers_in.amax(0))
            rows, exponent = shifted(rows, unit - exponent), unit
            added = shifted(entering[0][start:stop], unit - powers_in)
            each = added.unbind()
        while len(passed) < stop:
            turn = len(passed)
            before.append((turn, rows))
            if chunk is not None and turn + chunk.steps <= stop:
                into = None if added is None else added[turn - start : turn - start + chunk.steps]
                met, kept, rows = chunk.take(turn, rows, into)
                passed += met
            else:
                if each:
                    rows = rows + each[turn - start]
                passed.append(rows)
                rows, kept = step(turn, rows)
            told.append(kept)
        peaks = torch.stack(passed[start:]).abs().amax(-1)
        alive = peaks > 0
        beyond = _beyond(peaks, alive)
        if beyond:
            reach = beyond
            parts = sum(turn <= start + reach for turn, _ in before)
            turn, rows = before[parts - 1]
            del passed[turn:], told[parts - 1 - len(before) :]
        else:
            reach = min(2 * reach, longest)
        powers += torch.where(alive, exponent, DEAD)[: len(passed) - start].unbind()
    return passed, powers, told, rows, exponent


def _beyond(peaks: Tensor, alive: Tensor) -> int:
    """The first turn of a run at which a row has left `RANGE`, 0 where none has. peaks (turns, ...): the rows' largest entries,
    alive: which are not zero."""
    if len(peaks) == 1:
        return 0
    if peaks.device.type == "cpu":  # on a GPU a second look makes the host wait once more
        low, high = torch.aminmax(torch.where(alive, peaks, 1.0))
        if low.item() > 1 / RANGE and high.item() < RANGE:
            return 0
    left = (alive & ~((peaks > 1 / RANGE) & (peaks < RANGE))).flatten(1).any(1).tolist()
    return left.index(True, 1) if True in left[1:] else 0
