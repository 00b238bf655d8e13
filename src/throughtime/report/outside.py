"""What came round outside a cell, in a sentence."""

from __future__ import annotations

import numpy as np

from throughtime.flow import LayerFlow


def outside(layer: LayerFlow) -> str:
    """The share of the gradient that came round outside, and the lags it has from there; "" where nothing did."""
    if layer.external is None or np.isnan(layer.external):
        return ""
    told = (
        f"{100 * layer.external:.1f} % of the gradient came round outside the cell, through what feeds its later inputs "
        "(attention, an output fed back); its lags are counted from where it enters again"
    )
    sizes = np.abs(np.nan_to_num(np.zeros(0) if layer.external_by_lag is None else layer.external_by_lag))
    if not sizes.any():
        return told
    lag = int((sizes.cumsum() >= sizes.sum() / 2).argmax())
    return f"{told}: half of it lies at lag 0" if lag == 0 else f"{told}: half of it lies within lags 0 to {lag}"
