"""What the gates promise against what the gradient does, unit by unit."""

from __future__ import annotations

import math

import numpy as np

from throughtime.flow import LayerFlow, Unit
from throughtime.report.charts.chart import Chart, Figure, axis, figure, label, series
from throughtime.report.formulas import TIMESCALE

DIGITS = {"type": "log", "minorloglabels": "complete", "nticks": 6}
KINDS = {
    "long-term": ("--tt-supply", "circle"),
    "short-term": ("--tt-one", "diamond"),
    "resetting": ("--tt-two", "square"),
    "dead": ("--tt-faint", "x"),
}


def timescales(layer: LayerFlow, lags: tuple[int, ...]) -> Chart | None:
    """Half-life against timescale, log-log, with the line half-life = ln 2 × timescale."""
    drawn = [unit for unit in layer.units if _positive(unit.timescale) and _positive(unit.half_life)]
    if not drawn:
        return None
    data = [_line(drawn), *(_points(kind, drawn) for kind in dict.fromkeys(unit.kind for unit in drawn))]
    missing = len(layer.units) - len(drawn)
    note = f"{missing} of {len(layer.units)} units lack one of the two and are not drawn." if missing else ""
    return Chart(
        key="timescales",
        title="Timescale and half-life",
        caption="On the line a unit forgets as fast as its gate says; below it the gradient dies sooner than the gate "
        "allows, above it the recurrent weights keep it alive.",
        views={
            "": figure(
                data,
                xaxis=axis("gate timescale (steps)", **DIGITS),
                yaxis=axis("half-life of the gradient (steps)", **DIGITS),
                showlegend=True,
            )
        },
        formulas=(TIMESCALE,),
        note=note,
        half=True,
        height=400,
    )


def _positive(value: float) -> bool:
    return value is not None and math.isfinite(value) and value > 0


def _line(units: list[Unit]) -> Figure:
    ends = [min(unit.timescale for unit in units) / 1.5, max(unit.timescale for unit in units) * 1.5]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "ln 2 × timescale",
        "x": series(ends),
        "y": series(np.log(2) * np.array(ends)),
        "hoverinfo": "skip",
        "line": {"color": "--tt-faint", "width": 1.5, "dash": "dot"},
    }


def _points(kind: str, units: list[Unit]) -> Figure:
    chosen = [unit for unit in units if unit.kind == kind]
    colour, symbol = KINDS[kind]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": f"{label(kind)} ({len(chosen)})",
        "x": series([unit.timescale for unit in chosen]),
        "y": series([unit.half_life for unit in chosen]),
        "customdata": [unit.unit for unit in chosen],
        "hovertemplate": "unit %{customdata}: timescale %{x}, half-life %{y}<extra></extra>",
        "marker": {"color": colour, "symbol": symbol, "size": 7, "opacity": 0.8},
    }
