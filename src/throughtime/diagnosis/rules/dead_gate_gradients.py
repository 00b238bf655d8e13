"""TT202."""

from __future__ import annotations

from typing import Any, ClassVar

from throughtime.diagnosis.example import measured
from throughtime.diagnosis.finding import Finding, Severity
from throughtime.diagnosis.gate_gradients import relative_size
from throughtime.diagnosis.report import Needed
from throughtime.diagnosis.rule import History, Rule
from throughtime.flow import LayerFlow
from throughtime.report.notation import number

DEAD = 1e-6
"""Size of a gate's gradient over the median of its siblings: near the rounding of float32. Not calibrated."""


class DeadGateGradients(Rule):
    """A gate gets no gradient to speak of.

    ## What

    For each gate, the sizes ‖G(τ)‖ of its recurrent weights' terms are added up over lags and compared with the
    median of the other gates. The rule fires under a millionth. The value is the ratio.

    ## Why

    A gate without a gradient stays what it is, whatever the loss says. Optimisers that divide by the size of the
    gradient (Adam) then amplify rounding.

    ## Example

    An LSTM whose forget bias was set to −40: the cell is emptied at each step, and nothing tells the gate to stop.

    ## Remedy

    Bring the gate's logit back to where σ′ = σ(1 − σ) is not negligible, |logit| < 6: a bias of 0, or b_f = ln(τ − 1)
    for a timescale of τ steps; scale the inputs to variance 1.

    ## References

    - Gu, Gulcehre, Paine, Hoffman & Pascanu 2020, Improving the gating mechanism of recurrent neural networks, ICML,
      https://arxiv.org/abs/1910.09890
    """

    code: ClassVar[str] = "TT202"
    name: ClassVar[str] = "dead-gate-gradients"
    severity: ClassVar[Severity] = "info"
    preview: ClassVar[bool] = True

    def check(self, layer: LayerFlow, needed: Needed, history: History | None) -> Finding | None:
        dead = {name: size for name, size in relative_size(layer).items() if size < DEAD}
        if not dead:
            return None
        name = min(dead, key=lambda each: dead[each])
        return self.finding(
            layer,
            dead[name],
            DEAD,
            f"The recurrent weights of gate {name} get {number(dead[name], 2)} of the gradient that the other gates "
            "get.",
            "Bring its logits back to |logit| < 6: another bias (b_f = ln(τ − 1) for a timescale of τ steps), inputs scaled to "
            "variance 1.",
        )

    def fires(self) -> tuple[LayerFlow, Needed, History | None]:
        layer = measured("LSTM", _emptied)
        return layer, Needed(layer.name, (), "unknown"), None

    def silent(self) -> tuple[LayerFlow, Needed, History | None]:
        layer = measured("LSTM")
        return layer, Needed(layer.name, (), "unknown"), None


def _emptied(layer: Any) -> None:
    layer.bias_ih_l0[layer.hidden_size : 2 * layer.hidden_size] = -40
