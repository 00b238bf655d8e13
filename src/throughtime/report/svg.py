"""The few pieces that the hand-drawn pictures share: escaped elements, their style, the whole document."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

import numpy as np
from numpy.typing import NDArray

from throughtime.report.palette import variables

FONT = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif"

STYLE = (
    variables(".tt-pic")
    + f".tt-pic{{font:13px {FONT};font-variant-numeric:tabular-nums}}"
    + ".tt-pic text{fill:var(--tt-soft)}"
    + ".tt-pic .tt-halo{paint-order:stroke;stroke:var(--tt-paper);stroke-width:4px;stroke-linejoin:round}"
    + ".tt-pic .tt-strong{font-weight:600}.tt-pic .tt-ink{fill:var(--tt-ink)}"
    + ".tt-pic .tt-grid{stroke:var(--tt-line);stroke-width:1}.tt-pic .tt-axis{stroke:var(--tt-faint);stroke-width:1}"
    + ".tt-pic .tt-supply{fill:var(--tt-supply)}.tt-pic .tt-demand{fill:var(--tt-demand)}"
    + ".tt-pic .tt-band{fill:var(--tt-demand-soft)}.tt-pic .tt-bar{fill:var(--tt-line)}"
    + ".tt-pic .tt-curve{fill:none;stroke:var(--tt-supply);stroke-width:2.5;stroke-linejoin:round}"
    + ".tt-pic .tt-quiet{stroke-width:1.75;stroke-dasharray:5 3}"
    + ".tt-pic .tt-paper{fill:var(--tt-paper)}.tt-pic .tt-good{fill:var(--tt-good)}.tt-pic .tt-bad{fill:var(--tt-bad)}"
    + ".tt-pic .tt-hollow{fill:var(--tt-paper);stroke:var(--tt-supply);stroke-width:1.75}"
    + ".tt-pic .tt-link{stroke:var(--tt-supply-soft);stroke-width:2}"
    + ".tt-pic .tt-span{stroke:var(--tt-ink);stroke-width:2.5;stroke-linecap:round}"
    + ".tt-pic .tt-threshold{stroke:var(--tt-demand);stroke-width:1;stroke-dasharray:3 3}"
    + ".tt-pic .tt-horizon{stroke:var(--tt-supply);stroke-width:1;stroke-dasharray:2 3}"
)


def element(name: str, *children: str, **attributes: object) -> str:
    """An element with escaped attributes (`class_` is class, `stroke_width` stroke-width); children are markup."""
    written = "".join(f' {_key(key)}="{_value(value)}"' for key, value in attributes.items() if value is not None)
    return f"<{name}{written}>{''.join(children)}</{name}>" if children else f"<{name}{written}/>"


def text(words: str, x: float, y: float, class_: str = "", anchor: str = "start") -> str:
    """A line of text, escaped."""
    return element("text", escape(words), x=x, y=y, class_=class_ or None, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> str:
    """A straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def polyline(x: NDArray[np.float64], y: NDArray[np.float64], class_: str) -> str:
    """A line through the finite points, broken at gaps; a lone point becomes a short dash."""
    parts: list[str] = []
    pen_up = True
    for index in range(len(x)):
        if not np.isfinite(y[index]):
            pen_up = True
            continue
        alone = pen_up and (index + 1 == len(x) or not np.isfinite(y[index + 1]))
        parts.append(f"{'M' if pen_up else 'L'}{x[index]:.1f} {y[index]:.1f}" + ("h2" if alone else ""))
        pen_up = False
    return element("path", d="".join(parts), class_=class_) if parts else ""


def width_of(words: str, strong: bool = False) -> float:
    """About how wide a line of 13 px text is, in a wide font."""
    return (7.8 if strong else 6.9) * len(words)


def document(parts: Iterable[str], width: float, height: float, title: str, description: str, standalone: bool) -> str:
    """The whole picture: sized by its viewBox, told to screen readers, with its own style; `standalone` adds paper."""
    margin = 16 if standalone else 0
    size = {"width": f"{width + 2 * margin:g}", "height": f"{height + 2 * margin:g}"}
    paper = element("rect", class_="tt-paper", x=-margin, y=-margin, rx=8, **size) if standalone else ""
    return element(
        "svg",
        element("title", escape(title)),
        element("desc", escape(description)),
        element("style", STYLE),
        paper,
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"{-margin} {-margin} {size['width']} {size['height']}",
        **size,
        class_="tt-pic",
        role="img",
        aria_label=f"{title}. {description}",
    )


def _key(name: str) -> str:
    return name.rstrip("_").replace("_", "-")


def _value(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else escape(str(value), quote=True)
