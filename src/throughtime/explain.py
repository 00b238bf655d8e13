"""From traces to a flow: the sweep with its reducers, then everything that is read from the trace alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache
from typing import Unpack

import numpy as np
import torch

from throughtime import __version__
from throughtime.asked import Asked, Options
from throughtime.books import of_ledger
from throughtime.budget import BudgetError, room
from throughtime.collect import CONTRACT, LEVELS, LOW_PRECISION, collect, own_sum, reducers, settle_at_once
from throughtime.errors import InputError, ResidualError
from throughtime.finish import finish
from throughtime.flow import Flow, LayerFlow, Missing
from throughtime.linearize import Linearization
from throughtime.reducers.ledger import Ledger
from throughtime.reducers.shares import Shares
from throughtime.scaled import exponent_of, is_small, least
from throughtime.sweep import stream, sweep
from throughtime.trace import Trace
from throughtime.whole.series import Series
from throughtime.whole.total import COST, cost, total_of


def explain(
    traces: list[Trace],
    *,
    copies: Mapping[str, int] | None = None,
    series: Iterable[Series] = (),
    progress: Callable[[int, int, str], None] | None = None,
    **options: Unpack[Options],
) -> Flow:
    """The flow of these traces.

    copies: of each sequence in a trace, by its name, where a probe made several. series: what the total lag is told of, of
    each batch. progress(done, of, layer). options: see `throughtime.asked.Options`.

    Raises ResidualError where the terms do not add up, InputError where no gradient reached any layer.
    """
    asked = Asked(**options)
    if asked.memory is None:
        keep_freed_memory()
    reached = [trace for trace in traces if trace.origins()]
    if not reached:
        raise InputError(
            f"a gradient of exactly zero at the output of layer '{traces[0].name}'",
            "a loss that changes with the layer's output",
            "check for a saturated or masked loss, or a detach between layer and loss",
        )
    silent = {trace.name for trace in traces} - {trace.name for trace in reached}
    layers: dict[str, LayerFlow] = {}
    missing = [Missing(f"layers.{name}", "a gradient of exactly zero reached it") for name in sorted(silent)]
    wholes: dict[str, list[Series]] = {}
    for each in series if asked.total is not False else ():
        wholes.setdefault(each.name, []).append(each)
    for name, batches in wholes.items():
        if asked.memory is not None:
            missing.append(Missing(f"layers.{name}", "the total lag is not told within a memory: leave memory out"))
            continue
        needs = cost(batches)
        if asked.total is None and needs > COST:
            why = f"the total lag takes about {needs:.1g} multiplications: ask for it by total=True (--total)"
            missing.append(Missing(f"layers.{name}", why))
            continue
        if not any(each.pairs.any() for each in batches):
            continue

        def tell_whole(done: int, of: int, name: str = name) -> None:
            if progress:
                progress(done, of, name)

        with torch.no_grad(), torch.autocast(batches[0].source.device.type, enabled=False):
            made = _total(batches, traces, asked, tell_whole)
        taken = {layer.name for layer in made} & ({trace.name for trace in traces} | set(layers))
        if taken:
            missing.append(
                Missing(f"layers.{name}", f"another layer is called '{min(taken)}': rename it for the total lag")
            )
            continue
        for layer in made:
            if asked.strict and layer.error > CONTRACT.get(batches[0].parts[0].trace.dtype, LOW_PRECISION):
                raise _missed(layer, batches[0].parts[0].trace.dtype)
            layers[layer.name] = layer
        reached = [replace(trace, inner=True) if trace.module == name else trace for trace in reached]
    lins, beside, short = {}, 0, []
    for trace in reached:  # what has no room is told before the work, of the layer that needs most
        try:
            lins[trace.name] = lin = linearized(trace, asked, beside)
            beside += 0 if lin.room is None else lin.room.results
        except BudgetError as error:
            short.append(error)
            beside += error.results
    if short:
        raise max(short, key=lambda error: error.least)
    for trace in reached:

        def tell(done: int, of: int, name: str = trace.name) -> None:
            if progress:
                progress(done, of, name)

        with torch.no_grad(), torch.autocast(trace.x.device.type, enabled=False):
            layer = _layer(lins.pop(trace.name), asked, (copies or {}).get(trace.name, 1), tell)
        if asked.strict and layer.error > CONTRACT.get(trace.dtype, LOW_PRECISION):
            raise _missed(layer, trace.dtype)
        layers[trace.name] = layer
    return Flow(layers=layers, throughtime=__version__, torch=torch.__version__, missing=tuple(missing))


@cache
def keep_freed_memory() -> None:
    """Let this process keep up to 62 MB of what it frees, once and for all.

    A sweep frees and takes the same few megabytes again and again. glibc gives them back to the system each time, and every
    page that comes again has to be cleared: a fifth of the time of short sequences. It keeps twice the largest mapped array
    that was ever freed, up to this size; freeing one that was never written to costs nothing. Elsewhere this does nothing.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8, device="cpu")


def _missed(layer: LayerFlow, dtype: torch.dtype) -> ResidualError:
    """What is said where terms do not add up."""
    return ResidualError(
        f"terms of layer '{layer.name}' that miss autograd's gradient by {layer.error:.2g} of their size",
        f"at most {CONTRACT.get(dtype, LOW_PRECISION):g} for {str(dtype).removeprefix('torch.')}",
        ("" if dtype in CONTRACT else "record this step in float32: rounding adds up over long memories; ")
        + "look for something that changed weights or states between forward and backward; "
        "where terms cancel within a lag, rounding is all that is left; "
        "flow(strict=False) shows the numbers all the same",
    )


def _total(
    series: list[Series], traces: list[Trace], asked: Asked, progress: Callable[[int, int], None]
) -> list[LayerFlow]:
    """The flows of a whole; the gradients that it explains are those of all batches, which stand in the traces."""
    by_name = {trace.name: trace for trace in traces}
    own = [by_name[part.trace.name] for part in series[0].parts]
    references = [_referred(Linearization(trace, asked.derivative, asked.compile)) for trace in own]
    given = [trace.weight_gradients for trace in own]
    return [
        replace(layer, bare=own[0].bare)
        for layer in total_of(series, references, given, LEVELS, asked.method, progress)
    ]


def check_residual(layer: LayerFlow) -> None:
    """Raise ResidualError above the contract."""
    dtype = getattr(torch, layer.dtype)
    if layer.error > CONTRACT.get(dtype, LOW_PRECISION):
        raise _missed(layer, dtype)


def _referred(lin: Linearization) -> tuple[dict[str, torch.Tensor], str]:
    """`reference`, and why it is not autograd's."""
    trace = lin.trace
    lacking = sorted(set(trace.weights.tensors()) - set(trace.weight_gradients))
    low = trace.dtype not in CONTRACT
    return reference(lin), own_sum(str(trace.dtype).removeprefix("torch.") if low else "", lacking)


def _layer(lin: Linearization, asked: Asked, copies: int, progress: Callable[[int, int], None]) -> LayerFlow:
    """One sweep with all reducers that are needed, then what is read from the trace alone."""
    trace, whole = lin.trace, reference(lin)
    ledger, used = Ledger(lin, whole, asked.bias, LEVELS), reducers(lin, asked)
    settle_at_once(lin, [ledger])
    first = sweep(lin, [*used.all, ledger], asked.tolerance, asked.max_lag, progress)
    by_hand = first is not None and first - 1 == asked.max_lag
    sums = collect(lin, used, asked, first or trace.steps, by_hand, copies=copies)
    lin.forget()
    return finish(sums, of_ledger(ledger, trace.weight_gradients, first, *_external(lin, whole, asked)), asked, first)


def linearized(trace: Trace, asked: Asked, beside: int = 0) -> Linearization:
    """Within the memory that was asked for. beside: see `throughtime.budget.room`."""
    with torch.no_grad(), torch.autocast(trace.x.device.type, enabled=False):
        lin = Linearization(trace, asked.derivative, asked.compile)
        if asked.memory is None:
            return lin
        return Linearization(trace, asked.derivative, asked.compile, room(lin, asked, beside))


def reference(lin: Linearization) -> dict[str, torch.Tensor]:
    """G by parameter: where it is not autograd's the terms' own sum stands in, made by one plain sweep."""
    trace = lin.trace
    lacking = sorted(set(trace.weights.tensors()) - set(trace.weight_gradients))
    coarse = trace.dtype not in CONTRACT or is_small(trace.weight_gradients.values(), least(trace.dtype))
    if not lacking and not coarse:
        return dict(trace.weight_gradients)
    totals = _terms(lin, trace.gradient)
    return totals if coarse else totals | dict(trace.weight_gradients)


def _terms(lin: Linearization, gradient: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a gradient (T, B, C) at the carries gives the weights, by one plain sweep; float64, for it may be of any size."""
    trace = lin.trace
    sums = Ledger(lin, {name: torch.zeros_like(value) for name, value in trace.weights.tensors().items()})
    unit = exponent_of([gradient])
    origins = (gradient.abs().amax((1, 2)) != 0).nonzero().flatten()
    if len(origins):
        rows = gradient[origins] * 2.0**-unit
        exponent = torch.zeros(rows.shape[:2], dtype=torch.int64, device=rows.device)
        stream(lin, rows, exponent, origins.cpu(), [sums])
    return {name: total.double() * 2.0**unit for name, total in sums.total().items()}


def _external(
    lin: Linearization, reference: dict[str, torch.Tensor], asked: Asked
) -> tuple[float | None, np.ndarray | None]:
    """The share of G that came round outside the layer, and the same by lag (T,)."""
    if lin.trace.external is None:
        return None, None
    made = _terms(lin, lin.trace.external)
    unit = exponent_of(reference.values())
    whole = {name: value.double() * 2.0**-unit for name, value in reference.items()}
    inner = sum(float((made[name] * 2.0**-unit * value).sum()) for name, value in whole.items())
    size = sum(float(value.square().sum()) for value in whole.values())
    shares = Shares(outside(lin), reference)
    sweep(shares.linearization, [shares], asked.tolerance, asked.max_lag)
    return (inner / size if size else float("nan")), shares.share()


def outside(lin: Linearization) -> Linearization:
    """The same layer, with that part of the gradient alone that came round outside it."""
    assert lin.trace.external is not None
    room = None if lin.room is None else lin.room.spent()
    return Linearization(replace(lin.trace, gradient=lin.trace.external), lin.derivative, lin.compile, room)
