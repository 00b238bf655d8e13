"""The main picture: how much gradient arrives at each lag (supply), and where the loss asks for it (demand).

Plain SVG, written by hand: it needs no script, no font and no other file, and is legible in light and in dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from throughtime.report.notation import arriving, from_log10, lag_words, number, power_of_ten, runs
from throughtime.report.svg import document, element, line, polyline, text, width_of

if TYPE_CHECKING:
    from throughtime.demand import Demand
    from throughtime.diagnosis.report import Needed
    from throughtime.flow import Array, LayerFlow

LOWEST = -40.0
"""Decades below this are cut off the axis, and the end of the curve says so: beyond, every lag is equally lost."""
MOST_POINTS = 800
MOST_BARS = 240


@dataclass(frozen=True)
class Curve:
    """One supply curve: log10 of the fraction of the gradient that arrives, by lag.

    quiet: thin and dashed. asked: the needed lags are of this curve, so its value there is told.
    """

    label: str
    log10: Array
    quiet: bool = False
    asked: bool = True


def curve_of(layer: LayerFlow, label: str = "", *, quiet: bool = False, asked: bool = True) -> Curve:
    """The supply of a layer: what arrives at each lag of what entered."""
    return Curve(label, layer.log10_arriving, quiet, asked)


@dataclass
class Words:
    """Lines of text already placed, so that the next one finds room."""

    boxes: list[tuple[float, float, float]] = field(default_factory=list)

    def covered(self, x: float, y: float, length: float) -> bool:
        """Whether text starting at x on the line y would touch what is there."""
        return any(x < right and x + length > left and abs(y - other) < 15 for left, right, other in self.boxes)

    def place(self, words: str, x: float, y: float, class_: str, to_the_left: bool = False) -> str:
        """Write at x, on y or the nearest free line above it."""
        length = width_of(words)
        start = x - length if to_the_left else x
        while self.covered(start, y, length) and y > 30:
            y -= 2
        self.boxes.append((start, start + length, y))
        return text(words, x, y, f"{class_} tt-halo", "end" if to_the_left else "start")


@dataclass(frozen=True)
class Frame:
    """Where things stand: the plot area in pixels, the lags along x and the decades along y."""

    left: float
    right: float
    top: float
    bottom: float
    lags: int
    high: float
    low: float

    def x(self, lag: float) -> float:
        """Pixel of the middle of a lag, each of which is as wide as a bar."""
        return self.left + (self.right - self.left) * (lag + 0.5) / self.lags

    def y(self, log10: float) -> float:
        """Pixel of a decade; what lies below the axis stands on its floor."""
        return self.top + (self.high - max(log10, self.low)) / (self.high - self.low) * (self.bottom - self.top)


def supply_and_demand(
    curves: Sequence[Curve],
    needed: Needed | None,
    demand: Demand | None,
    *,
    width: int = 720,
    horizons: Sequence[tuple[str, int]] = (),
    standalone: bool = False,
    way: str = "back in time",
) -> str:
    """The picture as an SVG element.

    curves: drawn in order, the last on top. needed: the band. demand: the strip of z below, where it was measured.
    horizons: (words, lag) of marks on the lag axis. standalone: with its own paper, to be used as a file. way:
    where a lag counts to.
    """
    narrow = width < 520
    if demand is not None and not np.isfinite(demand.z).any():
        demand = None
    strip = 78.0 if demand is not None else 0.0
    bottom = 290.0 if narrow else 340.0
    low, high = _decades(curves)
    steps = max(len(curve.log10) for curve in curves)
    frame = Frame(46.0, width - (6.0 if narrow else 12.0), 50.0, bottom, steps, high, low)
    lags = needed.lags if needed is not None else ()
    words = Words()
    parts = [
        _band(frame, lags, bottom + (strip and strip - 4)),
        _grid(frame),
        text("how much gradient arrives", 0, 14, "tt-supply tt-strong"),
        _asked(frame, needed),
        *(_horizon(frame, words, curves, name, lag) for name, lag in horizons),
        *(_curve(frame, words, curves, curve) for curve in curves),
        _values(frame, words, curves, lags),
        *(_label(frame, words, curve, curves) for curve in curves if curve.label),
        _strip(frame, demand, bottom + 22, bottom + strip - 4) if demand is not None else "",
        _lag_axis(frame, bottom + strip, way),
    ]
    title = "Supply and demand of gradient over the lag"
    return document(parts, width, bottom + strip + 46, title, _description(curves, needed), standalone)


def _decades(curves: Sequence[Curve]) -> tuple[float, float]:
    """The axis: at least three decades, down to the smallest value drawn or LOWEST."""
    values = np.concatenate([curve.log10[np.isfinite(curve.log10)] for curve in curves])
    if not len(values):
        return -3.0, 0.0
    high = float(max(0.0, math.ceil(values.max() - 0.05)))
    low = float(min(high - 3.0, max(math.floor(values.min()), LOWEST)))
    step = _decade_step(high - low)
    return -step * math.ceil(-low / step), high


def _decade_step(decades: float) -> int:
    return next((step for step, most in ((1, 4), (2, 9), (5, 32), (10, 70)) if decades <= most), 50)


def _grid(frame: Frame) -> str:
    step = _decade_step(frame.high - frame.low)
    parts: list[str] = []
    for exponent in range(step * math.ceil(frame.low / step), math.floor(frame.high) + 1, step):
        y = frame.y(exponent)
        parts.append(line(frame.left, y, frame.right, y, "tt-grid"))
        parts.append(text(power_of_ten(exponent), frame.left - 7, y + 4.5, anchor="end"))
    return "".join(parts)


def _band(frame: Frame, lags: Sequence[int], bottom: float) -> str:
    """One block for each run of needed lags, half a lag to either side and never thinner than 3 px."""
    parts: list[str] = []
    for first, last in runs(lag for lag in lags if lag < frame.lags):
        left, right = max(frame.x(first - 0.5), frame.left), min(frame.x(last + 0.5), frame.right)
        left, right = min(left, frame.right - 3), max(right, left + 3)
        size = {"width": right - left, "height": bottom - frame.top}
        parts.append(element("rect", class_="tt-band", x=left, y=frame.top, **size))
    return "".join(parts)


def _asked(frame: Frame, needed: Needed | None) -> str:
    """The words over the band, moved sideways until they stand on the picture."""
    if needed is None or not needed.lags:
        return ""
    alone = needed.source == "user" and len(needed.lags) == 1
    verb = "said to be needed:" if alone else "the loss asks for"
    words = f"{verb} {lag_words(needed.lags)}"
    inside = [lag for lag in needed.lags if lag < frame.lags]
    if not inside:
        return text(f"{words} (beyond the sequence)", frame.right, 38, "tt-demand tt-strong", "end")
    first, last = runs(inside)[-1]
    half = width_of(words, strong=True) / 2
    x = min(max(frame.x((first + last) / 2), 8 + half), frame.right - half)
    return text(words, x, 38, "tt-demand tt-strong", "middle")


def _horizon(frame: Frame, words: Words, curves: Sequence[Curve], name: str, lag: int) -> str:
    if lag >= frame.lags:
        return ""
    mark = line(frame.x(lag), frame.top, frame.x(lag), frame.bottom, "tt-horizon")
    return mark + _beside(frame, words, curves, name, lag, "tt-supply")


def _beside(frame: Frame, words: Words, curves: Sequence[Curve], told: str, lag: int, class_: str) -> str:
    """A remark next to a lag, above the floor or under the top, where it covers the least."""
    x, length = frame.x(lag), width_of(told)
    places = [(side, y) for y in (frame.bottom - 8, frame.bottom - 26, frame.top + 32) for side in (1, -1)]

    def cost(place: tuple[int, float]) -> float:
        side, y = place
        start = x + 6 if side > 0 else x - 6 - length
        outside = start < frame.left or start + length > frame.right
        return 100 * outside + _covered(frame, curves, start, y, length) + 50 * words.covered(start, y, length)

    side, y = min(places, key=cost)
    return words.place(told, x + 6 * side, y, class_, side < 0)


def _curve(frame: Frame, words: Words, curves: Sequence[Curve], curve: Curve) -> str:
    """The line, then what it cannot show: an exact zero, an end below the axis, or lags that were not told apart."""
    stride = max(len(curve.log10) // MOST_POINTS, 1)
    at = np.unique(np.append(np.arange(0, len(curve.log10), stride), len(curve.log10) - 1))
    values = curve.log10[at]
    shown = values >= frame.low
    edge = np.zeros_like(shown)  # a point below the axis is drawn only where the line enters or leaves
    edge[1:] |= shown[:-1]
    edge[:-1] |= shown[1:]
    drawn = np.where(shown | (edge & (values < frame.low)), values, np.nan)
    kind = "tt-curve tt-quiet" if curve.quiet else "tt-curve"
    x = np.array([frame.x(int(lag)) for lag in at])
    y = np.array([frame.y(value) if not np.isnan(value) else np.nan for value in drawn.tolist()])
    return polyline(x, y, kind) + _end(frame, words, curves, curve)


def _end(frame: Frame, words: Words, curves: Sequence[Curve], curve: Curve) -> str:
    zeros = np.flatnonzero(np.isneginf(curve.log10))
    known = np.flatnonzero(np.isfinite(curve.log10))
    if len(zeros):
        lag, told = int(zeros[0]), f"exactly 0 from lag {zeros[0]} on"
    elif len(known) and curve.log10[known[-1]] < frame.low:
        lag = int(np.flatnonzero(curve.log10 < frame.low)[0])
        told = f"down to {from_log10(float(curve.log10[known[-1]]))} at lag {known[-1]}"
    elif len(known) and known[-1] + 1 < frame.lags:
        lag, told = int(known[-1]), f"lags beyond {known[-1]} not told apart"
    else:
        return ""
    return _beside(frame, words, curves, told, lag, "tt-ink")


def _values(frame: Frame, words: Words, curves: Sequence[Curve], lags: Sequence[int]) -> str:
    """A dot and its value where each curve meets the farthest needed lag."""
    inside = [lag for lag in lags if lag < frame.lags]
    if not inside:
        return ""
    lag = max(inside)
    x = frame.x(lag)
    left = x > (frame.left + frame.right) / 2
    parts: list[str] = []
    for curve in reversed(curves):
        value = float(curve.log10[lag]) if curve.asked and lag < len(curve.log10) else math.nan
        if math.isnan(value):
            continue
        y = frame.y(value)
        parts.append(element("circle", cx=x, cy=y, r=4, class_="tt-supply"))
        told = arriving(value)
        length = width_of(told, strong=True)
        start = x - 9 - length if left else x + 9
        lines = [min(max(y + shift, frame.top + 14), frame.bottom - 8) for shift in (-9, 18)]
        cost = {at: _covered(frame, curves, start, at, length) + 9 * words.covered(start, at, length) for at in lines}
        level = min(cost, key=cost.__getitem__)
        parts.append(words.place(told, x + (-9 if left else 9), level, "tt-ink tt-strong", left))
    return "".join(parts)


def _label(frame: Frame, words: Words, curve: Curve, curves: Sequence[Curve]) -> str:
    """The name of a curve beside it, where it covers the least: try places along the curve, above and below it."""
    length = width_of(curve.label, strong=True)
    best, least = None, math.inf
    for place in np.linspace(0.04, 0.7, 34):
        lag = round(place * (frame.lags - 1))
        if lag >= len(curve.log10) or not np.isfinite(curve.log10[lag]):
            continue
        for dx, dy in ((9.0, -9.0), (9.0, 18.0)):
            x, y = frame.x(lag) + dx, frame.y(float(curve.log10[lag])) + dy
            cost = _covered(frame, curves, x, y, length) + abs(place - 0.3) + 20 * words.covered(x, y, length)
            if x + length > frame.right or y < frame.top + 12 or y > frame.bottom - 8:
                cost += 100
            if cost < least:
                best, least = (x, y), cost
    return words.place(curve.label, *best, "tt-supply tt-strong") if best else ""


def _covered(frame: Frame, curves: Sequence[Curve], x: float, y: float, length: float) -> int:
    """How much of the curves lies under a line of text, in samples a pixel or so apart."""
    count = 0
    across = np.arange(x - 4, x + length + 4)
    for curve in curves:
        lags = np.arange(len(curve.log10))
        shown = np.maximum(curve.log10, frame.low)
        px = frame.left + (frame.right - frame.left) * (lags + 0.5) / frame.lags
        py = frame.top + (frame.high - shown) / (frame.high - frame.low) * (frame.bottom - frame.top)
        known = np.isfinite(py) & (np.isfinite(curve.log10) | np.isneginf(curve.log10))
        if not known.any():
            continue
        height = np.interp(across, px[known], py[known], left=np.nan, right=np.nan)
        step = np.abs(np.diff(height, append=height[-1]))  # a steep curve covers all lines between two samples
        on_floor = height >= frame.bottom
        count += int(np.sum((height + step > y - 16) & (height < y + 7) & ~on_floor))
    return count


def _strip(frame: Frame, demand: Demand, top: float, bottom: float) -> str:
    """z of the demand test by lag: bars above the threshold count."""
    z = np.asarray(demand.z, dtype=float)[: frame.lags]
    finite = z[np.isfinite(z)]
    most = max(float(finite.max(initial=0.0)), float(demand.threshold) * 1.25, 1e-9)

    def y(value: float) -> float:
        return bottom - (bottom - top) * min(max(value, 0.0), most) / most

    parts = [line(frame.left, bottom, frame.right, bottom, "tt-grid")]
    stride = max(math.ceil(len(z) / MOST_BARS), 1)
    thick = max((frame.right - frame.left) / max(frame.lags, 1) * stride - 1, 1.0)
    for first in range(0, len(z), stride):
        block = z[first : first + stride]
        value = float(np.nanmax(block)) if np.isfinite(block).any() else math.nan
        if not value > 0:
            continue
        kind = "tt-demand" if value > demand.threshold else "tt-bar"
        x = frame.x(first + (min(stride, len(block)) - 1) / 2) - thick / 2
        parts.append(element("rect", class_=kind, x=x, y=y(value), width=thick, height=bottom - y(value)))
    level = y(float(demand.threshold))
    parts.append(line(frame.left, level, frame.right, level, "tt-threshold"))
    told = f"demand z, counts above {number(demand.threshold, 2)}"
    parts.append(text(told, frame.left + 4, top - 4, "tt-demand tt-halo"))
    return "".join(parts)


def _lag_axis(frame: Frame, bottom: float, way: str) -> str:
    wide = frame.right - frame.left > 450
    step = _round_step((frame.lags - 1) / (9 if wide else 5))
    parts = [line(frame.left, bottom, frame.right, bottom, "tt-axis")]
    for lag in range(0, frame.lags, step):
        parts.append(line(frame.x(lag), bottom, frame.x(lag), bottom + 4, "tt-axis"))
        parts.append(text(str(lag), frame.x(lag), bottom + 18, anchor="middle"))
    words = f"lag: steps {way}" + (" from where the loss reads the network" if wide else " from the loss")
    return "".join(parts) + text(words, frame.right, bottom + 38, anchor="end")


def _round_step(least: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50 … that is at least `least`."""
    size = 1
    while True:
        for factor in (1, 2, 5):
            if factor * size >= least:
                return factor * size
        size *= 10


def _description(curves: Sequence[Curve], needed: Needed | None) -> str:
    """The picture in words, for those who do not see it."""
    lags = [lag for lag in needed.lags if any(lag < len(curve.log10) for curve in curves)] if needed else []
    asked = f"The loss asks for {lag_words(lags)}." if lags else "No needed lag is known."
    told: list[str] = []
    for curve in (curve for curve in curves if curve.asked):
        known = np.flatnonzero(np.isfinite(curve.log10))
        if len(known):
            lag = max((lag for lag in lags if lag in known), default=int(known[-1]))
            name = curve.label or "Supply"
            told.append(f"{name} at lag {lag}: {arriving(float(curve.log10[lag]))}.")
    return " ".join([asked, *told])
