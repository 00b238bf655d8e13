"""The short way: a model and its data in, a report out."""

from __future__ import annotations

from typing import Any

from throughtime.diagnosis.report import Needed, Report
from throughtime.diagnosis.rule import History, registry
from throughtime.errors import InputError
from throughtime.flow import Flow, LayerFlow


def judge(flow: Flow, needed_lag: int | None = None, history: Any = None) -> Report:
    """The report of a flow. needed_lag: the lag that the task is known to need; history: see `History.of`."""
    past = History.of(history)
    needed = tuple(needs(layer, needed_lag) for layer in flow.layers.values())
    findings = [
        finding
        for layer, need in zip(flow.layers.values(), needed, strict=True)
        for rule in registry().values()
        if (finding := rule.check(layer, need, past)) is not None
    ]
    return Report(flow=flow, needed=needed, findings=tuple(findings))


def needs(layer: LayerFlow, needed_lag: int | None = None) -> Needed:
    """Which lags the loss asks for in this layer: the user's word first, then measured demand."""
    if needed_lag is not None:
        if not 0 <= needed_lag < layer.steps:
            raise InputError(
                f"needed_lag={needed_lag} for a sequence of {layer.steps} steps",
                f"a lag from 0 to {layer.steps - 1}",
                "count steps from the loss back to the input that it needs",
            )
        return Needed(layer.name, (needed_lag,), "user")
    if layer.demand is not None and layer.demand.lags:
        return Needed(layer.name, layer.demand.lags, "demand")
    return Needed(layer.name, (), "unknown")
