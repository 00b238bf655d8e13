"""Whether the sequences of the batch agree on what a lag teaches."""

from __future__ import annotations

import numpy as np

from throughtime.flow import LayerFlow
from throughtime.report.charts.chart import LOG, Chart, axis, by_lag, figure, needed_bands
from throughtime.report.formulas import NOISE


def noise(layer: LayerFlow, lags: tuple[int, ...]) -> Chart | None:
    """Signal-to-noise by lag on a log scale; 1 is where signal and noise are equal."""
    ratio = np.asarray(layer.signal_to_noise, dtype=float)
    if not np.isfinite(ratio).any():
        return None
    level = {"type": "line", "xref": "paper", "yref": "y", "x0": 0, "x1": 1, "y0": 1, "y1": 1}
    level["line"] = {"color": "--tt-faint", "width": 1, "dash": "dot"}
    data = by_lag(np.where(ratio > 0, ratio, np.nan), "signal-to-noise", "--tt-supply")
    return Chart(
        key="noise",
        title="Signal to noise",
        caption="Above the dotted 1 the sequences agree on what this lag teaches, below it the batch mean is mostly "
        "chance, and a gap means that no signal was left over.",
        views={
            "": figure(
                [data],
                xaxis=axis("lag τ"),
                yaxis=axis("signal / noise", **LOG),
                shapes=[*needed_bands(lags), level],
                showlegend=False,
            )
        },
        formulas=(NOISE,),
        half=True,
        height=400,
    )
