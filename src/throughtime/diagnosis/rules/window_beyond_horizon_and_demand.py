"""TT106."""

from __future__ import annotations

from typing import ClassVar

from throughtime.diagnosis.example import measured
from throughtime.diagnosis.finding import Finding, Severity
from throughtime.diagnosis.report import Needed
from throughtime.diagnosis.rule import History, Rule
from throughtime.diagnosis.supply import reach
from throughtime.flow import LayerFlow

TIMES = 4
"""How often the window may hold what is reached and needed. Not calibrated."""
LEVEL = 0.01
"""Of the truncation bias that makes the gradient horizon: 1 %."""


class WindowBeyondHorizonAndDemand(Rule):
    """The window is several times longer than what the gradient reaches and the loss asks for.

    ## What

    Compares the recorded steps with the larger of two lags: the gradient horizon at 1 % (beyond it all terms together
    change the gradient by less than 1 %) and the farthest needed lag. Fires where the window is four times that or
    longer. The value is the length of the window. Silent where no need is known, for a short horizon alone says
    nothing of what the task asks: cutting the window there could lock a failure in.

    ## Why

    The steps beyond cost time and memory and change the gradient by less than 1 %.

    ## Example

    Windows of 1,000 steps for a loss that asks for lags up to 20, with a horizon of 40.

    ## Remedy

    A window of K = 2 · max(horizon, farthest needed lag + 1) steps, with the state carried over from window to window: half
    of its losses, or more, then reach back so far. What such chunks lose is not the bias of the flow, in which every loss goes
    back K steps: `throughtime window` tells it exactly, and what they cost. Measure again after some training: the horizon
    grows where a network learns to remember. "Not detected" is not "not needed": demand is a first-order test.

    ## References

    - Aicher, Foti & Fox 2019, Adaptively truncating backpropagation through time to control gradient bias, UAI,
      https://arxiv.org/abs/1905.07473
    """

    code: ClassVar[str] = "TT106"
    name: ClassVar[str] = "window-beyond-horizon-and-demand"
    severity: ClassVar[Severity] = "info"
    preview: ClassVar[bool] = True

    def check(self, layer: LayerFlow, needed: Needed, history: History | None) -> Finding | None:
        horizon = layer.horizon.get(LEVEL)
        if needed.farthest is None or horizon is None:
            return None
        enough = max(horizon, needed.farthest + 1)
        if reach(layer) + 1 < TIMES * enough:
            return None
        return self.finding(
            layer,
            reach(layer) + 1,
            TIMES * enough,
            f"The window holds {reach(layer) + 1} steps; the gradient horizon at 1 % is {horizon}, the farthest needed lag "
            f"{needed.farthest}.",
            f"A window of K = {2 * enough} steps, 2 · max(horizon, needed lag + 1), with the state carried over; "
            "`throughtime window` tells what it changes.",
        )

    def fires(self) -> tuple[LayerFlow, Needed, History | None]:
        layer = measured("GRU", steps=120, lag=2)
        return layer, Needed(layer.name, (2,), "user"), None

    def silent(self) -> tuple[LayerFlow, Needed, History | None]:
        layer = measured("GRU", steps=120, lag=60)
        return layer, Needed(layer.name, (60,), "user"), None
