"""From traces to a flow: the sweep with its reducers, then everything that is read from the trace alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch

from throughtime import __version__
from throughtime import units as unit_analysis
from throughtime.demand import Method, measure
from throughtime.errors import InputError, ResidualError
from throughtime.flow import Adjoint, Flow, Horizon, LayerFlow, Missing, Sequence, Tail
from throughtime.linearize import Linearization
from throughtime.reducers.adjoints import Adjoints
from throughtime.reducers.hops import Hops
from throughtime.reducers.initial_state import InitialState
from throughtime.reducers.ledger import Ledger
from throughtime.reducers.origin_step import OriginSteps
from throughtime.reducers.paths import Paths
from throughtime.reducers.signal_to_noise import SignalToNoise
from throughtime.series import Series
from throughtime.sweep import stream, sweep
from throughtime.total import COST, cost, total_of
from throughtime.trace import Trace

CONTRACT = {torch.float64: 1e-10, torch.float32: 1e-4}  # of the error; lower precisions: 2e-2
LOW_PRECISION = 2e-2
LEVELS = (0.1, 0.01, 0.001)


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
    total: bool | None = None,
    series: Iterable[Series] = (),
    progress: Callable[[int, int, str], None] | None = None,
) -> Flow:
    """The flow of these traces.

    tolerance, max_lag: when the tail begins, see `throughtime.sweep.sweep`. bias: "all", or "horizon" for only those K near
    which the bias crosses 10, 1 or .1 %. hops, signal_to_noise, demand, origin_step: left out when False. demand_method:
    "covariance" or "distance", see docs/demand.md. derivative: "closed", or "autograd" through the cell's equations. strict:
    raise ResidualError above the contract (1e-10 in float64, 1e-4 in float32, 2e-2 below). total: whether the total lag is
    told where it takes a stream of every origin through every layer (`throughtime.series`); by default where this takes less
    than `throughtime.total.COST`. series: what these are, of each batch. progress(done, of, layer).
    """
    asked = _Asked(
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
    layers: dict[str, LayerFlow] = {}
    missing = [Missing(f"layers.{name}", "a gradient of exactly zero reached it") for name in sorted(silent)]
    wholes: dict[str, list[Series]] = {}
    for each in series if total is not False else ():
        wholes.setdefault(each.name, []).append(each)
    for name, batches in wholes.items():
        needs = cost(batches)
        if total is None and needs > COST:
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
            if strict and layer.error > CONTRACT.get(batches[0].parts[0].trace.dtype, LOW_PRECISION):
                raise _missed(layer, batches[0].parts[0].trace.dtype)
            layers[layer.name] = layer
        reached = [replace(trace, inner=True) if trace.module == name else trace for trace in reached]
    for trace in reached:

        def tell(done: int, of: int, name: str = trace.name) -> None:
            if progress:
                progress(done, of, name)

        with torch.no_grad(), torch.autocast(trace.x.device.type, enabled=False):
            layer = _layer(trace, asked, tell)
        if strict and layer.error > CONTRACT.get(trace.dtype, LOW_PRECISION):
            raise _missed(layer, trace.dtype)
        layers[trace.name] = layer
    return Flow(layers=layers, throughtime=__version__, torch=torch.__version__, missing=tuple(missing))


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
    series: list[Series], traces: list[Trace], asked: _Asked, progress: Callable[[int, int], None]
) -> list[LayerFlow]:
    """The flows of a whole; the gradients that it explains are those of all batches, which stand in the traces."""
    by_name = {trace.name: trace for trace in traces}
    own = [by_name[part.trace.name] for part in series[0].parts]
    references = [_reference(Linearization(trace, asked.derivative)) for trace in own]
    given = [trace.weight_gradients for trace in own]
    return [
        replace(layer, bare=own[0].bare)
        for layer in total_of(series, references, given, LEVELS, asked.demand, progress)
    ]


@dataclass(frozen=True)
class _Asked:
    """The options of `explain`; demand: the method, or None."""

    tolerance: float
    max_lag: int | None
    bias: str
    hops: bool
    signal_to_noise: bool
    demand: Method | None
    origin_step: bool
    derivative: str


def _layer(trace: Trace, asked: _Asked, progress: Callable[[int, int], None]) -> LayerFlow:
    """One sweep with all reducers that are needed, then what is read from the trace alone."""
    origins = trace.origins()
    lin = Linearization(trace, asked.derivative)
    reference, own = _reference(lin)
    ledger, adjoints, paths = Ledger(lin, reference, asked.bias, LEVELS), Adjoints(lin), Paths(lin)
    initial = InitialState(lin)
    noise = SignalToNoise(lin) if asked.signal_to_noise else None
    hops = Hops(lin) if asked.hops and trace.cell.diagonal else None
    places = OriginSteps(lin) if asked.origin_step else None
    used = [each for each in (ledger, adjoints, paths, initial, noise, hops, places) if each is not None]
    first = sweep(lin, used, asked.tolerance, asked.max_lag, progress)

    parameters, residual, error = ledger.terms(trace.weight_gradients, first)
    states, state_residual = initial.finish(trace.initial_gradient, first)
    tail = None
    if first is not None:
        size, by_hand = ledger.tail_norm, first - 1 == asked.max_lag
        log10 = float(np.log10(size)) if size else -np.inf
        tail = Tail(first, ledger.tail_share, log10, None if by_hand else asked.tolerance)
    demand = None
    if asked.demand is not None and not trace.inner:
        source = trace.x if trace.source is None else trace.source
        demand = measure(trace.at_output, source, method=asked.demand, lengths=trace.ends())
    horizon, cancellation = ledger.horizon(), ledger.cancellation()
    external, external_by_lag = _external(lin, reference, asked)
    adjoint = adjoints.finish()
    missing = _left_out(trace, asked)
    if own:
        missing.append(Missing("share" if trace.weight_gradients else "residual", own))
    if tail is not None:
        missing.append(Missing("lists", f"from lag {first} on beyond the tolerance: swept as one stream, exact in sum"))
        if tail.tolerance is None:
            missing.append(Missing("tail.tolerance", "lags were told apart up to max_lag, whatever was left"))
    for level, value in horizon.items():
        if value is None:
            why = f"the bias stays above {level:g} as far as lags are told apart"
            missing.append(Missing(f"horizon.{level:g}", why if cancellation else "the gradient is zero"))
    if demand is not None and demand.missing:
        missing.append(Missing("demand", demand.missing))
    return LayerFlow(
        name=trace.name,
        cell=trace.cell.name,
        convention=trace.cell.convention,
        steps=trace.steps,
        batch=trace.batch,
        hidden_size=trace.hidden_size,
        input_size=trace.x.shape[-1],
        dtype=str(trace.dtype).removeprefix("torch."),
        lag=trace.lag,
        loss_steps=tuple(origins),
        residual=float(np.fmax(residual, state_residual)),
        error=error,
        cancellation=cancellation,
        share=ledger.share(),
        adjoint=adjoint,
        parameters=parameters,
        initial_state=states,
        demand=demand,
        paths=paths.finish(),
        hops=hops.finish() if hops else None,
        signal_to_noise=noise.finish(ledger.norms) if noise else np.full(trace.steps, np.nan),
        bias=ledger.bias(),
        cosine=ledger.cosine(),
        horizon=Horizon(horizon),
        units=() if trace.cell.compound else unit_analysis.units(lin, adjoints.units()),
        gates=unit_analysis.gates(lin),
        tail=tail,
        origin_step=places.finish() if places else None,
        missing=tuple(missing),
        entering=trace.entering().numpy(),
        bare=trace.bare,
        sequence=None if trace.cell.compound or trace.noise is not None else _sequence(trace, adjoint),
        reverse=trace.reverse,
        inner=trace.inner,
        module=trace.module or trace.name,
        external=external,
        external_by_lag=external_by_lag,
        weights={} if trace.cell.compound else _weights(trace),
    )


def _weights(trace: Trace) -> dict[str, np.ndarray]:
    return {trace.names.get(name, name): value.cpu().numpy() for name, value in trace.weights.tensors().items()}


def _sequence(trace: Trace, adjoint: Adjoint) -> Sequence:
    """The first sequence with a loss."""
    index = int(np.isfinite(adjoint.by_sequence[0]).argmax())

    def kept(value: torch.Tensor) -> np.ndarray:
        return value.double().cpu().numpy().copy()

    others = trace.gradient[:, index, trace.at_output.shape[-1] :]
    return Sequence(
        index=index,
        inputs=kept(trace.x[:, index]),
        initial=kept(trace.carries[0, index]),
        gradient=kept(trace.at_output[:, index]),
        cell_gradient=None if not len(others) or not others[-1].any() else kept(others[-1]),
        log10_norm=adjoint.by_sequence[:, index].copy(),
        log10_arriving_total=adjoint.arriving_by_sequence[:, index].copy(),
    )


def _left_out(trace: Trace, asked: _Asked) -> list[Missing]:
    """What was not asked for, or does not exist for this cell or batch."""
    carry, gate = trace.cell.diagonal, trace.cell.keep is not None
    around = "the old state goes past the cell too" if gate else "the cell has no carry port"
    parts = "told for each layer of the stack" if trace.cell.compound else ""
    reasons = {
        "signal_to_noise": "not asked for" if not asked.signal_to_noise else "",
        "hops": around if not carry else "not asked for" if not asked.hops else "",
        "bias": "told only where it crosses a level of the horizon" if asked.bias != "all" else "",
        "cosine": "told where the bias is" if asked.bias != "all" else "",
        "units.timescale": "" if carry or gate else "the cell has no gate on its carry",
        "demand": "not asked for" if asked.demand is None else "told for the whole stack" if trace.inner else "",
        "gates": parts,
        "units": parts,
    }
    if asked.signal_to_noise and trace.batch == 1:
        reasons["signal_to_noise"] = "one sequence has no variance over sequences"
    return [Missing(field, reason) for field, reason in reasons.items() if reason]


def _reference(lin: Linearization) -> tuple[dict[str, torch.Tensor], str]:
    """G by parameter, and, where it is not autograd's, why: the terms' own sum stands in, made by one plain sweep."""
    trace = lin.trace
    lacking = sorted(set(trace.weights.tensors()) - set(trace.weight_gradients))
    low = trace.dtype not in CONTRACT
    if not lacking and not low:
        return dict(trace.weight_gradients), ""
    totals = _terms(lin, trace.gradient)
    if low:
        kind = str(trace.dtype).removeprefix("torch.")
        return totals, f"shares and bias are of the terms' own sum: autograd's is in {kind}"
    why = f"autograd gave no gradient of {', '.join(lacking)} (frozen): the terms' own sum is used"
    return totals | dict(trace.weight_gradients), why


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
    lin: Linearization, reference: dict[str, torch.Tensor], asked: _Asked
) -> tuple[float | None, np.ndarray | None]:
    """The share of G that came round outside the layer, and the same by lag (T,)."""
    if lin.trace.external is None:
        return None, None
    made = _terms(lin, lin.trace.external)
    inner = sum(float((made[name].double() * whole.double()).sum()) for name, whole in reference.items())
    size = sum(float(whole.double().square().sum()) for whole in reference.values())
    apart = Linearization(replace(lin.trace, gradient=lin.trace.external), lin.derivative)
    shares = Ledger(apart, reference, bias="horizon", levels=())
    sweep(apart, [shares], asked.tolerance, asked.max_lag)
    return (inner / size if size else float("nan")), shares.share()
