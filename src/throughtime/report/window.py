"""The views of `tt.window`: the terminal's table and the JSON document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from throughtime.report.json import _list, _needed, _number
from throughtime.report.text import STYLES, _percent, _plain
from throughtime.truncation.advice import LEAST, loss_words, name_of, size, within
from throughtime.truncation.result import Row, WindowReport

if TYPE_CHECKING:
    from throughtime.truncation.lost import Lost
    from throughtime.truncation.passes import Cost

SCHEMA = "throughtime/window/1"


def window_text(report: WindowReport, width: int = 100) -> str:
    """The report as plain text."""
    return _plain(render_window(report), width)


def render_window(report: WindowReport) -> RenderableType:
    """The advice with its reasons, then every window, for a rich console."""
    screen = Table.grid(padding=(0, 2))
    screen.add_column(justify="right", no_wrap=True)
    screen.add_column()
    best = report.recommended
    screen.add_row(
        Text("window", STYLES["finding"]), Text("none recommended" if best is None else name_of(best.window))
    )
    for place, reason in enumerate(report.reasons):
        screen.add_row(Text("" if place else "why", STYLES["needed"]), Text(reason))
    for place, row in enumerate(report.alternatives):
        screen.add_row(
            Text("" if place else "or", STYLES["try"]), Text(f"{name_of(row.window)}: {loss_words(report, row)}.")
        )
    return Group(screen, Text(""), _table(report))


def _table(report: WindowReport) -> Table:
    table = Table(
        title=f"{report.title}: {report.steps} steps × {report.batch} sequences, what a window of K steps loses",
        title_justify="left",
        title_style="bold",
        caption_justify="left",
    )
    lag, costs = report.farthest, report.full is not None
    known = any(not np.isnan(row.whole.low) for row in report.sliding)
    heads = ["K", "sliding bias", *(["95 %"] if known else []), "cosine"]
    heads += ["chunks bias", "95 %", "cosine"] if report.chunks or report.pairs else []
    heads += [f"reach lag {lag}"] if lag is not None and report.chunks else []
    heads += ["memory", "time"] if costs else []
    for head in heads:
        table.add_column(head, justify="right", no_wrap=head in ("K", "time"))
    sliding = {row.window.k2: row for row in report.sliding}
    chunks = {row.window.k2: row for row in report.chunks}
    for steps in sorted({*sliding, *chunks}):
        slid, chunk = sliding.get(steps), chunks.get(steps)
        row = [str(steps) + _short(steps, lag), *_lost(slid.whole if slid else None, known)]
        table.add_row(*row, *_chunk(chunk, lag, report), style=_style(report, steps, slid, chunk))
    single = [row for row in report.sliding if row.cost is not None and 1 < row.window.k2 < report.steps]
    for each in (*report.pairs, *single):
        style = _style(report, each.window.k2, each)
        table.add_row(
            str(each.window) + _short(each.window.k2, lag), *_lost(None, known), *_chunk(each, lag, report), style=style
        )
    table.caption = (
        "K: steps of the window, which holds the lags 0 … K − 1; K1,K2: a pass every K1 steps over the last K2; sliding: every "
        "loss goes back over K steps; chunks: the state is detached every K steps; bias: how much of the gradient is changed, "
        "cosine: of the two directions"
    )
    if within(report):
        table.caption += (
            "; sliding windows and K1,K2: within each module, and not what one loses on its way through another"
        )
    if lag is not None and report.chunks:
        table.caption += f"; reach lag {lag}: of the losses that could; * too short for the needed lag"
    if report.full is not None:
        table.caption += (
            f"; memory: of the {size(report.full.memory)} that autograd keeps in full BPTT, time: against full BPTT, "
            f"median and range of {report.full.rounds} rounds; both of the recurrent layers alone, on the first batch"
        )
    return table


def _chunk(row: Row | None, lag: int | None, report: WindowReport) -> list[str]:
    if not (report.chunks or report.pairs):
        return []
    lost = row.whole if row else None
    told = _lost(lost, True)
    if lag is not None and report.chunks:
        told.append("–" if row is None else _percent(row.reaching))
    if report.full is not None:
        cost = row.cost if row else None
        told += ["–", "–"] if cost is None else [_percent(cost.memory / report.full.memory), _time(cost)]
    return told


def _interval(lost: Lost | None) -> str:
    if lost is None or np.isnan(lost.low):
        return "–"
    if 0 < lost.high < LEAST:
        return f"< {100 * LEAST:g} %"
    return f"{100 * lost.low * (lost.low >= LEAST):.2g}–{100 * lost.high:.2g} %"


def _lost(lost: Lost | None, interval: bool) -> list[str]:
    between = [_interval(lost)] if interval else []
    if lost is None:
        return ["–", *between, "–"]
    bias = f"< {100 * LEAST:g} %" if 0 < lost.bias < LEAST else _percent(lost.bias)
    return [bias, *between, "–" if np.isnan(lost.cosine) else f"{lost.cosine:.3f}"]


def _time(cost: Cost) -> str:
    return f"{cost.time:.2f} ({cost.low:.2f}–{cost.high:.2f})"


def _short(steps: int, lag: int | None) -> str:
    return " *" if lag is not None and steps <= lag else ""


def _style(report: WindowReport, steps: int, *rows: Row | None) -> str | None:
    if report.farthest is not None and steps <= report.farthest:
        return "dim"
    return "bold" if report.recommended is not None and report.recommended in rows else None


def window_to_dict(report: WindowReport) -> dict[str, Any]:
    """Schema throughtime/window/1. What is not finite or was not measured is null; "missing" says why a part is absent."""
    return {
        "schema": SCHEMA,
        "throughtime": report.flow.throughtime,
        "torch": report.flow.torch,
        "title": report.title,
        "steps": report.steps,
        "batch": report.batch,
        "dtype": report.flow.dtype,
        "residual": _number(report.flow.residual),
        "level": report.level,
        "needed": [_needed(each) for each in report.needed],
        "farthest": report.farthest,
        "recommended": None if report.recommended is None else _row(report.recommended),
        "alternatives": [_row(row) for row in report.alternatives],
        "reasons": list(report.reasons),
        "full": _cost(report.full),
        "through": report.through,
        "over": report.over,
        "stream": None
        if (stream := report.flow.stream) is None
        else {"batches": stream.batches, "stopped": stream.stopped, "partial": stream.partial},
        "chunks": [_row(row) for row in report.chunks],
        "sliding": [_row(row) for row in report.sliding],
        "pairs": [_row(row) for row in report.pairs],
        "layers": [
            {
                "name": layer.name,
                "cell": layer.cell,
                "lag": layer.lag,
                "steps": layer.steps,
                "loss_steps": list(layer.loss_steps),
                "bias": _list(layer.bias),
                "cosine": _list(layer.cosine),
                "horizon": {f"{level:g}": value for level, value in layer.horizon.items()},
            }
            for layer in report.flow.layers.values()
        ],
        "missing": [{"field": each.field, "reason": each.reason} for each in (*report.missing, *report.flow.missing)],
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        "k1": row.window.k1,
        "k2": row.window.k2,
        **_lost_to_dict(row.whole),
        "reaching": _number(row.reaching),
        "layers": {name: _lost_to_dict(each) for name, each in row.layers.items()},
        "cost": _cost(row.cost),
    }


def _lost_to_dict(lost: Lost) -> dict[str, Any]:
    return {name: _number(getattr(lost, name)) for name in ("bias", "cosine", "low", "high")}


def _cost(cost: Cost | None) -> dict[str, Any] | None:
    if cost is None:
        return None
    numbers = {name: _number(getattr(cost, name)) for name in ("time", "low", "high", "residual")}
    return {"memory": cost.memory, "rounds": cost.rounds, **numbers}
