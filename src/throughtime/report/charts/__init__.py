"""The charts of a layer, in the order in which the report shows them. A new chart: one file, and its name here."""

from __future__ import annotations

import dataclasses

from throughtime.flow import LayerFlow
from throughtime.report.charts.chart import Chart
from throughtime.report.charts.gates import gates
from throughtime.report.charts.noise import noise
from throughtime.report.charts.origins import coarser, origins
from throughtime.report.charts.parameters import parameters
from throughtime.report.charts.paths import hops, paths
from throughtime.report.charts.supply import supply
from throughtime.report.charts.timescales import timescales
from throughtime.report.charts.truncation import truncation

CHARTS = (supply, parameters, origins, paths, hops, truncation, noise, timescales, gates)

__all__ = ["CHARTS", "Chart", "layer_charts"]


def layer_charts(layer: LayerFlow, lags: tuple[int, ...], side: int = 512) -> list[Chart]:
    """Every chart for which this layer holds numbers; `side` limits the origin × step map."""
    if layer.origin_step is not None:
        layer = dataclasses.replace(layer, origin_step=coarser(layer.origin_step, side))
    made = [chart(layer, lags) for chart in CHARTS]
    return [chart for chart in made if chart is not None]
