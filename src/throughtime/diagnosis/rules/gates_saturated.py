"""TT201."""

from __future__ import annotations

from typing import Any, ClassVar

from throughtime.cells.activations import GATES
from throughtime.diagnosis.example import measured
from throughtime.diagnosis.finding import Finding, Severity
from throughtime.diagnosis.gate_gradients import relative_size
from throughtime.diagnosis.report import Needed
from throughtime.diagnosis.rule import History, Rule
from throughtime.flow import LayerFlow
from throughtime.report.notation import number

PART = 0.25
"""Fraction of a gate's logits beyond ±6. Not calibrated."""
BELOW = 0.1
"""Size of the gate's gradient over the median of its siblings. Not calibrated."""


class GatesSaturated(Rule):
    """A gate stands at 0 or 1 much of the time, and its gradient lies below those of the other gates.

    ## What

    Read on logits, for in float32 σ(17) is 1 exactly: the rule fires where a quarter of a gate's logits lie beyond
    ±6, and the gradient of its recurrent weights, Σ_τ ‖G(τ)‖, is under a tenth of the median of the other gates. The
    value is that fraction of the logits.

    ## Why

    The gradient of a sigmoid gate carries the factor z(1 − z): below .0025 beyond ±6. Such a gate is all but fixed.
    Chrono initialisation for more than some 400 steps puts gates there on purpose: then it is a price and no fault.

    ## Example

    Inputs that were not scaled, which drive the logits to ±50.

    ## Remedy

    Scale the inputs to mean 0 and variance 1; smaller gate weights; or, where a long memory is wanted, a refine gate,
    g_eff = (1 − 2r) g² + 2 r g, which keeps a gradient near 0 and 1.

    ## References

    - Gu, Gulcehre, Paine, Hoffman & Pascanu 2020, Improving the gating mechanism of recurrent neural networks, ICML,
      https://arxiv.org/abs/1910.09890
    """

    code: ClassVar[str] = "TT201"
    name: ClassVar[str] = "gates-saturated"
    severity: ClassVar[Severity] = "info"
    preview: ClassVar[bool] = True

    def check(self, layer: LayerFlow, needed: Needed, history: History | None) -> Finding | None:
        sizes = relative_size(layer)
        found = {
            name: gate.saturated
            for name, gate in layer.gates.items()
            if gate.saturated >= PART and sizes.get(name, 1.0) < BELOW
        }
        if not found:
            return None
        beyond = GATES[layer.convention.get("gate", "sigmoid")].beyond
        name = max(found, key=lambda each: found[each])
        return self.finding(
            layer,
            found[name],
            PART,
            f"{found[name]:.0%} of the logits of gate {name} lie beyond ±{beyond:g}, "
            "and its gradient is "
            f"{number(sizes[name], 2)} of the "
            "median of the other gates.",
            "Scale the inputs to mean 0 and variance 1 and use smaller gate weights; where a long memory is wanted, a refine "
            "gate, g_eff = (1 − 2r) g² + 2 r g.",
        )

    def fires(self) -> tuple[LayerFlow, Needed, History | None]:
        layer = measured("GRU", _shut)
        return layer, Needed(layer.name, (), "unknown"), None

    def silent(self) -> tuple[LayerFlow, Needed, History | None]:
        layer = measured("GRU")
        return layer, Needed(layer.name, (), "unknown"), None


def _shut(layer: Any) -> None:
    layer.bias_ih_l0[layer.hidden_size : 2 * layer.hidden_size] = -8
