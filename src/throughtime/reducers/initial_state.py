"""What reaches the initial state, by lag: the origin t (from 1) stands there at lag t."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from throughtime.flow import Terms
from throughtime.linearize import Linearization
from throughtime.reducers.reducer import Reducer
from throughtime.scaled import DEAD, Scaled, power_of_two, scaled_of, tensor_of


class InitialState(Reducer):
    """Share and norm of λ[t, 0] by lag for every carry; index i of its arrays is lag i + 1."""

    def __init__(self, linearization: Linearization) -> None:
        super().__init__(linearization)
        self.batch = linearization.trace.batch
        self.told: dict[int, tuple[Tensor, Tensor]] = {}
        self.rest: tuple[Tensor, Tensor] | None = None

    def initial(self, lag: int | None, adjoint: Tensor, exponent: Tensor) -> None:
        kept = adjoint.clone(), exponent.clone()  # what comes is a view of the rows of all origins
        if lag is None:
            self.rest = kept
        else:
            self.told[lag] = kept

    def join(self, one: InitialState, other: InitialState) -> None:
        def beside(a: tuple[Tensor, Tensor] | None, b: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
            if a is None and b is None:
                return None
            rows, powers = zip(a or one._nothing(), b or other._nothing(), strict=True)
            return torch.cat(rows), torch.cat(powers)

        self.batch = one.batch + other.batch
        both = {lag: beside(one.told.get(lag), other.told.get(lag)) for lag in sorted({*one.told, *other.told})}
        self.told = {lag: rows for lag, rows in both.items() if rows is not None}
        self.rest = beside(one.rest, other.rest)

    def _nothing(self) -> tuple[Tensor, Tensor]:
        """What reaches the initial states of sequences in which no gradient enters."""
        carries = self.linearization.trace.carries
        return carries.new_zeros(self.batch, carries.shape[-1]), torch.full((self.batch,), DEAD, device=carries.device)

    def told_sums(self, given: Tensor | None) -> dict[str, Scaled | Tensor]:
        """What adds up over sequences.

        told: (T,) batches in which an origin stood there. By state and lag (S, T): inner ⟨λ[t, 0], total⟩, norms ‖λ[t, 0]‖².
        By state (S,): square ‖total‖², off ‖total − given‖², truth ‖given‖²; NaN without `given` (B, S·H).
        """
        trace = self.linearization.trace
        split, count = trace.cell.split, len(trace.cell.states)
        values = {lag: _value(*rows) for lag, rows in self.told.items()}
        rest = _value(*(self.rest or self._nothing()))
        total = split(torch.stack([*values.values(), rest]).sum(0))
        told, inner = torch.zeros(trace.steps), torch.zeros(count, trace.steps, dtype=torch.float64)
        norms = Scaled.zeros(count, trace.steps)
        for lag, (adjoint, power) in self.told.items():
            told[lag - 1] = 1
            top = power.max()
            aligned = split(adjoint.double() * power_of_two(power - top).unsqueeze(-1))
            norms.add_at(
                torch.tensor([lag - 1]), torch.stack([part.square().sum() for part in aligned])[:, None], 2 * top[None]
            )
            for place, (part, whole) in enumerate(zip(split(values[lag]), total, strict=True)):
                inner[place, lag - 1] = float((part * whole).sum())
        off = truth = [torch.tensor(torch.nan)] * count
        if given is not None:
            wanted = [part.double() for part in split(given)]
            off = [(part - want).square().sum() for part, want in zip(total, wanted, strict=True)]
            truth = [want.square().sum() for want in wanted]
        square = [part.square().sum() for part in total]
        each = {"square": square, "off": off, "truth": truth}
        return {"told": told, "inner": inner, "norms": norms} | {
            name: torch.stack(parts).double().cpu() for name, parts in each.items()
        }

    def finish(self, given: Tensor | None, tail_from: int | None) -> tuple[dict[str, Terms], float]:
        """Terms by state ("h_0", "c_0") and the largest residual against `given` (B, S·H), NaN without one."""
        trace = self.linearization.trace
        return finished(self.told_sums(given), [f"{trace.name}.{state}_0" for state in trace.cell.states])


def finished(sums: Mapping[str, Scaled | Tensor], names: list[str]) -> tuple[dict[str, Terms], float]:
    """The result, from `InitialState.told_sums`."""
    inner, norms = tensor_of(sums, "inner"), scaled_of(sums, "norms")
    told = np.asarray(sums["told"]) > 0
    square, off, truth = (np.asarray(sums[name]) for name in ("square", "off", "truth"))
    log10, terms, residuals = 0.5 * norms.log10(), {}, []
    for place, name in enumerate(names):
        of_lag = inner[place].numpy()
        share = np.where(of_lag != 0, of_lag / (square[place] or 1.0), 0.0)
        size = np.sqrt(truth[place])
        residual = float(np.sqrt(off[place]))
        residual = residual if residual == 0 or np.isnan(residual) else residual / size if size else float("inf")
        residuals.append(residual)
        terms[name] = Terms(
            name, None, np.where(told, share, np.nan), np.where(told, log10[place], np.nan), float(residual)
        )
    known = [value for value in residuals if not np.isnan(value)]
    return terms, float(max(known, default=float("nan")))


def _value(adjoint: Tensor, exponent: Tensor) -> Tensor:
    return adjoint.double() * power_of_two(exponent).unsqueeze(-1)
