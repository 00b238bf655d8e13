"""By which way the gradient goes back: the paths of the cell, and how many of its steps left the carry."""

from __future__ import annotations

from throughtime.flow import LayerFlow
from throughtime.report.charts.chart import Chart, axis, by_lag, figure, label, needed_bands
from throughtime.report.formulas import PATHS

OTHERS = ("--tt-one", "--tt-two", "--tt-three", "--tt-four", "--tt-soft")
CARRY = "carry"


def paths(layer: LayerFlow, lags: tuple[int, ...]) -> Chart | None:
    """Share of each path by lag."""
    if not layer.paths:
        return None
    others = iter(OTHERS * len(layer.paths))
    data = [
        by_lag(values, label(name), "--tt-supply" if name == CARRY or len(layer.paths) == 1 else next(others))
        for name, values in layer.paths.items()
    ]
    return Chart(
        key="paths",
        title="Paths",
        caption="Each line is the part of the step from lag τ − 1 to τ that took this path; the lines add up to 1, and "
        "one below 0 works against the rest.",
        views={"": figure(data, xaxis=axis("lag τ"), yaxis=axis("share of the step"), shapes=needed_bands(lags))},
        formulas=(PATHS,),
        half=True,
    )


def hops(layer: LayerFlow, lags: tuple[int, ...]) -> Chart | None:
    """Share of the gradient by the number of its non-carry steps."""
    if not layer.hops:
        return None
    shades = ("--tt-supply", "--tt-one", "--tt-two", "--tt-three", "--tt-soft")
    data = []
    for index, (order, values) in enumerate(layer.hops.items()):
        name = f"{index} or more" if order == "rest" else label(order)
        data.append(by_lag(values, name, "--tt-faint" if order == "rest" else shades[min(index, 4)]))
    return Chart(
        key="hops",
        title="Non-carry steps",
        caption="The 0 line is the gradient that never left the carry, the others left it that many times: where 0 "
        "leads, the gate alone sets how far the gradient reaches.",
        views={"": figure(data, xaxis=axis("lag τ"), yaxis=axis("share of the gradient"), shapes=needed_bands(lags))},
        half=True,
    )
