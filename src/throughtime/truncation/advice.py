"""The advice: the smallest window that holds every needed lag and loses little, with its reasons. Never from supply alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from throughtime.diagnosis.supply import arrival
from throughtime.report.headline import arriving, needed_sentence
from throughtime.report.notation import number
from throughtime.truncation.gather import HEAD
from throughtime.truncation.gradient import Window
from throughtime.truncation.passes import Cost
from throughtime.truncation.result import Row, WindowReport

HALF = 0.5
"""Of the losses must reach the farthest needed lag D: in chunks of D + 1 steps only the last of each would. Not calibrated."""
FEW = 2.0
"""Losses are few where a window for each, one after another, goes over at most so many times the sequence."""
LEAST = 1e-4
"""Smaller biases are told as such."""
ARRIVES = 1e-3
"""Of the gradient at a needed lag: with less, a window that holds the lag does not help yet (TT101)."""


def advised(report: WindowReport) -> WindowReport:
    """The report with a recommendation, or with the reason why there is none."""
    lag = report.farthest
    needed = [_needed(report, place) for place, need in enumerate(report.needed) if not _inner(report, need.layer)]
    notes = _notes(report)
    if lag is None:
        none = "So no window is recommended: how far the gradient reaches now does not say how far it should. What follows is "
        none += "what each window loses of the gradient as it is now."
        return replace(report, reasons=(*needed, none, *notes))
    if lag >= report.steps:
        short = f"Lag {lag} lies outside of the recorded sequences of {report.steps} steps: record at least {lag + 1}."
        return replace(report, reasons=(*needed, f"No window is recommended. {short}", *notes))
    if not report.chunks:
        words = next(each.reason for each in report.missing if each.field == "chunks")
        none = f"No window is recommended: {words}. A window would have to hold {lag + 1} steps at least."
        return replace(report, reasons=(*needed, none, *notes))
    chunk = _shorter(report, report.chunks)
    pair = _pair(report)
    one = _one(report)
    found = [row for row in ((one, pair) if one is not None else (chunk, pair)) if row is not None]
    best = found[0] if found else next(row for row in report.chunks if row.window.k2 == report.steps)
    reasons = [*needed, _why(report, best, lag)]
    if one is not None:
        reasons.append(_few(report))
    elif chunk is None and report.steps > lag + 1:
        reasons.append(_no_chunk(report, lag))
    elif chunk is not None and chunk.reaching < 1:
        reasons.append(_part(report, chunk, lag, pair))
    reasons += [_cost(report, best.cost)] if best.cost is not None and report.full is not None else []
    return replace(
        report, recommended=best, alternatives=tuple(found[1:]), reasons=(*reasons, *_arrives(report, lag), *notes)
    )


def first_of(rows: Iterable[Row], lag: int | None, level: float) -> Row | None:
    """The smallest window from which on every one given holds the lag, for half of the losses, and loses at most the level.

    A single window that does, between others that do not, is good luck: a loss that stands well in its chunk.
    """
    found = None
    for row in sorted(rows, key=lambda row: row.window.k2, reverse=True):
        if lag is None or row.window.k2 <= lag or not row.reaching >= HALF or not row.whole.bias <= level:
            break
        found = row
    return found


def few(report: WindowReport, window: Window) -> bool:
    """Whether the losses are so few that a pass for each of them is cheap."""
    return losses(report) * max(window.k2, 4) <= FEW * report.steps


def losses(report: WindowReport) -> int:
    """The steps at which a loss stands, in the layer with most of them."""
    return max(len(layer.loss_steps) for layer in report.flow.layers.values())


def name_of(window: Window) -> str:
    """A window in words."""
    if window.k1 == window.k2:
        return f"Chunks of {window.k2} steps, the state passed on and detached every {window.k2} steps"
    if window.k1 == 1:
        return f"Back over {window.k2} steps from each loss, and no further"
    return f"A backward pass every {window.k1} steps over the last {window.k2} (K1 = {window.k1}, K2 = {window.k2})"


def percent(value: float) -> str:
    """A fraction as 1.2 %; what is smaller than float32 gradients are right is not told in digits."""
    if 0 < value < LEAST:
        return f"under {number(100 * LEAST)} %"
    return f"{number(100 * value, 2)} %"


def within(report: WindowReport) -> bool:
    """Whether sliding windows and pairs are told module by module, for there are several."""
    return not all(layer.lag == "total" or layer.inner for layer in report.flow.layers.values())


def loss_words(report: WindowReport, row: Row) -> str:
    """Bias with its interval, and cosine."""
    lost = row.whole
    told = f"bias {percent(lost.bias)}"
    if not np.isnan(lost.low) and lost.high >= LEAST:
        over = "batches" if row.window.k1 == 1 else report.over
        told += f" (95 % interval {number(100 * lost.low, 2)} to {percent(lost.high)} over {over})"
    if within(report) and row.window.k1 != row.window.k2:
        told += ", within each module"
    return f"{told}, cosine {lost.cosine:.3f}"


def _inner(report: WindowReport, layer: str) -> bool:
    return report.flow.layers[layer].inner


def _needed(report: WindowReport, place: int) -> str:
    need = report.needed[place]
    where = f"{need.layer}: " if len([each for each in report.needed if not _inner(report, each.layer)]) > 1 else ""
    return where + needed_sentence(report.flow.layers[need.layer], need)


def _shorter(report: WindowReport, rows: Iterable[Row]) -> Row | None:
    """The smallest that will do, if it is shorter than the sequence."""
    found = first_of(rows, report.farthest, report.level)
    return None if found is None or found.window.k2 >= report.steps else found


def _one(report: WindowReport) -> Row | None:
    """The smallest window for each loss alone, where these are few."""
    row = _shorter(report, report.sliding)
    return row if row is not None and few(report, row.window) else None


def _pair(report: WindowReport) -> Row | None:
    """The smallest pair that will do."""
    found = [row for row in report.pairs if _shorter(report, [row]) is not None]
    return min(found, key=lambda row: row.window.k2, default=None)


def _why(report: WindowReport, row: Row, lag: int) -> str:
    if row.window.k2 >= report.steps:
        return (
            f"The whole sequence, {report.steps} steps: in no shorter window tried do half of the losses reach lag {lag} with "
            f"a bias of at most {percent(report.level)}."
        )
    above = "; the interval reaches above the level" if row.whole.high > report.level else ""
    return (
        f"It is the smallest of its kind in which half of the losses reach lag {lag} and that, like all larger ones tried, has "
        f"a bias of at most {percent(report.level)}: {loss_words(report, row)}{above}."
    )


def _part(report: WindowReport, chunk: Row, lag: int, pair: Row | None) -> str:
    told = (
        f"In chunks of {chunk.window.k2} steps {percent(chunk.reaching)} of the losses that could reach lag {lag} do: those in "
        f"the first {lag} steps of each chunk do not."
    )
    if pair is None:
        return told
    return f"{told} With K1 = {pair.window.k1}, K2 = {pair.window.k2} {percent(pair.reaching)} do ({loss_words(report, pair)})."


def _few(report: WindowReport) -> str:
    count = losses(report)
    where = "1 step" if count == 1 else f"{count} steps"
    return (
        f"The loss stands at {where} of {report.steps}: with chunks counted from the start, every chunk without a loss gets no "
        "gradient at all, and the last one holds only what is left of the sequence. Run up to the window without gradient "
        "instead, detach the state once, and go on to the loss."
    )


def _no_chunk(report: WindowReport, lag: int) -> str:
    held = [row for row in report.chunks if lag < row.window.k2 < report.steps]
    if not held:
        return "No shorter chunk that holds the lag was tried."
    best = min(held, key=lambda row: row.whole.bias if row.reaching > 0 else np.inf)
    if not best.reaching > 0:
        return f"In no chunk shorter than the sequence that was tried does any loss reach lag {lag}."
    return (
        f"No chunks shorter than the sequence let half of the losses reach lag {lag} with a bias of at most "
        f"{percent(report.level)}: the best tried, of {best.window.k2} steps, let {percent(best.reaching)} reach it, with "
        f"{loss_words(report, best)}."
    )


def _cost(report: WindowReport, cost: Cost) -> str:
    full = report.full
    assert full is not None
    return (
        f"Measured on the recurrent layers: autograd keeps {percent(cost.memory / full.memory)} of what full BPTT keeps "
        f"({size(cost.memory)} of {size(full.memory)}), in {time_words(cost)} of its time ({cost.rounds} rounds)."
    )


def size(count: int) -> str:
    """Bytes in words."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count} B"


def time_words(cost: Cost) -> str:
    """A ratio and its range."""
    return f"{cost.time:.2f} times ({cost.low:.2f}–{cost.high:.2f})"


def _arrives(report: WindowReport, lag: int) -> list[str]:
    """Where next to nothing of the gradient comes to the needed lag, a window alone is no cure."""
    for need in report.needed:
        layer = report.flow.layers[need.layer]
        if need.farthest != lag or layer.lag != "total" or layer.inner:
            continue
        there = arrival(layer, lag)
        if there is not None and there.fraction < ARRIVES:
            return [
                f"But {arriving(layer, lag)}: a window that holds a lag does not make the gradient reach it, and the bias is "
                "small for that reason only. Cure the reach first (throughtime diagnose), then measure the window again."
            ]
    return []


def _notes(report: WindowReport) -> list[str]:
    notes = _read(report)
    if not within(report):
        return notes
    lost = "what one loses on its way through another is not counted"
    if report.through:
        return [
            *notes,
            "Several recurrent modules: chunks are told through all of them, by the step itself run in chunks. Sliding windows "
            f"and pairs are within each module: {lost}.",
        ]
    return [*notes, f"Several recurrent modules: each one's lags are within it, and {lost}."]


def _read(report: WindowReport) -> list[str]:
    """How far a loader was read."""
    stream = report.flow.stream
    if stream is None:
        return []
    told = f"{stream.batches} batch{'es' * (stream.batches > 1)}: {stream.stopped}."
    if report.over == "batches":
        told += f" The windows were chosen on the first {HEAD}; what each loses is of them all."
    return [told]
