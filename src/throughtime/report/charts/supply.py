"""Supply by lag, with its spread over sequences."""

from __future__ import annotations

import warnings

import numpy as np

from throughtime.flow import LayerFlow
from throughtime.report.charts.chart import POWERS, Chart, Figure, axis, by_lag, figure, label, needed_bands
from throughtime.report.formulas import SUPPLY

STATE_DASHES = ("dot", "dash", "dashdot")


def supply(layer: LayerFlow, lags: tuple[int, ...]) -> Chart:
    """What arrives at each lag; the range of the middle 80 % of sequences; each part of the carry."""
    data = [*_spread(layer), by_lag(layer.log10_arriving, "all", "--tt-supply", width=2.5)]
    if len(layer.adjoint.by_state) > 1:
        for (state, values), dash in zip(layer.adjoint.by_state.items(), STATE_DASHES, strict=False):
            data.append(by_lag(layer.relative(values), label(state), "--tt-soft", dash=dash, width=1.5))
    return Chart(
        key="supply",
        title="Supply by lag",
        caption="A point at lag τ is the part of the gradient that is left τ steps further back; the pale "
        "range holds the middle 80 % of sequences, and an orange band marks the lags that the loss asks for.",
        views={
            "": figure(
                data,
                xaxis=axis("lag τ"),
                yaxis=axis("fraction that arrives", **POWERS),
                showlegend=len(layer.adjoint.by_state) > 1,
                shapes=needed_bands(lags),
            )
        },
        formulas=(SUPPLY,),
    )


def _spread(layer: LayerFlow) -> list[Figure]:
    by_sequence = np.asarray(layer.adjoint.by_sequence, dtype=float)
    if by_sequence.ndim != 2 or by_sequence.shape[1] < 4:
        return []
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # lags at which every sequence is NaN stay NaN
        relative = np.where(np.isfinite(by_sequence), by_sequence - by_sequence[:1], np.nan)
        low, high = np.nanquantile(relative, [0.1, 0.9], axis=1)
    edge = {"hoverinfo": "skip", "showlegend": False}
    lower = by_lag(low, "10 %", "--tt-supply-soft", width=0) | edge
    upper = by_lag(high, "90 %", "--tt-supply-soft", width=0) | edge
    return [lower, upper | {"fill": "tonexty", "fillcolor": "--tt-supply-soft"}]
