"""The ledger: each parameter's gradient as a sum over lags, closed against what autograd gave.

Shares (reducers/shares.py) and norms are sums over rows (reducers/products.py); the residual and the bias are what is left of
G when the terms are taken away (reducers/remainder.py).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from throughtime.block import Block
from throughtime.flow import Terms
from throughtime.linearize import Linearization
from throughtime.reducers.products import add_terms, outer, sizes_of_rows, term_squares
from throughtime.reducers.remainder import Remainder, norm
from throughtime.reducers.shares import Shares, over
from throughtime.scaled import EMPTY, Scaled, least, power_of_two, ratio, tensor_of


class Ledger(Shares):
    """Shares, norms, residual, truncation bias. Merging needs `keep_terms`, since a norm of a sum is no sum of norms.

    reference: G by parameter. bias: "all" (every K), or "horizon" (where it could cross one of `levels`; the rest NaN).
    keep_terms: keep G(τ) of every lag, (T, size of the weights): for merging batches.
    """

    def __init__(
        self,
        linearization: Linearization,
        reference: Mapping[str, Tensor],
        bias: str = "all",
        levels: tuple[float, ...] = (0.1, 0.01, 0.001),
        keep_terms: bool = False,
    ) -> None:
        super().__init__(linearization, reference)
        steps = linearization.trace.steps
        self.keep_terms = keep_terms
        self.rest = Remainder(self.blocks, self.squares, steps, bias == "all", levels, exact=keep_terms)
        self.sums |= {
            "norms": Scaled.zeros(len(self.rows), steps),
            "tail_sizes": torch.zeros((), dtype=torch.float64),
        }
        self.open: list[Tensor] | None = None  # G(τ) of a lag whose rows are not all in
        widths = [block.shape[1:] for block in self.blocks]
        self.few = max(height * width // (height + width) + 1 for height, width in widths)
        self.tails: list[Tensor] | None = None
        if keep_terms:
            self.sums["terms"] = torch.zeros(steps, self.rest.weights, dtype=self.blocks[0].dtype)

    def _factors(self, block: Block) -> tuple[list[Tensor], list[Tensor | None]]:
        """`Blocks.factors` of each group, p in units of 2^unit."""
        made = [group.factors(block) for group in self.groups]
        scale = power_of_two(block.common - self.unit, self.blocks[0].dtype)[:, None, None]
        return [p * scale for p, _ in made], [x for _, x in made]

    def update(self, block: Block) -> None:
        assert block.lags is not None
        if self.open is not None or not block.last or block.rows > self.few:
            self._update_formed(block)
            return
        lags, scale = block.lags, power_of_two(block.common - self.unit)
        squares = term_squares(block, self.groups)
        self.norms.add_at(lags, squares, 2 * block.common)
        self._tell(lags, self._inner(block) * scale)
        sizes = (squares.double().sqrt() * scale).cpu()
        if self.rest.nothing(lags, sizes):
            return
        ps, xs = self._factors(block)
        if self.keep_terms:
            self._keep([outer(p, x) for p, x in zip(ps, xs, strict=True)], lags)
        self.rest.take_away(ps, xs, lags, sizes)

    def _update_formed(self, block: Block) -> None:
        """The same of many rows: G(τ) itself is made, and everything is read from it."""
        open_terms = self.open or [None] * len(self.groups)
        made = [add_terms(group, block, term) for group, term in zip(self.groups, open_terms, strict=True)]
        self.open = None if block.last else made
        if not block.last:
            return
        assert block.lags is not None
        lags, scale = block.lags, power_of_two(block.common - self.unit, made[0].dtype)
        self.norms.add_at(lags, torch.cat([term.square().sum((2, 3)) for term in made]), 2 * block.common)
        terms = [term * scale[:, None, None] for term in made]
        products = [(term * g[:, None]).sum((2, 3)) for term, g in zip(terms, self.blocks, strict=True)]
        self._tell(lags, torch.cat(products))
        if self.keep_terms:
            self._keep(terms, lags)
        self.rest.take_away_formed(terms, lags)

    def _keep(self, terms: list[Tensor], lags: Tensor) -> None:
        kept = tensor_of(self.sums, "terms")
        kept[lags] += torch.cat([term.transpose(0, 1).flatten(1) for term in terms], dim=1).cpu()

    def tail(self, block: Block) -> None:
        super().tail(block)
        if self.tails is None:
            self.tails = [torch.zeros_like(part) for part in self.blocks]
        ps, xs = self._factors(block)
        sizes = self.tensor("tail_sizes")
        sizes += sizes_of_rows(block, self.groups, self.unit)
        terms = [outer(p.flatten(1, 2), None if x is None else x.flatten(0, 1)) for p, x in zip(ps, xs, strict=True)]
        self.tails = [tail + term for tail, term in zip(self.tails, terms, strict=True)]
        self.rest.take_away_untold(terms)

    def join(self, one: Any, other: Any) -> None:
        if not (one.keep_terms and other.keep_terms):
            raise TypeError("merging ledgers: got one made without its terms; expected keep_terms=True on both")
        self.rest = copy.copy(one.rest)
        self.rest.left = [a + b - g for a, b, g in zip(one.rest.left, other.rest.left, one.blocks, strict=True)]
        if one.tails and other.tails:
            self.tails = [a + b for a, b in zip(one.tails, other.tails, strict=True)]
        else:
            self.tails = one.tails or other.tails
        told = one.told() & other.told()
        terms = self.tensor("terms")
        sizes = [gate.numel() for block in one.blocks for gate in block]
        squares = [part.double().square().sum(1) for part in terms.split(sizes, dim=1)]
        reached = told & ((one.norms.exponent != EMPTY) | (other.norms.exponent != EMPTY))
        self.sums["norms"] = Scaled(torch.stack(squares), torch.where(reached, 2 * one.unit, EMPTY))
        whole = torch.cat([block.flatten() for block in one.blocks])
        left = whole - terms.cumsum(0)
        bias = left.double().norm(dim=1) / one.squares.sum().sqrt()
        self.rest.low = self.rest.high = torch.where(told, bias, torch.nan)

    def told(self) -> Tensor:
        """(T,) bool: lags that no tail has swallowed."""
        known = self.rest.known()
        return known if self.tails is not None else torch.ones_like(known)

    # Results, all made of the sums.

    @property
    def norms(self) -> Scaled:
        """‖G(τ)‖² of each row (rows, T)."""
        return self.scaled("norms")

    def total(self) -> dict[str, Tensor]:
        """Σ_τ G(τ) by parameter: what the terms add up to."""
        return {name: (value * 2.0**self.unit).to(self.reference[name].dtype) for name, value in self._total().items()}

    def _total(self) -> dict[str, Tensor]:
        """The same in float64, in units of 2^unit."""
        sums = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in self.reference.items()}
        for group, block, left in zip(self.groups, self.blocks, self.rest.left, strict=True):
            group.put(block.double() - left, sums[group.parameter])
        return sums

    def bias(self) -> np.ndarray:
        """(T,) truncation bias by K; NaN where it was not told exactly."""
        return self.rest.bias(to_the_end=self.tails is None)

    def cosine(self) -> np.ndarray:
        """(T,) cosine of Σ_{τ ≤ K} G(τ) with G: S / √(b² + 2S − 1), S the cumulative share."""
        told = np.cumsum(self.share())
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.clip(told / np.sqrt(np.maximum(self.bias() ** 2 + 2 * told - 1, 0)), -1, 1)

    def horizon(self) -> dict[float, int | None]:
        """See `Remainder.horizon`."""
        return self.rest.horizon()

    def cancellation(self) -> float:
        """‖G‖ / Σ_τ ‖G(τ)‖ of the layer."""
        sizes = float(self._sizes(self.norms.total()).sum())
        return ratio(float(self.squares.sum().sqrt()), sizes + (0.0 if self.tails is None else float(norm(self.tails))))

    def _sizes(self, squares: Scaled) -> Tensor:
        """(T,) ‖G(τ)‖ in units of 2^unit, from squares."""
        return squares.in_units(2 * self.unit).value().sqrt()

    @property
    def tail_bound(self) -> float:
        """See `throughtime.flow.Tail`."""
        return ratio(float(self.tensor("tail_sizes")), float(self.squares.sum().sqrt()))

    @property
    def tail_norm(self) -> float:
        return 0.0 if self.tails is None else float(norm(self.tails)) * 2.0**self.unit

    def terms(self, given: Mapping[str, Tensor], tail_from: int | None) -> tuple[dict[str, Terms], float, float]:
        """The rows by parameter, the layer's residual, and its error relative to Σ_τ‖G(τ)‖, to which the contract applies.

        given: what autograd gave, by parameter. A parameter that it lacks, or whose gradient is so small that autograd rounds
        it coarsely, has no residual.
        """
        small = least(self.linearization.trace.dtype) * 2.0**-self.unit
        places: dict[str, list[int]] = {}
        for place, row in enumerate(self.rows):
            places.setdefault(row.parameter, []).append(place)
        inner, norms, names = self.tensor("inner"), self.norms, self.linearization.trace.names
        whole = Scaled(torch.stack([norms.mantissa[at].sum(0) for at in places.values()]), norms.exponent)
        scales, log10_whole = self._sizes(whole).sum(1).tolist(), _cut(0.5 * whole.log10(), tail_from)
        share, log10 = _cut(over(inner, self.squares[:, None]), tail_from), _cut(0.5 * norms.log10(), tail_from)
        off, size = self._off(given)
        parameters, residuals, errors = {}, [], []
        for number, (parameter, at) in enumerate(places.items()):
            name, blocks, scale, residual = names.get(parameter, parameter), {}, scales[number], float("nan")
            for place in at:
                row = self.rows[place]
                of_row = compared(off[place] ** 0.5, size[place] ** 0.5, small) if parameter in given else residual
                residuals.append(of_row)
                if row.gate is not None:
                    gate = row.gate.rpartition(".")[2]  # of a stack's cell without the layer's name
                    blocks[row.index] = Terms(name, gate, share[place], log10[place], of_row)
            if parameter in given:
                if self.tails is not None:
                    own = [t for group, t in zip(self.groups, self.tails, strict=True) if group.parameter == parameter]
                    scale += float(norm(own))
                left = sum(off[place] for place in at) ** 0.5
                errors.append(compared(left, scale, small))
                residual = compared(left, sum(size[place] for place in at) ** 0.5, small)
            parameters[name] = Terms(
                name=name,
                gate=None,
                share=_cut(over(inner[at].sum(0), self.squares[at].sum()), tail_from),
                log10_norm=log10_whole[number],
                residual=residual,
                gates={block.gate: block for _, block in sorted(blocks.items())},
            )
        return parameters, largest(residuals), largest(errors)

    def _off(self, given: Mapping[str, Tensor]) -> tuple[list[float], list[float]]:
        """‖given − Σ_τ G(τ)‖² and ‖given‖² of each row, in units of 4^unit; NaN where it is not given."""
        off, size = [], []
        for group, block, left in zip(self.groups, self.blocks, self.rest.left, strict=True):
            lacking = torch.full_like(block, torch.nan)
            own = group.of(given[group.parameter]).double() * 2.0**-self.unit if group.parameter in given else lacking
            off.append((own - block + left).square().sum((1, 2)))
            size.append(own.square().sum((1, 2)))
        return torch.cat(off).tolist(), torch.cat(size).tolist()


def _cut(values: np.ndarray, tail_from: int | None) -> np.ndarray:
    """(..., T) without what lies beyond the lags told apart."""
    if tail_from is not None:
        values[..., tail_from:] = np.nan
    return values


def compared(off: float, size: float, small: float) -> float:
    """off / size with 0/0 = 0; NaN where both are below `small`, infinite where the terms are no numbers."""
    if np.isnan(off):
        return float("inf")
    return float("nan") if 0 < max(off, size) < small else ratio(off, size)


def largest(values: Sequence[float]) -> float:
    """Of those that there are; NaN where there are none."""
    return max((value for value in values if not np.isnan(value)), default=float("nan"))
