"""How open the gates stand, by value and by logit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from throughtime.flow import QUANTILES, Gate, LayerFlow
from throughtime.report.charts.chart import Chart, Figure, axis, figure, label, series
from throughtime.report.notation import number

SATURATED = 6
"""|logit| beyond which a gate counts as saturated."""


def gates(layer: LayerFlow, lags: tuple[int, ...]) -> Chart | None:
    """Histograms of the values, or the quantiles of the logits."""
    if not layer.gates:
        return None
    saturated = ", ".join(f"{name} {number(100 * gate.saturated, 2)} %" for name, gate in layer.gates.items())
    return Chart(
        key="gates",
        title="Gates",
        caption="Bars at the edges are gates that stand shut (0) or open (1); in the view of logits a thick line holds "
        "the middle half, a thin one 98 %, and outside the dotted ±6 a gate is saturated and hardly learns.",
        views={"values": _histograms(layer.gates), "logits": _logits(layer.gates)},
        note=f"Saturated (|logit| > {SATURATED}): {saturated}.",
        half=True,
        height=400,
    )


def _histograms(gates: Mapping[str, Gate]) -> Figure:
    items = list(gates.items())
    columns = min(len(items), 2)
    layout: Figure = {"grid": {"rows": -(-len(items) // columns), "columns": columns, "pattern": "independent"}}
    data: list[Figure] = []
    for index, (name, gate) in enumerate(items, start=1):
        counts = np.asarray(gate.histogram, dtype=float)
        number_of = "" if index == 1 else str(index)
        data.append(
            {
                "type": "bar",
                "x": series((np.arange(len(counts)) + 0.5) / len(counts)),
                "y": series(counts / max(counts.sum(), 1.0)),
                "width": 0.9 / len(counts),
                "marker": {"color": "--tt-supply"},
                "xaxis": f"x{number_of}",
                "yaxis": f"y{number_of}",
                "hovertemplate": "%{x}: %{y:.1%}<extra></extra>",
            }
        )
        layout[f"xaxis{number_of}"] = axis(f"gate {label(name, 16)}", range=[0, 1], nticks=3)
        layout[f"yaxis{number_of}"] = {"tickformat": ".0%", "nticks": 4, "rangemode": "tozero"}
    return figure(data, showlegend=False, **layout)


def _logits(gates: Mapping[str, Gate]) -> Figure:
    items = list(gates.items())
    middle = QUANTILES.index(0.5)
    data: list[Figure] = []
    for row, (_, gate) in enumerate(items):
        q = gate.logit_quantiles
        for first, width in ((0, 1.5), (1, 4), (2, 9)):
            look = {"mode": "lines", "line": {"color": "--tt-supply", "width": width}, "hoverinfo": "skip"}
            data.append({"type": "scatter", "x": series([q[first], q[-1 - first]]), "y": [row, row], **look})
        dot = {"color": "--tt-paper", "size": 9, "line": {"color": "--tt-supply", "width": 2}}
        look = {"mode": "markers", "marker": dot, "hovertemplate": "median logit %{x}<extra></extra>"}
        data.append({"type": "scatter", "x": series([q[middle]]), "y": [row], **look})
    style = {"color": "--tt-faint", "width": 1, "dash": "dot"}
    shapes = [
        {"type": "line", "xref": "x", "yref": "paper", "x0": at, "x1": at, "y0": 0, "y1": 1, "line": style}
        for at in (-SATURATED, SATURATED)
    ]
    ticks = {"tickvals": list(range(len(items))), "ticktext": [label(name, 16) for name, _ in items]}
    rows = {"tickmode": "array", **ticks, "range": [len(items) - 0.5, -0.5], "showgrid": False}
    return figure(data, xaxis=axis("logit"), yaxis=rows, shapes=shapes, showlegend=False)
