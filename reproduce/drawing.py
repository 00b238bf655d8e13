"""Figures of the studies: matplotlib, drawn the same way each time, as SVG text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from typing import TYPE_CHECKING

import matplotlib as mpl

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = {
    "figure.facecolor": "white",  # pages are also read in dark mode
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "throughtime",
}


@contextmanager
def style() -> Iterator[None]:
    """matplotlib as the studies use it: no window, nothing left set."""
    with mpl.rc_context(STYLE):
        yield


def svg(figure: Figure) -> str:
    """The figure as SVG, without date or version."""
    out = StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
