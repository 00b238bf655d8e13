"""The ledger: each parameter's gradient as a sum over lags, closed against what autograd gave.

G(τ) of a weight block is Σ p ⊗ operand over all rows, p the adjoint of its pre-activation. Its inner product with G is
Σ p·(G operand), its norm a sum of two Gram matrices, so neither needs an array of the weight's size a lag; only the bias at
every K does, which takes G(τ) away from G lag by lag.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from throughtime.cells.cell import Product
from throughtime.flow import Terms
from throughtime.linearize import Linearization, Window
from throughtime.reducers.reducer import Reducer
from throughtime.scaled import EMPTY, Scaled, power_of_two
from throughtime.sweep import Block

NOTHING = 2.0**-6  # far terms that in sum stay below this times the rounding of G, in every block, are left in it


TERMS = 2**20  # numbers of G(τ) of several lags that may be made at once


@dataclass(frozen=True)
class Entry:
    """One gate block of one parameter: row of the ledger. place: of its pre-activation; gate: of its rows."""

    parameter: str
    gate: str
    operand: str
    place: int
    index: int


def entries(linearization: Linearization) -> list[Entry]:
    """The rows of the ledger, in the order of the cell's products; parameters that the layer lacks are left out."""
    cell, there = linearization.cell, linearization.trace.weights.tensors()
    return [
        Entry(product.parameter, gate, product.operand, cell.pre.index(pre), cell.gates.index(gate))
        for product in cell.products
        if product.parameter in there
        for gate, pre in zip(product.gates, product.pre, strict=True)
    ]


def operand(block: Block, name: str) -> Tensor | None:
    """The operand at the block's rows: (L, R·B, width); None for a bias."""
    return None if name == "1" else block.take(block.window.operands[name]).flatten(1, 2)


def outer(p: Tensor, x: Tensor | None) -> Tensor:
    """Σ p ⊗ x over rows: (…, N, H), (…, N, width) to (…, H, width); x None is a bias, whose operand is 1.

    A bias is summed and not multiplied by ones: matrix products add long columns up with a growing error.
    """
    return p.sum(-2).unsqueeze(-1) if x is None else p.mT @ x


@dataclass(frozen=True)
class Blocks:
    """All gate blocks of one parameter with one operand: ledger rows that follow each other. places, indices: `Entry`."""

    parameter: str
    operand: str
    places: list[int]
    indices: list[int]

    def of(self, parameter: Tensor, gates: int) -> Tensor:
        """These blocks of a parameter: (K, H, width); width 1 for a bias."""
        blocks = parameter.unflatten(0, (gates, -1))[self.indices]
        return blocks if blocks.ndim == 3 else blocks.unsqueeze(-1)

    def pre(self, block_pre: Tensor) -> Tensor:
        """Their pre-activations of (P, …): (K, …), without a copy where they lie side by side."""
        first, last = self.places[0], self.places[-1] + 1
        side_by_side = self.places == list(range(first, last))
        return block_pre[first:last] if side_by_side else block_pre[self.places]


def grouped(rows: list[Entry]) -> list[Blocks]:
    """Ledger rows by parameter and operand, so that one matrix product serves all of their gates."""
    return [
        Blocks(parameter, name, [row.place for row in group], [row.index for row in group])
        for (parameter, name), each in groupby(rows, lambda row: (row.parameter, row.operand))
        for group in [list(each)]
    ]


def pre_first(block: Block) -> Tensor:
    """The block's pre-activation adjoints as (P, L, R·B, H)."""
    return block.pre.movedim(-2, 0).flatten(2, 3)


def term_squares(block: Block, groups: list[Blocks]) -> Tensor:
    """‖G(τ)‖² of each ledger row (rows, L), in units of 4^common."""
    pre = pre_first(block)
    rows, hidden = pre.shape[2:]
    grams: dict[str, Tensor] = {}
    pre_grams = None
    out = []
    for group in groups:
        x = operand(block, group.operand)
        if x is not None and rows <= (hidden * x.shape[2]) // (hidden + x.shape[2]) + 1:
            if pre_grams is None:
                pre_grams = pre @ pre.mT
            if group.operand not in grams:
                grams[group.operand] = x @ x.mT
            out.append((group.pre(pre_grams) * grams[group.operand]).sum((2, 3)).clamp_min(0))
        else:
            out.append(outer(group.pre(pre), x).square().sum((2, 3)))
    return torch.cat(out)


class Ledger(Reducer):
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
        super().__init__(linearization)
        trace = linearization.trace
        self.rows = entries(linearization)
        self.reference, self.mode, self.levels, self.keep_terms = dict(reference), bias, levels, keep_terms
        gates = len(linearization.cell.gates)
        self.groups = grouped(self.rows)
        self.blocks = [group.of(reference[group.parameter], gates) for group in self.groups]
        # Blocks, and all that is taken away from them, are told in units of 2^unit, near the largest entry of G: squares of
        # a gradient of 1e-30 leave float32.
        self.unit = _exponent(self.blocks)
        self.blocks = [block * 2.0**-self.unit for block in self.blocks]
        self.squares = torch.cat([block.double().square().sum((1, 2)) for block in self.blocks]).cpu()
        self.left = [block.clone() for block in self.blocks]
        self.size = self._left_norm(self.left)
        self.left_in = torch.zeros_like(self.squares)  # ‖G(τ)‖ of each row, over the lags that were not taken away
        self.weights = sum(block.numel() for block in self.blocks)
        self.bias_low = torch.full((trace.steps,), torch.nan, dtype=torch.float64)
        self.bias_high = self.bias_low.clone()
        self.cached: tuple[Window, list[Tensor]] | None = None
        count = len(self.rows)
        self.sums = {
            "inner": torch.zeros(count, trace.steps, dtype=torch.float64),
            "norms": Scaled.zeros(count, trace.steps),
            "tail_inner": torch.zeros(count, dtype=torch.float64),
        }
        self.tails: list[Tensor] | None = None
        if keep_terms:
            self.sums["terms"] = torch.zeros(trace.steps, self.weights, dtype=self.blocks[0].dtype)

    def _inner(self, block: Block) -> Tensor:
        """⟨G(τ), G⟩ of each row (rows, L), in units of 2^common."""
        if self.cached is None or self.cached[0] is not block.window:
            ops = block.window.operands
            projected = [
                g[..., 0] if group.operand == "1" else ops[group.operand].flatten(0, 1) @ g.mT
                for group, g in zip(self.groups, self.blocks, strict=True)
            ]
            self.cached = block.window, projected
        pre, steps, out = pre_first(block), block.window.last - block.window.first, []
        summed = pre.sum(2)
        for group, projected in zip(self.groups, self.cached[1], strict=True):
            if group.operand == "1":
                out.append((group.pre(summed) @ projected.unsqueeze(-1)).squeeze(-1))
            else:
                taken = block.take(projected.unflatten(1, (steps, -1)), axis=1).flatten(2, 3)
                out.append((group.pre(pre) * taken).sum((2, 3)))
        return torch.cat(out).double()

    def _pre(self, block: Block) -> Tensor:
        """Adjoints of the pre-activations (P, L, R·B, H) in units of 2^unit."""
        return pre_first(block) * power_of_two(block.common - self.unit, block.pre.dtype)[:, None, None]

    def update(self, block: Block) -> None:
        assert block.lags is not None
        lags, scale = block.lags.cpu(), power_of_two(block.common - self.unit)
        norms, inner = self.scaled("norms"), self.tensor("inner")
        squares = term_squares(block, self.groups)
        norms.add_at(lags, squares, 2 * block.common)
        inner[:, lags] += (self._inner(block) * scale).cpu()
        self._take_away(block, lags, (squares.double().sqrt() * scale).cpu())

    def _take_away(self, block: Block, lags: Tensor, sizes: Tensor) -> None:
        """G − Σ_{τ ≤ K} G(τ), and its norm where asked for: sizes (rows, L) are ‖G(τ)‖ of each row."""
        if self._nothing(lags, sizes):
            return
        pre = self._pre(block)
        ps = [group.pre(pre) for group in self.groups]
        xs = [operand(block, group.operand) for group in self.groups]
        if self.keep_terms:
            terms = self.tensor("terms")
            made = [outer(p, x).transpose(0, 1).flatten(1) for p, x in zip(ps, xs, strict=True)]
            terms[lags] += torch.cat(made, dim=1)
        whole = sizes.square().sum(0).sqrt()
        if self.mode != "all":
            self._halve(ps, xs, lags, whole, 0, len(lags))
            return
        order = torch.argsort(lags)
        room = max(1, TERMS // self.weights)
        for start in range(0, len(order), room):
            places = order[start : start + room]
            if not self._nothing(lags[places], sizes[:, places]):
                self._one_by_one(ps, xs, lags, int(places.min()), int(places.max()) + 1)

    def _nothing(self, lags: Tensor, sizes: Tensor) -> bool:
        """Whether these terms, with all that were left in before, are too small to be seen in G; then they are left in."""
        eps = torch.finfo(self.blocks[0].dtype).eps
        left_in = self.left_in + sizes.sum(1)
        if self.keep_terms or (left_in > NOTHING * eps * self.squares.sqrt()).any():
            return False
        self.left_in = left_in
        self._tell(lags, self.size, self.size)
        return True

    def _one_by_one(self, ps: list[Tensor], xs: list[Tensor | None], lags: Tensor, a: int, b: int) -> None:
        """Take the block's lags a … b − 1 away and tell the bias after each."""
        if b - a == 1:
            self._subtract(self.left, ps, xs, a, b)
            self.size = self._left_norm(self.left)
            self._tell(lags[a:b], self.size, self.size)
            return
        order, squares = torch.argsort(lags[a:b]), torch.zeros(b - a, dtype=torch.float64)
        for group, (p, x) in enumerate(zip(ps, xs, strict=True)):
            left = self.left[group]
            terms = outer(p[:, a:b].transpose(0, 1), None if x is None else x[a:b].unsqueeze(1))  # (lags, K, H, width)
            for term in (terms[place] for place in order.tolist()):
                left = torch.sub(left, term, out=term)
            self.left[group] = left.clone()
            squares += torch.linalg.vector_norm(terms.flatten(1), dim=1).double().square().cpu()
        sizes = squares.sqrt()[order]
        self.size = sizes[-1]
        self._tell(lags[a:b][order], sizes, sizes)

    def _halve(
        self,
        ps: list[Tensor],
        xs: list[Tensor | None],
        lags: Tensor,
        sizes: Tensor,
        a: int,
        b: int,
        after: list[Tensor] | None = None,
    ) -> None:
        """Take the block's lags a … b − 1 away, all at once where their bias keeps off the levels, else in two halves.

        after: what is left behind them, where it is known.
        """
        if b - a == 1 or (b - a) * self.weights <= TERMS:
            self._one_by_one(ps, xs, lags, a, b)
            return
        if after is None:
            after = [left.clone() for left in self.left]
            self._subtract(after, ps, xs, a, b)
        end, order = self._left_norm(after), torch.argsort(lags[a:b])
        passed = sizes[a:b][order].cumsum(0)
        behind = passed[-1] - passed
        low = torch.maximum(self.size - passed, end - behind).clamp_min(0)
        high = torch.minimum(self.size + passed, end + behind)
        unit, slack = self.squares.sum().sqrt(), 1e-3  # slack: rounding of the norms that bound the bias
        crosses = any(
            ((low * (1 - slack) <= level * unit) & (high * (1 + slack) >= level * unit)).any() for level in self.levels
        )
        if crosses:
            middle = (a + b) // 2
            near, far = ((a, middle), (middle, b)) if lags[a] < lags[b - 1] else ((middle, b), (a, middle))
            self._halve(ps, xs, lags, sizes, *near)
            self._halve(ps, xs, lags, sizes, *far, after)
            return
        self.left, self.size = after, end
        self._tell(lags[a:b][order], low, high)

    def _tell(self, lags: Tensor, low: Tensor, high: Tensor) -> None:
        unit = self.squares.sum().sqrt()
        self.bias_low[lags], self.bias_high[lags] = low / unit, high / unit

    @staticmethod
    def _subtract(left: list[Tensor], ps: list[Tensor], xs: list[Tensor | None], a: int, b: int) -> None:
        """Take the terms of the block's lags a … b − 1 away from `left`, in place."""
        for rest, p, x in zip(left, ps, xs, strict=True):
            p = p[:, a:b].flatten(1, 2)
            if x is None:
                rest -= outer(p, None)
            else:
                rest.baddbmm_(p.mT, x[a:b].flatten(0, 1).expand(len(p), -1, -1), alpha=-1)

    @staticmethod
    def _left_norm(left: list[Tensor]) -> Tensor:
        return torch.stack([torch.linalg.vector_norm(part) for part in left]).double().square().sum().sqrt().cpu()

    def tail(self, block: Block) -> None:
        inner = self.tensor("tail_inner")
        inner += (self._inner(block) * power_of_two(block.common - self.unit)).sum(1).cpu()
        if self.tails is None:
            self.tails = [torch.zeros_like(part) for part in self.blocks]
        pre = self._pre(block)
        for group, tail, left in zip(self.groups, self.tails, self.left, strict=True):
            x = operand(block, group.operand)
            term = outer(group.pre(pre).flatten(1, 2), None if x is None else x.flatten(0, 1))
            tail += term
            left -= term
        self.size = self._left_norm(self.left)

    def join(self, one: Ledger, other: Ledger) -> None:
        if not (one.keep_terms and other.keep_terms):
            raise TypeError("merging ledgers: got one made without its terms; expected keep_terms=True on both")
        self.left = [a + b - g for a, b, g in zip(one.left, other.left, one.blocks, strict=True)]
        if one.tails and other.tails:
            self.tails = [a + b for a, b in zip(one.tails, other.tails, strict=True)]
        else:
            self.tails = one.tails or other.tails
        told = one._told() & other._told()
        terms = self.tensor("terms")
        sizes = [gate.numel() for block in one.blocks for gate in block]
        squares = [part.double().square().sum(1) for part in terms.split(sizes, dim=1)]
        reached = told & ((one.norms.exponent != EMPTY) | (other.norms.exponent != EMPTY))
        self.sums["norms"] = Scaled(torch.stack(squares), torch.where(reached, 2 * one.unit, EMPTY))
        whole = torch.cat([block.flatten() for block in one.blocks])
        left = whole - terms.cumsum(0)
        bias = left.double().norm(dim=1) / one.squares.sum().sqrt()
        self.bias_low = self.bias_high = torch.where(told, bias, torch.nan)

    def _told(self) -> Tensor:
        """(T,) bool: lags that no tail has swallowed."""
        known = ~self.bias_high.isnan()
        return known if self.tails is not None else torch.ones_like(known)

    # Results, all made of the sums.

    @property
    def norms(self) -> Scaled:
        """‖G(τ)‖² of each row (rows, T)."""
        return self.scaled("norms")

    def total(self) -> dict[str, Tensor]:
        """Σ_τ G(τ) by parameter: what the terms add up to."""
        sums = {name: torch.zeros_like(value) for name, value in self.reference.items()}
        gates = len(self.linearization.cell.gates)
        for group, block, left in zip(self.groups, self.blocks, self.left, strict=True):
            places = sums[group.parameter].unflatten(0, (gates, -1))
            places[group.indices] = ((block - left) * 2.0**self.unit).reshape(places[group.indices].shape)
        return sums

    def share(self) -> np.ndarray:
        """(T,) share of the whole layer; NaN in the tail."""
        inner = self.tensor("inner")
        return np.where(self._told().numpy(), _over(inner.sum(0), self.squares.sum()), np.nan)

    def bias(self) -> np.ndarray:
        """(T,) truncation bias by K; NaN where it was not told exactly."""
        bias = torch.where(self.bias_low == self.bias_high, self.bias_low, torch.nan)
        known = (~self.bias_high.isnan()).nonzero().flatten()
        if self.tails is None and len(known):  # nothing reaches back further than the last origin does
            bias[int(known[-1]) + 1 :] = bias[known[-1]]
        return bias.numpy()

    def cosine(self) -> np.ndarray:
        """(T,) cosine of Σ_{τ ≤ K} G(τ) with G: S / √(b² + 2S − 1), S the cumulative share."""
        told = np.cumsum(self.share())
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.clip(told / np.sqrt(np.maximum(self.bias() ** 2 + 2 * told - 1, 0)), -1, 1)

    def horizon(self) -> dict[float, int | None]:
        """ε → the smallest K with bias(K′) ≤ ε for every K′ ≥ K that was told apart; None where there is none."""
        high = self.bias_high.numpy()
        known = np.flatnonzero(~np.isnan(high))
        out: dict[float, int | None] = {}
        for level in self.levels:
            above = known[high[known] > level]
            first = int(above[-1]) + 1 if len(above) else 0
            out[level] = first if len(known) and first <= known[-1] else None
        return out

    def cancellation(self) -> float:
        """‖G‖ / Σ_τ ‖G(τ)‖ of the layer."""
        return _ratio(float(self.squares.sum().sqrt()) * 2.0**self.unit, float(self._sizes().sum()))

    def _sizes(self) -> Tensor:
        """(T,) ‖G(τ)‖ of the layer, the tail's added to the last."""
        sizes = self.norms.value().sum(0).sqrt()
        if self.tails is not None:
            sizes[-1] += self.tail_norm
        return sizes

    @property
    def tail_share(self) -> float:
        inner = self.tensor("tail_inner")
        return float(_over(inner.sum(0), self.squares.sum()))

    @property
    def tail_norm(self) -> float:
        return 0.0 if self.tails is None else float(self._left_norm(self.tails)) * 2.0**self.unit

    def terms(self, given: Mapping[str, Tensor], tail_from: int | None) -> tuple[dict[str, Terms], float, float]:
        """The rows by parameter, the layer's residual, and its error relative to Σ_τ‖G(τ)‖, to which the contract applies.

        given: what autograd gave, by parameter. A parameter that it lacks has no residual.
        """
        inner = self.tensor("inner")
        gates, names, totals = self.linearization.cell.gates, self.linearization.trace.names, self.total()
        parameters, residuals, errors = {}, [], []
        for parameter in dict.fromkeys(row.parameter for row in self.rows):
            at = [place for place, row in enumerate(self.rows) if row.parameter == parameter]
            off = given[parameter] - totals[parameter] if parameter in given else None
            blocks = {}
            for place in at:
                row = self.rows[place]
                left, whole = torch.full((), torch.nan), torch.ones(())
                if off is not None:
                    left = off.unflatten(0, (len(gates), -1))[row.index].double().norm()
                    whole = given[parameter].unflatten(0, (len(gates), -1))[row.index].double().norm()
                residuals.append(_ratio(float(left), float(whole)))
                blocks[row.gate] = Terms(
                    name=names.get(parameter, parameter),
                    gate=row.gate,
                    share=_cut(_over(inner[place], self.squares[place]), tail_from),
                    log10_norm=_cut(0.5 * self.norms.rows([place]).log10()[0], tail_from),
                    residual=residuals[-1],
                )
            sizes = self.norms.rows(at).total()
            residual = float("nan")
            if off is not None:
                scale = float(sizes.value().sqrt().sum())
                if self.tails is not None:
                    own = [t for group, t in zip(self.groups, self.tails, strict=True) if group.parameter == parameter]
                    scale += float(self._left_norm(own)) * 2.0**self.unit
                errors.append(_ratio(float(off.double().norm()), scale))
                residual = _ratio(float(off.double().norm()), float(given[parameter].double().norm()))
            parameters[names.get(parameter, parameter)] = Terms(
                name=names.get(parameter, parameter),
                gate=None,
                share=_cut(_over(inner[at].sum(0), self.squares[at].sum()), tail_from),
                log10_norm=_cut(0.5 * sizes.log10(), tail_from),
                residual=residual,
                gates=dict(sorted(blocks.items(), key=lambda item: gates.index(item[0]))),
            )
        told = [value for value in residuals if not np.isnan(value)]
        return parameters, max(told, default=float("nan")), max(errors, default=float("nan"))


def _exponent(blocks: list[Tensor]) -> int:
    """Of the power of two next to the largest entry; 0 where there is none."""
    peak = torch.stack([block.abs().amax() for block in blocks]).amax()
    return int(torch.frexp(peak).exponent.clamp(-120, 120)) if peak > 0 and torch.isfinite(peak) else 0


def _cut(values: np.ndarray, tail_from: int | None) -> np.ndarray:
    values = values.copy()
    if tail_from is not None:
        values[tail_from:] = np.nan
    return values


def _over(value: Tensor, unit: Tensor) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(value.numpy() / unit.numpy())


def _ratio(value: float, unit: float) -> float:
    """value / unit with 0/0 = 0."""
    if value == 0:
        return 0.0
    return value / unit if unit else float("inf")


__all__ = ["Entry", "Ledger", "Product", "entries", "operand"]
