"""Gradient horizons with a bootstrap interval over the units of the input: words, sentences, stretches of a recording.

The gradient is a sum over units, G = Σ_u G_u, and so is what is left of it beyond lag K, R(K) = Σ_u R_u(K). A sample drawn
anew takes every unit w_u times, and its truncation bias is √(wᵀ M(K) w / wᵀ M(−1) w) with M(K)_uv = ⟨R_u(K), R_v(K)⟩ and
R_u(−1) = G_u. So one sweep that tells the units apart, with autograd's gradient of each, gives the horizon of every resample
exactly, and no network is run again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import bootstrap
from torch import Tensor

from throughtime.block import Block
from throughtime.linearize import Linearization
from throughtime.reducers.products import grouped, outer
from throughtime.scaled import power_of_two
from throughtime.sweep import sweep
from throughtime.trace import Trace

RESAMPLED = 2000
LEVEL = 0.95
CONTRACT = 1e-4  # of what a unit's terms may miss of its gradient


class Units:
    """A consumer of a sweep that tells the units apart: M(K) by lag.

    units: (T, B), the unit of the loss at each origin and sequence, 0 … N − 1, in ascending order. wholes: (N, weights), G_u.
    """

    paths = False

    def __init__(self, linearization: Linearization, units: Tensor, wholes: Tensor) -> None:
        self.groups, self.units, self.left = grouped(linearization), units, wholes.clone()
        weights = linearization.trace.weights.tensors()
        sizes = [group.of(weights[group.parameter]).numel() for group in self.groups]
        self.places = [slice(end - size, end) for size, end in zip(sizes, np.cumsum(sizes).tolist(), strict=True)]
        self.gram = torch.zeros(linearization.trace.steps, len(wholes), len(wholes), dtype=torch.float64)

    def update(self, block: Block) -> None:
        """Take a block's terms away from what is left of each unit, one lag after the other."""
        assert block.lags is not None
        scale = power_of_two(block.common, self.left.dtype)
        made = [group.factors(block) for group in self.groups]
        for turn in torch.argsort(block.lags).tolist():
            for place, (p, x) in zip(self.places, made, strict=True):
                self._take_away(place, p[:, turn] * scale[turn], None if x is None else x[turn], block)
            if block.last:
                self.gram[block.lags[turn]] = (self.left @ self.left.T).double()

    def _take_away(self, place: slice, p: Tensor, x: Tensor | None, block: Block) -> None:
        """p (K, R·B, H) and x (R·B, width) of the block's origins (R,) and sequences (B,)."""
        if self.units.shape[1] > 1:  # each sequence is a unit
            sequences = block.adjoint.shape[2]
            by_unit = p.unflatten(1, (-1, sequences)).permute(2, 0, 1, 3)
            of_unit = None if x is None else x.unflatten(0, (-1, sequences)).transpose(0, 1).unsqueeze(1)
            self.left[block.sequences, place] -= outer(by_unit, of_unit).flatten(1)
            return
        found, counts = self.units[block.origins, 0].unique_consecutive(return_counts=True)
        end = 0
        for unit, count in zip(found.tolist(), counts.tolist(), strict=True):
            at = slice(end, end := end + count)
            self.left[unit, place] -= outer(p[:, at], None if x is None else x[at]).flatten()

    def tail(self, block: Block) -> None:
        """Every lag is told apart here."""
        raise AssertionError("a sweep of tolerance 0 has no tail")

    def initial(self, lag: int | None, adjoint: Tensor, exponent: Tensor) -> None:
        """No weight's."""


def grams(trace: Trace, units: Tensor, gradients: Mapping[str, Tensor]) -> NDArray[np.float64]:
    """(T + 1, N, N): M(−1), M(0), … of a trace's layer. gradients: autograd's of each unit alone (N, …), by weight.

    Raises ValueError: the units are not those of the gradients.
    """
    linearization = Linearization(trace)
    groups = grouped(linearization)
    wholes = torch.stack(
        [
            torch.cat([group.of(gradients[group.parameter][unit]).flatten() for group in groups])
            for unit in range(int(units.max()) + 1)
        ]
    )
    told = Units(linearization, units, wholes)
    sweep(linearization, [told], tolerance=0)
    size, left = torch.linalg.vector_norm(wholes, dim=1), torch.linalg.vector_norm(told.left, dim=1)
    if (left > CONTRACT * size.max()).any():
        raise ValueError(
            f"got terms that leave {float((left / size.max()).max()):.2g} of a unit; expected {CONTRACT:g}"
        )
    return torch.cat([(wholes @ wholes.T).double()[None], told.gram]).numpy()


def units_of(trace: Trace, cuts: Sequence[int]) -> Tensor:
    """(T, B): the sequence; of one sequence, the stretch in which the loss stands."""
    if trace.batch > 1:
        return torch.arange(trace.batch).expand(trace.steps, -1)
    stretch = torch.bucketize(torch.arange(trace.steps), torch.tensor(cuts[1:-1]), right=True)
    return stretch.unsqueeze(1)


def bias(grams: NDArray[np.float64]) -> NDArray[np.float64]:
    """(T,) the truncation bias by K of the sample as it is."""
    squares = grams.sum((1, 2)).clip(0)
    return np.sqrt(squares[1:] / squares[0])


def horizons(grams: NDArray[np.float64], weights: NDArray[np.float64], level: float) -> NDArray[np.float64]:
    """The gradient horizon of every sample, weights (…, N): how often it has each unit."""
    squares = np.stack([((weights @ gram) * weights).sum(-1) for gram in grams], axis=-1)  # (…, T + 1)
    above = squares[..., 1:] > level**2 * squares[..., :1]
    steps = above.shape[-1]
    return np.where(above.any(-1), steps - above[..., ::-1].argmax(-1), 0).astype(np.float64)


def interval(grams: NDArray[np.float64], level: float) -> tuple[int, int]:
    """95 % of the horizons at this level lie between, by scipy's percentile bootstrap over units."""
    count = grams.shape[-1]

    def statistic(drawn: NDArray[np.int64], axis: int = -1) -> NDArray[np.float64]:
        return horizons(grams, (drawn[..., None] == np.arange(count)).sum(-2).astype(np.float64), level)

    found = bootstrap(
        (np.arange(count),), statistic, vectorized=True, axis=-1, n_resamples=RESAMPLED, batch=250,
        confidence_level=LEVEL, method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return int(np.floor(found.low)), int(np.ceil(found.high))
