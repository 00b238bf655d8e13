"""TT301."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from throughtime.diagnosis.example import measured
from throughtime.diagnosis.finding import Finding, Severity
from throughtime.diagnosis.report import Needed
from throughtime.diagnosis.rule import History, Rule
from throughtime.flow import LayerFlow
from throughtime.report.notation import number

WIDE = 10.0
"""(farthest + 1) / (nearest + 1) of the needed lags from which many scales are needed: a decade. Not calibrated."""
NARROW = 2.0
"""95 % over 5 % quantile of the units' timescales. Not calibrated."""


class NarrowTimescales(Rule):
    """All units remember for about the same time, and the loss asks for many.

    ## What

    The gate timescale of a unit is −1/⟨ln carry⟩ steps. The rule fires where the 95 % quantile over the units is less
    than twice the 5 % quantile, while the needed lags span a decade or more. The value is the ratio of the quantiles.
    Silent for cells without a carry gate, and where no need is known.

    ## Why

    A unit of timescale τ tells lags near τ apart and blurs the others. With one timescale for all, near and far lags
    are in each other's way.

    ## Example

    A fresh GRU, whose units all begin at 1.4 steps, on data that ask for lags 0 to 40.

    ## Remedy

    Spread the timescales over what is needed, b = ln(1/u − 1) with u ~ U(1/T_max, 1 − 1/T_max) (uniform gate
    initialisation) or b = ln u with u ~ U(1, T_max − 1) (chrono).

    ## References

    - Gu, Gulcehre, Paine, Hoffman & Pascanu 2020, Improving the gating mechanism of recurrent neural networks, ICML,
      https://arxiv.org/abs/1910.09890
    - Tallec & Ollivier 2018, Can recurrent neural networks warp time?, ICLR, https://arxiv.org/abs/1804.11188
    """

    code: ClassVar[str] = "TT301"
    name: ClassVar[str] = "narrow-timescales"
    severity: ClassVar[Severity] = "info"
    preview: ClassVar[bool] = True

    def check(self, layer: LayerFlow, needed: Needed, history: History | None) -> Finding | None:
        scales = np.array([unit.timescale for unit in layer.units])
        scales = scales[np.isfinite(scales) & (scales > 0)]
        if not needed.lags or len(scales) < 2:
            return None
        asked = (max(needed.lags) + 1) / (min(needed.lags) + 1)
        low, high = np.quantile(scales, (0.05, 0.95))
        if asked < WIDE or high / low >= NARROW:
            return None
        return self.finding(
            layer,
            high / low,
            NARROW,
            f"Lags {min(needed.lags)} to {max(needed.lags)} are needed, and nine units of ten have timescales of "
            f"{number(low, 2)} to "
            f"{number(high, 2)} steps.",
            "Spread the timescales: b = ln(1/u − 1), u ~ U(1/T_max, 1 − 1/T_max), or chrono initialisation, before "
            "training.",
        )

    def fires(self) -> tuple[LayerFlow, Needed, History | None]:
        layer = measured("GRU")
        return layer, Needed(layer.name, (0, 2, 30), "demand"), None

    def silent(self) -> tuple[LayerFlow, Needed, History | None]:
        layer = measured("GRU", _spread)
        return layer, Needed(layer.name, (0, 2, 30), "demand"), None


def _spread(layer: Any) -> None:
    from throughtime.init import chrono_

    chrono_(layer, max_lag=31)
