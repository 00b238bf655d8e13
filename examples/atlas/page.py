"""The page: the answer, one picture, one table, and how to read them, from the records alone."""

from __future__ import annotations

import math
from html import escape
from typing import Any

import numpy as np

from examples.atlas.picture import arriving, horizons, named
from throughtime.report.notation import number
from throughtime.report.palette import variables

TITLE = "How far back do shipped networks listen?"
BY_LAG = "What arrives, lag by lag"
HEAD = ("network, layer", "step", "10 % horizon", "1 %", "0.1 %", "input ends at")
HEAD_BY_LAG = ("network, layer", "cell", "beyond 10 steps", "half-life of units, steps", "by their gates, steps")
STYLE = (
    "body{margin:0 auto;max-width:1240px;padding:24px;background:var(--tt-paper);color:var(--tt-ink);"
    "font:16px/1.5 system-ui,sans-serif;font-variant-numeric:tabular-nums}svg{max-width:100%;height:auto}"
    ".scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem}"
    "th,td{padding:5px 8px;text-align:left;border-top:1px solid var(--tt-line);vertical-align:top}"
    "td{white-space:nowrap}td:first-child{white-space:normal;min-width:13em}"
)
Records = list[dict[str, Any]]


MEANING = (
    "That is the 10 % gradient horizon of each network's farthest layer, with its 95 % interval over the input: all that lies "
    "further back makes up at most a tenth of the gradient of the network's own decisions. It tells how far back learning "
    "could still change a decision, not which inputs the decision needs."
)


def answer(records: Records) -> list[tuple[str, str]]:
    """The page in a few lines: how far, and which network; sound first, the farthest first."""
    farthest: dict[str, dict[str, Any]] = {}
    for each in records:
        best = farthest.setdefault(each["network"], each)
        if reach(each) > reach(best):
            farthest[each["network"]] = each
    ordered = sorted(
        farthest.values(), key=lambda each: (each["seconds"] is None, -reach(each) * (each["seconds"] or 1))
    )
    return [(_how_far(each), f"{each['network']}, {each['job']}") for each in ordered]


def _how_far(record: dict[str, Any]) -> str:
    """A horizon with its interval; where it is within a tenth of the input's end, that it is bound by it."""
    if reach(record) >= (1 - SHORT) * record["farthest"]:
        return f"{amount(record, reach(record))} of the {length(record, record['farthest'])} that its input allows"
    return f"{length(record, reach(record))} ({span(record, '0.1')})"


SHORT = 0.1
"""A horizon that falls short of the end of the input by less than this part of it is told as bound by it."""


def reach(record: dict[str, Any]) -> int:
    """The gradient horizon at 10 %."""
    return record["farthest"] if record["horizon"]["0.1"] is None else record["horizon"]["0.1"]


def length(record: dict[str, Any], steps: int) -> str:
    """Steps in time where a step has a length, else in the network's own."""
    return f"{amount(record, steps)} {'s' if record['seconds'] else record['step'] + 's'}"


def amount(record: dict[str, Any], steps: int) -> str:
    """The same without the unit."""
    return number(steps * record["seconds"], 2) if record["seconds"] else str(steps)


def span(record: dict[str, Any], level: str) -> str:
    """The interval of a horizon."""
    return " to ".join(amount(record, each) for each in record["interval"][level])


def rows(records: Records) -> list[list[str]]:
    """The table of horizons; in brackets the 95 % interval."""
    return [
        [
            named(each), each["step"], *(horizon(each, level) for level in ("0.1", "0.01", "0.001")),
            length(each, each["farthest"]).replace(" ", "\N{NO-BREAK SPACE}"),
        ]
        for each in records
    ]  # fmt: skip


def rows_by_lag(records: Records) -> list[list[str]]:
    """The table beside the curves."""
    return [
        [
            named(each), each["cell"], part(each["beyond"]["10"]), middle(each["half_lives"]),
            middle(each["gate_half_lives"]),
        ]
        for each in records
    ]  # fmt: skip


def horizon(record: dict[str, Any], level: str) -> str:
    """A gradient horizon and its interval, in time where a step has a length."""
    value = record["horizon"][level]
    unit = " s" if record["seconds"] else ""
    return (
        "–"
        if value is None
        else f"{amount(record, value)}{unit} ({span(record, level)})".replace(" ", "\N{NO-BREAK SPACE}")
    )


def part(value: float | None) -> str:
    """A fraction in per cent."""
    return "–" if value is None else f"{number(100 * value, 2)} %"


def middle(values: list[float | None]) -> str:
    """The median over units, one that is never reached counted as the longest."""
    told = float(np.median([math.inf if value is None else value for value in values]))
    return "not reached" if math.isinf(told) else number(told, 2)


def sources(records: Records) -> list[str]:
    """What each network was given, where its loss is, and what its interval is over."""
    told = {}
    for each in records:
        note = f" Note: {each['note']}." if each["note"] else ""
        told[each["network"]] = (
            f"{each['network']} ({each['licence']}; {each['job']}). Input: {each['source']}. Loss: {each['decision']}. "
            f"Interval over {each['count']} {each['units']}.{note}"
        )
    return list(told.values())


NOTES = (
    "The loss is not the one that a network was trained with, which is not shipped: it is the log-odds of the network's own "
    "decisions, right or wrong, added up. Another loss can have another horizon.",
    "Nothing was trained. The gradient tells how far back learning could still change a decision; it does not tell which "
    "inputs the decision needs.",
    "In brackets: 95 % percentile bootstrap interval (2000 resamples) over the units of the input, named above. It covers "
    "which words, sentences or stretches of the same source happened to be taken: not another source, speaker or language, "
    "not another loss, and not another training of the network. Stretches of one recording share their past, so that theirs "
    "is, if anything, too narrow; so is one over few units.",
    "“Input ends at”: the farthest lag that the input holds. A horizon near it is a lower bound, which its interval "
    "cannot pass; and decisions early in a recording have less behind them.",
    "Lags are counted within a layer, in its own steps; what other layers, an attention or an output fed back carry is not "
    "in it.",
    "“Beyond 10 steps”: the norm of all terms of the weight gradient beyond lag 10, over the whole; it can pass 100 %, since "
    "terms cancel. It is what a truncation to 10 steps would miss.",
    "Half-life: the first lag at which a unit's part of the gradient has halved, the median over units; by their gates: ln 2 "
    "times the timescale that the gates alone say. “Not reached”: it has not halved where the input ends.",
)


def closing(records: Records) -> str:
    """How exactly the terms add up."""
    worst = max(each["error"] for each in records)
    return f"Every layer's terms add up to autograd's gradient: the largest error is {number(worst, 2)} of their size."


def left_out(missing: dict[str, str]) -> list[str]:
    """Networks without a row, and why."""
    return [f"Left out: {name} ({reason})." for name, reason in missing.items()]


def html(records: Records, missing: dict[str, str]) -> str:
    """The whole page."""
    told = "".join(f"<li><strong>{escape(far)}</strong>: {escape(which)}</li>" for far, which in answer(records))
    listed = ["".join(f"<li>{escape(each)}</li>" for each in some) for some in notes(records, missing)]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{TITLE}</title>'
        f"<style>{variables(':root')}{STYLE}</style></head><body><h1>{TITLE}</h1><ul>{told}</ul>"
        f"<p>{escape(MEANING)}</p>{horizons(records)}{table_html(HEAD, rows(records))}"
        f"<h2>{BY_LAG}</h2>{arriving(records)}{table_html(HEAD_BY_LAG, rows_by_lag(records))}"
        f"<h2>What was run</h2><ul>{listed[0]}</ul><h2>How to read it</h2><ul>{listed[1]}</ul></body></html>\n"
    )


def table_html(head: tuple[str, ...], cells: list[list[str]]) -> str:
    """A table that scrolls by itself."""
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in cells)
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    return f'<div class="scroll"><table><tr>{top}</tr>{body}</table></div>'


def table_markdown(head: tuple[str, ...], cells: list[list[str]]) -> list[str]:
    """The same in Markdown, line by line."""
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *cells)]


def notes(records: Records, missing: dict[str, str]) -> tuple[list[str], list[str]]:
    """What was run, and how to read it."""
    return [*sources(records), *left_out(missing)], [*NOTES, closing(records)]


def markdown(records: Records, missing: dict[str, str]) -> str:
    """The documentation's page."""
    first, second = table_markdown(HEAD, rows(records)), table_markdown(HEAD_BY_LAG, rows_by_lag(records))
    run, read = ([f"- {each}" for each in some] for some in notes(records, missing))
    return "\n".join(
        [f"# {TITLE}", "", *(f"- **{far}**: {which}" for far, which in answer(records)), "", MEANING, "",
         "![Gradient horizons of every layer with their intervals](images/atlas.svg)", "", *first, "",
         f"## {BY_LAG}", "", "![Fraction of the gradient that arrives, by lag](images/atlas-arriving.svg)", "", *second, "",
         "## What was run", "", *run, "", "## How to read it", "", *read, "",
         "Made by `make atlas`, from docs/atlas.json.", ""]
    )  # fmt: skip
