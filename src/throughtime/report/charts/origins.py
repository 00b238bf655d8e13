"""Origin × step: the gradient of every loss step on its way back."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from throughtime.flow import LayerFlow, OriginStep
from throughtime.report.charts.chart import POWERS, Chart, axis, by_lag, figure, rows
from throughtime.report.formulas import ADJOINT

FEW = 6
"""Up to this many origins are drawn as lines: a map of one row would be a stripe."""
DEEPEST = 40


def origins(layer: LayerFlow, lags: tuple[int, ...]) -> Chart | None:
    """The map of log10 ‖λ[t, k]‖, or lines where few steps carry a loss."""
    found = layer.origin_step
    if found is None or not np.isfinite(found.log10_norm).any():
        return None
    carrying = np.flatnonzero(np.isfinite(found.log10_norm).any(axis=1))
    return _lines(found, carrying) if len(carrying) <= FEW else _map(found)


def _lines(found: OriginStep, carrying: NDArray[np.intp]) -> Chart:
    data = []
    dashes = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
    for row, dash in zip(carrying, dashes, strict=False):
        name = f"loss at step {found.origins[row]}"
        data.append(by_lag(found.log10_norm[row], name, "--tt-supply", dash=dash) | {"x": found.steps.tolist()})
    return Chart(
        key="origins",
        title="Origin × step",
        caption="The loss reads the network at few steps, so each gets a line: how its gradient fades or grows on its "
        "way from the right end back to step k.",
        views={"": figure(data, xaxis=axis("step k"), yaxis=axis("‖λ[t, k]‖", **POWERS), showlegend=True)},
        formulas=(ADJOINT,),
    )


def _map(found: OriginStep) -> Chart:
    z = found.log10_norm
    finite = z[np.isfinite(z)]
    high = float(finite.max())
    data = {
        "type": "heatmap",
        "x": found.steps.tolist(),
        "y": found.origins.tolist(),
        "z": rows(z, 2),
        "zmin": max(float(finite.min()), high - DEEPEST),
        "zmax": high,
        "colorscale": [[0, "--tt-paper"], [1, "--tt-supply"]],
        "colorbar": {"title": {"text": "‖λ[t, k]‖"}, "tickprefix": "10<sup>", "ticksuffix": "</sup>"},
        "hoverongaps": False,
        "hovertemplate": "loss at step %{y}, gradient at step %{x}: 10<sup>%{z:.2f}</sup><extra></extra>",
    }
    return Chart(
        key="origins",
        title="Origin × step",
        caption="Start on the diagonal and read along a row to the left: how the gradient of the loss at step t fades "
        "or grows on its way back to step k.",
        views={"": figure([data], xaxis=axis("step k"), yaxis=axis("loss at step t", showgrid=False))},
        formulas=(ADJOINT,),
        height=460,
    )


def coarser(found: OriginStep, side: int) -> OriginStep:
    """At most `side` cells a side, each the root mean square of a block: a report of many layers stays small."""
    block = -(-max(found.log10_norm.shape) // side)
    if block <= 1:
        return found
    z = found.log10_norm
    height, width = (-(-size // block) for size in z.shape)
    padded = np.full((height * block, width * block), np.nan)
    padded[: z.shape[0], : z.shape[1]] = z
    cells = padded.reshape(height, block, width, block).swapaxes(1, 2).reshape(height, width, -1)
    known = np.isfinite(cells)
    peak = np.where(known, cells, -np.inf).max(axis=2, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore", under="ignore"):
        squares = np.where(known, 10.0 ** (2 * (cells - peak)), 0.0).sum(axis=2)
        z = peak[:, :, 0] + 0.5 * np.log10(squares / known.sum(axis=2))
    return OriginStep(found.origins[::block], found.steps[::block], np.where(known.any(axis=2), z, np.nan))
