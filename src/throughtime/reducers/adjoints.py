"""The size of the adjoints by lag: over all pairs (t, b), by state, by sequence and by unit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch

from throughtime.block import Block
from throughtime.flow import Adjoint
from throughtime.linearize import Linearization
from throughtime.reducers.reducer import Reducer
from throughtime.scaled import Scaled, exponent_of, power_of_two, scaled_of, tensor_of
from throughtime.trace import PORTION, slices


def loss_pairs(linearization: Linearization) -> torch.Tensor:
    """(T, B) bool: the pairs (t, b) at which a gradient enters."""
    return linearization.trace.pairs.cpu()


class Adjoints(Reducer):
    """Root mean squares of λ[t, t − τ]; the mean is over the pairs with g ≠ 0 and t > τ (t counted from 1)."""

    def __init__(self, linearization: Linearization) -> None:
        super().__init__(linearization)
        trace = linearization.trace
        self.states = list(trace.cell.states) if len(trace.cell.states) > 1 else []
        # By sequence and lag, each with its own exponent: a sequence may lie 1e-200 below its neighbour.
        self.place = trace.steps * torch.arange(trace.batch)
        self.sequences, self.totals = (Scaled.zeros(trace.batch * trace.steps) for _ in range(2))  # Σ‖λ‖², of the total
        self.unit = exponent_of([trace.gradient])
        self.entered = torch.zeros(trace.batch, trace.steps, dtype=torch.float64)  # by origin: at lag 0, times 4^unit
        pairs = loss_pairs(linearization)
        self.sequence_pairs = pairs.flip(0).cumsum(0).flip(0)
        self.sums = {
            "squares": Scaled.zeros(trace.steps),
            "states": Scaled.zeros(len(self.states) + 1, trace.steps),
            "units": Scaled.zeros(trace.hidden_size, trace.steps),
            "total": Scaled.zeros(trace.steps),
            "pairs": self.sequence_pairs.sum(1),
        }

    def update(self, block: Block) -> None:
        assert block.lags is not None
        # In float64: one unit or state may lie so far below its neighbour that its square leaves float32.
        squares = block.total.double().square()
        units = squares.sum((1, 2)).T
        self.add("units", block, units)
        totals = (squares if block.apart is block.total else block.apart.double().square()).sum(-1)
        own = block.apart is block.adjoint
        rows = totals if own else torch.linalg.vector_norm(block.adjoint, dim=-1).double().square()
        if block.aligned is block.adjoint:  # all rows have the exponent of their lag
            top = block.common[:, None].expand(-1, rows.shape[2])
            by_sequence, totals_by_sequence = rows.sum(1), totals.sum(1)
            self.add("squares", block, by_sequence.sum(1))
        else:
            top = block.exponent.amax(1)  # (L, B)
            lift = power_of_two(2 * (block.exponent - top[:, None]))
            by_sequence, totals_by_sequence = (rows * lift).sum(1), (totals * lift).sum(1)
            self.add("squares", block, (by_sequence * power_of_two(2 * (top - block.common[:, None]))).sum(1))
        index, exponent = (block.lags[:, None] + self.place[block.sequences]).flatten(), 2 * top.flatten()
        self.sequences.add_at(index, by_sequence.flatten(), exponent)
        self.totals.add_at(index, totals_by_sequence.flatten(), exponent)
        self.add("total", block, units.sum(0))
        for place in (block.lags == 0).nonzero().flatten().tolist():
            at_origin = totals[place] * power_of_two(2 * (block.exponent[place] - self.unit))
            self.entered[block.sequences, block.origins] += at_origin.T.detach().cpu()
        if self.states:
            parts = [part.double().square().sum((1, 2, 3)) for part in block.linearization.cell.split(block.aligned)]
            self.add("states", block, torch.stack([*parts, units.sum(0)]))

    def join(self, one: Adjoints, other: Adjoints) -> None:
        for name in ("sequences", "totals"):
            parts = getattr(one, name), getattr(other, name)
            beside = Scaled(*(torch.cat([getattr(part, kind) for part in parts]) for kind in ("mantissa", "exponent")))
            setattr(self, name, beside)
        self.unit = max(one.unit, other.unit)
        self.entered = torch.cat([each.entered * 4.0 ** (each.unit - self.unit) for each in (one, other)])
        self.sequence_pairs = torch.cat((one.sequence_pairs, other.sequence_pairs), dim=1)

    def told(self) -> dict[str, Scaled | torch.Tensor]:
        """What adds up over batches: the sums, and by lag what entered (T,) at the pairs that reach back so far."""
        entered = from_lag(self.entered).sum(0)
        return self.sums | {"entered": Scaled(entered, torch.full(entered.shape, 2 * self.unit))}

    def by_sequence(self) -> tuple[np.ndarray, np.ndarray]:
        """(lag, sequence): `by_sequence` and `arriving_by_sequence` of `throughtime.flow.Adjoint`."""
        pairs = _log10(self.sequence_pairs.double().numpy())
        entered = _log10(from_lag(self.entered).T.numpy()) + 2 * self.unit * np.log10(2)
        squares, totals = (part.log10().reshape(pairs.shape[::-1]).T for part in (self.sequences, self.totals))
        return 0.5 * (squares - pairs), 0.5 * (totals - entered)

    def finish(self) -> Adjoint:
        """See `throughtime.flow.Adjoint`."""
        return finished(self.told(), self.states, *self.by_sequence())

    def units(self) -> np.ndarray:
        """(H, T): log10 of the root mean square of |λ_j| by lag, told on the total adjoint."""
        return np.concatenate(list(of_units(self.sums)))


def finished(
    sums: Mapping[str, Scaled | torch.Tensor], states: list[str], by_sequence: np.ndarray, arriving: np.ndarray
) -> Adjoint:
    """The result, from `Adjoints.told`."""
    count, by_state = _count(sums), scaled_of(sums, "states").log10()
    entered = scaled_of(sums, "entered")
    with np.errstate(invalid="ignore"):  # where nothing entered
        arriving_total = 0.5 * (scaled_of(sums, "total").log10() - entered.log10())
    return Adjoint(
        log10_norm=0.5 * (scaled_of(sums, "squares").log10() - count),
        by_state={name: 0.5 * (by_state[place] - count) for place, name in enumerate([*states, "d"] if states else [])},
        by_sequence=by_sequence,
        log10_arriving_total=arriving_total,
        arriving_by_sequence=arriving,
    )


def of_units(sums: Mapping[str, Scaled | torch.Tensor]) -> Iterator[np.ndarray]:
    """`Adjoints.units`, from its sums, some units at a time."""
    of, count = scaled_of(sums, "units"), _count(sums)
    size, steps = of.mantissa.shape
    for at in slices(size, PORTION // steps):
        yield 0.5 * (of.rows(at).log10() - count)


def _count(sums: Mapping[str, Scaled | torch.Tensor]) -> np.ndarray:
    pairs = tensor_of(sums, "pairs")
    return _log10(pairs.double().numpy())


def from_lag(by_origin: torch.Tensor) -> torch.Tensor:
    """(…, T) by origin to the sum over the origins that reach back to each lag."""
    return by_origin.flip(-1).cumsum(-1).flip(-1)


def _log10(value: np.ndarray) -> np.ndarray:
    """log10 with NaN for 0: a lag that no pair reaches has no mean."""
    return np.log10(np.where(value > 0, value, np.nan))
