"""The page: one chart, one table, from the records alone."""

from __future__ import annotations

import math
from html import escape
from typing import Any

import numpy as np

from throughtime.report.notation import number, power_of_ten
from throughtime.report.palette import variables
from throughtime.report.svg import document, element, line, text

TITLE = "How far back do shipped networks listen?"
COLOURS = ("supply", "demand", "one", "two", "three", "good", "four", "bad")
LOWEST, LEFT, RIGHT, TOP, BOTTOM, WIDTH = -6, 50.0, 790.0, 30.0, 360.0, 800
HEAD = ("network, layer", "step", "gradient horizon 10 %", "1 %", "0.1 %", "beyond lag 10", "beyond lag 100",
        "half-life of units, steps", "by their gates")  # fmt: skip
STYLE = (
    "body{margin:0 auto;max-width:1100px;padding:24px;background:var(--tt-paper);color:var(--tt-ink);"
    "font:16px/1.5 system-ui,sans-serif;font-variant-numeric:tabular-nums}svg{max-width:100%;height:auto}"
    ".scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem}"
    "th,td{padding:5px 10px;text-align:left;border-top:1px solid var(--tt-line);vertical-align:top}"
)


def chart(records: list[dict[str, Any]], standalone: bool = False) -> str:
    """A line a layer: the fraction of the gradient that arrives, over the lag, both on log scales."""
    most = max(record["steps"] for record in records)
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
    for place, record in enumerate(records):
        points = [
            f"{x(lag):.1f} {y(value):.1f}"
            for lag, value in enumerate(record["arriving"])
            if lag and value is not None and value >= LOWEST
        ]
        colour = f"stroke:var(--tt-{COLOURS[place % len(COLOURS)]});fill:none;stroke-width:2"
        parts.append(element("path", d="M" + "L".join(points), style=colour))
        row = BOTTOM + 62 + 20.0 * (place // 2)
        column = LEFT + 370.0 * (place % 2)
        parts.append(element("path", d=f"M{column} {row - 5}h24", style=colour))
        parts.append(text(named(record), column + 32, row))
    told = "; ".join(f"{named(each)}: horizon 1 % {each['horizon']['0.01']} steps" for each in records)
    height = BOTTOM + 62 + 20.0 * math.ceil(len(records) / 2)
    return document(parts, WIDTH, height, "Fraction of the gradient that arrives, by lag", told, standalone)


def named(record: dict[str, Any]) -> str:
    """The network, and its layer where it has several."""
    return record["network"] + (f", {record['layer']}" if record["layer"] != "rnn" else "")


def rows(records: list[dict[str, Any]]) -> list[list[str]]:
    """The table; in brackets the least and the most over the parts of the input."""
    return [
        [
            named(record), record["step"], *(reach(record, level) for level in ("0.1", "0.01", "0.001")),
            *(part(record["beyond"][lag]) for lag in ("10", "100")),
            middle(record["half_lives"]), middle(record["gate_half_lives"]),
        ]
        for record in records
    ]  # fmt: skip


def reach(record: dict[str, Any], level: str) -> str:
    """A gradient horizon in steps, in time where a step has a length, and its span over parts."""
    value, spread = record["horizon"][level], [each for each in record["parts"][level] if each is not None]
    if value is None:
        return "–"
    time = f" = {number(value * record['seconds'], 2)} s" if record["seconds"] else ""
    return f"{value}{time} ({min(spread)} to {max(spread)})" if spread else f"{value}{time}"


def part(value: float | None) -> str:
    """A fraction in per cent."""
    return "–" if value is None else f"{number(100 * value, 2)} %"


def middle(values: list[float | None]) -> str:
    """The median over units, one that is never reached counted as the longest."""
    told = float(np.median([math.inf if value is None else value for value in values]))
    return "not reached" if math.isinf(told) else number(told, 2)


def lines(records: list[dict[str, Any]]) -> list[str]:
    """Where each network's loss is."""
    told = {each["network"]: f"{each['network']} ({each['licence']}): {each['decision']}." for each in records}
    return list(told.values())


NOTES = (
    "Lags are counted within a layer. Numbers in brackets: the least and the most over five parts of the input.",
    "“Beyond lag K”: the norm of all terms of the weight gradient beyond K, over the whole; it can pass 100 %.",
    "A layer whose horizon is near the length of its sequence (a word, the recording) may reach further in longer ones.",
    "The transliterator's encoder reads every word with zeros after it, 26 steps in all: its state is read after these, "
    "so the letters lie behind them in lag.",
    "The gradient tells how far back the decision could be changed by learning, not which inputs it needs.",
)


def html(records: list[dict[str, Any]], missing: dict[str, str]) -> str:
    """The whole page."""
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows(records))
    head = "".join(f"<th>{escape(cell)}</th>" for cell in HEAD)
    left_out = [f"Left out: {name} ({reason})." for name, reason in missing.items()]
    notes = "".join(f"<li>{escape(each)}</li>" for each in (*lines(records), *NOTES, *left_out))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{TITLE}</title>'
        f"<style>{variables(':root')}{STYLE}</style></head><body><h1>{TITLE}</h1>{chart(records)}"
        f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div><h2>How to read it</h2><ul>{notes}</ul></body></html>\n'
    )


def markdown(records: list[dict[str, Any]], missing: dict[str, str]) -> str:
    """The documentation's page."""
    table = ["| " + " | ".join(cells) + " |" for cells in (HEAD, ["---"] * len(HEAD), *rows(records))]
    left_out = [f"Left out: {name} ({reason})." for name, reason in missing.items()]
    notes = [f"- {each}" for each in (*lines(records), *NOTES, *left_out)]
    return "\n".join(
        [f"# {TITLE}", "", "Made by `make atlas`, from docs/atlas.json.", "",
         "![Fraction of the gradient that arrives, by lag](images/atlas.svg)", "", *table, "", *notes, ""]
    )  # fmt: skip
