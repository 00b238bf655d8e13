"""What a chart is: drawing data for the page's plotting library, with the words that say how to read it.

Colours are roles ("--tt-supply"), filled in by the page so that charts follow light and dark.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import ArrayLike

from throughtime.report.notation import runs

Figure = dict[str, Any]


@dataclass(frozen=True)
class Chart:
    """A titled figure.

    caption: one sentence on how to read it. views: one figure, or several to switch between by name.
    half: stands beside another chart on a wide page.
    """

    key: str
    title: str
    caption: str
    views: Mapping[str, Figure]
    formulas: tuple[Markup, ...] = ()
    note: str = ""
    half: bool = False
    height: int = 320


def series(values: ArrayLike | Sequence[float | None], digits: int = 4) -> list[float | None]:
    """Numbers for JSON: `digits` significant digits, None (a gap) for what is not finite."""
    array = np.asarray(values, dtype=float)
    return [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in array.tolist()]


def rows(values: ArrayLike, decimals: int) -> list[list[float | None]]:
    """A matrix for JSON, rounded, None for what is not finite."""
    array = np.round(np.asarray(values, dtype=float), decimals)
    drawn = array.astype(object)
    drawn[~np.isfinite(array)] = None
    return drawn.tolist()


def by_lag(values: ArrayLike, name: str, colour: str, *, dash: str = "solid", width: float = 2) -> Figure:
    """A line over the lag."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x0": 0,
        "dx": 1,
        "y": series(values),
        "line": {"color": colour, "width": width, "dash": dash},
    }


def figure(data: Sequence[Figure], **layout: Any) -> Figure:
    """A figure; the page adds margins, fonts and colours that all charts share."""
    return {"data": list(data), "layout": layout}


def axis(title: str, **more: Any) -> Figure:
    """An axis with its title."""
    return {"title": {"text": title}, **more}


LOG = {"type": "log", "exponentformat": "power", "minorloglabels": "none"}
"""A log axis that labels decades."""
POWERS = {"tickprefix": "10<sup>", "ticksuffix": "</sup>"}
"""For an axis that holds log10 values: plotted as they are, so that 1e-400 does not become 0."""


def needed_bands(lags: Iterable[int], axis_name: str = "x") -> list[Figure]:
    """The lags that the loss asks for, as bands behind a chart over the lag."""
    return [
        {
            "type": "rect",
            "xref": axis_name,
            "yref": "paper",
            "x0": first - 0.5,
            "x1": last + 0.5,
            "y0": 0,
            "y1": 1,
            "layer": "below",
            "line": {"width": 0},
            "fillcolor": "--tt-demand-soft",
        }
        for first, last in runs(lags)
    ]


def label(name: str, most: int = 44) -> str:
    """A name for use in a chart, where angle brackets would be read as markup; long names lose their middle."""
    if len(name) > most:
        name = f"{name[: most // 2 - 1]}…{name[-most // 2 + 1 :]}"
    return name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
