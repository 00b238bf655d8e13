"""Batches one by one: each becomes sums (`throughtime.streaming.sums`), which merge in any order and finish into a flow.

The flow is that of all batches joined into one (`throughtime.trace.joined`), in memory that does not grow with their number.
The terms G(τ) are kept by lag up to where the first batch's tail begins: 8 bytes a weight and lag, up to four times (the whole,
and blocks of batches for the intervals), and never more than `MEMORY` for a layer, nor half of `memory` for all. Whatever
lies beyond stays exact in sum, as the tail; `max_lag` sets the border by hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from throughtime import __version__
from throughtime.asked import Asked
from throughtime.books import Books, of_terms
from throughtime.budget import spare
from throughtime.collect import LEVELS, collect, reducers, settle_at_once
from throughtime.errors import InputError
from throughtime.explain import check_residual, linearized, outside
from throughtime.finish import finish, intervals_of
from throughtime.flow import Flow, Intervals, LayerFlow, Missing
from throughtime.linearize import Linearization
from throughtime.reducers.lag_terms import LagTerms, rows_of
from throughtime.scaled import least
from throughtime.streaming.intervals import SURE
from throughtime.streaming.sums import SEQUENCES, LayerSums
from throughtime.sweep import sweep
from throughtime.trace import Trace

MEMORY = 2**31  # bytes that the terms of a layer may take
BYTES = 32  # a weight and lag


def borders(traces: Sequence[Trace], asked: Asked, look: bool = True) -> dict[str, tuple[int, bool]]:
    """The `border` of each layer of a batch; of a budget each has the same part."""
    allowed = MEMORY
    if asked.budget is not None and traces:  # beside the least of the layer that needs most
        left = min(spare(Linearization(trace, asked.derivative), asked, asked.budget) for trace in traces)
        allowed = min(MEMORY, min(asked.budget // 2, left) // len(traces))
    return {trace.name: border(trace, asked, look, allowed) for trace in traces}


def border(trace: Trace, asked: Asked, look: bool = True, allowed: int | None = None) -> tuple[int, bool]:
    """How many lags to tell apart in all batches, and whether `max_lag` or memory says so: else this trace's tail does.

    look: at the tail; without it only `max_lag` and memory count. allowed: bytes that the terms may take, `MEMORY` without it.
    """
    if asked.max_lag is not None:
        return asked.max_lag + 1, True
    most = max(1, (MEMORY if allowed is None else allowed) // terms_of(trace, 1))
    first = None
    if look and len(trace.origins()) > 1:  # one origin alone has no tail
        with torch.no_grad(), torch.autocast(trace.x.device.type, enabled=False):
            first = sweep(linearized(trace, asked), [], asked.tolerance)
    return (first, False) if first is not None and first <= most else (most, True)


def terms_of(trace: Trace, told: int) -> int:
    """Bytes that the terms of so many lags take."""
    return BYTES * sum(row.size for row in rows_of(Linearization(trace))) * min(told, trace.steps)


def accumulate(
    trace: Trace, batch: int, asked: Asked, told: int, by_hand: bool = True, copies: int = 1, others: int = 0
) -> LayerSums:
    """The sums of one batch. batch: its number, by which sums that are merged are told apart; told: lags told apart, the same
    in all sums that are merged. copies: of each sequence in the trace, one after another, as probes make them. others: bytes
    that the terms of other layers take."""
    with torch.no_grad(), torch.autocast(trace.x.device.type, enabled=False):
        lin = linearized(trace, asked, terms_of(trace, told) + others)
        used, terms = reducers(lin, asked), LagTerms(lin, told)
        settle_at_once(lin, [terms])
        sweep(lin, [*used.all, terms], 0, told - 1)
        sums = collect(lin, used, asked, told, by_hand, batch, copies)
        if trace.external is not None:
            round_outside = LagTerms(outside(lin), told)
            sweep(round_outside.linearization, [round_outside], 0, told - 1)
            sums.sums.update({f"external.{name}": value for name, value in round_outside.sums.items()})
    sums.sums["tail.sizes"] = terms.tensor("tail_sizes")
    return replace(
        sums,
        terms=terms.scaled("terms"),
        tail=terms.scaled("tail"),
        sample=sums.sample.bounded(SEQUENCES),
        gates={name: gate.bounded() for name, gate in sums.gates.items()},
    )


def flow_of(layers: Mapping[str, LayerSums], asked: Asked) -> Flow:
    """The flow of what was added up. Layers into which no gradient entered are missing.

    Raises InputError where that is all of them, ResidualError above the contract.
    """
    reached = {name: sums for name, sums in layers.items() if sums.origins}
    if not reached:
        raise InputError(
            f"a gradient of exactly zero at the output of layer '{next(iter(layers))}'",
            "a loss that changes with the layer's output",
            "check for a saturated or masked loss, or a detach between layer and loss",
        )
    told = {name: _layer(sums, asked) for name, sums in reached.items()}
    if asked.strict:
        for layer in told.values():
            check_residual(layer)
    silent = sorted(set(layers) - set(reached))
    missing = tuple(Missing(f"layers.{name}", "a gradient of exactly zero reached it") for name in silent)
    return Flow(layers=told, throughtime=__version__, torch=torch.__version__, missing=missing)


def horizon_of(sums: LayerSums) -> tuple[Intervals | None, Intervals | None, dict[float, int | None]]:
    """The intervals so far at `LEVEL` and at `SURE`, and the gradient horizon; nothing where no gradient has come in."""
    if not sums.origins:
        return None, None, {}
    books = _books(sums)
    return intervals_of(sums, books), intervals_of(sums, books, SURE), dict(books.horizon)


def _layer(sums: LayerSums, asked: Asked) -> LayerFlow:
    reach = sums.origins[-1] + 1
    return finish(sums, _books(sums), asked, sums.told if sums.told < reach else None)


def _books(sums: LayerSums) -> Books:
    assert sums.terms is not None
    assert sums.tail is not None
    return of_terms(
        sums.about.rows,
        sums.terms,
        sums.tail,
        float(sums.tensor("tail.sizes")),
        sums.tensor("given"),
        sums.lacking,
        sums.about.low,
        least(getattr(torch, sums.about.dtype)),
        sums.origins[-1] + 1,
        sums.steps,
        sums.told,
        LEVELS,
        outside=(sums.scaled("external.terms"), sums.scaled("external.tail"))
        if "external.terms" in sums.sums
        else None,
    )
