"""Why a number in the JSON document is null: one row a field and reason.

A field is the keys on the way joined by dots, indices left out; a row of "parameters" or "initial_state" goes by its name,
and by its gate where it has one. A field stands for all that lies below it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from throughtime.flow import LayerFlow, Terms

ZERO = "exactly zero, which has no logarithm"
UNDEFINED = {
    "residual": "autograd gave no gradient to compare with, or one so small that it is rounded coarsely",
    "error": "autograd gave no gradient to compare with, or one so small that it is rounded coarsely",
    "cancellation": "every term is exactly zero",
    "adjoint": "no step with a loss has so many steps before it",
    "initial_state": "no step with a loss stands so many steps after the initial state",
    "share": "the gradient is exactly zero: it has no shares",
    "external": "the gradient is exactly zero: it has no shares",
    "demand": "no test there: no loss has an input so far back, or the input does not vary between sequences",
    "paths": "a path share has no lag 0, and none where no gradient is",
    "hops": "no gradient at that lag",
    "signal_to_noise": "no gradient at that lag",
    "units.timescale": "the gate has no finite timescale",
    "units.half_life": "never fell to half its peak within the lags told apart",
}
"""By the end or the beginning of a field; the first that fits."""


def missing(layer: LayerFlow) -> list[dict[str, str]]:
    """The rows of a layer."""
    rows = {
        (each.field, each.reason): None for each in layer.missing if each.field != "lists"
    }  # which is told below, for the lists that have it
    told = {field for field, _ in rows}
    found: dict[tuple[str, str], list[str]] = {}
    for field, values, offset in _numbers(layer):
        for reason in _reasons(field, values, offset, layer):
            if reason in (ZERO, _beyond(layer)) or not any(_covers(each, field) for each in told):
                found.setdefault((field.partition(".")[0], reason), []).append(field)
    for (top, reason), fields in found.items():
        rows[fields[0] if len(fields) == 1 else top, reason] = None
    if layer.tail is None:
        rows["tail", "there is none: every lag is told apart"] = None
    return [{"field": field, "reason": reason} for field, reason in rows]


def _numbers(layer: LayerFlow) -> Iterator[tuple[str, Any, int]]:
    """Field, number or list of numbers, and the lag of index 0, of everything that may be null."""
    yield from ((name, getattr(layer, name), 0) for name in ("residual", "error", "cancellation", "share"))
    if layer.external is not None:
        yield "external", layer.external, 0
    yield "adjoint.log10_norm", layer.adjoint.log10_norm, 0
    yield from ((f"adjoint.by_state.{name}", values, 0) for name, values in layer.adjoint.by_state.items())
    if layer.adjoint.log10_arriving_total.size:
        yield "adjoint.log10_arriving_total", layer.adjoint.log10_arriving_total, 0
    for top, terms, offset in (("parameters", layer.parameters, 0), ("initial_state", layer.initial_state, 1)):
        for each in terms.values():
            for row in (each, *each.gates.values()):
                name = f"{top}.{row_name(row)}"
                yield from ((f"{name}.{key}", getattr(row, key), offset) for key in ("share", "log10_norm", "residual"))
    if layer.demand is not None and not layer.demand.missing:
        yield "demand.z", layer.demand.z, 0
        yield "demand.threshold", layer.demand.threshold, 0
    yield from ((f"paths.{name}", values, 0) for name, values in layer.paths.items())
    yield from ((f"hops.{name}", values, 0) for name, values in (layer.hops or {}).items())
    yield from ((name, getattr(layer, name), 0) for name in ("signal_to_noise", "bias", "cosine"))
    yield from ((f"units.{key}", [getattr(unit, key) for unit in layer.units], 0) for key in ("timescale", "half_life"))
    for name, gate in layer.gates.items():
        yield f"gates.{name}", [gate.mean, gate.below, gate.above, gate.saturated, *gate.logit_quantiles], 0
    if layer.tail is not None:
        yield "tail.share", layer.tail.share, 0
        yield "tail.log10_norm", layer.tail.log10_norm, 0
        yield "tail.bound", layer.tail.bound, 0


def row_name(row: Terms) -> str:
    """A row of the ledger as `field` names it."""
    return row.name if row.gate is None else f"{row.name}.{row.gate}"


def _reasons(field: str, values: Any, offset: int, layer: LayerFlow) -> Iterator[str]:
    values = np.atleast_1d(np.asarray(values, dtype=np.float64))
    by_lag = len(values) == layer.steps and not field.startswith(("units", "gates"))
    nan, log = np.isnan(values), field.endswith("log10_norm") or field.startswith("adjoint")
    if layer.tail is not None and by_lag:
        beyond = nan & (np.arange(len(values)) + offset >= layer.tail.first_lag)
        if beyond.any():
            yield _beyond(layer)
        nan &= ~beyond
    if np.isneginf(values).any():
        yield ZERO if log else "infinite"
    if np.isposinf(values).any():
        yield "infinite: autograd gave exactly 0 where the terms are tiny" if "residual" in field else "infinite"
    if nan.any():
        fitting = (reason for key, reason in UNDEFINED.items() if field.startswith(key) or field.endswith(f".{key}"))
        yield next(fitting, "not a number")


def _beyond(layer: LayerFlow) -> str:
    first = None if layer.tail is None else layer.tail.first_lag
    return f"lags from {first} on are not told apart: they were swept as one stream, exact in sum (tail)"


def _covers(field: str, other: str) -> bool:
    return other == field or other.startswith(f"{field}.")
