"""The first screen in words: needed, reached, finding, try, after."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from throughtime.report import notation

if TYPE_CHECKING:
    from throughtime.diagnosis.report import Needed, Report
    from throughtime.flow import LayerFlow
    from throughtime.verify import Verification


def headline(report: Report) -> list[tuple[str, str]]:
    """(label, sentence) in the order of the first screen; "partial" of an interrupted run, "after" where it was measured."""
    layers = report.flow.layers
    several = len(layers) > 1
    lines = []
    for need in report.needed:
        layer, where = layers[need.layer], f"{need.layer}: " if several else ""
        lines.append(("needed", where + needed_sentence(layer, need)))
        lines.append(("reached", where + reached_sentence(layer, need)))
    stable = [finding for finding in report.findings if not finding.preview]
    if stable:
        for finding in stable:
            where = f"{finding.layer}: " if several else ""
            lines.append(("finding", f"{where}{finding.code} {finding.name}: {finding.message}"))
        lines += [("try", remedy) for remedy in dict.fromkeys(finding.remedy for finding in stable if finding.remedy)]
    elif all(need.source == "unknown" for need in report.needed):
        lines.append(("finding", "Nothing to judge: how far back is far enough depends on the task."))
        lines.append(
            ("try", "Say how far back the loss has to see, needed_lag=… (--needed-lag), or give more sequences.")
        )
    else:
        lines.append(("finding", _nothing_found(report)))
    if report.flow.stream is not None and report.flow.stream.partial:
        lines.append(("partial", f"This is a part of the data: {report.flow.stream.stopped}."))
    if report.verification is not None:
        lines.append(("after", after_sentence(report.verification)))
    return lines


def _nothing_found(report: Report) -> str:
    """Why no stable rule fired although something is needed."""
    far = [(report.flow.layers[need.layer], need.farthest) for need in report.needed if need.farthest is not None]
    for layer, lag in far:
        if layer.tail is not None and layer.tail.tolerance is None and layer.tail.first_lag <= lag < layer.steps:
            told = layer.tail.first_lag - 1
            return f"Cannot judge: lags were told apart up to {told} only, and {lag} is needed. Raise max_lag."
    if any(lag < layer.steps and not layer.log10_arriving[lag] >= -3 for layer, lag in far):
        return (
            "No fault found: little arrives at the farthest needed lag, but every needed lag is within reach of the one "
            "before it, and such tasks were seen to be learned step by step (TT101)."
        )
    return "No fault found."


def needed_sentence(layer: LayerFlow, need: Needed) -> str:
    """Which lags the loss asks for, who says so, and what that cannot show."""
    demand = layer.demand
    read = "the input" if layer.lag == "total" else "this layer's input"
    told = None
    if demand is not None and not demand.missing:
        linear = demand.method == "covariance"
        blind = "it is first-order, blind to products" if linear else "it sees one input at a time, not products"
        if demand.lags:
            top = float(np.nanmax(demand.z))
            told = (
                f"The loss responds to {read} {_runs(demand.lags)} steps {_way(layer)} (B={demand.sequences}, "
                f"largest z {top:.1f} against {demand.threshold:.1f}). Other lags are not excluded by the test: "
                f"{blind} of inputs."
            )
        else:
            told = (
                f"No demand was detected (B={demand.sequences}, largest z {np.nanmax(demand.z):.1f} against "
                f"{demand.threshold:.1f}), which is not “not needed”: {blind} of inputs, its power grows "
                "with B, and a lag that the network has already learned no longer shows."
            )
    if need.said is not None:
        return f"{need.said} steps {_way(layer)}, as you said." + (f" {told}" if told else "")
    if told is None:
        reasons = [each.reason for each in layer.missing if each.field == "demand"]
        reason = demand.missing if demand is not None else next(iter(reasons), "not asked for")
        return f"Not measured: {reason}. Say needed_lag=… if you know how far back the task reaches."
    return told if need.lags else f"{told} Say needed_lag=… if you know how far back the task reaches."


def reached_sentence(layer: LayerFlow, need: Needed) -> str:
    """How far back the gradient reaches, and what fraction arrives at the needed lag."""
    horizon = layer.horizon.get(0.01)
    within = "" if layer.lag == "total" else " within this layer"
    if layer.horizon_told and (np.isnan(layer.cancellation) or layer.cancellation == 0):
        text = "The gradient of this layer's weights is zero"
    elif not layer.horizon_told:
        where = "steps ahead" if layer.reverse else "the same step and steps back"
        text = f"{notation.number(100 * float(layer.share.sum()), 2)} % of the gradient comes from {where}"
    elif horizon is None:
        last = layer.steps - 1 if layer.tail is None else layer.tail.first_lag - 1
        text = f"More than 1 % of the gradient comes from beyond {last} steps{within}"
    else:
        count = "1 step" if horizon == 1 else f"{horizon} steps"
        count += " to both sides" if layer.opposite else ""
        text = f"The gradient horizon is {count}{within}{interval(layer)}"
        text += " (what lies beyond changes the gradient by at most 1 %)"
    if need.farthest is None:
        return text + ". Enough or not depends on the task."
    return f"{text}; {arriving(layer, need.farthest)}."


def interval(layer: LayerFlow, level: float = 0.01) -> str:
    """The interval of the horizon in brackets, with the batches behind it; "" of a single batch."""
    if layer.batches < 2:
        return ""
    told = layer.intervals
    if told is None:
        return f" ({layer.batches} batches)"
    low, high = told.horizon[level]
    if low is None:
        ends = "beyond the lags told apart"
    elif high is None:
        ends = f"{low} or more"
    else:
        ends = f"{low}" if low == high else f"{low}–{high}"
    return f" ({told.level:.0%} {ends}, {layer.batches} batches)".replace("%", " %", 1)


def _way(layer: LayerFlow) -> str:
    """Where a lag counts to."""
    return "ahead" if layer.reverse else "back"


def arriving(layer: LayerFlow, lag: int) -> str:
    """What arrives at a lag of the gradient that entered, in words."""
    if lag >= layer.steps:
        return f"no gradient goes to lag {lag}: the sequence is shorter and holds lags up to {layer.steps - 1}"
    log10 = float(layer.log10_arriving[lag])
    if not np.isnan(log10):
        return f"{notation.arriving(log10)} at lag {lag}"
    tail = layer.tail
    if tail is not None and lag >= tail.first_lag and tail.tolerance is not None:
        return f"less than {notation.number(tail.tolerance)} arrives at lag {lag}"
    return f"what arrives at lag {lag} was not told apart"


def after_sentence(done: Verification) -> str:
    """What the remedy changed, with its interval."""
    verdict = {"helps": "it helps", "no help": "no help was seen", "harms": "it harms"}[done.verdict]
    return (
        f"{done.remedy}: {done.metric} {np.nanmean(done.before):.3g} → {np.nanmean(done.after):.3g} over {len(done.seeds)} "
        f"paired trainings of {done.steps} steps; difference {done.difference:+.3g}, 95 % interval {done.low:+.3g} to "
        f"{done.high:+.3g}: {verdict}."
    )


def _runs(lags: tuple[int, ...]) -> str:
    """(1, 2, 3, 7) as "1–3, 7"; beyond six runs the first three and the last two."""
    told = [f"{first}" if first == last else f"{first}–{last}" for first, last in notation.runs(lags)]
    return ", ".join([*told[:3], "…", *told[-2:]] if len(told) > 6 else told)
