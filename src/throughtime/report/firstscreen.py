"""The first screen: what is needed, what is reached, the finding, what to try, what it changed, and the picture."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from throughtime.diagnosis.finding import SEVERITIES, Finding
from throughtime.diagnosis.report import Needed, Report
from throughtime.flow import Flow, LayerFlow
from throughtime.report.dots import before_and_after
from throughtime.report.headline import interval
from throughtime.report.notation import arriving, lag_words, number
from throughtime.report.picture import Curve, curve_of, supply_and_demand
from throughtime.report.sentences import lines_to_paste, marked, spoken
from throughtime.verify import Verification

WINDOW = 0.01
"""The gradient horizon that is named on the first screen: 99 % of the gradient lies within it."""
MOST_CURVES = 4
WIDTHS = {"wide": 720, "narrow": 360}


@dataclass(frozen=True)
class Row:
    """One line of the story: its label, the number or name to remember, the sentence, and lines to paste."""

    label: str
    figure: str
    sentence: Markup
    tone: str = ""
    code: str = ""


def needed_of(report: Report, layer: str) -> Needed:
    """What is needed in a layer; unknown where the report says nothing."""
    return next((needed for needed in report.needed if needed.layer == layer), Needed(layer, (), "unknown"))


def judged(report: Report) -> bool:
    """Whether something is known to be needed, so that colours may judge."""
    return any(needed.lags for needed in report.needed)


def stable(report: Report) -> list[Finding]:
    """The findings that count, gravest first."""
    found = [finding for finding in report.findings if not finding.preview]
    return sorted(found, key=lambda finding: -SEVERITIES.index(finding.severity))


def main_layer(report: Report) -> LayerFlow:
    """The layer that the first screen is about: of the gravest finding, else with the farthest need, else the first."""
    for finding in stable(report):
        if finding.layer in report.flow.layers:
            return report.flow.layers[finding.layer]
    needs = [needed for needed in report.needed if needed.lags and needed.layer in report.flow.layers]
    if needs:
        return report.flow.layers[max(needs, key=lambda needed: needed.farthest or 0).layer]
    layers = list(report.flow.layers.values())
    return next((layer for layer in layers if not layer.inner), layers[0])


def story(report: Report) -> list[Row]:
    """The headline's sentences, each with the figure to remember; of the main layer, where there are several."""
    main = main_layer(report).name
    layers = iter([needed.layer for needed in report.needed])
    findings = iter([finding for finding in report.findings if not finding.preview])
    layer, rows = main, []
    for label, sentence in report.headline():
        if label == "needed":
            layer = next(layers, main)
        if label in ("needed", "reached") and layer != main:
            continue
        rows.append(_row(report, label, sentence, next(findings, None) if label == "finding" else None))
    return rows


def told_of(report: Report, layer: str) -> list[Markup]:
    """The headline's sentences on what one layer needs and reaches."""
    layers = iter([needed.layer for needed in report.needed])
    current, told = "", []
    for label, sentence in report.headline():
        if label == "needed":
            current = next(layers, "")
        if label in ("needed", "reached") and current == layer:
            told.append(marked(sentence.removeprefix(f"{layer}: ")))
    return told


def others(report: Report) -> list[tuple[str, str, str]]:
    """(layer, needed, reached) of every layer but the main one."""
    main = main_layer(report)
    layers = [layer for layer in report.flow.layers.values() if layer is not main]
    return [(layer.name, _needed(report, layer), _reached(report, layer)) for layer in layers]


def _row(report: Report, label: str, sentence: str, finding: Finding | None) -> Row:
    layer, may_judge = main_layer(report), judged(report)
    tone = {"needed": "demand", "reached": "supply"}.get(label, "") if needed_of(report, layer.name).lags else ""
    if label == "needed":
        return Row(label, _needed(report, layer), _of_one(report, layer, sentence), tone)
    if label == "reached":
        return Row(label, _reached(report, layer), _of_one(report, layer, sentence), tone)
    if finding is not None:
        where = f"{finding.layer}: " if len(report.flow.layers) > 1 else ""
        words = where + sentence.removeprefix(where).removeprefix(f"{finding.code} {finding.name}: ")
        tone = "bad" if may_judge and finding.severity != "info" else ""
        return Row(label, f"{finding.code} {spoken(finding.name)}", marked(words), tone)
    if label == "after" and report.verification is not None:
        tone = {"helps": "good", "harms": "bad"}.get(report.verification.verdict, "") if may_judge else ""
        return Row(label, _after(report.verification), marked(sentence), tone)
    return Row(label, "", marked(sentence), code=lines_to_paste([sentence]) if label == "try" else "")


def _of_one(report: Report, layer: LayerFlow, sentence: str) -> Markup:
    """The sentence without the layer's name in front, which the page says elsewhere."""
    return marked(sentence.removeprefix(f"{layer.name}: ") if len(report.flow.layers) > 1 else sentence)


def picture(report: Report, layer: LayerFlow, width: int, alone: bool = False, standalone: bool = False) -> Markup:
    """Supply and demand of a layer; unless `alone`, with its treated twin or its sister layers. standalone: as a file."""
    curves = [curve_of(layer)] if alone else _curves(report, layer)
    svg = supply_and_demand(
        curves,
        needed_of(report, layer.name),
        layer.demand,
        width=width,
        horizons=_horizons(report, layer),
        standalone=standalone,
        way=_way(layer, curves),
    )
    return Markup(svg)


def both_widths(draw: dict[str, Markup]) -> Markup:
    """A wide and a narrow drawing of the same, of which the page shows the one that fits."""
    return Markup("").join(Markup('<div class="only-{}">{}</div>').format(name, svg) for name, svg in draw.items())


def dots(report: Report) -> Markup:
    """Before and after for every seed, where a remedy was measured."""
    if report.verification is None:
        return Markup("")
    verification, may_judge = report.verification, judged(report)
    return both_widths(
        {name: Markup(before_and_after(verification, width=width, judged=may_judge)) for name, width in WIDTHS.items()}
    )


def _way(layer: LayerFlow, curves: list[Curve]) -> str:
    """Where a lag counts to, as the axis says it."""
    if layer.opposite and len(curves) > 1:
        return "back in time, or ahead,"
    return "ahead in time" if layer.reverse else "back in time"


def _curves(report: Report, layer: LayerFlow) -> list[Curve]:
    treated = _twin(report.after, layer)
    if treated is not None:
        remedy = report.verification.remedy if report.verification else "treated"
        return [curve_of(_twin(report.before, layer) or layer, "untreated", quiet=True), curve_of(treated, remedy)]
    other = report.flow.layers.get(layer.opposite or "")
    if other is not None:
        names = {True: "ahead", False: "from the past"}
        return [curve_of(other, names[other.reverse], quiet=True, asked=False), curve_of(layer, names[layer.reverse])]
    layers = list(report.flow.layers.values())
    if not 1 < len(layers) <= MOST_CURVES:
        return [curve_of(layer)]
    others = [curve_of(other, _short(other.name), quiet=True, asked=False) for other in layers if other is not layer]
    return [*others, curve_of(layer, _short(layer.name))]


def _twin(flow: Flow | None, layer: LayerFlow) -> LayerFlow | None:
    return flow.layers.get(layer.name) if flow is not None else None


def _horizons(report: Report, layer: LayerFlow) -> list[tuple[str, int]]:
    window = layer.horizon.get(WINDOW)
    if window is None:
        return []
    whose = " untreated" if _twin(report.after, layer) is not None else ""
    return [(f"gradient horizon{whose}: {window}", window)]


def _short(name: str, most: int = 24) -> str:
    return name if len(name) <= most else f"{name[:10]}…{name[-12:]}"


def _needed(report: Report, layer: LayerFlow) -> str:
    needed = needed_of(report, layer.name)
    if needed.lags:
        return lag_words(needed.lags) + (" ahead" if layer.reverse and layer.opposite else "")
    measured = layer.demand is not None and layer.demand.missing is None
    return "not detected" if measured else "not measured"


def _reached(report: Report, layer: LayerFlow) -> str:
    farthest = needed_of(report, layer.name).farthest
    if farthest is None:
        window = layer.horizon.get(WINDOW)
        return f"gradient horizon {window}{interval(layer)}" if window is not None else ""
    if farthest >= layer.steps:
        return f"at most {layer.steps - 1} steps"
    log10 = float(layer.log10_arriving[farthest])
    return "" if math.isnan(log10) else f"{arriving(log10)} at lag {farthest}"


def _after(verification: Verification) -> str:
    before, after = (number(float(np.mean(values)), 2) for values in (verification.before, verification.after))
    return f"{before} → {after} {verification.metric}"
