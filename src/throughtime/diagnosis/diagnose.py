"""The short way: a model and its data in, a report out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.diagnosis.report import Needed, Report
from throughtime.diagnosis.rule import History, registry
from throughtime.errors import InputError, RecordError
from throughtime.explain import explain
from throughtime.flow import Flow, LayerFlow, Missing
from throughtime.progress import Tell, quiet
from throughtime.recorder import Record, record
from throughtime.remedies import Remedy, treating
from throughtime.series import Series
from throughtime.trace import Trace, joined
from throughtime.training_step import Step, as_batches, as_step, untouched
from throughtime.verify import Verification, verify

BATCHES = 8  # of a loader, at most


def diagnose(
    model: nn.Module,
    batches: Any,
    loss: Callable[..., Tensor] | None = None,
    needed_lag: int | None = None,
    history: Any = None,
    *,
    layers: list[str] | None = None,
    limit: int = BATCHES,
    verify: bool = False,
    verify_steps: int = 200,
    verify_seeds: int = 5,
    factory: Callable[[], nn.Module] | None = None,
    progress: Tell = quiet,
    **options: Any,
) -> Report:
    """Which lags the loss needs, how far the gradient reaches, why not, and what to change.

    model: any module that `throughtime.record` takes; it is left exactly as it was. batches: one batch (a tensor, a pair
    (x, y), a dict), or a loader, of which at most `limit` batches are read and joined along the sequences. loss:
    `fn(model, batch)`, or a criterion `fn(output, target)`; see `throughtime.training_step.as_step`. Without a loss the
    layer's last state is probed, see `throughtime.diagnosis.probe`: supply is told, demand is not. needed_lag: the lag
    that the task is known to need, in steps back from the loss. history: of the training so far, see `History.of`.
    layers: names of recurrent layers; all by default. verify: train pairs of untreated and treated copies with
    `verify_seeds` seeds for `verify_steps` steps, and say whether the remedy of the first finding that has one helped;
    `factory` makes fresh models for it (without one, copies are drawn anew by their own `reset_parameters`). options:
    those of `throughtime.explain.explain`.

    Raises InputError, UnsupportedError, RecordError, ResidualError, each with got / expected / do this.
    """
    history = History.of(history)  # what cannot be read is told before the work
    told = options.get("max_lag")
    if needed_lag is not None and told is not None and needed_lag > told:
        raise InputError(
            f"needed_lag={needed_lag} beyond max_lag={told}", "a needed lag that is told apart", "raise max_lag"
        )
    given = as_batches(batches, limit)
    if loss is None:
        if verify:
            raise InputError("verify without a loss", "a loss to train on", "pass loss=…")
        from throughtime.diagnosis.probe import probe

        report = judge(probe(model, given, layers, progress, **options), needed_lag, history)
        return replace(report, title=type(model).__name__)
    step = as_step(loss)
    flow = measure(model, given, step, layers, progress, **options)
    report = replace(judge(flow, needed_lag, history), title=type(model).__name__)
    if verify:
        report = verified(report, factory or model, model, given, step, verify_steps, verify_seeds, progress, options)
    return report


def measure(
    model: nn.Module,
    batches: list[Any],
    step: Step,
    layers: list[str] | None = None,
    progress: Tell = quiet,
    **options: Any,
) -> Flow:
    """The flow of the summed losses of some batches, without touching the model."""
    with untouched(model):
        got = recorded(model, batches, step, layers, progress, whole=options.get("total") is not False)

        def tell(done: int, of: int, name: str) -> None:
            progress(done, of, f"sweep of {name}")

        # Still untouched: what lies between modules may hold buffers that are put back at the end.
        traces = [joined(traces) for traces in got.by_layer.values()]
        flow = explain(traces, series=got.series, progress=tell, **options)
    independent = tuple(Missing(f"layers.{name}", "the loss does not depend on it") for name in got.unreached)
    return replace(flow, missing=(*flow.missing, *independent, *got.apart))


@dataclass(frozen=True)
class Recorded:
    """What some batches gave: traces by layer, one a batch; the series between modules, and why there are none; the layers
    that no loss reached."""

    by_layer: dict[str, list[Trace]]
    series: list[Series]
    apart: tuple[Missing, ...]
    unreached: list[str]


def recorded(
    model: nn.Module,
    batches: list[Any],
    step: Step,
    layers: list[str] | None = None,
    progress: Tell = quiet,
    whole: bool = False,
) -> Recorded:
    """Run and record the step on every batch, inside of `untouched`. whole: whether the series between modules are kept."""
    by_layer: dict[str, list[Trace]] = {}
    series: list[Series] = []
    apart: dict[Missing, None] = {}
    names: list[str] = []
    for done, batch in enumerate(batches):
        progress(done, len(batches), "forward and backward")
        rec = record(model, layers)
        names = list(rec.layers)
        for layer in rec.layers.values():
            layer.requires_grad_(True)
        with rec, torch.enable_grad():
            value = step(model, batch)
            if not value.requires_grad:
                raise InputError(
                    "a loss that does not depend on the model",
                    "a loss made of the model's output, with gradients enabled",
                    "check for .detach(), .item() or torch.no_grad in the loss",
                )
            # Not backward(): nothing may be accumulated, and no hook of the user's optimizer may fire.
            # Between several recurrent modules the graph is needed once more: their total lag goes through it.
            wanted = [p for p in model.parameters() if p.requires_grad]
            torch.autograd.grad(value, wanted, allow_unused=True, retain_graph=whole and len(rec.layers) > 1)
        for trace in _traces(rec):
            by_layer.setdefault(trace.name, []).append(trace)
        if whole:
            found, why = rec.series()
            series += found
            apart |= dict.fromkeys(why)
    reached = {trace.module or name for name, traces in by_layer.items() for trace in traces}
    unreached = [name for name in names if name not in reached]
    if unreached and layers is not None:
        raise _independent(unreached)
    return Recorded(by_layer, series, tuple(apart), unreached)


def _traces(rec: Record) -> list[Trace]:
    try:
        return rec.traces()
    except RecordError as error:
        if len(rec.unreached) < len(rec.layers):
            raise
        raise _independent(rec.unreached) from error


def _independent(layers: list[str]) -> InputError:
    return InputError(
        f"a loss that does not depend on the recurrent layer(s) {', '.join(layers)}",
        "a loss that changes with their output",
        "check for a detach, torch.no_grad or a reentrant checkpoint between layer and loss, and which model it calls",
    )


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
    options: dict[str, Any],
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
    options = {name: value for name, value in options.items() if name != "demand"}
    after = measure(treated, batches, step, [layer], progress, demand=False, **options)
    return replace(report, verification=result, before=report.flow, after=after)
