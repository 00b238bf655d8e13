"""The pictures of the atlas: the horizons of every layer, and what arrives by lag."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from throughtime.report.notation import number, power_of_ten
from throughtime.report.svg import document, element, line, text

COLOURS = ("supply", "demand", "one", "two", "three", "good", "four", "bad")
DASHES = ("", "7 4", "2 3")
LOWEST, LEFT, RIGHT, TOP, BOTTOM, WIDTH = -6, 50.0, 790.0, 30.0, 360.0, 800
NAMES, ROW, PANEL = 300.0, 30.0, 62.0  # where the axis begins, the height of a row and of a panel's frame
NEAR, FAR = "0.1", "0.01"


def named(record: dict[str, Any]) -> str:
    """The network, and its layer where it has several."""
    return record["network"] + (f", {record['layer']}" if record["layer"] else "")


def horizons(records: list[dict[str, Any]], standalone: bool = False) -> str:
    """A row a layer: its horizons at 10 % and 1 % with their intervals, and where its input ends, over lag on a log scale."""
    parts = [
        element("circle", cx=7, cy=10, r=5, class_="tt-supply"), text("gradient horizon at 10 %", 18, 14.5),
        element("circle", cx=197, cy=10, r=4.5, class_="tt-hollow"), text("at 1 %", 208, 14.5),
        line(262, 10, 286, 10, "tt-link"), text("95 % interval over the input", 292, 14.5),
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
    low = math.floor(math.log10(min(scales))) if group[0]["seconds"] else 0
    high = max(math.log10(each["farthest"] * scale) for each, scale in zip(group, scales, strict=True))
    first, end = top + 42, top + 42 + ROW * len(group)

    def x(value: float) -> float:
        return NAMES + (RIGHT - NAMES - 10) * (max(math.log10(value), low) - low) / (high - low)

    parts = [text(unit, RIGHT, top + 10, "tt-strong", "end")]
    for decade in range(low, math.ceil(high) + 1):
        for digit in (1, 2, 5):
            value = digit * 10.0**decade
            if math.log10(value) <= high:
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
        parts.append(line(x(low), at, x(high), at, "tt-link"))
        if record["horizon"][level] is not None:
            parts.append(element("circle", cx=x(record["horizon"][level]), cy=at, r=4.5, class_=mark))
    return parts


def arriving(records: list[dict[str, Any]], standalone: bool = False) -> str:
    """A line a layer: the fraction of the gradient that arrives, over the lag, both on log scales."""
    most = max(record["farthest"] for record in records) + 1
    decades = math.log10(most)

    def x(lag: float) -> float:
        return LEFT + (RIGHT - LEFT) * math.log10(lag) / decades

    def y(log10: float) -> float:
        return TOP + (BOTTOM - TOP) * (1 - log10) / (1 - LOWEST)

    parts = [text("fraction of the gradient that arrives", 0, 14, "tt-strong")]
    for decade in range(LOWEST, 2):
        parts.append(line(LEFT, y(decade), RIGHT, y(decade), "tt-grid"))
        parts.append(text(power_of_ten(decade), LEFT - 7, y(decade) + 4.5, anchor="end"))
    for lag in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000):
        if lag <= most:
            parts.append(line(x(lag), BOTTOM, x(lag), BOTTOM + 4, "tt-axis"))
            parts.append(text(str(lag), x(lag), BOTTOM + 18, anchor="middle"))
    parts.append(text("lag, in the network's own steps", RIGHT, BOTTOM + 38, anchor="end"))
    networks = list(dict.fromkeys(record["network"] for record in records))
    seen: dict[str, int] = {}
    for place, record in enumerate(records):
        points = [
            f"{x(lag):.1f} {y(value):.1f}"
            for lag, value in enumerate(record["arriving"])
            if lag and value is not None and value >= LOWEST
        ]
        name = record["network"]
        seen[name] = seen.get(name, -1) + 1
        look = f"stroke:var(--tt-{COLOURS[networks.index(name) % len(COLOURS)]});fill:none;stroke-width:2"
        look += f";stroke-dasharray:{DASHES[seen[name] % len(DASHES)]}" if seen[name] else ""
        parts.append(element("path", d="M" + "L".join(points), style=look))
        row, column = BOTTOM + 62 + 20.0 * (place // 2), LEFT + 370.0 * (place % 2)
        parts.append(element("path", d=f"M{column} {row - 5}h24", style=look))
        parts.append(text(named(record), column + 32, row))
    told = "; ".join(f"{named(each)}: horizon 1 % {each['horizon'][FAR]} steps" for each in records)
    height = BOTTOM + 62 + 20.0 * math.ceil(len(records) / 2)
    return document(parts, WIDTH, height, "Fraction of the gradient that arrives, by lag", told, standalone)
