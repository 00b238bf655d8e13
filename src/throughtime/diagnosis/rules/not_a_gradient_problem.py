"""TT190."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from throughtime.diagnosis.example import measured
from throughtime.diagnosis.finding import Finding, Severity
from throughtime.diagnosis.report import Needed
from throughtime.diagnosis.rule import History, Rule
from throughtime.diagnosis.rules.gradient_explodes import GradientExplodes
from throughtime.diagnosis.rules.gradient_vanishes_before_needed_lag import ENOUGH
from throughtime.diagnosis.supply import arrival, last_lag
from throughtime.flow import LayerFlow
from throughtime.report.notation import from_log10, number

LEAST = 20
"""Losses: fewer do not show whether training has stalled."""
PROGRESS = 0.01
"""Fall of the loss from the second quarter of the history to the last, relative to it, under which training has
stalled. Set by calibration: docs/calibration.md."""


LEARNED = 1e-3
"""Of the largest loss in the first tenth of the history: at or under it the task is learned, and there is nothing to stall."""


class NotAGradientProblem(Rule):
    """The gradient reaches every needed lag, and training stalls all the same.

    ## What

    Fires where lags are known to be needed, none of them is cut off (TT103), short of gradient (TT101) or drowned in an
    explosion (TT102), and the losses given as `history` have stopped falling: the median of their last quarter is not
    clearly under that of their second. Without a history it says as much as can be said: the gradient reaches, the fit
    cannot be judged. The value is the smallest fraction that arrives at a needed lag.

    ## Why

    The usual advice for a recurrent network that does not learn is about gradients. Where they are in order it costs
    days.

    ## Example

    A GRU with chrono initialisation, a third of whose gradient arrives at lag 40, on labels that were shuffled by
    mistake: the loss stays where it was, and no initialisation will move it.

    ## Remedy

    Look elsewhere, in this order: do targets belong to their inputs (can one batch be learned by heart?); the
    learning rate, ten times up and ten times down; more units; more data, or inputs that say what the target asks. A
    loss that stands at the noise in the targets is learned, not stalled.

    ## References

    - Sutskever, Martens, Dahl & Hinton 2013, On the importance of initialization and momentum in deep learning, ICML
    - Collins, Sohl-Dickstein & Sussillo 2017, Capacity and trainability in recurrent neural networks, ICLR,
      https://arxiv.org/abs/1611.09913
    """

    code: ClassVar[str] = "TT190"
    name: ClassVar[str] = "not-a-gradient-problem"
    severity: ClassVar[Severity] = "info"

    def check(self, layer: LayerFlow, needed: Needed, history: History | None) -> Finding | None:
        if needed.farthest is None or needed.farthest > last_lag(layer):
            return None
        arrivals = [arrival(layer, lag) for lag in needed.lags]
        known = [found for found in arrivals if found is not None]
        least = min(known, key=lambda found: found.log10, default=None)
        if least is None or len(known) < len(arrivals) or least.fraction < ENOUGH:
            return None
        if GradientExplodes().check(layer, needed, history) is not None:
            return None
        lags = "needed lag" if needed.source == "user" else "lag at which demand was detected"
        reaches = f"The gradient reaches every {lags}: {from_log10(least.log10)} arrives at lag {least.lag}"
        if history is None or len(history.loss) < LEAST:
            message = f"{reaches}. The fit cannot be judged without losses by training step."
            remedy = (
                "If the loss does not fall: pass `history=` the losses, and look at data, learning rate and capacity."
            )
            return self.finding(layer, least.fraction, ENOUGH, message, remedy)
        if not stalled(history.loss):
            return None
        early, late = _medians(history.loss)
        verdict = "This is not a gradient problem."
        if needed.source == "demand":
            verdict = (
                "At those lags it is not a gradient problem; needs that a first-order test cannot see are not excluded."
            )
        return self.finding(
            layer,
            least.fraction,
            ENOUGH,
            f"{reaches}, and yet the loss has stopped falling ({number(early)}, then {number(late)}).",
            f"{verdict} Check that targets belong to their inputs, then the learning rate (×10, ÷10), "
            "then capacity and data; a loss at the noise of the targets is learned, not stalled.",
        )

    def fires(self) -> tuple[LayerFlow, Needed, History | None]:
        layer = measured("GRU", lag=3)
        return layer, Needed(layer.name, (3,), "user"), History(1 + 0.01 * np.cos(np.arange(100.0)))

    def silent(self) -> tuple[LayerFlow, Needed, History | None]:
        layer = measured("GRU", lag=3)
        return layer, Needed(layer.name, (3,), "user"), History(np.exp(-np.arange(100.0) / 30))


def stalled(loss: NDArray[np.float64]) -> bool:
    """Whether the loss has stopped falling, by medians of the second and the last quarter."""
    if not np.isfinite(loss).all():
        return False
    early, late = _medians(loss)
    if abs(late) <= LEARNED * np.abs(loss[: max(1, len(loss) // 10)]).max():
        return False
    return late > early - PROGRESS * abs(early)


def _medians(loss: NDArray[np.float64]) -> tuple[float, float]:
    quarters = np.array_split(loss, 4)
    return float(np.median(quarters[1])), float(np.median(quarters[3]))
