"""Confidence intervals over batches, by a jackknife over groups of them.

Each of at most `MOST` groups keeps a sketch of its terms G(τ): a fixed random projection to `WIDTH` numbers that keeps inner
products on average (count sketch; Charikar, Chen & Farach-Colton 2002). Norms of sums over groups follow from the groups'
inner products. They are scaled to the exact norms of the whole, so that the projection is felt in the spread alone.

Letters: n groups, L lags, d = `WIDTH`, R_j(K) what group j has beyond lag K, G_j its gradient. The truncation bias of the whole
is that of the mean gradient, so ‖E R‖² is estimated without the groups' own noise: by the pairs i ≠ j (a U-statistic, whose
variance the jackknife gives: Arvesen 1969). Coverage as measured: docs/howto/large-data.md.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from throughtime.flow import Array, Intervals
from throughtime.scaled import Scaled

LEVEL = 0.95
MOST = 64  # groups: their sketches take 4·MOST·WIDTH bytes a lag
LEAST = 8  # groups under which no interval is given
WIDTH = 128  # numbers a sketch: an inner product is then right to 1/√128 of the norms, 9 %
SEED = 20  # of the projection, the same on every machine


@dataclass(frozen=True)
class Groups:
    """Sums of n groups of `width` batches each (a power of two): batch i is in group i // width.

    counts: batches that a group has so far. terms: (n, L, d) sketches of G(τ), tail: (n, d). squares: Σ‖λ‖² by lag (n, T) and
    entering: what entered at the same pairs.
    """

    width: int
    ids: list[int]
    counts: list[int]
    terms: Tensor
    tail: Tensor
    squares: Scaled
    entering: Tensor

    def __add__(self, other: Groups) -> Groups:
        width = max(self.width, other.width)
        while len({i * part.width // width for part in (self, other) for i in part.ids}) > MOST:
            width *= 2
        lags, steps = (max(getattr(p, name).shape[1] for p in (self, other)) for name in ("terms", "entering"))
        ids = sorted({i * part.width // width for part in (self, other) for i in part.ids})
        counts = [0] * len(ids)
        terms = torch.zeros(len(ids), lags, self.terms.shape[2])
        tail = torch.zeros(len(ids), self.terms.shape[2])
        entering = torch.zeros(len(ids), steps, dtype=torch.float64)
        squares = Scaled.zeros(len(ids), steps)
        for part in (self, other):
            at = [ids.index(i * part.width // width) for i in part.ids]
            for place, count in zip(at, part.counts, strict=True):
                counts[place] += count
            index = torch.tensor(at, dtype=torch.int64)
            terms[:, : part.terms.shape[1]].index_add_(0, index, part.terms)
            tail.index_add_(0, index, part.tail)
            entering[:, : part.entering.shape[1]].index_add_(0, index, part.entering)
            own = torch.zeros(len(ids), part.squares.mantissa.shape[1], dtype=torch.float64)
            own.index_add_(0, index, part.squares.mantissa)
            squares.add_at(torch.arange(own.shape[1]), own, part.squares.exponent)
        return Groups(width, ids, counts, terms, tail, squares, entering)


def group_of(batch: int, terms: Scaled, tail: Scaled | None, squares: Scaled, entering: Tensor) -> Groups:
    """One batch as a group. terms (W, L), tail (W, 1): see `throughtime.reducers.lag_terms`; squares, entering: (T,)."""
    rest = terms.mantissa.new_zeros(len(terms.mantissa), 1) if tail is None else tail.value()
    return Groups(
        1,
        [batch],
        [1],
        sketch(terms.value()).T[None].float(),
        sketch(rest).T.float(),
        Scaled(squares.mantissa[None].clone(), squares.exponent.clone()),
        entering[None].clone(),
    )


def sketch(columns: Tensor) -> Tensor:
    """(W, L) float64 to (d, L); no more than W numbers are kept as they are."""
    if len(columns) <= WIDTH:
        return torch.nn.functional.pad(columns, (0, 0, 0, WIDTH - len(columns)))
    return _projection(len(columns)) @ columns


@lru_cache(maxsize=8)
def _projection(size: int) -> Tensor:
    """(d, W) sparse: every number goes to one of d places, with a sign."""
    generator = torch.Generator().manual_seed(SEED)
    place = torch.randint(WIDTH, (size,), generator=generator)
    sign = 1.0 - 2.0 * torch.randint(2, (size,), generator=generator).double()
    at = torch.stack((place, torch.arange(size)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Sparse CSR.*")  # that its layout is in beta
        return torch.sparse_coo_tensor(at, sign, (WIDTH, size), check_invariants=True).coalesce().to_sparse_csr()


def intervals(
    groups: Groups, bias: Array, share: Array, horizon: dict[float, int | None], log10_arriving: Array
) -> Intervals | None:
    """The intervals of a layer; None with fewer than `LEAST` full groups. bias, share, … (T,): those of the whole."""
    full = [place for place, count in enumerate(groups.counts) if count == groups.width]
    n = len(full)
    if n < LEAST:
        return None
    from throughtime.verify import t_quantile

    steps, lags = len(bias), groups.terms.shape[1]
    t = t_quantile(0.5 + LEVEL / 2, n - 1)
    terms, tail = groups.terms.double(), groups.tail.double()
    gradient = terms.sum(1) + tail
    unit = gradient.sum(0).norm()
    terms, tail, gradient = terms / unit, tail / unit, gradient / unit
    beyond = tail[:, None] + terms.sum(1, keepdim=True) - terms.cumsum(1)  # (n, L, d): R_j(K)
    known = ~np.isnan(bias[:lags])
    exact, sketched = torch.from_numpy(np.square(bias[:lags])), beyond.sum(0).square().sum(1)
    scale = torch.where(sketched > 0, exact / sketched, 1.0)
    remainder = torch.einsum("ild,jld->lij", beyond, beyond) * scale[:, None, None]
    whole = gradient @ gradient.T
    inner = torch.einsum("ild,jd->lij", terms, gradient)
    inner += ((torch.from_numpy(share[:lags].copy()) - inner.sum((1, 2))) / inner[0].numel())[:, None, None]
    at = torch.tensor(full)

    def of(gram: Tensor) -> Tensor:
        return gram[..., at, :][..., at]

    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = _ratio(of(remainder), of(whole), t)
        bounds = np.full((2, steps), np.nan)
        bounds[0, :lags], bounds[1, :lags] = np.sqrt(np.maximum(low, 0)), np.sqrt(np.maximum(high, 0))
        bounds[:, :lags][:, ~known] = np.nan
        if lags < steps and not np.isnan(bias[lags:]).any():  # nothing lies beyond the last lag
            bounds[:, lags:] = bounds[:, lags - 1 : lags]
        bounds = _with(bounds, bias)
        shares = np.full((2, steps), np.nan)
        shares[:, :lags] = np.stack(_ratio(of(inner), of(whole), t))
        shares = _with(shares, share)
        arriving = _with(_arriving(groups, full, t), log10_arriving)
    told = np.flatnonzero(~np.isnan(bounds[1]))
    found = {}
    for level, point in horizon.items():
        ends = [_crossing(row[told], level, told) for row in bounds]
        if point is not None:  # what sampling noise adds to the measured value lies outside the interval of the truth
            ends[0] = point if ends[0] is None else min(ends[0], point)
            ends[1] = None if ends[1] is None else max(ends[1], point)
        found[level] = (ends[0], ends[1])
    return Intervals(LEVEL, n, groups.width, found, bounds, shares, arriving)


def _ratio(numerator: Tensor, denominator: Tensor, t: float) -> tuple[np.ndarray, np.ndarray]:
    """Interval of the ratio of two U-statistics, from Gram matrices (L, n, n) and (n, n)."""
    (above, each_above), (below, each_below) = _pairs(numerator), _pairs(denominator)
    ratio, each = above / below, each_above / each_below[None]
    n = each.shape[1]
    spread = t * (each.var(1, correction=0) * (n - 1)).sqrt()
    if below <= 0:  # the gradient itself is not told from noise
        return np.full(len(ratio), -np.inf), np.full(len(ratio), np.inf)
    return (ratio - spread).numpy(), (ratio + spread).numpy()


def _pairs(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over pairs i ≠ j of (..., n, n), and the same without each of the groups (..., n)."""
    n = gram.shape[-1]
    own, rows = gram.diagonal(dim1=-2, dim2=-1), 0.5 * (gram.sum(-1) + gram.sum(-2))
    off = gram.sum((-2, -1)) - own.sum(-1)
    without = off[..., None] - 2 * (rows - own)
    return off / (n * (n - 1)), without / ((n - 1) * (n - 2))


def _arriving(groups: Groups, full: Sequence[int], t: float) -> np.ndarray:
    """(2, T): of log10 of what arrives."""
    squares, entering = groups.squares.mantissa[list(full)].numpy(), groups.entering[list(full)].numpy()
    top = groups.squares.exponent.double().numpy() * np.log10(2)

    def told(s: np.ndarray, e: np.ndarray) -> np.ndarray:
        return 0.5 * (np.log10(s) + top - np.log10(e))

    n = len(full)
    centre = told(squares.sum(0), entering.sum(0))
    each = told(squares.sum(0) - squares, entering.sum(0) - entering)
    spread = t * np.sqrt((n - 1) * each.var(0))
    return np.stack((centre - spread, centre + spread))


def _with(bounds: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Intervals (2, T) widened to the measured values."""
    return np.stack((np.minimum(bounds[0], point), np.maximum(bounds[1], point)))


def _crossing(bias: np.ndarray, level: float, lags: np.ndarray) -> int | None:
    """The smallest K from which on the bias stays at or under the level; None where it does not."""
    above = np.flatnonzero(~(bias <= level))
    if not len(above):
        return int(lags[0]) if len(lags) else None
    return int(lags[above[-1] + 1]) if above[-1] + 1 < len(lags) else None


def narrow(told: Intervals | None, horizon: dict[float, int | None], level: float, wanted: float) -> float | None:
    """The horizon's relative half-width where it is at most `wanted` (or half a step), else None."""
    point = horizon.get(level)
    low, high = (None, None) if told is None else told.horizon[level]
    if point is None or low is None or high is None:
        return None
    half = (high - low) / 2
    return half / max(point, 1) if half <= max(wanted * point, 0.5) else None
