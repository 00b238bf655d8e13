"""TT101."""

from __future__ import annotations

from math import inf, log10
from typing import ClassVar

from torch import nn

from throughtime.diagnosis.example import measured
from throughtime.diagnosis.finding import Finding, Severity
from throughtime.diagnosis.report import Needed
from throughtime.diagnosis.rule import History, Rule
from throughtime.diagnosis.supply import Arrival, alone, arrival, last_lag
from throughtime.flow import LayerFlow
from throughtime.report.notation import from_log10, lag_words

ENOUGH = 1e-3
"""Fraction of the lag-0 adjoint. Set by calibration: docs/calibration.md."""


class GradientVanishesBeforeNeededLag(Rule):
    """Too little of the gradient arrives at a lag that the loss asks for.

    ## What

    The adjoint λ is the gradient of the loss at the layer's state. This rule takes its size at each needed lag τ,
    relative to what entered: ‖λ(τ)‖ / ‖λ(0)‖, root mean squares over the pairs of a loss step and a sequence that reach
    back to τ. It fires where that fraction is under the threshold, and also falls under it on the way from the next
    nearer needed lag: needed lags that follow each other closely are learned one after the other, each from the one
    before, however little arrives at the last. A lag that the user said is judged by itself. The value is the fraction
    at the farthest lag that is out of reach.

    A lag is needed when demand is detected there or when `needed_lag` says so. Where neither is known the rule is
    silent: a short gradient horizon is no fault in itself. In a network of several recurrent layers it is an info only:
    another layer may carry the gradient.

    ## Why

    What the input τ steps back adds to the gradient of every weight passes through λ(τ). If the nearer lags outweigh
    it a thousandfold, they decide each training step, and the far dependence is learned late or never.

    ## Example

    A fresh torch.nn.GRU multiplies the adjoint by about .65 at each step, for its update gate begins near ½. After 40
    steps 3e-8 is left: a task that needs lag 40 stays at chance. With the gate's bias set for 40 steps a third
    arrives.

    ## Remedy

    Chrono initialisation, before training: each unit keeps its state for a time of its own, up to the needed lag. With
    T_max = the farthest needed lag + 1 and u_j ~ U(1, T_max − 1), one draw a unit:

        GRU   b_z = ln u                 (torch's z keeps the old state)
        LSTM  b_f = ln u,  b_i = −ln u

    in one of torch's two biases, with zero in the other: `tt.init.chrono_(model.rnn, max_lag=T_max)`. A plain RNN has
    no gate to set: use a GRU or an LSTM, or begin with a recurrent matrix that keeps lengths (orthogonal or the
    identity).

    ## References

    - Hochreiter 1991, Untersuchungen zu dynamischen neuronalen Netzen, TU München
    - Bengio, Simard & Frasconi 1994, Learning long-term dependencies with gradient descent is difficult, IEEE Trans.
      Neural Networks 5(2)
    - Tallec & Ollivier 2018, Can recurrent neural networks warp time?, ICLR, https://arxiv.org/abs/1804.11188
    - Le, Jaitly & Hinton 2015, A simple way to initialize recurrent networks of rectified linear units,
      https://arxiv.org/abs/1504.00941
    """

    code: ClassVar[str] = "TT101"
    name: ClassVar[str] = "gradient-vanishes-before-needed-lag"
    severity: ClassVar[Severity] = "warning"

    def check(self, layer: LayerFlow, needed: Needed, history: History | None) -> Finding | None:
        if needed.farthest is None or needed.farthest > last_lag(layer):
            return None
        short = out_of_reach(layer, needed)
        if not short:
            return None
        worst = short[-1]
        message, caution = _message(worst, short, needed), alone(layer)
        remedy, severity = _remedy(layer, worst.lag), "info" if caution else None
        return self.finding(layer, worst.fraction, ENOUGH, message + caution, remedy, severity)

    def fires(self) -> tuple[LayerFlow, Needed, History | None]:
        layer = measured("GRU", lag=30)
        return layer, Needed(layer.name, (30,), "user"), None

    def silent(self) -> tuple[LayerFlow, Needed, History | None]:
        layer = measured("GRU", _chrono, lag=30)
        return layer, Needed(layer.name, (30,), "user"), None


def out_of_reach(layer: LayerFlow, needed: Needed) -> list[Arrival]:
    """What arrives at the needed lags that the gradient does not bridge; a lag that the user said is judged by itself."""
    found = [each for lag in needed.lags if (each := arrival(layer, lag)) is not None]
    steps = zip([0.0, *(each.log10 for each in found)], found, strict=False)
    gap = next((each.lag for before, each in steps if each.log10 - before < log10(ENOUGH)), inf)
    return [each for each in found if each.fraction < ENOUGH and (each.lag >= gap or each.lag == needed.said)]


def _chrono(layer: nn.Module) -> None:
    from throughtime.init import chrono_

    chrono_(layer, max_lag=31)


def _message(worst: Arrival, short: list[Arrival], needed: Needed) -> str:
    amount = f"{'less than ' if worst.bound else ''}{from_log10(worst.log10)}"
    said = needed.source == "user" and needed.said in (None, worst.lag)
    asks = "it was said to be needed" if said else "the loss still depends on the input"
    text = f"Of the gradient, {amount} arrives at lag {worst.lag}, where {asks}."
    if len(short) > 1:
        words = lag_words(each.lag for each in short)
        text += f" Under {ENOUGH:g} at {words}" + (
            ", that is, at every needed lag."
            if len(short) == len(needed.lags)
            else f" of {len(needed.lags)} needed lags."
        )
    return text


def _remedy(layer: LayerFlow, lag: int) -> str:
    if not layer.holds:
        return (
            "This cell has no gate that could hold its state for long: use nn.GRU or nn.LSTM and chrono initialisation, "
            "or begin with an orthogonal recurrent matrix, W Wᵀ = I."
        )
    from throughtime.init import MIN_MAX_LAG  # loads torch, which the command line's `explain` does without
    from throughtime.remedies.remedy import access

    until = max(lag + 1, MIN_MAX_LAG)
    return (
        "Before training, let each unit keep its state for a time of its own, up to the needed lag: bias of the keeping "
        f"gate = ln u, u ~ U(1, {until - 1}) (GRU: b_z = ln u; LSTM: b_f = ln u, b_i = −ln u): "
        f"`tt.init.chrono_({access(layer.attribute)}, max_lag={until})`"
    )
