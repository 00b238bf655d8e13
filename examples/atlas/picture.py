"""The pictures of the atlas: the horizons of every layer, and what arrives by lag."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from throughtime.report.notation import number, power_of_ten
from throughtime.report.svg import document, element, line, text, width_of

COLOURS, DASHES = ("supply", "demand", "one"), ("none", "7 4", "2 3")  # of a network's layers
WIDTH, RIGHT = 800, 790.0
COLUMNS, TALL = 3, 190  # panels in a row, and the height of one
LOWEST, HIGHEST = -6, 2  # powers of ten that are drawn
NAMES, ROW, PANEL = 300.0, 30.0, 62.0  # where the axis begins, the height of a row and of a panel's frame
NEAR, FAR = "0.1", "0.01"
MARGIN = 0.8  # of the least lag drawn
INTERVAL = "stroke:var(--tt-supply);stroke-width:2;opacity:.6"


def named(record: dict[str, Any]) -> str:
    """The network, and its layer where it has several."""
    return record["network"] + (f", {record['layer']}" if record["layer"] else "")


def horizons(records: list[dict[str, Any]], standalone: bool = False) -> str:
    """A row a layer: its horizons at 10 % and 1 % with their intervals, and where its input ends, over lag on a log scale."""
    parts = [
        element("circle", cx=7, cy=10, r=5, class_="tt-supply"), text("gradient horizon at 10 %", 18, 14.5),
        element("circle", cx=197, cy=10, r=4.5, class_="tt-hollow"), text("at 1 %", 208, 14.5),
        element("path", d="M262 10H286", style=INTERVAL), text("95 % interval over the input", 292, 14.5),
        line(486, 3, 486, 17, "tt-axis"), text("where the input ends", 494, 14.5),
    ]  # fmt: skip
    top = 34.0
    for sound, unit in ((True, "seconds back, networks of sound"), (False, "characters back, networks of text")):
        group = [each for each in records if (each["seconds"] is not None) == sound]
        if group:
            parts += _panel(group, top, unit)
            top += PANEL + ROW * len(group)
    told = "; ".join(f"{named(each)}: {each['horizon'][NEAR]} steps" for each in records)
    return document(parts, WIDTH, top, "Gradient horizons of shipped networks", told, standalone)


def _panel(group: list[dict[str, Any]], top: float, unit: str) -> list[str]:
    """The rows of one unit of lag, with their axis above."""
    scales = [each["seconds"] or 1 for each in group]
    nearest = min(max(each["interval"][NEAR][0], 1) * scale for each, scale in zip(group, scales, strict=True))
    low = math.log10(nearest * MARGIN) if group[0]["seconds"] else 0.0
    high = max(math.log10(each["farthest"] * scale) for each, scale in zip(group, scales, strict=True))
    first, end = top + 42, top + 42 + ROW * len(group)

    def x(value: float) -> float:
        return NAMES + (RIGHT - NAMES - 10) * (max(math.log10(value), low) - low) / (high - low)

    parts = [text(unit, RIGHT, top + 10, "tt-strong", "end")]
    for decade in range(math.floor(low), math.ceil(high) + 1):
        for digit in (1, 2, 5):
            value = digit * 10.0**decade
            if low <= math.log10(value) <= high:
                parts.append(line(x(value), first - 8, x(value), end - 8, "tt-grid"))
                parts.append(text(number(value), x(value), first - 13, anchor="middle"))
    for place, (each, scale) in enumerate(zip(group, scales, strict=True)):
        parts += _row(each, first + ROW * (place + 0.5) - 8, lambda lag, scale=scale: x(max(lag, 1) * scale))
    return parts


def _row(record: dict[str, Any], y: float, x: Callable[[float], float]) -> list[str]:
    """A layer's name, its two horizons with their intervals one above the other, and where its input ends."""
    parts = [
        text(named(record), 0, y + 4.5, "tt-ink"),
        line(x(record["farthest"]), y - 11, x(record["farthest"]), y + 11, "tt-axis"),
    ]
    for level, at, mark in ((FAR, y + 5, "tt-hollow"), (NEAR, y - 5, "tt-supply")):
        low, high = record["interval"][level]
        parts.append(element("path", d=f"M{x(low):.1f} {at:.1f}H{x(high):.1f}", style=INTERVAL))
        if record["horizon"][level] is not None:
            parts.append(element("circle", cx=x(record["horizon"][level]), cy=at, r=4.5, class_=mark))
    return parts


def arriving(records: list[dict[str, Any]], standalone: bool = False) -> str:
    """A panel a network, a line a layer: the fraction of the gradient that arrives, over the lag, both on log scales."""
    networks = list(dict.fromkeys(record["network"] for record in records))
    most = max(record["farthest"] for record in records)
    parts = [text("fraction of the gradient that arrives, by lag in the network's own steps", 0, 14, "tt-strong")]
    for place, name in enumerate(networks):
        left, top = WIDTH / COLUMNS * (place % COLUMNS), 34 + TALL * (place // COLUMNS)
        parts += _curves([each for each in records if each["network"] == name], left, top, most)
    told = "; ".join(f"{named(each)}: horizon 1 % {each['horizon'][FAR]} steps" for each in records)
    height = 34 + TALL * math.ceil(len(networks) / COLUMNS)
    return document(parts, WIDTH, height, "Fraction of the gradient that arrives, by lag", told, standalone)


def _curves(group: list[dict[str, Any]], left: float, top: float, most: int) -> list[str]:
    """One network's panel; the same axes in all."""
    begin, end = left + 38, left + WIDTH / COLUMNS - 14
    first, last = top + 44, top + TALL - 34

    def x(lag: float) -> float:
        return begin + (end - begin) * math.log10(lag) / math.log10(most)

    def y(log10: float) -> float:
        return first + (last - first) * (HIGHEST - log10) / (HIGHEST - LOWEST)

    parts = [text(group[0]["network"], left, top + 10, "tt-ink")]
    for decade in range(LOWEST, HIGHEST + 1, 2):
        parts += [
            line(begin, y(decade), end, y(decade), "tt-grid"),
            text(power_of_ten(decade), begin - 6, y(decade) + 4.5, anchor="end"),
        ]
    for lag in (1, 10, 100, 1000):
        if lag <= most:
            parts += [
                line(x(lag), last, x(lag), last + 4, "tt-axis"),
                text(str(lag), x(lag), last + 17, anchor="middle"),
            ]
    at = left
    for record, dashes, colour in zip(group, DASHES, COLOURS, strict=False):
        look = f"stroke:var(--tt-{colour});fill:none;stroke-width:2;stroke-dasharray:{dashes}"
        points = [
            f"{x(lag):.1f} {y(min(value, HIGHEST)):.1f}"
            for lag, value in enumerate(record["arriving"])
            if lag and value is not None and value >= LOWEST
        ]
        parts.append(element("path", d="M" + "L".join(points), style=look))
        if record["layer"]:
            parts += [
                element("path", d=f"M{at:.1f} {top + 24:.1f}h20", style=look),
                text(record["layer"], at + 24, top + 28.5),
            ]
            at += 36 + width_of(record["layer"])
    return parts
