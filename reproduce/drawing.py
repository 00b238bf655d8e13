"""Figures of the studies: matplotlib, in one style, drawn the same way each time, as SVG text."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from io import StringIO
from typing import Any, ParamSpec

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",  # pages are also read in dark mode
    "font.size": 10,
    "lines.linewidth": 1.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e3e3",
    "legend.frameon": False,
    "svg.fonttype": "path",  # the same everywhere, whatever fonts there are
    "svg.hashsalt": "throughtime",
}
P = ParamSpec("P")


def drawn(make: Callable[P, Figure]) -> Callable[P, str]:
    """Of a function that makes a figure: one that returns it as SVG, without date or version, and leaves nothing open."""

    @wraps(make)
    def within(*args: P.args, **options: P.kwargs) -> str:
        with mpl.rc_context(STYLE):
            figure, out = make(*args, **options), StringIO()
            figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
            plt.close(figure)
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"

    return within
