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
from throughtime.report.notation import from_log10, lag_words, number
from throughtime.report.picture import Curve, curve_of, supply_and_demand
from throughtime.report.sentences import lines_to_paste, marked, spoken

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
    return next(iter(report.flow.layers.values()))


def story(report: Report) -> list[Row]:
    """The headline's sentences, each with the figure to remember."""
    figures = {"needed": _needed, "reached": _reached, "finding": _finding, "after": _after}
    rows: list[Row] = []
    for label, sentence in report.headline():
        figure, tone = figures[label](report) if label in figures else ("", "")
        code = _code(report, sentence) if label == "try" else ""
        rows.append(Row(label, figure, marked(sentence), tone, code))
    return rows


def picture(report: Report, layer: LayerFlow, width: int, alone: bool = False) -> Markup:
    """Supply and demand of a layer; on the first screen with its treated twin or its sister layers."""
    curves = [curve_of(layer)] if alone else _curves(report, layer)
    svg = supply_and_demand(
        curves,
        needed_of(report, layer.name),
        layer.demand,
        width=width,
        horizons=_horizons(report, layer),
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


def _curves(report: Report, layer: LayerFlow) -> list[Curve]:
    treated = _twin(report.after, layer)
    if treated is not None:
        remedy = report.verification.remedy if report.verification else "treated"
        return [curve_of(_twin(report.before, layer) or layer, "untreated", quiet=True), curve_of(treated, remedy)]
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


def _needed(report: Report) -> tuple[str, str]:
    layer = main_layer(report)
    needed = needed_of(report, layer.name)
    if needed.lags:
        return lag_words(needed.lags), "demand"
    measured = layer.demand is not None and layer.demand.missing is None
    return "not detected" if measured else "not measured", ""


def _reached(report: Report) -> tuple[str, str]:
    layer = main_layer(report)
    farthest = needed_of(report, layer.name).farthest
    if farthest is None:
        window = layer.horizon.get(WINDOW)
        return (f"gradient horizon {window}" if window is not None else ""), ""
    norm = np.asarray(layer.adjoint.log10_norm, dtype=float)
    if farthest >= len(norm):
        return f"at most {len(norm) - 1} steps", "supply"
    with np.errstate(invalid="ignore"):
        arriving = float(norm[farthest] - norm[0])
    return (f"{from_log10(arriving)} at lag {farthest}" if not math.isnan(arriving) else ""), "supply"


def _finding(report: Report) -> tuple[str, str]:
    found = stable(report)
    if not found:
        return "", ""
    bad = judged(report) and found[0].severity != "info"
    return f"{found[0].code} {spoken(found[0].name)}", "bad" if bad else ""


def _after(report: Report) -> tuple[str, str]:
    verification = report.verification
    if verification is None:
        return "", ""
    before, after = (number(float(np.mean(values)), 2) for values in (verification.before, verification.after))
    tone = {"helps": "good", "harms": "bad"}.get(verification.verdict, "") if judged(report) else ""
    return f"{before} → {after} {verification.metric}", tone


def _code(report: Report, sentence: str) -> str:
    return lines_to_paste([sentence]) or lines_to_paste(finding.remedy for finding in stable(report))
