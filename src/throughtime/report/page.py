"""What stands below the first screen: for each layer its charts, units, ledger, and how it was measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from throughtime.diagnosis.report import Report
from throughtime.flow import LayerFlow, Missing, Terms, Unit
from throughtime.report.charts import Chart, layer_charts
from throughtime.report.firstscreen import WIDTHS, both_widths, needed_of, picture, told_of
from throughtime.report.notation import ABSENT, lag_words, number
from throughtime.report.outside import outside

MAP_SIDE = 512


@dataclass(frozen=True)
class Cell:
    """A table cell: what is read, and what is sorted by."""

    shown: str
    value: str
    numeric: bool = True


@dataclass(frozen=True)
class Section:
    """Everything about one layer."""

    anchor: str
    layer: LayerFlow
    facts: str
    picture: Markup
    told: list[Markup]
    charts: list[Chart]
    kinds: str
    units: list[list[Cell]]
    ledger: list[list[Cell]]
    measured: list[tuple[str, str]]
    missing: tuple[Missing, ...]


def sections(report: Report) -> list[Section]:
    """One section a layer, in the flow's order; maps get coarser where many layers share the file."""
    layers = list(report.flow.layers.values())
    side = math.ceil(MAP_SIDE / math.sqrt(len(layers)))
    return [_section(report, layer, index, side, len(layers) > 1) for index, layer in enumerate(layers)]


def _section(report: Report, layer: LayerFlow, index: int, side: int, several: bool) -> Section:
    drawings = {name: picture(report, layer, width, alone=True) for name, width in WIDTHS.items()} if several else {}
    return Section(
        anchor=f"layer-{index}",
        layer=layer,
        facts=facts(layer),
        picture=both_widths(drawings),
        told=told_of(report, layer.name) if several else [],
        charts=layer_charts(layer, needed_of(report, layer.name).lags, side),
        kinds=_kinds(layer.units),
        units=[_unit(unit) for unit in layer.units],
        ledger=_ledger(layer),
        measured=_measured(report, layer),
        missing=layer.missing,
    )


def facts(layer: LayerFlow) -> str:
    """The layer in one line."""
    size = f"{layer.input_size} → {layer.hidden_size} units"
    told = f"{layer.cell.upper()}, {size}, {layer.steps} steps, batch of {layer.batch}, {layer.dtype}"
    if layer.opposite:
        which = "ahead: a lag counts steps ahead" if layer.reverse else "the past"
        told += f"; what comes from {which} (the other way: {layer.opposite})"
    elif layer.reverse:
        told += "; runs back in time, so that a lag counts steps ahead"
    if layer.external is not None:
        told += f"; {outside(layer)}"
    return told


def _kinds(units: tuple[Unit, ...]) -> str:
    counts: dict[str, int] = {}
    for unit in units:
        counts[unit.kind] = counts.get(unit.kind, 0) + 1
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items(), key=lambda item: -item[1]))


def _unit(unit: Unit) -> list[Cell]:
    timescale = _number(unit.timescale)
    life = unit.half_life  # a lag, so a whole number
    half_life = Cell(f"{life:.3g}", repr(life)) if math.isfinite(life) else Cell("never", "")
    expected = _number(math.log(2) * unit.timescale)
    return [Cell(str(unit.unit), str(unit.unit)), _word(unit.kind), timescale, expected, half_life, _word(unit.rule)]


def _ledger(layer: LayerFlow) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    tail = layer.tail.first_lag if layer.tail is not None else None
    for terms in (*layer.parameters.values(), *layer.initial_state.values()):
        rows.append(_terms(terms, tail))
        rows.extend(_terms(block, tail) for block in terms.gates.values())
    return rows


def _terms(terms: Terms, tail: int | None) -> list[Cell]:
    """A row: the residual, what the shares add up to, the norm of lag 0 and the lag of the largest norm."""
    share = np.asarray(terms.share, dtype=float)
    total = float(np.nansum(share)) if np.isfinite(share).any() else math.nan
    norm = np.where(np.isnan(terms.log10_norm), -np.inf, terms.log10_norm)
    peak = int(np.argmax(norm)) if len(norm) and np.isfinite(norm).any() else None
    sums = Cell(
        (ABSENT if math.isnan(total) else f"{total:.4f}") + (f" up to lag {tail - 1}" if tail is not None else ""),
        _sortable(total),
    )
    where = Cell(str(peak) if peak is not None else ABSENT, str(peak) if peak is not None else "")
    return [_word(terms.name), _word(terms.gate or "whole"), _number(terms.residual), sums, where]


def _number(value: float | None) -> Cell:
    return Cell(number(value, fixed=True), _sortable(value))


def _sortable(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else repr(float(value))


def _word(word: str) -> Cell:
    return Cell(word, word, numeric=False)


def _measured(report: Report, layer: LayerFlow) -> list[tuple[str, str]]:
    """How the numbers came about, as (what, how)."""
    rows = [
        ("Cell", ", ".join([layer.cell.upper(), *(f"{key} {value}" for key, value in layer.convention.items())])),
        ("Loss read at", _steps_in_words(layer.loss_steps, layer.steps)),
        ("Lag", _lag_in_words(layer.lag)),
        ("Residual", f"{number(layer.residual)} (terms against autograd's gradient, the largest of all blocks)"),
        ("Error", f"{number(layer.error)} (the same against the sum of the norms of the terms)"),
        ("Cancellation", f"{number(layer.cancellation)} (1: all lags pull one way; near 0: they cancel)"),
    ]
    if layer.tail is not None:
        tail = layer.tail
        told = f"lags from {tail.first_lag} on were added up, not told apart: share {number(tail.share)}"
        told += f", at most {number(tail.bound)}"
        rows.append(("Beyond the sweep", told))
    rows.append(("Demand", _demand_in_words(report, layer)))
    return rows


def _steps_in_words(steps: tuple[int, ...], length: int) -> str:
    if len(steps) == length:
        return "every step"
    if len(steps) == 1:
        return f"step {steps[0]} of 0…{length - 1}" + (", the last" if steps[0] == length - 1 else "")
    return f"{len(steps)} of {length} steps"


def _lag_in_words(lag: str) -> str:
    if lag == "total":
        return "total: every step of the way lies in this layer"
    return f"{lag}: counted inside this layer; steps taken in other layers are not in it"


def _demand_in_words(report: Report, layer: LayerFlow) -> str:
    needed, demand = needed_of(report, layer.name), layer.demand
    said = f"said to be needed: {lag_words(needed.lags)}; " if needed.source == "user" else ""
    if demand is None:
        return said + "not measured"
    if demand.missing is not None:
        return said + f"not measured: {demand.missing}"
    found = lag_words(demand.lags) if demand.lags else "no lag, which does not mean that none is needed"
    basis = f"B = {demand.sequences}, {demand.permutations} permutations, {number(100 * demand.level)} % level"
    note = f"; {demand.note}" if demand.note else ""
    return f"{said}detected: {found} ({demand.method} test, {basis}, threshold z = {number(demand.threshold)}){note}"
