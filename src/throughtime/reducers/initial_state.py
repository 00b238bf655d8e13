"""What reaches the initial state, by lag: the origin t (from 1) stands there at lag t."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from throughtime.flow import Terms
from throughtime.linearize import Linearization
from throughtime.reducers.reducer import Reducer
from throughtime.scaled import DEAD, Scaled, exponent_of, least, power_of_two, scaled_of
from throughtime.trace import PORTION, slices


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
        lags = torch.tensor(list(self.told), dtype=torch.int64) - 1
        kept = [*self.told.values(), self.rest or self._nothing()]
        size = PORTION // max(1, kept[0][0].numel())

        def rows(at: slice) -> tuple[Tensor, Tensor]:
            """Some lags, or the rest behind them: (lags, B, …) and powers (lags, B)."""
            each, powers = zip(*kept[at], strict=True)
            adjoints = torch.stack(each).double()
            return adjoints, torch.where(adjoints.abs().amax(-1) > 0, torch.stack(powers), DEAD)

        highest = max(int(rows(at)[1].max()) for at in slices(len(kept), size))
        # What is multiplied with each other is in units of the largest number: squares of 1e-200 leave float64.
        unit = max(highest, -2000, exponent_of([given]) if given is not None and given.any() else DEAD)

        def values(at: slice) -> tuple[Tensor, ...]:
            adjoints, power = rows(at)
            return split(adjoints * power_of_two(power - unit).unsqueeze(-1))

        total = [torch.zeros_like(part[0]) for part in values(slice(1))]
        for at in slices(len(kept), size):
            total = [whole + part.sum(0) for whole, part in zip(total, values(at), strict=True)]
        half = unit // 2
        wanted = split(torch.full_like(kept[0][0], torch.nan).double() if given is None else given.double())
        wanted = [part * 2.0**-half * 2.0 ** (half - unit) for part in wanted]
        told, inner, norms = (
            torch.zeros(trace.steps),
            Scaled.zeros(count, trace.steps),
            Scaled.zeros(count, trace.steps),
        )
        told[lags] = 1
        for at in slices(len(lags), size) if len(lags) else ():
            products = [(part * whole).sum((1, 2)) for part, whole in zip(values(at), total, strict=True)]
            inner.add_at(lags[at], torch.stack(products), torch.full(lags[at].shape, 2 * unit))
            adjoints, power = rows(at)
            top = power.amax(1)
            alone = split(adjoints * power_of_two(power - top[:, None]).unsqueeze(-1))
            norms.add_at(lags[at], torch.stack([part.square().sum((1, 2)) for part in alone]), 2 * top)
        by_state = {"square": total, "off": [a - b for a, b in zip(total, wanted, strict=True)], "truth": wanted}
        return {"told": told, "inner": inner, "norms": norms} | {
            name: Scaled(torch.stack([part.square().sum() for part in parts]).cpu(), torch.full((count,), 2 * unit))
            for name, parts in by_state.items()
        }

    def finish(self, given: Tensor | None, tail_from: int | None) -> tuple[dict[str, Terms], float]:
        """Terms by state ("h_0", "c_0") and the largest residual against `given` (B, S·H), NaN without one."""
        trace = self.linearization.trace
        names = [f"{trace.name}.{state}_0" for state in trace.cell.states]
        return finished(self.told_sums(given), names, least(trace.dtype))


def finished(sums: Mapping[str, Scaled | Tensor], names: list[str], small: float) -> tuple[dict[str, Terms], float]:
    """The result, from `InitialState.told_sums`. small: see `throughtime.scaled.least`."""
    inner, norms, square = (scaled_of(sums, name) for name in ("inner", "norms", "square"))
    told = np.asarray(sums["told"]) > 0
    log10, residuals = 0.5 * norms.log10(), _residuals(scaled_of(sums, "off"), scaled_of(sums, "truth"), small)
    terms = {}
    for place, name in enumerate(names):
        whole = Scaled(square.mantissa[place], square.exponent[place])
        share = np.where(inner.mantissa[place] != 0, inner.rows([place]).over(whole)[0], 0.0)
        terms[name] = Terms(
            name,
            None,
            np.where(told, share, np.nan),
            np.where(told, log10[place], np.nan),
            float(residuals[place]),
        )
    known = residuals[~np.isnan(residuals)]
    return terms, float(max(known, default=float("nan")))


def _residuals(off: Scaled, truth: Scaled, small: float) -> np.ndarray:
    """By state, from squares, with 0/0 = 0; NaN where both are below `small`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        residuals = np.where(off.mantissa == 0, 0.0, np.sqrt(off.over(truth)))
        below = 0.5 * np.fmax(off.log10(), truth.log10()) < np.log10(small)
    return np.where(below & (residuals != 0), np.nan, residuals)
