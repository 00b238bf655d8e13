"""Supply, read from a measured layer: how far the gradient is alive, what arrives at a lag, whether it grows with
it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from throughtime.flow import LayerFlow
from throughtime.student_t import t_quantile

LEAST_LAGS = 8
"""Fewer lags make no slope."""
LEVEL = 0.95
"""Of the interval of a growth rate."""


@dataclass(frozen=True)
class Arrival:
    """log10 of the fraction of the gradient that arrives at `lag`; only an upper bound where the lag is in the tail."""

    lag: int
    log10: float
    bound: bool = False

    @property
    def fraction(self) -> float:
        """The fraction itself, 0 or infinite where it leaves the range of floats."""
        return 10.0**self.log10 if -300 < self.log10 < 308 else 0.0 if self.log10 < 0 else math.inf


def alone(layer: LayerFlow) -> str:
    """What a finding on supply must add where other layers may carry the gradient too; "" for a network of one layer."""
    if layer.lag == "total":
        return ""
    return " Within this layer alone: what other layers carry is not counted, so it is no fault by itself."


def reach(layer: LayerFlow) -> int:
    """The farthest lag that the recorded steps hold: from the last step with a loss back to the first step."""
    return max(layer.loss_steps)


def cut_after(layer: LayerFlow) -> int | None:
    """The last lag at which any gradient stands when it is exactly zero from the next one on, else None.

    Adjoints are carried with powers of two, so they do not underflow: a zero was multiplied by zero. A tail without any
    gradient in it is such a zero too; a small one would have a norm.
    """
    zero = np.flatnonzero(np.isneginf(layer.adjoint.log10_norm[: reach(layer) + 1]))
    if len(zero):
        return int(zero[0]) - 1
    if layer.tail is not None and np.isneginf(layer.tail.log10_norm) and layer.tail.first_lag <= reach(layer):
        return layer.tail.first_lag - 1
    return None


def last_lag(layer: LayerFlow) -> int:
    """The farthest lag at which any gradient stands: up to a cut, or to the first recorded step."""
    cut = cut_after(layer)
    return reach(layer) if cut is None else cut


def arrival(layer: LayerFlow, lag: int) -> Arrival | None:
    """What arrives at `lag`; None where nothing is known: outside the recorded steps, or beyond a `max_lag` that was asked."""
    if lag > reach(layer):
        return None
    told, tail = float(layer.log10_arriving[lag]), layer.tail
    if not np.isnan(told):
        return Arrival(lag, told)
    if tail is None or lag < tail.first_lag or tail.tolerance is None:
        return None
    return Arrival(lag, float(np.log10(tail.tolerance)), bound=True)


@dataclass(frozen=True)
class Growth:
    """Growth of the adjoint in nats per lag: the mean and its 95 % interval. over: what the spread was taken over."""

    rate: float
    low: float
    high: float
    over: str


def growth(layer: LayerFlow) -> Growth | None:
    """The slope of ln‖λ‖ by lag: over sequences; with one sequence, over eighths of the lags. None with too few
    lags."""
    logs = layer.adjoint.by_sequence[: reach(layer) + 1] * np.log(10)
    logs = logs[:, np.isfinite(logs).sum(0) >= LEAST_LAGS]
    if logs.shape[1] >= 2:
        return _interval(np.array([_slope(column) for column in logs.T]), "sequences")
    if logs.shape[1] == 1:
        lags = np.flatnonzero(np.isfinite(logs[:, 0]))
        ends = np.unique(np.linspace(0, len(lags) - 1, LEAST_LAGS + 1).astype(int))
        if len(ends) > LEAST_LAGS:
            return _interval(np.diff(logs[lags[ends], 0]) / np.diff(lags[ends]), "eighths of the lags")
    return None


def _slope(logs: NDArray[np.float64]) -> float:
    lags = np.flatnonzero(np.isfinite(logs))
    centred = lags - lags.mean()
    return float(centred @ logs[lags] / (centred @ centred))


def _interval(rates: NDArray[np.float64], over: str) -> Growth:
    margin = t_quantile(0.5 + LEVEL / 2, len(rates) - 1) * rates.std(ddof=1) / np.sqrt(len(rates))
    mean = rates.mean()
    return Growth(float(mean), float(mean - margin), float(mean + margin), over)
