"""From a model and its batches to a flow: one batch is explained whole, several are streamed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import nn

from throughtime.accumulate import flow_of
from throughtime.collect import Asked
from throughtime.demand import Method
from throughtime.engines import Job
from throughtime.errors import InputError, RecordError
from throughtime.explain import explain
from throughtime.flow import Flow, Missing, Stream
from throughtime.progress import Tell, quiet
from throughtime.recorder import Record, record
from throughtime.stream import Read, Reader, Streaming, Task, stream
from throughtime.trace import Trace
from throughtime.training_step import Step, untouched


def measure(
    model: nn.Module,
    batches: Iterable[Any],
    step: Step,
    layers: list[str] | None = None,
    progress: Tell = quiet,
    how: Streaming | None = None,
    total: int | None = None,
    **options: Any,
) -> Flow:
    """The flow of the summed losses of some batches, without touching the model.

    how, total: see `throughtime.stream`. options: those of `throughtime.explain.explain`.
    """
    return flow_by(StepReader(step, layers), model, batches, progress, how, total, **options)


def flow_by(
    reader: Reader,
    model: nn.Module,
    batches: Iterable[Any],
    progress: Tell,
    how: Streaming | None,
    total: int | None,
    **options: Any,
) -> Flow:
    """The flow of what a reader makes of the batches."""
    how = how or Streaming()
    asked, strict = _asked(**options)
    with untouched(model):
        rng = torch.get_rng_state()
        source = iter(batches)
        if how.engine == "serial" and how.resume is None:
            head = [batch for _, batch in zip(range(2), source, strict=False)]
            if len(head) == 1:
                return _of_one(reader, model, head[0], asked, progress, **options)
            source = chain(head, source)
        task = Task(reader, replace(asked, bias="all"))  # every K comes with the terms
        measured, end = stream(model, source, task, how, rng, total, progress)
    flow = flow_of(measured.layers, task.asked, strict)
    flow = _with(flow, measured.names, measured.reached, measured.notes)
    return replace(flow, stream=Stream(end.batches, end.stopped, end.partial))


def _of_one(reader: Reader, model: nn.Module, batch: Any, asked: Asked, progress: Tell, **options: Any) -> Flow:
    progress(0, 1, "forward and backward")
    read = Task(reader, asked).read(model, Job(0, batch, 0, {}))

    def tell(done: int, of: int, name: str) -> None:
        progress(done, of, f"sweep of {name}")

    flow = explain(read.traces, progress=tell, copies=read.copies, **options)
    return _with(flow, read.names, read.reached, read.notes)


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


def _asked(
    *,
    tolerance: float = 1e-12,
    max_lag: int | None = None,
    bias: str = "all",
    hops: bool = True,
    signal_to_noise: bool = True,
    demand: bool = True,
    demand_method: Method = "covariance",
    origin_step: bool = True,
    derivative: str = "closed",
    strict: bool = True,
) -> tuple[Asked, bool]:
    """The options of `throughtime.explain.explain`, and `strict`."""
    method = demand_method if demand else None
    return Asked(tolerance, max_lag, bias, hops, signal_to_noise, method, origin_step, derivative), strict


@dataclass(frozen=True)
class StepReader:
    """Forward and backward of a training step. layers: names of recurrent layers, None for all."""

    step: Step
    layers: list[str] | None = None

    def __call__(self, model: nn.Module, number: int, batch: Any) -> Read:
        traces, names = recorded(model, lambda: self.step(model, batch), self.layers)
        reached = list(dict.fromkeys(trace.module or trace.name for trace in traces))
        unreached = [name for name in names if name not in reached]
        if unreached and self.layers is not None:
            raise _independent(unreached)
        return Read(traces, names, reached)


def recorded(model: nn.Module, loss: Any, layers: list[str] | None) -> tuple[list[Trace], list[str]]:
    """The traces of one backward pass of `loss()`, and the names of the layers that were watched."""
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
        torch.autograd.grad(value, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
    return _traces(rec), list(rec.layers)


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
