"""What reaches the initial state, by lag: the origin t (from 1) stands there at lag t."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from throughtime.flow import Terms
from throughtime.linearize import Linearization
from throughtime.reducers.reducer import Reducer
from throughtime.scaled import DEAD, power_of_two


class InitialState(Reducer):
    """Share and norm of λ[t, 0] by lag for every carry; index i of its arrays is lag i + 1."""

    def __init__(self, linearization: Linearization) -> None:
        super().__init__(linearization)
        self.batch = linearization.trace.batch
        self.told: dict[int, tuple[Tensor, Tensor]] = {}
        self.rest: tuple[Tensor, Tensor] | None = None

    def initial(self, lag: int | None, adjoint: Tensor, exponent: Tensor) -> None:
        if lag is None:
            self.rest = (adjoint, exponent)
        else:
            self.told[lag] = (adjoint, exponent)

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

    def finish(self, given: Tensor | None, tail_from: int | None) -> tuple[dict[str, Terms], float]:
        """Terms by state ("h_0", "c_0") and the largest residual against `given` (B, S·H), NaN without one."""
        trace = self.linearization.trace
        parts = [*self.told.values(), self.rest or self._nothing()]
        values = {
            lag: adjoint.double() * power_of_two(power).unsqueeze(-1) for lag, (adjoint, power) in self.told.items()
        }
        whole = torch.stack([a.double() * power_of_two(e).unsqueeze(-1) for a, e in parts]).sum(0)
        terms, residuals = {}, []
        split = trace.cell.split
        for place, state in enumerate(trace.cell.states):
            name = f"{trace.name}.{state}_0"
            total = split(whole)[place]
            share, norm = np.full(trace.steps, np.nan), np.full(trace.steps, np.nan)
            for lag, value in values.items():
                adjoint, power = self.told[lag]
                part = split(adjoint)[place].double()
                inner = float((split(value)[place] * total).sum())
                share[lag - 1] = inner / float(total.square().sum()) if inner else 0.0
                top = int(power.max())
                size = float((part * power_of_two(power - top).unsqueeze(-1)).norm())
                norm[lag - 1] = np.log10(size) + top * np.log10(2) if size else -np.inf
            residual = float("nan")
            if given is not None:
                truth = split(given)[place].double()
                off, size = float((total - truth).norm()), float(truth.norm())
                residual = 0.0 if off == 0 else off / size if size else float("inf")
                residuals.append(residual)
            terms[name] = Terms(name, None, share, norm, residual)
        return terms, max(residuals, default=float("nan"))
