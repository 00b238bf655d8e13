"""Confidence intervals over batches.

What the horizon, the bias and the shares are made of are squares of mean gradients: ‖E R(K)‖², ‖E G‖², ⟨E G(τ), E G⟩, R(K) what
lies beyond lag K. A square of a mean over batches is too large by the batches' own noise. A block of m batches gives an
estimate without it, from its pairs of different batches alone (a U-statistic; Hoeffding 1948):

    (‖Σ_j R_j‖² − Σ_j ‖R_j‖²) / (m (m − 1)).

Blocks are independent, so the spread of a ratio of two such numbers is that of ratios in survey sampling (Cochran 1977,
ch. 6), with Student's t for the number of blocks; the horizon's interval holds every K at which ‖E R(K)‖² = ε² ‖E G‖² cannot be
rejected (Fieller 1954). Blocks of 2, 4 and 8 batches are closed as they fill up. Of a closed block only sums stay, so memory is
that of the few blocks that are open. Coverage as measured: docs/howto/large-data.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from throughtime.flow import Array, Intervals
from throughtime.scaled import Scaled
from throughtime.student_t import t_quantile

LEVEL = 0.95
SURE = 0.99
"""Of the interval that ends a run: it is looked at again and again, and one that is narrow by chance would end it too early."""
TOP = 3  # blocks of 2³ batches: with more, little of their noise is left to be gained
LEAST = 8  # batches below which no interval is given: four pairs
ENOUGH = 8  # blocks from which on larger blocks are used


@dataclass(frozen=True)
class Moments:
    """Sums over blocks of numerators y (..., L), their squares, their products with denominators z, and of z, z².

    y and z are squares of gradients in units of 4^unit: fourth powers of 1e-80 are no float64.
    """

    count: int
    y: Tensor
    yy: Tensor
    yz: Tensor
    z: Tensor
    zz: Tensor
    unit: int = 0

    def __add__(self, other: Moments) -> Moments:
        unit = max(self.unit, other.unit)
        pairs = zip(self._in_units(unit), other._in_units(unit), strict=True)
        return Moments(self.count + other.count, *(_sum(a, b) for a, b in pairs), unit=unit)

    def _in_units(self, unit: int) -> tuple[Tensor, ...]:
        square = 4.0 ** (self.unit - unit)
        return self.y * square, *(part * square**2 for part in (self.yy, self.yz)), self.z * square, self.zz * square**2

    def of_difference(self, ratio: Tensor | float) -> tuple[Tensor, Tensor]:
        """Mean of y − ratio · z over blocks, and its standard error."""
        n = self.count
        mean = (self.y - ratio * self.z) / n
        squares = self.yy - 2 * ratio * self.yz + ratio**2 * self.zz
        return mean, ((squares / n - mean.square()).clamp_min(0) / (n - 1)).sqrt()

    def of_ratio(self, t: float) -> np.ndarray:
        """(2, ..., L): the interval of E y / E z; without bounds where z is not above 0."""
        ratio = self.y / self.z
        error = t * self.of_difference(ratio)[1] * self.count / self.z
        bounds = torch.stack((ratio - error, ratio + error))
        unbounded = torch.tensor([-torch.inf, torch.inf], dtype=bounds.dtype)[(...,) + (None,) * (bounds.ndim - 1)]
        return torch.where(self.z > 0, bounds, unbounded).numpy()


def _moments(y: Tensor, z: Tensor, unit: int) -> Moments:
    return Moments(1, y, y.square(), y * z, z, z.square(), unit)


@dataclass(frozen=True)
class Block:
    """An open block: Σ_j of the terms G_j(τ) (W, L) and tails (W,), in units of 2^unit.

    own: (2, L) Σ_j ‖R_j(K)‖² and Σ_j ⟨G_j(τ), G_j⟩. whole: Σ_j ‖G_j‖². Both in units of 4^unit.
    """

    terms: Tensor
    tail: Tensor
    own: Tensor
    whole: Tensor
    unit: int = 0

    def __add__(self, other: Block) -> Block:
        unit = max(self.unit, other.unit)
        pairs = zip(self._in_units(unit), other._in_units(unit), strict=True)
        return Block(*(_sum(a, b) for a, b in pairs), unit=unit)

    def _in_units(self, unit: int) -> tuple[Tensor, ...]:
        if unit == self.unit:
            return self.terms, self.tail, self.own, self.whole
        part = 2.0 ** (self.unit - unit)
        return self.terms * part, self.tail * part, self.own * part**2, self.whole * part**2

    def squares(self) -> tuple[Tensor, Tensor]:
        """`own` and `whole` of the block taken as one batch."""
        total = self.terms.sum(1) + self.tail
        beyond = (total[:, None] - self.terms.cumsum(1)).square().sum(0)
        return torch.stack((beyond, total @ self.terms)), total @ total


@dataclass(frozen=True)
class Blocks:
    """open: level → number → block of 2^level batches, whose sister has not come yet. closed: level → what those gave.

    arriving: of Σ‖λ‖² by lag and of what entered at the same pairs, batch by batch.
    """

    open: dict[int, dict[int, Block]]
    closed: dict[int, Moments]
    arriving: Moments

    def __add__(self, other: Blocks) -> Blocks:
        waiting = {level: dict(self.open.get(level, {})) for level in range(TOP)}
        closed = dict(self.closed)
        for level, moments in other.closed.items():
            closed[level] = closed[level] + moments if level in closed else moments
        for level in range(TOP):
            for number, block in sorted(other.open.get(level, {}).items()):
                _put(waiting, closed, level, number, block)
        kept = {level: blocks for level, blocks in waiting.items() if blocks}
        return Blocks(kept, dict(sorted(closed.items())), self.arriving + other.arriving)


def _put(
    waiting: dict[int, dict[int, Block]], closed: dict[int, Moments], level: int, number: int, block: Block
) -> None:
    """Add a block, and close all that it fills up."""
    sister = waiting[level].pop(number ^ 1, None)
    if sister is None:
        waiting[level][number] = block
        return
    both = block + sister if number % 2 else sister + block
    pairs = 2 ** (level + 1) * (2 ** (level + 1) - 1)
    squares, whole = both.squares()
    moments = _moments((squares - both.own) / pairs, (whole - both.whole) / pairs, both.unit)
    closed[level + 1] = closed[level + 1] + moments if level + 1 in closed else moments
    if level + 1 < TOP:
        _put(waiting, closed, level + 1, number // 2, both)


def block_of(batch: int, terms: Scaled, tail: Scaled, squares: Scaled, entering: Scaled) -> Blocks:
    """One batch. terms (W, L), tail (W, 1): see `throughtime.reducers.lag_terms`; squares, entering: (T,) of adjoints."""
    unit = max(-1000, int(terms.exponent.max()), int(tail.exponent.max()))
    values = terms.in_units(unit).value(), tail.in_units(unit).value()[:, 0]
    block = Block(*values, *Block(*values, torch.zeros(0), torch.zeros(0)).squares(), unit)
    power = int(entering.exponent.max()) // 2
    arriving = _moments(squares.in_units(2 * power).value(), entering.in_units(2 * power).value(), power)
    return Blocks({0: {batch: block}}, {}, arriving)


def _sum(one: Tensor, other: Tensor) -> Tensor:
    """The sum, the shorter one padded along its last axis."""
    if one.ndim and one.shape[-1] != other.shape[-1]:
        lags = max(one.shape[-1], other.shape[-1])
        one, other = (torch.nn.functional.pad(part, (0, lags - part.shape[-1])) for part in (one, other))
    return one + other


def intervals(
    blocks: Blocks,
    bias: Array,
    share: Array,
    horizon: Mapping[float, int | None],
    log10_arriving: Array,
    level: float = LEVEL,
) -> Intervals | None:
    """The intervals of a layer; None with fewer than `LEAST` batches. bias, share, … (T,): those of the whole. level: how
    often they hold the truth."""
    if blocks.arriving.count < LEAST:
        return None
    size = max((each for each, moments in blocks.closed.items() if moments.count >= ENOUGH), default=1)
    if size not in blocks.closed or blocks.closed[size].count < LEAST // 2:
        return None  # batches that have no neighbours, of a run that was broken off
    told = blocks.closed[size]
    t = t_quantile(0.5 + level / 2, told.count - 1)
    steps, lags = len(bias), min(len(bias), told.y.shape[1])
    found = {}
    for epsilon, point in horizon.items():
        mean, error = (each[0].numpy() for each in told.of_difference(epsilon**2))
        # From the first K on from which no more than ε of the gradient lies beyond it: as far as can be seen, and for sure.
        known = np.flatnonzero(~np.isnan(bias[:lags]))
        low, high = (_stays(excess[known], known) for excess in (mean - t * error, mean + t * error))
        if point is not None:  # noise that adds to the measured value is none of the truth's
            low = point if low is None else min(low, point)
            high = None if high is None else max(high, point)
        found[epsilon] = (low, high)
    with np.errstate(invalid="ignore", divide="ignore"):
        bounds = told.of_ratio(t)[..., :lags]
        each = t_quantile(0.5 + level / 2, blocks.arriving.count - 1)
        arriving = 0.5 * np.log10(np.maximum(blocks.arriving.of_ratio(each), 0))
    return Intervals(
        level=level,
        blocks=told.count,
        batches=2**size,
        horizon=found,
        bias=_with(np.sqrt(np.maximum(_long(bounds[:, 0], steps), 0)), bias),
        share=_with(_long(bounds[:, 1], steps), share),
        log10_arriving=_with(_long(arriving, steps), log10_arriving),
    )


def _long(bounds: np.ndarray, steps: int) -> np.ndarray:
    """(2, lags) to (2, steps): beyond the last lag told lies nothing, or what is not told."""
    return np.concatenate((bounds, np.zeros((2, steps - bounds.shape[1]))), axis=1)


def _with(bounds: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Intervals (2, T) widened to the measured values; NaN where nothing was measured."""
    return np.stack((np.minimum(bounds[0], point), np.maximum(bounds[1], point)))


def _stays(excess: np.ndarray, lags: np.ndarray) -> int | None:
    """The smallest K from which on nothing is in excess; None where something is at the end."""
    above = np.flatnonzero(~(excess <= 0))
    if not len(above):
        return int(lags[0]) if len(lags) else None
    return int(lags[above[-1] + 1]) if above[-1] + 1 < len(lags) else None


def narrow(told: Intervals | None, horizon: Mapping[float, int | None], level: float, wanted: float) -> float | None:
    """The horizon's relative half-width where it is at most `wanted` (or half a step), else None."""
    point = horizon.get(level)
    low, high = (None, None) if told is None else told.horizon[level]
    if point is None or low is None or high is None:
        return None
    half = (high - low) / 2
    return half / max(point, 1) if half <= max(wanted * point, 0.5) else None
