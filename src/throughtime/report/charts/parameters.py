"""Lag × parameter: which weights learn from which lag."""

from __future__ import annotations

import numpy as np

from throughtime.flow import Array, LayerFlow, Terms
from throughtime.report.charts.chart import Chart, Figure, axis, figure, label, rows
from throughtime.report.formulas import SHARE, TERM

DECADES = 4
"""Shares under 10⁻⁴ of the gradient are drawn as nothing."""
DEEPEST = 40


def parameters(layer: LayerFlow, lags: tuple[int, ...]) -> Chart | None:
    """Two heatmaps with a row for each parameter or gate block of it: the signed share, and the norm."""
    terms = [*_blocks(layer), *((row, 1) for row in layer.initial_state.values())]
    if not terms:
        return None
    names = [
        label(row.name.removeprefix(f"{layer.name}.") + (f" · {row.gate}" if row.gate else "")) for row, _ in terms
    ]
    width = max(len(row.share) + start for row, start in terms)
    share = np.stack([_padded(row.share, start, width) for row, start in terms])
    norm = np.stack([_padded(row.log10_norm, start, width) for row, start in terms])
    return Chart(
        key="parameters",
        title="Lag × parameter",
        caption="Each row is one block of weights: blue lags push it the way that this backward pass moved it, purple "
        "lags pull against that, and ten times less is a quarter paler.",
        views={"share": _shares(share, names), "norm": _norms(norm, names)},
        formulas=(TERM, SHARE),
        note="Shares are relative to a block's own gradient and add up to 1 over the lags.",
        height=min(110 + 24 * len(terms), 700),
    )


def _blocks(layer: LayerFlow) -> list[tuple[Terms, int]]:
    """The gate blocks of each parameter, or the parameter itself, all of which start at lag 0."""
    return [(row, 0) for whole in layer.parameters.values() for row in (whole.gates.values() or (whole,))]


def _padded(values: Array, start: int, width: int) -> Array:
    row = np.full(width, np.nan)
    row[start : start + len(values)] = values
    return row


def _heatmap(z: Array, names: list[str], hover: str, **trace: object) -> Figure:
    data = {"type": "heatmap", "x0": 0, "dx": 1, "z": rows(z, 3), "hoverongaps": False, **trace}
    data |= {"hovertemplate": hover + "<extra></extra>", "y": list(range(len(names)))}
    ticks = {"tickmode": "array", "tickvals": list(range(len(names))), "ticktext": names, "autorange": "reversed"}
    return figure([data], xaxis=axis("lag τ"), yaxis={**ticks, "showgrid": False})


def _shares(share: Array, names: list[str]) -> Figure:
    with np.errstate(divide="ignore", invalid="ignore"):
        strength = np.clip(1 + np.log10(np.abs(share)) / DECADES, 0, 1)
        drawn = np.where(np.isnan(share), np.nan, np.sign(share) * strength)
    shown = [[None if value is None else float(f"{value:.3g}") for value in row] for row in rows(share, 9)]
    return _heatmap(
        drawn,
        names,
        "lag %{x}: share %{customdata}",
        customdata=shown,
        zmin=-1,
        zmax=1,
        colorscale=[[0, "--tt-against"], [0.5, "--tt-paper"], [1, "--tt-supply"]],
        colorbar={
            "title": {"text": "share"},
            "tickvals": [-1, -0.5, 0, 0.5, 1],
            "ticktext": ["−1", "−10⁻²", "0", "10⁻²", "1"],
        },
    )


def _norms(norm: Array, names: list[str]) -> Figure:
    finite = norm[np.isfinite(norm)]
    high = float(finite.max()) if len(finite) else 0.0
    low = max(float(finite.min()) if len(finite) else -1.0, high - DEEPEST)
    return _heatmap(
        norm,
        names,
        "lag %{x}: ‖G(τ)‖ = 10<sup>%{z:.2f}</sup>",
        zmin=low,
        zmax=high,
        colorscale=[[0, "--tt-paper"], [1, "--tt-supply"]],
        colorbar={"title": {"text": "‖G(τ)‖"}, "tickprefix": "10<sup>", "ticksuffix": "</sup>"},
    )
