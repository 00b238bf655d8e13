"""The sums of one trace: its sweep's reducers, then what is read from the trace alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from throughtime import gates, units
from throughtime.asked import Asked
from throughtime.flow import Sequence
from throughtime.linearize import Linearization
from throughtime.reducers.adjoints import Adjoints, from_lag, loss_pairs
from throughtime.reducers.hops import Hops
from throughtime.reducers.initial_state import InitialState
from throughtime.reducers.lag_terms import flat, rows_of
from throughtime.reducers.origin_step import OriginSteps
from throughtime.reducers.paths import Paths
from throughtime.reducers.reducer import Reducer
from throughtime.reducers.signal_to_noise import SignalToNoise
from throughtime.scaled import Scaled, exponent_of
from throughtime.streaming.sums import About, LayerSums, sample_of
from throughtime.trace import Trace

CONTRACT = {torch.float64: 1e-10, torch.float32: 1e-4}  # of the error; lower precisions: 2e-2
LOW_PRECISION = 2e-2
LEVELS = (0.1, 0.01, 0.001)


@dataclass
class Used:
    """The reducers of a sweep, without the ledger."""

    adjoints: Adjoints
    paths: Paths
    initial: InitialState
    noise: SignalToNoise | None
    hops: Hops | None
    places: OriginSteps | None
    all: list[Reducer] = field(default_factory=list)


def reducers(lin: Linearization, asked: Asked) -> Used:
    """Those that the options ask for and the cell has."""
    used = Used(
        adjoints=Adjoints(lin),
        paths=Paths(lin),
        initial=InitialState(lin),
        noise=SignalToNoise(lin) if asked.signal_to_noise else None,
        hops=Hops(lin) if asked.hops and lin.trace.cell.diagonal else None,
        places=OriginSteps(lin) if asked.origin_step else None,
    )
    each = (used.adjoints, used.paths, used.initial, used.noise, used.hops, used.places)
    used.all += [reducer for reducer in each if reducer is not None]
    settle_at_once(lin, used.all)
    return used


def settle_at_once(lin: Linearization, consumers: Iterable[Reducer]) -> None:
    """Within a budget: see `Reducer.settle_at_once`."""
    for consumer in consumers if lin.room is not None else ():
        consumer.settle_at_once()


def collect(
    lin: Linearization,
    used: Used,
    asked: Asked,
    told: int,
    by_hand: bool,
    batch: int = 0,
    copies: int = 1,
) -> LayerSums:
    """The sums of a swept trace. told: lags told apart; by_hand: whether that was asked for. batch: its number.
    copies: see `throughtime.streaming.accumulate.accumulate`.
    """
    trace, cell = lin.trace, lin.trace.cell
    by_sequence, arriving = used.adjoints.by_sequence()
    if copies > 1:
        by_sequence, arriving = _over_copies(by_sequence, copies), np.full((trace.steps, trace.batch // copies), np.nan)
    unit = exponent_of([trace.gradient])
    squares = trace.squares(unit).sum(1).cpu()
    sums: dict[str, Scaled | Tensor] = {
        "entering.squares": Scaled(from_lag(squares), torch.full(squares.shape, 2 * unit)),
        "entering.pairs": from_lag(loss_pairs(lin).sum(1)),
        "given": flat(lin, dict(trace.weight_gradients)),
    }
    parts: dict[str, Mapping[str, Scaled | Tensor]] = {
        "adjoints": used.adjoints.told(),
        "initial": used.initial.told_sums(trace.initial_gradient),
    }
    parts |= {
        name: each.sums for name, each in (("paths", used.paths), ("hops", used.hops), ("noise", used.noise)) if each
    }
    inside = None
    if trace.lengths is not None:
        inside = torch.arange(trace.steps)[:, None] < trace.lengths.cpu()
    if not cell.compound:
        parts["units"] = units.told(lin, inside)
    opened = gates.told(lin, inside)  # after the units: it takes the logits away
    sums |= {f"{part}.{name}": value for part, each in parts.items() for name, value in each.items()}
    origins = trace.origins()
    return LayerSums(
        about=_about(lin),
        weights={trace.names.get(n, n): value.detach().cpu() for n, value in trace.weights.tensors().items()},
        batches={batch: trace.batch // copies},
        steps=trace.steps,
        told=told,
        by_hand=by_hand,
        origins=origins,
        lacking=sorted(set(trace.weights.tensors()) - set(trace.weight_gradients)),
        sums=sums,
        terms=None,
        tail=None,
        sample=sample_of(trace, by_sequence, arriving, batch, asked.demand and not trace.inner),
        gates=opened,
        places=used.places.places() if used.places else None,
        first=_sequence(trace, by_sequence, arriving)
        if origins and not cell.compound and trace.noise is None
        else None,
        first_batch=batch,
        blocks=None,
    )


def own_sum(low: str, lacking: list[str]) -> str:
    """Why the reference is the terms' own sum; "" where it is autograd's. low: the dtype, where it is too coarse."""
    if low:
        return f"shares and bias are of the terms' own sum: autograd's is in {low}"
    if lacking:
        return f"autograd gave no gradient of {', '.join(lacking)} (frozen): the terms' own sum is used"
    return ""


def _over_copies(by_sequence: np.ndarray, copies: int) -> np.ndarray:
    """Root mean squares over the copies of each sequence, as log10: (T, copies · n) to (T, n)."""
    logs = by_sequence.reshape(len(by_sequence), copies, -1)
    top = np.max(np.where(np.isfinite(logs), logs, -np.inf), axis=1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return top[:, 0] + 0.5 * np.log10(np.mean(10.0 ** (2 * (logs - top)), axis=1))


def _about(lin: Linearization) -> About:
    trace, cell = lin.trace, lin.trace.cell
    return About(
        name=trace.name,
        cell=cell.name,
        convention=dict(cell.convention),
        hidden_size=trace.hidden_size,
        input_size=trace.x.shape[-1],
        dtype=str(trace.dtype).removeprefix("torch."),
        low=trace.dtype not in CONTRACT,
        lag=trace.lag,
        bare=trace.bare,
        reverse=trace.reverse,
        inner=trace.inner,
        module=trace.module or trace.name,
        ports=list(cell.ports),
        states=list(cell.states),
        carry=cell.diagonal,
        holds=cell.holds,
        gate=cell.keep is not None,
        compound=cell.compound,
        noise=trace.noise is not None,
        cutting=units.cutting_gate(cell),
        rows=rows_of(lin),
    )


def _sequence(trace: Trace, by_sequence: np.ndarray, arriving: np.ndarray) -> Sequence:
    """The first sequence with a loss."""
    index = int(np.isfinite(by_sequence[0]).argmax())

    def kept(value: Tensor) -> np.ndarray:
        return value.cpu().numpy().copy()

    others = trace.gradient[:, index, trace.at_output.shape[-1] :]
    return Sequence(
        index=index,
        inputs=kept(trace.x[:, index]),
        initial=kept(trace.carries[0, index]),
        gradient=kept(trace.at_output[:, index]),
        cell_gradient=None if not len(others) or not others[-1].any() else kept(others[-1]),
        log10_norm=by_sequence[:, index].copy(),
        log10_arriving_total=arriving[:, index].copy(),
    )
