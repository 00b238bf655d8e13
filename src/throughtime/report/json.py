"""The JSON document, schema throughtime/1 (report/schema.json): what outside checks read.

A list's index is the lag (of an initial state: lag − 1). Whatever is not finite or was not asked for is null, with the
reason under "missing" of the layer or, for what stands outside of layers, of the document. A null that is no number says
itself what it means: "gate" of a whole tensor, "note" where there is no caution.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

from throughtime.flow import QUANTILES, Flow, Intervals, LayerFlow, Terms
from throughtime.report.missing import missing

if TYPE_CHECKING:
    from throughtime.diagnosis.report import Needed, Report
    from throughtime.verify import Verification

SCHEMA = "throughtime/1"
WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def schema() -> dict[str, Any]:
    """The published JSON Schema of the document."""
    return json.loads(files("throughtime.report").joinpath("schema.json").read_text(encoding="utf-8"))


def dumps(document: dict[str, Any], indent: int | None = None) -> str:
    """The document as text; a NaN that slipped through would be an error, not a bare NaN."""
    return json.dumps(document, allow_nan=False, ensure_ascii=False, indent=indent)


def _intervals(told: Intervals) -> dict[str, Any]:
    """Lower and upper bounds; null where there is none."""
    return {
        "level": told.level,
        "blocks": told.blocks,
        "batches": told.batches,
        "horizon": {f"{level:g}": list(ends) for level, ends in told.horizon.items()},
        "bias": [_list(bounds) for bounds in told.bias],
        "share": [_list(bounds) for bounds in told.share],
        "log10_arriving": [_list(bounds) for bounds in told.log10_arriving],
    }


def flow_to_dict(flow: Flow, network: bool = False) -> dict[str, Any]:
    """A flow without findings. network: with weights and one recorded sequence of each layer that holds torch's arrays."""
    stream = flow.stream
    of_many = (
        {}
        if stream is None
        else {"stream": {"batches": stream.batches, "stopped": stream.stopped, "partial": stream.partial}}
    )
    return of_many | {
        "schema": SCHEMA,
        "throughtime": flow.throughtime,
        "torch": flow.torch,
        "steps": flow.steps,
        "batch": flow.batch,
        "dtype": flow.dtype,
        "residual": _number(flow.residual),
        "layers": [_layer(layer, network) for layer in flow.layers.values()],
        "findings": [],
        "missing": [{"field": each.field, "reason": each.reason} for each in flow.missing]
        + _null(math.isnan(flow.residual), "residual", "no layer has one")
        + _null(math.isinf(flow.residual), "residual", "infinite in a layer"),
    }


def report_to_dict(report: Report, network: bool = False) -> dict[str, Any]:
    """A flow with what is needed, the findings, and the verification where there is one."""
    document = flow_to_dict(report.flow, network)
    document["title"] = report.title
    document["needed"] = [_needed(each) for each in report.needed]
    document["findings"] = [
        {
            "code": finding.code,
            "name": finding.name,
            "severity": finding.severity,
            "preview": finding.preview,
            "layer": finding.layer,
            "value": _number(finding.value),
            "threshold": _number(finding.threshold),
            "message": finding.message,
            "remedy": finding.remedy,
            "references": list(finding.references),
        }
        for finding in report.findings
    ]
    document["verification"] = None if report.verification is None else _verification(report.verification)
    document["missing"] += _null(report.verification is None, "verification", "no remedy was tried out")
    return document


def _layer(layer: LayerFlow, network: bool) -> dict[str, Any]:
    demand = layer.demand
    tail = layer.tail
    stacked = _stacked(layer)
    whole = len(stacked) == len(layer.weights) and "weight_hh" in stacked
    told = network and layer.sequence is not None and whole
    kept: dict[str, Any] = {"network": _network(layer)} if told else {}
    if layer.external is not None:
        kept["external"] = _number(layer.external)
    if layer.opposite is not None:
        kept["opposite"] = layer.opposite
    if layer.external_by_lag is not None:
        kept["external_by_lag"] = _list(layer.external_by_lag)
    if layer.batches > 1:
        kept["batches"] = layer.batches
    if layer.intervals is not None:
        kept["intervals"] = _intervals(layer.intervals)
    return kept | {
        "name": layer.name,
        "cell": layer.cell,
        "convention": dict(layer.convention),
        "steps": layer.steps,
        "batch": layer.batch,
        "hidden_size": layer.hidden_size,
        "input_size": layer.input_size,
        "dtype": layer.dtype,
        "lag": layer.lag,
        "reverse": layer.reverse,
        "loss_steps": list(layer.loss_steps),
        "residual": _number(layer.residual),
        "error": _number(layer.error),
        "cancellation": _number(layer.cancellation),
        "share": _list(layer.share),
        "adjoint": {
            "log10_norm": _list(layer.adjoint.log10_norm),
            "by_state": {name: _list(values) for name, values in layer.adjoint.by_state.items()},
        }
        | _arriving(layer.adjoint.log10_arriving_total),
        "parameters": [
            row for terms in layer.parameters.values() for row in (_terms(terms), *map(_terms, terms.gates.values()))
        ],
        "initial_state": [_terms(terms) for terms in layer.initial_state.values()],
        "demand": None
        if demand is None or demand.missing
        else {
            "z": _list(demand.z),
            "threshold": _number(demand.threshold),
            "lags": list(demand.lags),
            "sequences": demand.sequences,
            "level": demand.level,
            "permutations": demand.permutations,
            "method": demand.method,
            "note": demand.note,
        },
        "paths": {name: _list(values) for name, values in layer.paths.items()},
        "hops": None if layer.hops is None else {name: _list(values) for name, values in layer.hops.items()},
        "signal_to_noise": _list(layer.signal_to_noise),
        "bias": _list(layer.bias),
        "cosine": _list(layer.cosine),
        "horizon": {f"{level:g}": value for level, value in layer.horizon.items()},
        "units": [
            {
                "unit": unit.unit,
                "timescale": _number(unit.timescale),
                "half_life": _number(unit.half_life),
                "kind": unit.kind,
                "rule": unit.rule,
            }
            for unit in layer.units
        ],
        "gates": {
            name: {
                "mean": _number(gate.mean),
                "below": _number(gate.below),
                "above": _number(gate.above),
                "saturated": _number(gate.saturated),
                "logit_quantiles": _list(gate.logit_quantiles),
                "levels": list(QUANTILES),
                "histogram": gate.histogram.tolist(),
            }
            for name, gate in layer.gates.items()
        },
        "tail": None
        if tail is None
        else {
            "first_lag": tail.first_lag,
            "share": _number(tail.share),
            "log10_norm": _number(tail.log10_norm),
            "tolerance": tail.tolerance,
            "bound": _number(tail.bound),
        },
        "missing": missing(layer),
    }


def _stacked(layer: LayerFlow) -> dict[str, str]:
    """Name of each array in torch's cells → its name in the layer; a cell that holds others cannot be run from them."""
    end = r"(_l\d+(_reverse)?)?$"
    return {short: name for short in WEIGHTS for name in layer.weights if re.search(rf"(^|\.){short}{end}", name)}


def _network(layer: LayerFlow) -> dict[str, Any]:
    """The weights by their names in torch's cells, gates stacked, and the recorded sequence."""
    sequence = layer.sequence
    assert sequence is not None
    return {
        "weights": {
            short: np.asarray(layer.weights[name], np.float64).tolist() for short, name in _stacked(layer).items()
        },
        "sequence": {
            "index": sequence.index,
            "inputs": sequence.inputs.tolist(),
            "initial": sequence.initial.tolist(),
            "gradient": sequence.gradient.tolist(),
            "cell_gradient": None if sequence.cell_gradient is None else sequence.cell_gradient.tolist(),
            "log10_norm": _list(sequence.log10_norm),
        }
        | _arriving(sequence.log10_arriving_total),
    }


def _arriving(log10: np.ndarray) -> dict[str, Any]:
    return {} if log10.size == 0 else {"log10_arriving_total": _list(log10)}


def _null(there: bool, field: str, reason: str) -> list[dict[str, str]]:
    return [{"field": field, "reason": reason}] if there else []


def _terms(terms: Terms) -> dict[str, Any]:
    return {
        "name": terms.name,
        "gate": terms.gate,
        "share": _list(terms.share),
        "log10_norm": _list(terms.log10_norm),
        "residual": _number(terms.residual),
    }


def _needed(needed: Needed) -> dict[str, Any]:
    return {"layer": needed.layer, "lags": list(needed.lags), "source": needed.source}


def _verification(done: Verification) -> dict[str, Any]:
    return {
        "remedy": done.remedy,
        "metric": done.metric,
        "higher_is_better": done.higher_is_better,
        "steps": done.steps,
        "seeds": list(done.seeds),
        "before": _list(done.before),
        "after": _list(done.after),
        "difference": _number(done.difference),
        "low": _number(done.low),
        "high": _number(done.high),
        "verdict": done.verdict,
        "notes": list(done.notes),
    }


def _number(value: float) -> float | None:
    value = float(value)
    return value if math.isfinite(value) else None


def _list(values: Iterable[float]) -> list[float | None]:
    return [_number(value) for value in np.asarray(values, dtype=np.float64).tolist()]
