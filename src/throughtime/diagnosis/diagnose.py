"""The short way: a model and its data in, a report out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from torch import Tensor, nn

from throughtime.asked import Options
from throughtime.diagnosis.measure import keeping, measure
from throughtime.diagnosis.report import Needed, Report
from throughtime.diagnosis.rule import History, registry
from throughtime.errors import InputError
from throughtime.flow import Flow, LayerFlow
from throughtime.progress import Tell, quiet
from throughtime.recording.recorder import record
from throughtime.remedies import Remedy, treating
from throughtime.streaming.stream import Streaming
from throughtime.training_step import Step, as_step, as_stream
from throughtime.verify import Verification, verify

BATCHES = 8  # of a loader that remedies are tried out on, at most


def diagnose(
    model: nn.Module,
    batches: Any,
    loss: Callable[..., Tensor] | None = None,
    needed_lag: int | None = None,
    history: Any = None,
    *,
    layers: list[str] | None = None,
    limit: int | None = None,
    stop_when: float | None = 0.1,
    resume: str | Path | None = None,
    engine: str = "serial",
    workers: int | None = None,
    verify: bool = False,
    verify_steps: int = 200,
    verify_seeds: int = 5,
    factory: Callable[[], nn.Module] | None = None,
    progress: Tell = quiet,
    **options: Unpack[Options],
) -> Report:
    """Which lags the loss needs, how far the gradient reaches, why not, and what to change.

    model: any module that `throughtime.record` takes; it is left exactly as it was. batches: one batch (a tensor, a pair
    (x, y), a dict), or a loader. loss: `fn(model, batch)`, or a criterion `fn(output, target)`; see
    `throughtime.training_step.as_step`. Without a loss the layer's last state is probed, see `throughtime.diagnosis.probe`:
    supply is told, demand is not. needed_lag: the lag that the task is known to need, in steps back from the loss. history:
    of the training so far, see `History.of`. layers: names of recurrent layers; all by default.

    Of a loader the losses are summed, batch by batch, in memory that does not grow with it: up to its end, to `limit` batches,
    until the gradient horizon's 95 % interval is ±`stop_when` of it (or half a step; None goes on to the end), or to a Ctrl-C;
    the report says which. resume: a file that holds what was added up, written after every batch: where it exists, the run goes
    on from there. engine: "serial"; "joblib" or "ray", with so many `workers`; or "distributed", called by every process of an
    initialised torch.distributed job with its own part of the data: all get the report of the whole.

    verify: train pairs of untreated and treated copies with `verify_seeds` seeds for `verify_steps` steps, on the first
    `BATCHES` batches, and say whether the remedy of the first finding that has one helped; `factory` makes fresh models for it
    (without one, copies are drawn anew by their own `reset_parameters`). options: see
    `throughtime.Options`.

    Raises InputError, UnsupportedError, RecordError, ResidualError, each with got / expected / do this.
    """
    history = History.of(history)  # what cannot be read is told before the work
    told = options.get("max_lag")
    if needed_lag is not None and told is not None and needed_lag > told:
        raise InputError(
            f"needed_lag={needed_lag} beyond max_lag={told}", "a needed lag that is told apart", "raise max_lag"
        )
    if loss is None and verify:
        raise InputError("verify without a loss", "a loss to train on", "pass loss=…")
    how = Streaming(stop_when, resume, engine, workers)
    given, count = as_stream(batches, limit)
    if loss is None:
        from throughtime.diagnosis.probe import probe

        flow = probe(model, given, layers, progress, how, count, **options)
        return replace(judge(flow, needed_lag, history), title=type(model).__name__)
    step, kept = as_step(loss), []
    if verify:
        given = keeping(given, kept, BATCHES)
    flow = measure(model, given, step, layers, progress, how, count, **options)
    report = replace(judge(flow, needed_lag, history), title=type(model).__name__)
    if verify:
        report = verified(report, factory or model, model, kept, step, verify_steps, verify_seeds, progress, options)
    return report


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
    """Which lags the loss asks for in this layer: by the user's word and by measured demand together."""
    detected = layer.demand.lags if layer.demand is not None else ()
    if needed_lag is not None:
        if needed_lag < 0:
            raise InputError(
                f"needed_lag={needed_lag}", "0 or more", "count steps from the loss back to the input it needs"
            )
        return Needed(layer.name, tuple(sorted({needed_lag, *detected})), "user", needed_lag)
    if detected:
        return Needed(layer.name, detected, "demand")
    return Needed(layer.name, (), "unknown")


def prescribed(report: Report, model: nn.Module) -> tuple[Remedy, str, dict[str, Any]] | None:
    """The first stable finding's remedy that can be applied: (remedy, layer, evidence); None where there is none."""
    modules = record(model).layers
    for finding in report.findings:
        need = next(each for each in report.needed if each.layer == finding.layer)
        if finding.preview or need.farthest is None:
            continue
        for remedy in treating(finding.code):
            module = report.flow.layers[finding.layer].module or finding.layer
            if module not in modules:  # of several in series none is the one to treat
                continue
            if remedy.precondition(modules[module]) is None:
                return remedy, module, {"needed_lag": need.farthest}
    return None


def verified(
    report: Report,
    source: nn.Module | Callable[[], nn.Module],
    model: nn.Module,
    batches: list[Any],
    step: Step,
    steps: int,
    seeds: int,
    progress: Tell,
    options: Options,
) -> Report:
    """The report with its remedy tried out: paired trainings, and the flow of a treated copy before training."""
    chosen = prescribed(report, model)
    if chosen is None:
        return report
    remedy, layer, evidence = chosen
    result: Verification = verify(
        source, batches, step, remedy, layer, seeds=range(seeds), steps=steps, progress=progress, **evidence
    )
    treated = remedy.apply(copy.deepcopy(model), layer, **evidence)
    after = measure(treated, batches, step, [layer], progress, **(options | Options(demand=False)))
    return replace(report, verification=result, before=report.flow, after=after)
