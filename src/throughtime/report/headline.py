"""The first screen in words: needed, reached, finding, try, after."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from throughtime.diagnosis.report import Needed, Report
    from throughtime.flow import LayerFlow
    from throughtime.verify import Verification


def headline(report: Report) -> list[tuple[str, str]]:
    """(label, sentence) in the order of the first screen; "after" only where it was measured."""
    layers = report.flow.layers
    lines = []
    for need in report.needed:
        layer, where = layers[need.layer], f"{need.layer}: " if len(layers) > 1 else ""
        lines.append(("needed", where + needed_sentence(layer, need)))
        lines.append(("reached", where + reached_sentence(layer, need)))
    stable = [finding for finding in report.findings if not finding.preview]
    if stable:
        lines += [("finding", f"{finding.code} {finding.name}: {finding.message}") for finding in stable]
        lines += [("try", remedy) for remedy in dict.fromkeys(finding.remedy for finding in stable if finding.remedy)]
    elif all(need.source == "unknown" for need in report.needed):
        lines.append(("finding", "Nothing to judge: how far back is far enough depends on the task."))
        lines.append(
            ("try", "Say how far back the loss has to see, needed_lag=… (--needed-lag), or give more sequences.")
        )
    else:
        lines.append(("finding", "No fault found."))
    if report.verification is not None:
        lines.append(("after", after_sentence(report.verification)))
    return lines


def needed_sentence(layer: LayerFlow, need: Needed) -> str:
    """Which lags the loss asks for, who says so, and what that cannot show."""
    demand = layer.demand
    if need.source == "user":
        return f"{ranges(need.lags)} steps back, as you said."
    if demand is None or demand.missing:
        told = [each.reason for each in layer.missing if each.field == "demand"]
        reason = demand.missing if demand else next(iter(told), "not asked for")
        return f"Not measured: {reason}. Say needed_lag=… if you know how far back the task reaches."
    basis = f"B={demand.sequences}"
    if need.source == "demand":
        top = float(np.nanmax(demand.z))
        return (
            f"The loss responds to the input {ranges(need.lags)} steps back ({basis}, largest z {top:.1f} against "
            f"{demand.threshold:.1f}). Products of inputs are not excluded elsewhere: the test is first-order."
        )
    return (
        f"No demand was detected ({basis}), which is not “not needed”: the test is first-order, blind to products of "
        "inputs, and its power grows with B. Say needed_lag=… if you know how far back the task reaches."
    )


def reached_sentence(layer: LayerFlow, need: Needed) -> str:
    """How far back the gradient reaches, and what fraction arrives at the needed lag."""
    horizon = layer.horizon.get(0.01)
    if horizon is None:
        last = layer.steps - 1 if layer.tail is None else layer.tail.first_lag - 1
        text = f"1 % of the gradient or more comes from beyond {last} steps"
    else:
        count = "1 step" if horizon == 1 else f"{horizon} steps"
        text = f"The gradient horizon is {count} (what lies beyond changes the gradient by 1 %)"
    if need.farthest is None:
        return text + ". Enough or not depends on the task."
    return f"{text}; {arriving(layer, need.farthest)} of the gradient arrives at lag {need.farthest}."


def arriving(layer: LayerFlow, lag: int) -> str:
    """The fraction of lag 0's adjoint that arrives at a lag, in words."""
    if lag >= layer.steps:
        return "nothing (the sequence is shorter)"
    log10 = float(layer.adjoint.log10_norm[lag] - layer.adjoint.log10_norm[0])
    if np.isnan(log10):
        return "less than 1e-12" if layer.tail is not None and lag >= layer.tail.first_lag else "an unknown fraction"
    if np.isneginf(log10):
        return "exactly nothing"
    exponent = int(np.floor(log10))
    if -3 <= log10 < 3:
        return f"{100 * 10**log10:.2g} %" if log10 < 0 else f"{10**log10:.3g} times"
    mantissa = 10 ** (log10 - exponent)
    return f"{mantissa:.1f}e{exponent:+03d}"


def after_sentence(done: Verification) -> str:
    """What the remedy changed, with its interval."""
    verdict = {"helps": "it helps", "no help": "no help was seen", "harms": "it harms"}[done.verdict]
    return (
        f"{done.remedy}: {done.metric} {np.nanmean(done.before):.3g} → {np.nanmean(done.after):.3g} over {len(done.seeds)} "
        f"paired trainings of {done.steps} steps; difference {done.difference:+.3g}, 95 % interval {done.low:+.3g} to "
        f"{done.high:+.3g}: {verdict}."
    )


def ranges(lags: tuple[int, ...]) -> str:
    """(1, 2, 3, 7) as "1–3, 7"; at most six pieces."""
    pieces: list[list[int]] = []
    for lag in sorted(lags):
        if pieces and lag == pieces[-1][1] + 1:
            pieces[-1][1] = lag
        else:
            pieces.append([lag, lag])
    told = [f"{first}" if first == last else f"{first}–{last}" for first, last in pieces]
    return ", ".join([*told[:3], "…", *told[-2:]] if len(told) > 6 else told)
