"""TT104."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from throughtime.diagnosis.example import measured
from throughtime.diagnosis.finding import Finding, Severity
from throughtime.diagnosis.report import Needed
from throughtime.diagnosis.rule import History, Rule
from throughtime.flow import LayerFlow
from throughtime.report.notation import number

MOST = 0.5
"""Share of the squared direct gradients that one loss step may hold; more than all others together. Not calibrated."""
FEW = 8
"""Loss steps: with fewer, one of them may well lead. A single loss at the end is a choice and no fault."""


class OneStepDominates(Rule):
    """One of many loss steps sends most of the gradient.

    ## What

    Of a loss at many steps, the direct gradient g_t at each of them is compared: Σ_b ‖g[t, b]‖². The rule fires where
    one step holds more than half of the sum. The value is its share. A loss at a few steps, or at the last alone, is
    exempt.

    ## Why

    The other steps then hardly count: the network is trained as if it had one loss step. Often it is a step with
    another scale of targets, a mask that is off by one, or the first step, at which the state is still empty.

    ## Example

    A sum over steps of squared errors whose targets grow exponentially: the last one outweighs the rest.

    ## Remedy

    Give the steps comparable weights: scale the targets to variance 1 at every step, w_t = 1 / ⟨‖g_t‖²⟩^½, leave out
    steps at which nothing can be known yet, and check the mask.

    ## References

    - Definitions of the direct gradient and of λ[t, k]: docs/definitions.md
    """

    code: ClassVar[str] = "TT104"
    name: ClassVar[str] = "one-step-dominates"
    severity: ClassVar[Severity] = "info"
    preview: ClassVar[bool] = True

    def check(self, layer: LayerFlow, needed: Needed, history: History | None) -> Finding | None:
        places = layer.origin_step
        if places is None or len(layer.loss_steps) < FEW or len(places.steps) < layer.steps:
            return None
        entering = {int(t): places.log10_norm[row, t] for row, t in enumerate(places.origins) if t in layer.loss_steps}
        known = {t: log10 for t, log10 in entering.items() if np.isfinite(log10)}
        if not known:
            return None
        peak = max(known.values())
        squares = {t: 10.0 ** (2 * (log10 - peak)) for t, log10 in known.items()}
        whole = sum(squares.values())
        step, most = max(squares.items(), key=lambda item: item[1])
        if most / whole <= MOST:
            return None
        return self.finding(
            layer,
            most / whole,
            MOST,
            f"Step {step} sends {number(100 * most / whole, 2)} % of the squared gradient that enters at "
            f"{len(squares)} loss steps.",
            "Give the steps comparable weights, w_t = 1 / ⟨‖g_t‖²⟩^½, and check targets and mask at that step.",
        )

    def fires(self) -> tuple[LayerFlow, Needed, History | None]:
        layer = measured("GRU", loss_steps=40, heavy_step=12)
        return layer, Needed(layer.name, (), "unknown"), None

    def silent(self) -> tuple[LayerFlow, Needed, History | None]:
        layer = measured("GRU", loss_steps=40)
        return layer, Needed(layer.name, (), "unknown"), None
