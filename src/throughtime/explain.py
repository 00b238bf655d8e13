"""From traces to a flow: the sweep with its reducers, then everything that is read from the trace alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch

from throughtime import __version__
from throughtime.books import of_ledger
from throughtime.collect import CONTRACT, LEVELS, LOW_PRECISION, Asked, collect, reducers
from throughtime.demand import Method
from throughtime.errors import InputError, ResidualError
from throughtime.finish import finish
from throughtime.flow import Flow, LayerFlow, Missing
from throughtime.linearize import Linearization
from throughtime.reducers.ledger import Ledger
from throughtime.sweep import stream, sweep
from throughtime.trace import Trace


def explain(
    traces: list[Trace],
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
    copies: Mapping[str, int] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Flow:
    """The flow of these traces.

    tolerance, max_lag: when the tail begins, see `throughtime.sweep.sweep`. bias: "all", or "horizon" for only those K near
    which the bias crosses 10, 1 or .1 %. hops, signal_to_noise, demand, origin_step: left out when False. demand_method:
    "covariance" or "distance", see docs/demand.md. derivative: "closed", or "autograd" through the cell's equations. strict:
    raise ResidualError above the contract (1e-10 in float64, 1e-4 in float32, 2e-2 below). copies: of each sequence
    in a trace, by its name, where a probe made several. progress(done, of, layer).
    """
    asked = Asked(
        tolerance, max_lag, bias, hops, signal_to_noise, demand_method if demand else None, origin_step, derivative
    )
    reached = [trace for trace in traces if trace.origins()]
    if not reached:
        raise InputError(
            f"a gradient of exactly zero at the output of layer '{traces[0].name}'",
            "a loss that changes with the layer's output",
            "check for a saturated or masked loss, or a detach between layer and loss",
        )
    silent = {trace.name for trace in traces} - {trace.name for trace in reached}
    layers = {}
    for trace in reached:

        def tell(done: int, of: int, name: str = trace.name) -> None:
            if progress:
                progress(done, of, name)

        with torch.no_grad(), torch.autocast(trace.x.device.type, enabled=False):
            layer = _layer(trace, asked, (copies or {}).get(trace.name, 1), tell)
        if strict:
            check_residual(layer)
        layers[trace.name] = layer
    missing = tuple(Missing(f"layers.{name}", "a gradient of exactly zero reached it") for name in sorted(silent))
    return Flow(layers=layers, throughtime=__version__, torch=torch.__version__, missing=missing)


def check_residual(layer: LayerFlow) -> None:
    """Raise ResidualError above the contract."""
    dtype = getattr(torch, layer.dtype)
    limit = CONTRACT.get(dtype, LOW_PRECISION)
    if layer.error > limit:
        raise ResidualError(
            f"terms of layer '{layer.name}' that miss autograd's gradient by {layer.error:.2g} of their size",
            f"at most {limit:g} for {layer.dtype}",
            ("" if dtype in CONTRACT else "record this step in float32: rounding adds up over long memories; ")
            + "look for something that changed weights or states between forward and backward; "
            "where terms cancel within a lag, rounding is all that is left; "
            "flow(strict=False) shows the numbers all the same",
        )


def _layer(trace: Trace, asked: Asked, copies: int, progress: Callable[[int, int], None]) -> LayerFlow:
    """One sweep with all reducers that are needed, then what is read from the trace alone."""
    lin = Linearization(trace, asked.derivative)
    whole = reference(lin)
    ledger, used = Ledger(lin, whole, asked.bias, LEVELS), reducers(lin, asked)
    first = sweep(lin, [ledger, *used.all], asked.tolerance, asked.max_lag, progress)
    by_hand = first is not None and first - 1 == asked.max_lag
    sums = collect(lin, used, asked, first or trace.steps, by_hand, copies=copies)
    return finish(sums, of_ledger(ledger, trace.weight_gradients, first, *_external(lin, whole, asked)), asked, first)


def reference(lin: Linearization) -> dict[str, torch.Tensor]:
    """G by parameter: where it is not autograd's the terms' own sum stands in, made by one plain sweep."""
    trace = lin.trace
    lacking = sorted(set(trace.weights.tensors()) - set(trace.weight_gradients))
    low = trace.dtype not in CONTRACT
    if not lacking and not low:
        return dict(trace.weight_gradients)
    totals = _terms(lin, trace.gradient)
    return totals if low else totals | dict(trace.weight_gradients)


def _terms(lin: Linearization, gradient: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a gradient (T, B, C) at the carries gives the weights, by one plain sweep."""
    trace = lin.trace
    sums = Ledger(lin, {name: torch.zeros_like(value) for name, value in trace.weights.tensors().items()})
    origins = (gradient.abs().amax((1, 2)) != 0).nonzero().flatten()
    if len(origins):
        rows = gradient[origins]
        exponent = torch.zeros(rows.shape[:2], dtype=torch.int64, device=rows.device)
        stream(lin, rows, exponent, origins.cpu(), [sums])
    return sums.total()


def _external(
    lin: Linearization, reference: dict[str, torch.Tensor], asked: Asked
) -> tuple[float | None, np.ndarray | None]:
    """The share of G that came round outside the layer, and the same by lag (T,)."""
    if lin.trace.external is None:
        return None, None
    made = _terms(lin, lin.trace.external)
    inner = sum(float((made[name].double() * whole.double()).sum()) for name, whole in reference.items())
    size = sum(float(whole.double().square().sum()) for whole in reference.values())
    shares = Ledger(outside(lin), reference, bias="horizon", levels=())
    sweep(shares.linearization, [shares], asked.tolerance, asked.max_lag)
    return (inner / size if size else float("nan")), shares.share()


def outside(lin: Linearization) -> Linearization:
    """The same layer, with that part of the gradient alone that came round outside it."""
    assert lin.trace.external is not None
    return Linearization(replace(lin.trace, gradient=lin.trace.external), lin.derivative)
