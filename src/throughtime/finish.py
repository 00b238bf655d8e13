"""From a layer's sums to its flow."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from throughtime import units
from throughtime.asked import Asked
from throughtime.books import Books
from throughtime.budget import chunk
from throughtime.collect import own_sum
from throughtime.demand import Demand, measure
from throughtime.flow import Adjoint, Horizon, Intervals, LayerFlow, Missing, Sequence, Tail
from throughtime.lagged import at_once
from throughtime.reducers import adjoints, initial_state
from throughtime.reducers.hops import Hops
from throughtime.reducers.paths import Paths
from throughtime.reducers.signal_to_noise import SignalToNoise
from throughtime.scaled import is_small, least
from throughtime.streaming.intervals import LEVEL, intervals
from throughtime.streaming.sums import LayerSums


def finish(sums: LayerSums, books: Books, asked: Asked, tail_from: int | None) -> LayerFlow:
    """The flow of a layer. tail_from: the first lag that was not told apart, None where all were."""
    about, sample, steps = sums.about, sums.sample, sums.steps
    adjoint = adjoints.finished(
        sums.part("adjoints"),
        about.states if len(about.states) > 1 else [],
        sample.by_sequence.numpy(),
        sample.arriving.numpy(),
    )
    states, state_residual = initial_state.finished(
        sums.part("initial"), [f"{about.name}.{state}_0" for state in about.states], least(getattr(torch, about.dtype))
    )
    demand = None
    if asked.demand and not about.inner:
        demand = _demand(sums, asked)
    entering = _entering(sums)
    tail = None if tail_from is None else _tail(sums, books, adjoint, tail_from, asked)
    noise = (
        SignalToNoise.of(sums.part("noise")).finish(books.norms) if asked.signal_to_noise else np.full(steps, np.nan)
    )
    layer = LayerFlow(
        name=about.name,
        cell=about.cell,
        convention=about.convention,
        steps=steps,
        batch=sums.sequences,
        hidden_size=about.hidden_size,
        input_size=about.input_size,
        dtype=about.dtype,
        lag=about.lag,
        loss_steps=tuple(sums.origins),
        residual=float(np.fmax(books.residual, state_residual)),
        error=books.error,
        cancellation=books.cancellation,
        share=books.share,
        adjoint=adjoint,
        parameters=books.parameters,
        initial_state=states,
        demand=demand,
        paths=Paths.of(sums.part("paths"), ports=about.ports).finish(),
        hops=Hops.of(sums.part("hops")).finish() if asked.hops and about.carry else None,
        signal_to_noise=noise,
        bias=books.bias,
        cosine=books.cosine,
        horizon=Horizon(books.horizon),
        units=()
        if about.compound
        else units.units(sums.part("units"), units.lives(adjoints.of_units(sums.part("adjoints"))), about.cutting),
        gates={name: gate.finish() for name, gate in sums.gates.items()},
        tail=tail,
        origin_step=sums.places.finish() if sums.places else None,
        missing=(),
        entering=entering,
        bare=about.bare,
        sequence=_sequence(sums),
        reverse=about.reverse,
        inner=about.inner,
        holds=about.holds,
        module=about.module,
        external=books.external,
        external_by_lag=books.external_by_lag,
        weights={} if about.compound else {name: value.numpy() for name, value in sums.weights.items()},
        batches=len(sums.batches),
        intervals=intervals_of(sums, books),
    )
    return replace(layer, missing=tuple(_missing(sums, layer, asked)))


def intervals_of(sums: LayerSums, books: Books, level: float = LEVEL) -> Intervals | None:
    """The intervals over batches; None where there are too few. level: how often they hold the truth."""
    if sums.blocks is None:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        log10_norm = 0.5 * (sums.scaled("adjoints.squares").log10() - np.log10(sums.tensor("adjoints.pairs").numpy()))
    return intervals(sums.blocks, books.bias, books.share, dict(books.horizon), log10_norm - _entering(sums), level)


def _entering(sums: LayerSums) -> np.ndarray:
    squares, pairs = sums.scaled("entering.squares"), sums.tensor("entering.pairs")
    with np.errstate(divide="ignore", invalid="ignore"):
        return 0.5 * (squares.log10() - np.log10(pairs.numpy()))


def _demand(sums: LayerSums, asked: Asked) -> Demand:
    sample = sums.sample
    assert sample.source is not None
    with at_once(chunk(asked.budget)):
        entering, ends = sample.entering(sums.steps), sample.ends(sums.steps)
        found = measure(entering, sample.source, method=asked.demand_method, lengths=ends)
    if len(sample.batch) == sums.sequences:
        return found
    note = f"of {len(sample.batch)} sequences drawn from {sums.sequences}"
    return replace(found, note=f"{found.note}; {note}" if found.note else note)


def _tail(sums: LayerSums, books: Books, adjoint: Adjoint, first: int, asked: Asked) -> Tail:
    log10 = float(np.log10(books.tail_norm)) if books.tail_norm else -np.inf
    tolerance = None if sums.by_hand else asked.tolerance
    if tolerance is not None and sums.terms is not None:
        # The first batch said where the tail begins. What the others still have there is told by their root mean square.
        there = adjoint.log10_norm[:first]
        left = float(10 ** (there[-1] - np.nanmax(there))) if np.isfinite(there[-1]) else 0.0
        tolerance = max(tolerance, left)
    return Tail(first, books.tail_share, log10, tolerance, books.tail_bound)


def _sequence(sums: LayerSums) -> Sequence | None:
    """The first with a loss, as long as the longest, its place counted over batches."""
    first, lacking = sums.first, 0
    if first is None:
        return None
    lacking = sums.steps - len(first.inputs)
    before = sum(count for batch, count in sums.batches.items() if batch < sums.first_batch)

    def longer(values: np.ndarray, beyond: float = 0.0) -> np.ndarray:
        return np.concatenate((values, np.full((lacking, *values.shape[1:]), beyond))) if lacking else values

    return replace(
        first,
        index=first.index + before,
        inputs=longer(first.inputs),
        gradient=longer(first.gradient),
        log10_norm=longer(first.log10_norm, np.nan),
        log10_arriving_total=longer(first.log10_arriving_total, np.nan),
    )


def _missing(sums: LayerSums, layer: LayerFlow, asked: Asked) -> list[Missing]:
    """What was not asked for, what does not exist for this cell or batch, and what was not told apart."""
    about, carry = sums.about, sums.about.carry
    around = "the old state goes past the cell too" if about.gate else "the cell has no carry port"
    parts = "told for each layer of the stack" if about.compound else ""
    reasons = {
        "signal_to_noise": "not asked for" if not asked.signal_to_noise else "",
        "hops": around if not carry else "not asked for" if not asked.hops else "",
        "bias": "told only where it crosses a level of the horizon" if asked.bias != "all" else "",
        "cosine": "told where the bias is" if asked.bias != "all" else "",
        "units.timescale": "" if carry or about.gate else "the cell has no gate on its carry",
        "demand": "not asked for" if not asked.demand else "told for the whole stack" if about.inner else "",
        "gates": parts,
        "units": parts,
    }
    if asked.signal_to_noise and sums.sequences == 1:
        reasons["signal_to_noise"] = "one sequence has no variance over sequences"
    missing = [Missing(field, reason) for field, reason in reasons.items() if reason]
    own = own_sum(about.dtype if about.low else "", sums.lacking)
    if is_small([sums.tensor("given")], least(getattr(torch, about.dtype))):
        own = f"shares and bias are of the terms' own sum: autograd's is so small that {about.dtype} rounds it coarsely"
    if own:
        every = len(sums.lacking) == len({row.parameter for row in about.rows})
        missing.append(Missing("residual" if every else "share", own))
    tail, demand = layer.tail, layer.demand
    if tail is not None:
        first = tail.first_lag
        missing.append(Missing("lists", f"from lag {first} on beyond the tolerance: swept as one stream, exact in sum"))
        if tail.tolerance is None:
            missing.append(Missing("tail.tolerance", "lags were told apart up to max_lag, whatever was left"))
    for level, value in layer.horizon.items():
        if value is None:
            why = f"the bias stays above {level:g} as far as lags are told apart"
            missing.append(Missing(f"horizon.{level:g}", why if layer.cancellation else "the gradient is zero"))
    if demand is not None and demand.missing:
        missing.append(Missing("demand", demand.missing))
    return missing
