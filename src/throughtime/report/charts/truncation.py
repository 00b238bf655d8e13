"""What a shorter window would lose, and the gradient horizon."""

from __future__ import annotations

import numpy as np

from throughtime.flow import LayerFlow
from throughtime.report.charts.chart import LOG, Chart, Figure, axis, by_lag, figure, needed_bands
from throughtime.report.formulas import BIAS
from throughtime.report.notation import number


def truncation(layer: LayerFlow, lags: tuple[int, ...]) -> Chart | None:
    """bias(K) on a log scale over cosine(K), with the 90, 99 and 99.9 % windows marked."""
    if not (np.isfinite(layer.bias).any() or np.isfinite(layer.cosine).any()):
        return None
    bias = np.where(layer.bias > 0, layer.bias, np.nan)
    data = [
        by_lag(bias, "bias", "--tt-supply"),
        by_lag(layer.cosine, "cosine", "--tt-one") | {"yaxis": "y2"},
    ]
    marks, words = _windows(layer)
    return Chart(
        key="truncation",
        title="Truncation: bias and cosine",
        caption="Cut backpropagation after K steps and the gradient misses the bias by length and the cosine by "
        "direction; a dotted line stands where the 90, 99 or 99.9 % window ends.",
        views={
            "": figure(
                data,
                xaxis=axis("window K", anchor="y2"),
                yaxis=axis("bias", **LOG, domain=[0.42, 1]),
                yaxis2=axis("cosine", domain=[0, 0.32]),
                shapes=[*needed_bands(lags), *marks],
                annotations=words,
                showlegend=False,
            )
        },
        formulas=(BIAS,),
        half=True,
        height=400,
    )


def _windows(layer: LayerFlow) -> tuple[list[Figure], list[Figure]]:
    marks: list[Figure] = []
    words: list[Figure] = []
    known = [(rest, window) for rest, window in sorted(layer.horizon.items(), reverse=True) if window is not None]
    for index, (rest, window) in enumerate(known):
        place = {"xref": "x", "yref": "paper"}
        style = {"color": "--tt-supply", "width": 1, "dash": "dot"}
        marks.append({"type": "line", **place, "x0": window, "x1": window, "y0": 0, "y1": 1, "line": style})
        left = window > 0.7 * layer.steps
        words.append(
            {
                **place,
                "x": window,
                "y": 1 - 0.075 * index,
                "text": f"{number(100 * (1 - rest))} %: {window}",
                "xanchor": "right" if left else "left",
                "yanchor": "top",
                "showarrow": False,
                "font": {"color": "--tt-supply"},
                "bgcolor": "--tt-paper",
            }
        )
    return marks, words
