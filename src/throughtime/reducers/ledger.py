"""The ledger: each parameter's gradient as a sum over lags, closed against what autograd gave.

G(τ) of a weight block is Σ p ⊗ operand over all rows, p the adjoint of its pre-activation. Its inner product with G is
Σ p·(G operand), its norm a sum of two Gram matrices, so neither needs an array of the weight's size a lag; only the bias at
every K does, which takes G(τ) away from G lag by lag.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from throughtime.cells.cell import Product
from throughtime.flow import Terms
from throughtime.linearize import Linearization, Window
from throughtime.reducers.reducer import Reducer
from throughtime.scaled import EMPTY, Scaled, power_of_two
from throughtime.sweep import Block


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


def term_squares(block: Block, rows: list[Entry]) -> Tensor:
    """‖G(τ)‖² of each ledger row (rows, L), in units of 4^common."""
    grams: dict[str, Tensor] = {}
    pre_grams: dict[int, Tensor] = {}
    out = []
    for row in rows:
        p = block.pre[..., row.place, :].flatten(1, 2)
        x = operand(block, row.operand)
        if x is not None and p.shape[1] <= (p.shape[2] * x.shape[2]) // (p.shape[2] + x.shape[2]) + 1:
            if row.operand not in grams:
                grams[row.operand] = x @ x.mT
            if row.place not in pre_grams:
                pre_grams[row.place] = p @ p.mT
            out.append((grams[row.operand] * pre_grams[row.place]).sum((1, 2)).clamp_min(0))
        else:
            out.append(outer(p, x).square().sum((1, 2)))
    return torch.stack(out)


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
        self.blocks = [reference[row.parameter].unflatten(0, (gates, -1))[row.index] for row in self.rows]
        self.blocks = [block if block.ndim == 2 else block[:, None] for block in self.blocks]
        # Blocks, and all that is taken away from them, are told in units of 2^unit, near the largest entry of G: squares of
        # a gradient of 1e-30 leave float32.
        self.unit = _exponent(self.blocks)
        self.blocks = [block * 2.0**-self.unit for block in self.blocks]
        self.squares = torch.tensor(
            [block.double().square().sum().item() for block in self.blocks], dtype=torch.float64
        )
        self.left = [block.clone() for block in self.blocks]
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
            size = sum(block.numel() for block in self.blocks)
            self.sums["terms"] = torch.zeros(trace.steps, size, dtype=self.blocks[0].dtype)

    def _inner(self, block: Block) -> Tensor:
        """⟨G(τ), G⟩ of each row (rows, L), in units of 2^common."""
        if self.cached is None or self.cached[0] is not block.window:
            ops = block.window.operands
            self.cached = (
                block.window,
                [
                    g[:, 0] if row.operand == "1" else ops[row.operand] @ g.mT
                    for row, g in zip(self.rows, self.blocks, strict=True)
                ],
            )
        out = []
        for row, projected in zip(self.rows, self.cached[1], strict=True):
            p = block.pre[..., row.place, :]
            if row.operand == "1":
                out.append(p.sum((1, 2)) @ projected)
            else:
                out.append(torch.einsum("lrbh,lrbh->l", p, block.take(projected)))
        return torch.stack(out).double()

    def _pre(self, block: Block) -> Tensor:
        """Adjoints of the pre-activations in units of 2^unit."""
        return block.pre * power_of_two(block.common - self.unit, block.pre.dtype)[:, None, None, None, None]

    def update(self, block: Block) -> None:
        assert block.lags is not None
        lags, scale = block.lags.cpu(), power_of_two(block.common - self.unit)
        norms, inner = self.scaled("norms"), self.tensor("inner")
        squares = term_squares(block, self.rows)
        norms.add_at(lags, squares, 2 * block.common)
        inner[:, lags] += (self._inner(block) * scale).cpu()
        sizes = (squares.double().sum(0).sqrt() * scale).cpu()
        self._take_away(block, lags, sizes)

    def _take_away(self, block: Block, lags: Tensor, sizes: Tensor) -> None:
        """G − Σ_{τ ≤ K} G(τ), and its norm where asked for: (L,) sizes are ‖G(τ)‖ of the whole layer."""
        pre = self._pre(block)
        ps = [pre[..., row.place, :].flatten(1, 2) for row in self.rows]
        xs = [operand(block, row.operand) for row in self.rows]
        before, order = self._left_norm(self.left), torch.argsort(lags).tolist()
        if self.keep_terms:
            terms = self.tensor("terms")
            for place in order:
                terms[lags[place]] += torch.cat(
                    [outer(p[place], None if x is None else x[place]).flatten() for p, x in zip(ps, xs, strict=True)]
                )
        if self.mode == "all":
            self._one_by_one(ps, xs, lags, order)
            return
        after = [
            left - outer(p.flatten(0, 1), None if x is None else x.flatten(0, 1))
            for left, p, x in zip(self.left, ps, xs, strict=True)
        ]
        passed = sizes[order].cumsum(0)
        end = self._left_norm(after)
        behind = passed[-1] - passed
        low = torch.maximum(before - passed, end - behind).clamp_min(0)
        high = torch.minimum(before + passed, end + behind)
        unit = self.squares.sum().sqrt()
        slack = 1e-3  # rounding of the norms that bound the bias
        if any(
            ((low * (1 - slack) <= level * unit) & (high * (1 + slack) >= level * unit)).any() for level in self.levels
        ):
            self._one_by_one(ps, xs, lags, order)
            return
        self.bias_low[lags[order]], self.bias_high[lags[order]] = low / unit, high / unit
        self.left = after

    def _one_by_one(self, ps: list[Tensor], xs: list[Tensor | None], lags: Tensor, order: list[int]) -> None:
        unit = self.squares.sum().sqrt()
        for place in order:
            for left, p, x in zip(self.left, ps, xs, strict=True):
                left -= outer(p[place], None if x is None else x[place])
            size = self._left_norm(self.left) / unit
            self.bias_low[lags[place]] = self.bias_high[lags[place]] = size

    @staticmethod
    def _left_norm(left: list[Tensor]) -> Tensor:
        return torch.stack([torch.linalg.vector_norm(part) for part in left]).double().square().sum().sqrt().cpu()

    def tail(self, block: Block) -> None:
        inner = self.tensor("tail_inner")
        inner += (self._inner(block) * power_of_two(block.common - self.unit)).sum(1).cpu()
        if self.tails is None:
            self.tails = [torch.zeros_like(part) for part in self.blocks]
        pre = self._pre(block)
        for row, tail, left in zip(self.rows, self.tails, self.left, strict=True):
            x = operand(block, row.operand)
            term = outer(pre[..., row.place, :].flatten(0, 2), None if x is None else x.flatten(0, 1))
            tail += term
            left -= term

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
        sizes = [block.numel() for block in one.blocks]
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
        for row, block, left in zip(self.rows, self.blocks, self.left, strict=True):
            place = sums[row.parameter].unflatten(0, (gates, -1))[row.index]
            place += ((block - left) * 2.0**self.unit).reshape(place.shape)
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
                    scale += float(self._left_norm([self.tails[place] for place in at])) * 2.0**self.unit
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


__all__ = ["Entry", "Ledger", "Product", "entries", "operand", "term_squares"]
