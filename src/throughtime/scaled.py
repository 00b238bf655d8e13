"""Numbers that leave the range of floats: a value times a power of two for each lag.

Products of Jacobians over hundreds of steps reach 1e-60 and less, their squares 1e-120. Scaling by powers of two is exact,
so everything that is summed by lag is kept as a float64 mantissa and an integer exponent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Kept = TypeVar("Kept")

EMPTY = -(2**40)  # the exponent of a sum to which nothing was added; far below any real one


@dataclass
class Scaled:
    """mantissa (..., N) float64 times 2^exponent (N,), int64. Sums may be added to each other."""

    mantissa: Tensor
    exponent: Tensor

    @staticmethod
    def zeros(*shape: int) -> Scaled:
        """Nothing summed yet."""
        return Scaled(torch.zeros(shape, dtype=torch.float64), torch.full(shape[-1:], EMPTY, dtype=torch.int64))

    def add_at(self, index: Tensor, value: Tensor, exponent: Tensor) -> None:
        """Add value (..., L) · 2^exponent (L,) to the entries `index` (L,), each named once."""
        value, exponent, index = value.detach().double().cpu(), exponent.long().cpu(), index.cpu()
        if (self.exponent[index] == EMPTY).all():
            self.mantissa[..., index], self.exponent[index] = value, exponent
            return
        new = torch.maximum(self.exponent[index], exponent)
        old = power_of_two(self.exponent[index] - new)
        self.mantissa[..., index] = self.mantissa[..., index] * old + value * power_of_two(exponent - new)
        self.exponent[index] = new

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

    def rows(self, places: list[int]) -> Scaled:
        """Some rows (first axis)."""
        return Scaled(self.mantissa[places], self.exponent)

    def total(self) -> Scaled:
        """The sum over the rows."""
        return Scaled(self.mantissa.sum(0), self.exponent)

    def log10(self) -> np.ndarray:
        """log10 of the numbers; −inf for zero, NaN where nothing was added."""
        value = torch.log10(self.mantissa) + self.exponent.double() * float(np.log10(2))
        value[self.mantissa == 0] = -torch.inf
        value[..., self.exponent == EMPTY] = torch.nan
        return value.numpy()

    def over(self, other: Scaled) -> np.ndarray:
        """The ratio to another sum, NaN for 0/0 and where nothing was added."""
        ratio = self.mantissa / other.mantissa * power_of_two(self.exponent - other.exponent)
        ratio[..., (self.exponent == EMPTY) | (other.exponent == EMPTY)] = torch.nan
        return ratio.numpy()

    def value(self) -> Tensor:
        """The numbers as float64, 0 or infinite where they leave its range."""
        return torch.where(self.mantissa == 0, 0.0, self.mantissa * power_of_two(self.exponent))


def power_of_two(exponent: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """2^exponent in floating point, exactly; 0 below the range of `dtype` (of its normal numbers), infinite above."""
    low, high = (-1022, 1023) if dtype == torch.float64 else (-126, 127)
    out = torch.exp2(exponent.clamp(low, high).to(torch.float64)).to(dtype)
    out = torch.where(exponent < low, torch.zeros((), dtype=dtype, device=exponent.device), out)
    return torch.where(exponent > high, torch.full((), torch.inf, dtype=dtype, device=exponent.device), out)


DEAD = -(2**20)  # the exponent of a row that is zero
NEAR, RANGE = 2.0**12, 2.0**24  # a run starts with its rows within the first and ends where one has left the second
ALIKE = 10  # rows whose exponents differ by less share one, so that they can be added up as they are
LONGEST = 12  # steps between two looks at the rows


def rescale(
    rows: Tensor, exponent: Tensor, peak: Tensor, limit: float = RANGE, alike: int = 0
) -> tuple[Tensor, Tensor]:
    """Bring rows (..., N) · 2^exponent (...) back near 1 by `shifts`; `peak` (...) is the largest entry of each."""
    shift = shifts(peak, limit, alike)
    return (rows, exponent) if shift is None else (shifted(rows, shift), exponent + shift)


def shifts(peak: Tensor, limit: float = RANGE, alike: int = 0) -> Tensor | None:
    """The powers of two (...) by which rows leave 1, told when the largest entry of any, `peak` (...), has left limit^±1.

    A row that is zero stays as it is. Rows that would end within 2^alike of each other, as they were, are moved by the same.
    """
    alive = torch.where(peak > 0, peak, 1.0)
    low, high = torch.aminmax(alive)
    if low.item() > 1 / limit and high.item() < limit:
        return None
    shift = torch.frexp(alive).exponent
    if alike:
        top = torch.where(peak > 0, shift, -100).max()
        shift = torch.where((peak == 0) | (shift > top - alike), top, shift)
    return shift


def shifted(rows: Tensor, shift: Tensor) -> Tensor:
    """Rows (..., N) · 2^−shift (...), exactly: in two steps, since 2^130 is no float32."""
    half = shift // 2
    for part in (half, shift - half):
        rows = rows * power_of_two(-part, rows.dtype).unsqueeze(-1)
    return rows


def march(
    step: Callable[[int, Tensor], tuple[Tensor, Kept]], rows: Tensor, exponent: Tensor, count: int
) -> tuple[list[Tensor], list[Tensor], list[Kept], Tensor, Tensor]:
    """Apply a linear step `count` times to rows (..., N) · 2^exponent (...), rescaled wherever a row leaves `RANGE`.

    step(turn, rows) → (the next rows, what to keep of the turn). Returns rows, exponents (`DEAD` where a row is zero) and
    what was kept by turn, then rows and exponent after the last. Several steps are taken before their rows are looked at; a
    run in which one has left the range is taken back to there, so no step ever starts from rows beyond it.
    """
    passed: list[Tensor] = []
    powers: list[Tensor] = []
    told: list[Kept] = []
    reach = LONGEST
    while len(passed) < count:
        rows, exponent = rescale(rows, exponent, rows.abs().amax(-1), NEAR, ALIKE)
        start = len(passed)
        for turn in range(start, min(start + reach, count)):
            passed.append(rows)
            rows, kept = step(turn, rows)
            told.append(kept)
        peaks = torch.stack(passed[start:]).abs().amax(-1)
        left = (peaks > 0) & ~((peaks > 1 / RANGE) & (peaks < RANGE))
        beyond = left[1:].flatten(1).any(1).nonzero()
        if len(beyond):
            reach = int(beyond[0]) + 1
            rows = passed[start + reach]
            del passed[start + reach :], told[start + reach :]
        else:
            reach = min(2 * reach, LONGEST)
        powers += torch.where(peaks > 0, exponent, DEAD)[: len(passed) - start].unbind()
    return passed, powers, told, rows, exponent
