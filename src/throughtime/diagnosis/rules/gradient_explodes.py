"""TT102."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from throughtime.diagnosis.example import measured
from throughtime.diagnosis.finding import Finding, Severity
from throughtime.diagnosis.report import Needed
from throughtime.diagnosis.rule import History, Rule
from throughtime.diagnosis.supply import growth, reach
from throughtime.flow import LayerFlow
from throughtime.report.notation import number

HEAVY_BY_STEP = 10.0
"""Largest norm of the whole gradient over the median of its neighbours. Set by calibration: docs/calibration.md."""
HEAVY_BY_SEQUENCE = 10.0
"""Largest adjoint over the median one at the farthest lag, over sequences. Set with care, docs/calibration.md says why."""
LEAST = 20
"""Training steps, or sequences: fewer show no tail."""
NEIGHBOURS = 10
"""On each side. Norms fall by decades while a network learns; a burst is one against its own time."""
CLIP = 0.9
"""Quantile of the measured norms that is proposed for clipping: nine steps of ten stay as they are."""
LARGEST = 1e12
"""Stands for a norm that was not finite."""


@dataclass(frozen=True)
class Spread:
    """How heavy the tail of the norms is. clip: the quantile to clip at, where norms by training step are known."""

    ratio: float
    threshold: float
    over: str
    severity: Severity = "warning"
    clip: float | None = None


class GradientExplodes(Rule):
    """The gradient grows with the lag, and its size comes in bursts.

    ## What

    Two conditions, both needed. Growth: the slope of ln‖λ(τ)‖ over the lag, one slope a sequence, has a 95 % interval
    above zero. Heavy tail: the largest norm of the whole gradient is many times the median of its neighbours in
    training, from `history["gradient_norm"]`. Without norms by training step, the spread over the sequences of this
    batch stands in: the largest adjoint at the farthest lag over the median one. That finds few explosions, so it is
    told as an info and not as a warning. The value is the ratio.

    The rule knows nothing of the learning rate: where that is tiny, bursts do no harm. Judge the fresh network, or the
    state just before a burst: after one, units stand saturated and nothing grows any more.

    Growth alone is healthy: a gradient that grows a little and evenly is as good as one that falls a little and evenly.

    ## Why

    Where the product of Jacobians grows, it grows unevenly: some sequences are carried off by orders of magnitude,
    and a single step of training undoes what hundreds have learned.

    ## Example

    A torch.nn.RNN whose recurrent matrix was drawn with gain 3 instead of 1: chaotic, λ₁ > 0. The loss falls, leaps,
    falls again.

    ## Remedy

    First the cause: reduce the recurrent gain g (the largest |eigenvalue| of W_hh, roughly) below the point from which
    perturbations grow:

        Elman  g_c = 1
        GRU    g_c = 1 / σ(b_r)               2 at zero bias
        LSTM   g_c = (1 − σ(b_f)) / (σ(b_i) σ(b_o))    2 at zero bias

    (zero input, constant gates.)

    Then clip the norm at a quantile of the norms that were measured, not at a guess:
    `torch.nn.utils.clip_grad_norm_(model.parameters(), q)` with q the .9 quantile. Clipping alone need not cure a
    network whose own dynamics explode: its norms are large because it does.

    ## References

    - Pascanu, Mikolov & Bengio 2013, On the difficulty of training recurrent neural networks, ICML,
      https://arxiv.org/abs/1211.5063
    - Rehmer & Kroll 2020, On the vanishing and exploding gradient problem in Gated Recurrent Units, IFAC World Congress
    """

    code: ClassVar[str] = "TT102"
    name: ClassVar[str] = "gradient-explodes"
    severity: ClassVar[Severity] = "warning"

    def check(self, layer: LayerFlow, needed: Needed, history: History | None) -> Finding | None:
        rate = growth(layer)
        if rate is None or not rate.low > 0:
            return None
        tail = by_step(history) or by_sequence(layer)
        if tail is None or tail.ratio < tail.threshold:
            return None
        burst = f"is {number(tail.ratio, 2)} times the median" if tail.ratio < LARGEST else "is not finite"
        clip = "a quantile of the norms by training step (pass them as `history`)"
        if tail.clip is not None:
            clip = f"{number(tail.clip)}, the {CLIP:g} quantile of the measured ones"
        return self.finding(
            layer,
            tail.ratio,
            tail.threshold,
            f"The gradient grows by {number(rate.rate, 2)} nats a step back ({number(rate.low, 2)} to "
            f"{number(rate.high, 2)}), and the largest {tail.over} {burst}.",
            "Reduce the recurrent gain below g_c (Elman: 1; GRU: 1/σ(b_r); LSTM: (1 − σ(b_f)) / (σ(b_i) σ(b_o))), "
            f"and clip the norm of the gradient at {clip}.",
            severity=tail.severity,
        )

    def fires(self) -> tuple[LayerFlow, Needed, History | None]:
        layer = measured("RNN", _chaotic, hidden=32)
        return layer, Needed(layer.name, (), "unknown"), History(np.ones(60), _bursts(60))

    def silent(self) -> tuple[LayerFlow, Needed, History | None]:
        layer = measured("RNN", _chaotic, hidden=32)
        return layer, Needed(layer.name, (), "unknown"), History(np.ones(60), 1 + 0.1 * np.cos(np.arange(60.0)))


def _chaotic(layer: Any) -> None:
    layer.weight_hh_l0.normal_(0, 3 / layer.hidden_size**0.5)


def _bursts(steps: int) -> NDArray[np.float64]:
    return np.where(np.arange(steps) % 25 == 20, 300.0, 1.0)


def by_step(history: History | None) -> Spread | None:
    """The tail of the norms by training step; a norm or a loss that was not finite is a burst. None without enough of
    them."""
    if history is None:
        return None
    norms = history.gradient_norm if history.gradient_norm is not None else np.zeros(0)
    finite = norms[np.isfinite(norms)]
    clip = float(np.quantile(finite, CLIP)) if len(finite) else None
    over = "norm of the whole gradient by training step"
    if len(finite) < len(norms) or not np.isfinite(history.loss).all():
        return Spread(LARGEST, HEAVY_BY_STEP, over, clip=clip)
    if len(norms) < LEAST:
        return None
    neighbours = [np.median(norms[max(0, i - NEIGHBOURS) : i + NEIGHBOURS + 1]) for i in range(len(norms))]
    return Spread(_largest(norms, np.array(neighbours)), HEAVY_BY_STEP, over, clip=clip)


def by_sequence(layer: LayerFlow) -> Spread | None:
    """The stand-in: the tail over the sequences of this batch, at the farthest lag that enough of them have."""
    logs = layer.adjoint.by_sequence[: reach(layer) + 1]
    lags = np.flatnonzero(np.isfinite(logs).sum(1) >= LEAST)
    if not len(lags):
        return None
    there = logs[lags[-1]][np.isfinite(logs[lags[-1]])]
    excess = min(float(there.max() - np.median(there)), np.log10(LARGEST))
    over = "adjoint of a sequence (no norms by step were given)"
    return Spread(10.0**excess, HEAVY_BY_SEQUENCE, over, severity="info")


def _largest(norms: NDArray[np.float64], neighbours: NDArray[np.float64]) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = norms / neighbours
    return min(float(np.nanmax(ratios, initial=0.0)), LARGEST)
