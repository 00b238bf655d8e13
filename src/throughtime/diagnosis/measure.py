"""From a model and its batches to a flow: one batch is explained whole, several are streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any, Unpack

import torch
from torch import nn

from throughtime.asked import Asked, Options
from throughtime.errors import InputError, RecordError
from throughtime.explain import explain
from throughtime.flow import Flow, Missing, Stream
from throughtime.progress import Tell, quiet
from throughtime.recording.in_series import SERIES
from throughtime.recording.recorder import Record, record
from throughtime.streaming.accumulate import flow_of
from throughtime.streaming.intervals import LEAST
from throughtime.streaming.stream import Streaming, interrupted, stream
from throughtime.streaming.sums import LayerSums
from throughtime.streaming.task import Read, Reader, Task, in_batch
from throughtime.trace import Trace, joined
from throughtime.training_step import Step, untouched
from throughtime.whole.series import Series

SEVERAL = 8  # batches that are joined at most


def measure(
    model: nn.Module,
    batches: Iterable[Any],
    step: Step,
    layers: list[str] | None = None,
    progress: Tell = quiet,
    how: Streaming | None = None,
    count: int | None = None,
    **options: Unpack[Options],
) -> Flow:
    """The flow of the summed losses of some batches, without touching the model.

    how, count: see `throughtime.streaming.stream`, whose total is the count. options: see `throughtime.asked.Options`.
    """
    return flow_by(StepReader(step, layers), model, batches, progress, how, count, **options)


def flow_by(
    reader: Reader,
    model: nn.Module,
    batches: Iterable[Any],
    progress: Tell,
    how: Streaming | None,
    count: int | None,
    **options: Unpack[Options],
) -> Flow:
    """The flow of what a reader makes of the batches.

    The total lag by signed offset (`throughtime.whole.series`) needs batches together: up to `SEVERAL` are joined where there
    is one.
    """
    how = how or Streaming()
    asked = Asked(**options)
    whole = asked.total is not False
    with untouched(model):
        rng = torch.get_rng_state()
        source = iter(batches)
        if how.engine == "serial" and how.resume is None:
            in_series = whole and isinstance(reader, StepReader) and _in_series(model, reader.layers)
            most = SEVERAL if in_series else 1
            head, broken = _head(source, most + 1)
            if broken or len(head) <= most:
                return _together(reader, model, head, progress, broken, **options)
            source = chain(head, source)
        # Every K comes with the terms; what is not of the sums is no reason against going on with them.
        task = Task(reader, replace(asked, bias="all", strict=True, total=None))
        measured, end = stream(model, source, task, how, rng, count, progress)
    flow = flow_of(measured.layers, replace(task.asked, strict=asked.strict))
    flow = _with(flow, measured.names, measured.reached, measured.notes)
    together = f"is told of up to {SEVERAL} batches worked on together, in this process and without resume"
    wholes = {name: "both directions" for name in measured.reached if _both_ways(measured.layers, name)}
    if len(measured.reached) > 1:
        wholes = {SERIES: "several modules"} | wholes
    for name, through in wholes.items() if whole else ():
        why = f"the total lag through {through} {together}: these were added up layer by layer"
        flow = replace(flow, missing=(*flow.missing, Missing(f"layers.{name}", why)))
    return replace(_without_intervals(flow), stream=Stream(end.batches, end.stopped, end.partial))


def _head(source: Iterator[Any], most: int) -> tuple[list[Any], bool]:
    """The first batches, at most so many; and whether a Ctrl-C ended them after the first."""
    head = []
    try:
        for batch in islice(source, most):
            head.append(batch)
    except KeyboardInterrupt:
        if not head:
            raise
        return head, True
    return head, False


def _without_intervals(flow: Flow) -> Flow:
    """Of layers that have no intervals over batches, the reason."""
    layers = {}
    for name, layer in flow.layers.items():
        if layer.intervals is None:
            few = f"they are over batches, of which they need {LEAST}: {layer.batches} here"
            why = few if layer.batches < LEAST else "too few of these batches are neighbours: the run was broken off"
            layer = replace(layer, missing=(*layer.missing, Missing("intervals", why)))
        layers[name] = layer
    return replace(flow, layers=layers)


def _both_ways(layers: Mapping[str, LayerSums], module: str) -> bool:
    """Whether the module stacks layers that read in both directions, which has a total lag by signed offset."""
    own = [sums.about for sums in layers.values() if sums.about.module == module]
    return len(own) > 2 and any(about.reverse for about in own)


def _in_series(model: nn.Module, layers: list[str] | None) -> bool:
    """Whether there may be a total lag by signed offset: several modules, or both directions."""
    found = record(model, layers).layers.values()
    return len(found) > 1 or any(getattr(layer, "bidirectional", False) for layer in found)


def _together(
    reader: Reader, model: nn.Module, batches: list[Any], progress: Tell, broken: bool, **options: Unpack[Options]
) -> Flow:
    """Of few batches, joined into one; of a probe only a single one. broken: whether a Ctrl-C left out some already; another
    one ends it with the batches that were worked on."""
    reads: list[Read] = []
    try:
        for number, batch in enumerate(batches):
            progress(number, len(batches), "forward and backward")
            # Still untouched: what lies between modules may hold buffers that are put back at the end.
            with in_batch(number) if len(batches) > 1 else nullcontext():
                reads.append(reader(model, number, batch, whole=options.get("total") is not False))
    except KeyboardInterrupt:
        if not reads:
            raise
        broken = True
    by_name: dict[str, list[Trace]] = {}
    for trace in (trace for read in reads for trace in read.traces):
        by_name.setdefault(trace.name, []).append(trace)
    traces = [joined(each) for each in by_name.values()]
    read = replace(
        reads[0],
        traces=traces,
        reached=[name for each in reads for name in each.reached],
        series=[each for one in reads for each in one.series],
        apart=tuple(dict.fromkeys(why for each in reads for why in each.apart)),
    )

    def tell(done: int, of: int, name: str) -> None:
        progress(done, of, f"sweep of {name}")

    flow = explain(read.traces, series=read.series, progress=tell, copies=read.copies, **options)
    copies = {trace.module or trace.name: read.copies.get(trace.name, 1) for trace in read.traces}
    notes = {trace.module or trace.name: read.notes.get(trace.name, {}) for trace in read.traces}
    wholes = [layer for name, layer in flow.layers.items() if name not in {trace.name for trace in read.traces}]
    told = {layer.name: replace(layer, batch=layer.batch // copies.get(layer.module, 1)) for layer in wholes}
    flow = replace(flow, layers={**{name: told.get(name, layer) for name, layer in flow.layers.items()}})
    noted = {**read.notes, **{layer.name: notes.get(layer.module, {}) for layer in wholes}}
    flow = _with(flow, read.names, read.reached, noted)
    flow = replace(flow, missing=(*flow.missing, *read.apart))
    if not broken:
        return flow
    return replace(_without_intervals(flow), stream=Stream(len(reads), interrupted(len(reads)), partial=True))


def _with(flow: Flow, names: list[str], reached: list[str], notes: Any) -> Flow:
    """With the layers that the loss does not depend on, and a probe's reasons in place of "not asked for"."""
    independent = tuple(
        Missing(f"layers.{name}", "the loss does not depend on it") for name in names if name not in reached
    )
    layers = {}
    for name, layer in flow.layers.items():
        told = notes.get(name, {})
        kept = tuple(each for each in layer.missing if each.field not in told)
        layers[name] = replace(layer, missing=(*kept, *(Missing(field, why) for field, why in told.items())))
    return replace(flow, layers=layers, missing=(*flow.missing, *independent))


@dataclass(frozen=True)
class StepReader:
    """Forward and backward of a training step. layers: names of recurrent layers, None for all."""

    step: Step
    layers: list[str] | None = None

    def __call__(self, model: nn.Module, number: int, batch: Any, whole: bool = False) -> Read:
        rec = _backward(model, lambda: self.step(model, batch), self.layers, whole)
        traces, names = _traces(rec), list(rec.layers)
        reached = list(dict.fromkeys(trace.module or trace.name for trace in traces))
        unreached = [name for name in names if name not in reached]
        if unreached and self.layers is not None:
            raise _independent(unreached)
        series, apart = rec.series() if whole else ([], ())
        return Read(traces, names, reached, series=series, apart=apart)


def _backward(model: nn.Module, loss: Callable[[], Any], layers: list[str] | None, whole: bool) -> Record:
    """The record of one backward pass of `loss()`. whole: whether the series between modules are wanted."""
    rec = record(model, layers)
    for layer in rec.layers.values():
        layer.requires_grad_(True)
    with rec, torch.enable_grad():
        value = loss()
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
    return rec


def traces_and_series(
    model: nn.Module, loss: Callable[[], Any], layers: list[str] | None, whole: bool
) -> tuple[list[Trace], list[Series]]:
    """Of one backward pass of `loss()`."""
    rec = _backward(model, loss, layers, whole)
    return _traces(rec), list(rec.series()[0]) if whole else []


@dataclass(frozen=True)
class Recorded:
    """What some batches gave: traces by layer, one a batch; the layers that no loss reached."""

    by_layer: dict[str, list[Trace]]
    unreached: list[str]


def recorded(
    model: nn.Module, batches: list[Any], step: Step, layers: list[str] | None = None, progress: Tell = quiet
) -> Recorded:
    """Run and record the step on every batch, inside of `untouched`."""
    reader, by_layer = StepReader(step, layers), {}
    names: list[str] = []
    reached: list[str] = []
    for done, batch in enumerate(batches):
        progress(done, len(batches), "forward and backward")
        read = reader(model, done, batch)
        names, reached = read.names, [*reached, *read.reached]
        for trace in read.traces:
            by_layer.setdefault(trace.name, []).append(trace)
    return Recorded(by_layer, [name for name in names if name not in reached])


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


def keeping(batches: Iterable[Any], kept: list[Any], most: int) -> Iterator[Any]:
    """The same batches; the first of them are kept."""
    for batch in batches:
        if len(kept) < most:
            kept.append(batch)
        yield batch
