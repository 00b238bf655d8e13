"""Shares: how much of a gradient G lies at each lag, ⟨G(τ), G⟩ / ⟨G, G⟩, without making any G(τ).

A term is a sum of outer products of pre-activation adjoints p and operands x, so that ⟨Σ p ⊗ x, G⟩ = Σ p · (G x): G meets the
operands of each step once, and every lag is then an elementwise product.
"""

from __future__ import annotations

from collections.abc import Mapping
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from throughtime.block import Block
from throughtime.linearize import Linearization, Window
from throughtime.reducers.products import entries, grouped
from throughtime.reducers.reducer import Reducer
from throughtime.scaled import exponent_of, power_of_two, tensor_of


class Shares(Reducer):
    """By ledger row. reference: G by parameter, the same in all that are merged."""

    def __init__(self, linearization: Linearization, reference: Mapping[str, Tensor]) -> None:
        super().__init__(linearization)
        trace = linearization.trace
        self.rows = entries(linearization)
        self.reference = dict(reference)
        self.groups = grouped(linearization)
        self.blocks = [group.of(reference[group.parameter]) for group in self.groups]
        # Blocks, and all that is taken away from them, are told in units of 2^unit, near the largest entry of G: squares of
        # a gradient of 1e-30 leave float32.
        self.unit = exponent_of(self.blocks)
        self.blocks = [(block * 2.0**-self.unit).to(linearization.terms_in) for block in self.blocks]
        self.squares = torch.cat([block.double().square().sum((1, 2)) for block in self.blocks]).cpu()
        self.projected: WeakKeyDictionary[Window, list[Tensor | None]] = WeakKeyDictionary()
        self.swept = False  # whether a tail was
        count = len(self.rows)
        self.sums = {
            "inner": torch.zeros(count, trace.steps, dtype=torch.float64),
            "told": torch.zeros(trace.steps, dtype=torch.int64),
            "tail_inner": torch.zeros(count, dtype=torch.float64),
        }

    def update(self, block: Block) -> None:
        assert block.lags is not None
        self._tell(block.lags, self._inner(block) * power_of_two(block.common - self.unit))

    def tail(self, block: Block) -> None:
        self.swept = True
        inner = tensor_of(self.sums, "tail_inner")
        self.later.tell((self._inner(block) * power_of_two(block.common - self.unit)).sum(1), inner.add_)

    def _tell(self, lags: Tensor, products: Tensor) -> None:
        """⟨G(τ), G⟩ (rows, L) of some rows of these lags, in units of 4^unit."""
        inner = tensor_of(self.sums, "inner")
        self.later.tell(products, lambda value: inner.index_add_(1, lags, value))
        tensor_of(self.sums, "told")[lags] += 1

    def _inner(self, block: Block) -> Tensor:
        """⟨G(τ), G⟩ of each row (rows, L), in units of 2^common."""
        if block.window not in self.projected:
            ops = block.window.operands
            self.projected[block.window] = [
                ops[group.operand].flatten(0, 1).to(g.dtype) @ g.mT
                if group.operand in ops and not group.elementwise
                else None
                for group, g in zip(self.groups, self.blocks, strict=True)
            ]
        steps, out = len(block.window), []
        for group, g, projected in zip(self.groups, self.blocks, self.projected[block.window], strict=True):
            if projected is not None:
                taken = block.take(projected.unflatten(1, (steps, -1)), axis=1).flatten(2, 3)
                out.append((group.factors(block)[0] * taken).sum((2, 3)))
            else:
                own = block.sums[group.bank][group.places] if group.operand == "1" else group.factors(block)[0].sum(2)
                out.append((own @ g).squeeze(-1))
        return torch.cat(out).double()

    def join(self, one: Shares, other: Shares) -> None:
        self.swept = one.swept or other.swept
        self.sums["told"] = (one.told() & other.told()).long()

    def told(self) -> Tensor:
        """(T,) bool: lags that no tail has swallowed; all of them where there was none."""
        told = self.tensor("told") > 0
        return told if self.swept else torch.ones_like(told)

    def share(self) -> np.ndarray:
        """(T,) share of the whole layer; NaN in the tail."""
        inner = self.tensor("inner")
        return np.where(self.told().numpy(), over(inner.sum(0), self.squares.sum()), np.nan)

    @property
    def tail_share(self) -> float:
        inner = self.tensor("tail_inner")
        return float(over(inner.sum(0), self.squares.sum()))

    def finish(self) -> dict[str, np.ndarray]:
        """ "share" (T,) of the layer and "rows" (rows, T)."""
        inner = self.tensor("inner")
        return {"share": self.share(), "rows": over(inner, self.squares[:, None])}


def over(value: Tensor, unit: Tensor) -> np.ndarray:
    """value / unit as float64, NaN for 0/0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(value.numpy() / unit.numpy())
