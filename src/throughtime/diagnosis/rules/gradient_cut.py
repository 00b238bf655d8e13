"""TT103."""

from __future__ import annotations

from typing import Any, ClassVar

from throughtime.diagnosis.example import measured
from throughtime.diagnosis.finding import Finding, Severity
from throughtime.diagnosis.report import Needed
from throughtime.diagnosis.rule import History, Rule
from throughtime.diagnosis.supply import alone, cut_after, last_lag
from throughtime.flow import LayerFlow

SATURATED = 0.5
"""Fraction of a gate's logits beyond ±6 from which the message names it: half of the gate is a constant then."""


class GradientCut(Rule):
    """The gradient is exactly zero beyond a lag, though the loss asks for more.

    ## What

    The rule looks for the last lag k at which any gradient stands, and fires where a needed lag lies beyond k. There
    are two cases: the recorded steps end there (the window is shorter than the need), or the adjoint was multiplied
    by an exact zero inside them. Adjoints are carried with powers of two, so that 1e-60 is told as 1e-60: an exact
    zero is no underflow. The value is k, the threshold the farthest needed lag. Silent where no lag is known to be
    needed.

    Of a whole that looks ahead, by a convolution or attention between modules, no further than some steps, the same is
    told as information.

    With a loss at many steps, a cut at one step leaves the pairs that do not cross it; then only the map of origins and
    steps shows it.

    ## Why

    Zero stays zero under any initialisation, any learning rate and any length of training. It is nearly always a slip.

    ## Example

    Truncated training in windows of 50 steps, with `state = state.detach()` between them, on a task that needs 80
    steps. Or inputs of some thousands that were never scaled: tanh′ is exactly 0 in float32 beyond ±9 or so.

    ## Remedy

    Window too short: record and train on at least (needed lag + 1) steps in one call, K ≥ τ + 1 in truncated
    training, and carry the state from window to window. A zero inside the window: look for a detach, a `no_grad`, a
    mask or a reset on the state; scale the inputs to mean 0 and variance 1; of relu units that are all off, raise the
    bias.

    ## References

    - Williams & Peng 1990, An efficient gradient-based algorithm for on-line training of recurrent network
      trajectories, Neural Computation 2(4)
    - Tallec & Ollivier 2017, Unbiasing truncated backpropagation through time, https://arxiv.org/abs/1705.08209
    """

    code: ClassVar[str] = "TT103"
    name: ClassVar[str] = "gradient-cut"
    severity: ClassVar[Severity] = "error"

    def check(self, layer: LayerFlow, needed: Needed, history: History | None) -> Finding | None:
        last = last_lag(layer)
        if needed.farthest is None or needed.farthest <= last:
            return None
        caution = alone(layer)
        if cut_after(layer) is not None and layer.reverse and layer.opposite:
            asked = max(
                (lag for lag in needed.lags if lag != needed.said), default=0
            )  # what is said is meant of the past
            message, remedy = _ahead(last, asked)
            return self.finding(layer, last, asked, message + caution, remedy, "info") if asked > last else None
        message, remedy = (_window if cut_after(layer) is None else _inside)(layer, last, needed.farthest)
        return self.finding(layer, last, needed.farthest, message + caution, remedy, "info" if caution else None)

    def fires(self) -> tuple[LayerFlow, Needed, History | None]:
        layer = measured("RNN", _all_off_at_once, nonlinearity="relu")
        return layer, Needed(layer.name, (30,), "user"), None

    def silent(self) -> tuple[LayerFlow, Needed, History | None]:
        layer = measured("RNN", nonlinearity="relu")
        return layer, Needed(layer.name, (30,), "user"), None


def _all_off_at_once(layer: Any) -> None:
    layer.bias_ih_l0.fill_(-2.0)
    layer.weight_ih_l0.fill_(1.0)


def _ahead(last: int, lag: int) -> tuple[str, str]:
    return (
        f"The loss depends on the input {lag} steps ahead, and this model looks {last} ahead: no gradient comes from beyond.",
        "It is no fault where the answer must be given at once. Else let the model see what comes: a layer that reads in both "
        f"directions, or targets that are asked for {lag} steps later.",
    )


def _window(layer: LayerFlow, last: int, lag: int) -> tuple[str, str]:
    where = f"{layer.steps} recorded steps"
    if last + 1 < layer.steps:
        where = f"{last + 1} steps before the last loss"
    return (
        f"Lag {lag} is needed, but the {where} hold no lag beyond {last}: no gradient goes there.",
        f"Train on at least {lag + 1} steps in one call (truncation window K ≥ τ + 1), and carry the state over from window "
        "to window.",
    )


def _inside(layer: LayerFlow, last: int, lag: int) -> tuple[str, str]:
    message = f"Lag {lag} is needed, but beyond lag {last} the gradient is exactly zero, and not from underflow."
    full = [f"{name} ({gate.saturated:.0%})" for name, gate in layer.gates.items() if gate.saturated >= SATURATED]
    if full:
        message += f" Gate logits beyond ±6: {', '.join(full)}."
    return (
        message,
        "Look for a detach, a mask or a reset on the state; scale the inputs to mean 0 and variance 1, for tanh′(a) is "
        "exactly 0 beyond |a| ≈ 9 in float32; raise the bias of relu units that are all off.",
    )
