"""Which truncation window: what each loses, what it costs, and the smallest that holds what the loss asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from throughtime.asked import Asked, Options
from throughtime.cells.cell import Tensors
from throughtime.diagnosis.measure import StepReader, recorded
from throughtime.errors import InputError
from throughtime.explain import explain
from throughtime.flow import Missing, Stream
from throughtime.progress import Tell, quiet
from throughtime.recording.recorder import record
from throughtime.recurrent import Recurrent
from throughtime.streaming.accumulate import flow_of
from throughtime.streaming.stream import Streaming, stream
from throughtime.trace import joined
from throughtime.training_step import Step, as_step, as_stream, untouched
from throughtime.truncation.cut import cut_gradients
from throughtime.truncation.gather import HEAD, Cut, WindowTask, groups_of
from throughtime.truncation.gradient import Window
from throughtime.truncation.result import WindowReport
from throughtime.truncation.rows import Plan, Rows

LEVEL = 0.1
"""Of the bias that a recommended window may have. Chosen, not calibrated: `level=` says another."""


def window(
    model: nn.Module,
    batches: Any,
    loss: Callable[..., Tensor] | None = None,
    needed_lag: int | None = None,
    *,
    windows: int | str | Window | Iterable[int | str | tuple[int, int] | Window] = (),
    level: float = LEVEL,
    cost: bool = True,
    layers: list[str] | None = None,
    limit: int | None = None,
    stop_when: float | None = 0.1,
    progress: Tell = quiet,
    **options: Unpack[Options],
) -> WindowReport:
    """Which truncation window to train with: what each loses of the gradient and costs, and which one to use.

    model, batches, loss, needed_lag, layers: as `throughtime.diagnose` takes them; the model is left exactly as it was.
    windows: more of them, each K (chunks: the state detached every K steps) or (K1, K2) (a backward pass every K1 steps over
    the last K2; Williams & Peng 1990). level: the truncation bias that a recommended window may have. cost: whether memory and
    time are measured, by really truncated passes of the recurrent layers. options: see `throughtime.Options`.

    limit, stop_when: how far a loader is read, as by `throughtime.diagnose`: by default until the gradient horizon is known, or
    to its end. Up to `HEAD` batches are joined into one. Of more, the windows to be tried are chosen on the first `HEAD`; then
    all batches are gone through, in memory that does not grow with them, and what each window loses is of them all. A Ctrl-C
    meanwhile keeps what was done.

    The bias and the cosine are exact, of these batches and these weights. A window is recommended only where a lag is known to
    be needed, and never one that does not hold it: how far the gradient reaches now says nothing of how far it should.

    Raises InputError, UnsupportedError, RecordError, ResidualError, each with got / expected / do this.
    """
    windows = [windows] if isinstance(windows, int | str | Window) else windows
    asked = [each if isinstance(each, Window) else Window.of(each) for each in windows]
    if not 0 < level < 1:
        raise InputError(f"level={level}", "a bias between 0 and 1", f"use level={LEVEL}")
    if loss is None:
        raise InputError(
            "no loss",
            "the loss that the network is trained on",
            "pass loss=… (--loss): what a window loses is of its gradient",
        )
    if options.get("memory") is not None:
        raise InputError(
            "memory for a window", "no budget", "leave memory out: it is of decompositions (diagnose, flow)"
        )
    how = Streaming(stop_when)
    given, count = as_stream(batches, limit)
    step = as_step(loss)
    options = Options(hops=False, signal_to_noise=False, origin_step=False) | options
    with untouched(model):
        rng = torch.get_rng_state()
        first = list(islice(given, HEAD + 1))
        head = first[:HEAD]
        got = recorded(model, head, step, layers, progress)
    by_name = got.by_layer

    def tell(done: int, of: int, name: str) -> None:
        progress(done, of, f"sweep of {name}")

    everything = [joined(traces) for traces in by_name.values()]
    flow = explain(everything, progress=tell, **options)
    flow = replace(flow, missing=(*flow.missing, *(Missing(f"layers.{n}", "not reached") for n in got.unreached)))
    if len(head) > 1:
        flow = replace(flow, stream=Stream(len(head), "all batches were read"))
    measured = Rows(flow, [t for t in everything if t.name in flow.layers], needed_lag, level, progress)
    modules = {traces[0].module or name: [trace.steps for trace in traces] for name, traces in by_name.items()}
    cut = partial(_cut, step, layers)
    if len(modules) > 1 and not measured.backwards and _undropped(model, modules):
        measured.cut = partial(cut, model, head, modules)
    plan = measured.plan(asked)
    if len(first) > HEAD:
        task = _task(measured, plan, StepReader(step, layers), cut, Asked(**options))
        with untouched(model):
            whole, end = stream(model, chain(first, given), task, how, rng, count, progress)
        flow = flow_of(whole.layers, task.asked)
        silent = [Missing(f"layers.{n}", "not reached") for n in whole.names if n not in whole.reached]
        flow = replace(flow, missing=(*flow.missing, *silent), stream=end)
        measured = measured.over(flow, whole.beside)
    if cost and not measured.backwards:
        measured.cost_of(model, {name: traces[0] for name, traces in by_name.items() if name in flow.layers})
    return measured.report(type(model).__name__, plan)


def _cut(
    step: Step,
    layers: list[str] | None,
    model: nn.Module,
    batches: list[Any],
    steps: Mapping[str, list[int]],
    size: int,
) -> list[Tensors] | None:
    return cut_gradients(model, batches, step, layers, steps, size)


def _task(measured: Rows, plan: Plan, reader: StepReader, cut: Cut, asked: Asked) -> WindowTask:
    """What is done with each batch of many."""
    windows = (*(Window(size, size) for size in plan.sizes), *plan.pairs) if not measured.backwards else ()
    weights = sum(value.numel() for trace in measured.traces for value in trace.weights.tensors().values())
    groups = groups_of(weights, len(windows) + 1)
    through = cut if measured.cut is not None else None
    return WindowTask(reader, replace(asked, bias="all"), windows, groups, measured.unit, through)


def _undropped(model: nn.Module, modules: Iterable[str]) -> bool:
    """Whether all of these can be run in chunks: torch's layers and cells, without masks of dropout of their own."""
    found = [module for name, module in record(model).layers.items() if name in modules]
    return all(isinstance(each, nn.RNNBase | nn.RNNCellBase | Recurrent) for each in found) and not any(
        each.training and getattr(each, "dropout", 0.0) for each in found
    )
