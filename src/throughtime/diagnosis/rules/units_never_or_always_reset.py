"""TT203."""

from __future__ import annotations

from typing import Any, ClassVar

from throughtime.diagnosis.example import measured
from throughtime.diagnosis.finding import Finding, Severity
from throughtime.diagnosis.report import Needed
from throughtime.diagnosis.rule import History, Rule
from throughtime.flow import LayerFlow

RESET = "r"
"""The gate that cuts the old state off, where a cell has one of its own."""
IDLE = 0.95
"""Fraction of a gate's values under .1, or over .9, over all steps and units. Not calibrated."""


class UnitsNeverOrAlwaysReset(Rule):
    """The reset gate is shut or open all the time, so it decides nothing.

    ## What

    Fires where 95 % of the reset gate's values, over steps, sequences and units, lie under .1 (always reset) or over .9
    (never reset). The value is that fraction.

    ## Why

    Units of short-term dependencies reset often, those of long-term ones seldom, and which of them is to be learned.
    Always reset, the candidate never sees the old state: what is left is a leaky average of the inputs. Never reset,
    the gate is three matrices of dead weight.

    ## Example

    A GRU imported with another gate order: the update gate's bias has landed in the reset gate.

    ## Remedy

    A reset bias near 0, b_r = 0, so that r = σ(b_r) begins at ½; check the order of the gates after an import (torch:
    r, z, n; Keras: z, r, h).

    ## References

    - Cho et al. 2014, Learning phrase representations using RNN encoder–decoder for statistical machine translation,
      EMNLP, https://arxiv.org/abs/1406.1078
    """

    code: ClassVar[str] = "TT203"
    name: ClassVar[str] = "units-never-or-always-reset"
    severity: ClassVar[Severity] = "info"
    preview: ClassVar[bool] = True

    def check(self, layer: LayerFlow, needed: Needed, history: History | None) -> Finding | None:
        gate = layer.gates.get(RESET)
        if gate is None or max(gate.below, gate.above) < IDLE:
            return None
        always = gate.below >= gate.above
        return self.finding(
            layer,
            max(gate.below, gate.above),
            IDLE,
            f"{max(gate.below, gate.above):.0%} of the reset gate's values lie "
            f"{'under 0.1' if always else 'over 0.9'}: units are "
            f"{'always' if always else 'never'} reset.",
            "Begin with a reset bias of 0, r = σ(0) = ½; after an import, check the order of the gates (torch: r, z, "
            "n).",
        )

    def fires(self) -> tuple[LayerFlow, Needed, History | None]:
        layer = measured("GRU", _always)
        return layer, Needed(layer.name, (), "unknown"), None

    def silent(self) -> tuple[LayerFlow, Needed, History | None]:
        layer = measured("GRU")
        return layer, Needed(layer.name, (), "unknown"), None


def _always(layer: Any) -> None:
    layer.bias_ih_l0[: layer.hidden_size] = -8
