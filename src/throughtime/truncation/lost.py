"""What a window loses of the gradient: bias and cosine, with their intervals over sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from throughtime.linearize import Linearization
from throughtime.student_t import t_quantile
from throughtime.truncation.gradient import Window, truncated

GROUPS = 8  # of sequences, that are left out one after another
LEAST_GROUPS = 4  # fewer make no interval
ENTRIES = 2**25  # numbers that the gradients of all groups together may have
LEVEL = 0.95  # of the intervals


@dataclass(frozen=True)
class Lost:
    """Of one window, in one layer or in all: bias ‖G − Ĝ‖ / ‖G‖ and cosine of Ĝ with G, Ĝ the truncated gradient.

    low, high: 95 % interval of the bias over sequences, by the jackknife over groups of them; NaN with too few sequences.
    """

    bias: float
    cosine: float
    low: float = float("nan")
    high: float = float("nan")


@dataclass(frozen=True)
class Moments:
    """Squares and products of G, Ĝ and G − Ĝ, each (1 + groups,): of all sequences, then with one group after another left
    out."""

    whole: NDArray[np.float64]
    kept: NDArray[np.float64]
    left: NDArray[np.float64]
    inner: NDArray[np.float64]

    def __add__(self, other: Moments) -> Moments:
        """Of the weights of both: all sequences alone where their groups are not the same."""
        n = len(self.whole) if len(self.whole) == len(other.whole) else 1
        pairs = ((self.whole, other.whole), (self.kept, other.kept), (self.left, other.left), (self.inner, other.inner))
        return Moments(*(a[:n] + b[:n] for a, b in pairs))

    def lost(self) -> Lost:
        """See `Lost`."""
        with np.errstate(invalid="ignore", divide="ignore"):
            bias = np.sqrt(self.left / self.whole)
            cosine = float(np.clip(self.inner[0] / np.sqrt(self.whole[0] * self.kept[0]), -1, 1))
        again = bias[1:]
        if len(again) < LEAST_GROUPS or not np.isfinite(bias).all():
            return Lost(float(bias[0]), cosine)
        n = len(again)
        error = np.sqrt((n - 1) / n * np.square(again - again.mean()).sum())
        margin = float(t_quantile(0.5 + LEVEL / 2, n - 1) * error)
        return Lost(float(bias[0]), cosine, max(0.0, float(bias[0]) - margin), float(bias[0]) + margin)


class Comparison:
    """Compares the gradients of windows with the whole one, in one layer. G is the terms' own sum, by the same sweep.

    unit: of 2^unit, the same in all layers whose moments are added up: squares of a gradient may leave the range of floats.
    """

    def __init__(self, linearization: Linearization, unit: int) -> None:
        trace = linearization.trace
        self.linearization, self.unit = linearization, unit
        weights = sum(value.numel() for value in trace.weights.tensors().values())
        count = min(GROUPS, trace.batch, max(1, ENTRIES // weights))
        bounds = np.linspace(0, trace.batch, (count if count >= LEAST_GROUPS else 1) + 1).astype(int).tolist()
        self.sequences = [slice(a, b) for a, b in pairwise(bounds)]
        self.whole = truncated(linearization, Window(trace.steps, trace.steps), self.sequences, self.unit)

    def moments(self, window: Window) -> Moments:
        """What this window makes of the gradient."""
        if window.k1 >= self.linearization.trace.steps:
            kept = self.whole
        else:
            kept = truncated(self.linearization, window, self.sequences, self.unit)
        return compared(self.whole, kept)


def compared(whole: Sequence[Tensor], kept: Sequence[Tensor]) -> Moments:
    """Of gradients, each (groups, …)."""
    groups = len(whole[0])
    sums = np.zeros((4, 1 + groups))
    for g, k in zip(whole, kept, strict=True):
        g, k = (_left_out([part.double() for part in each]) for each in (g, k))
        for place, (a, b) in enumerate(zip(g, k, strict=True)):
            sums[:, place] += [float((u * v).sum()) for u, v in ((a, a), (b, b), (a - b, a - b), (a, b))]
    return Moments(*(sums[:, : groups + 1 if groups >= LEAST_GROUPS else 1]))


def _left_out(parts: Sequence) -> list:
    """The sum of all parts, then without one after another."""
    total = sum(parts[1:], parts[0])
    return [total, *(total - part for part in parts)]
