"""The training losses behind a verdict on a remedy."""

from __future__ import annotations

import numpy as np

from throughtime.report.charts.chart import Chart, axis, figure, label, series
from throughtime.verify import Verification

MOST_POINTS = 400


def training(verification: Verification) -> Chart | None:
    """Each seed as a thin line, the mean as a strong one."""
    data = []
    looks = {"untreated": ("--tt-faint", "dash"), "treated": ("--tt-supply", "solid")}
    for name, curves in verification.curves.items():
        curves = np.atleast_2d(np.asarray(curves, dtype=float))
        if not curves.size:
            continue
        colour, dash = looks.get(name, ("--tt-soft", "dot"))
        stride = -(-curves.shape[1] // MOST_POINTS)
        steps = {"x0": 1, "dx": stride, "type": "scatter", "mode": "lines"}
        thin = {"color": colour, "width": 1}
        for curve in curves:
            quiet = {"showlegend": False, "hoverinfo": "skip", "opacity": 0.35}
            data.append({**steps, "y": series(curve[::stride]), "line": thin, **quiet})
        strong = {"color": colour, "width": 2.5, "dash": dash}
        data.append({**steps, "y": series(curves.mean(axis=0)[::stride]), "name": label(name), "line": strong})
    if not data:
        return None
    return Chart(
        key="training",
        title="Training loss, untreated and treated",
        caption="Thin lines are seeds and strong lines their mean; paired runs share their seed and their batches.",
        views={"": figure(data, xaxis=axis("training step"), yaxis=axis("training loss"), showlegend=True)},
    )
