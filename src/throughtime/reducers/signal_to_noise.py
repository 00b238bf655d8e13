"""Is the far gradient a signal or the batch's noise? (‖m‖² − v/B) / (v/B) of the per-sequence terms at each lag."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from throughtime.block import Block
from throughtime.linearize import Linearization
from throughtime.reducers.products import AUTOGRAD, Blocks, grouped, outer
from throughtime.reducers.reducer import Reducer
from throughtime.scaled import Scaled


class SignalToNoise(Reducer):
    """m the mean and v the variance (B − 1) of the per-sequence terms G_b(τ) over all parameters of the layer."""

    def __init__(self, linearization: Linearization) -> None:
        super().__init__(linearization)
        self.groups = grouped(linearization)
        self.open: list[Tensor] | None = None
        trace = linearization.trace
        self.sums = {"single": Scaled.zeros(trace.steps), "sequences": torch.tensor(trace.batch)}

    def update(self, block: Block) -> None:
        if self.open is None and block.complete:
            self.add("single", block, sequence_squares(block, self.groups))
            return
        # The origins of these sequences come in several blocks: their terms are added up first.
        terms = sequence_terms(block, self.groups)
        self.open = terms if self.open is None else [a + b for a, b in zip(self.open, terms, strict=True)]
        single = block.adjoint.new_zeros(1, dtype=torch.float64)
        if block.complete:
            single = torch.stack([term.double().square().sum() for term in self.open]).sum(0, keepdim=True)
            self.open = None
        self.add("single", block, single)

    def finish(self, norms: Scaled) -> np.ndarray:
        """(T,) from the ledger's ‖G(τ)‖² (rows, T); NaN at B = 1 and where all sequences have the same term."""
        batch = int(self.tensor("sequences"))
        single = self.scaled("single")
        if batch == 1:
            return np.full(len(single.exponent), np.nan)
        spread = norms.total().over(single)  # ‖Σ G_b‖² / Σ ‖G_b‖²: B if all are alike, 1 if all are orthogonal
        with np.errstate(divide="ignore", invalid="ignore"):
            noise = (1 - spread / batch) / (batch - 1) / batch
            return np.where(noise > 1e-12, (spread / batch**2 - noise) / noise, np.nan)


def sequence_terms(block: Block, groups: list[Blocks]) -> list[Tensor]:
    """G_b(τ) of a block of one lag: (K, B, H, width) by group, in units of 2^common."""
    count, batch = block.adjoint.shape[1:3]
    terms = []
    for group in groups:
        if group.operand == AUTOGRAD:
            alone = [block.rows_by_autograd(slice(each, each + 1))[0] for each in range(batch)]
            terms.append(torch.stack([own[group.parameter].flatten() for own in alone])[None, :, :, None])
            continue
        p, x = group.factors(block)
        p = p[:, 0].unflatten(1, (count, batch)).transpose(1, 2)
        terms.append(outer(p, None if x is None else x[0].unflatten(0, (count, batch)).transpose(0, 1)))
    return terms


def sequence_squares(block: Block, groups: list[Blocks]) -> Tensor:
    """Σ_b ‖G_b(τ)‖² over all ledger rows, (L,), in units of 4^common. Where it makes the terms, the block keeps their sum."""
    lags, count, batch = block.adjoint.shape[:3]
    total = block.adjoint.new_zeros(lags, dtype=torch.float64)
    for group in groups:
        if group.operand == AUTOGRAD:
            continue
        p, x = group.factors(block)
        p = p.unflatten(2, (count, batch)).transpose(2, 3)  # (K, L, B, R, H)
        if x is not None:
            x = x.unflatten(1, (count, batch)).transpose(1, 2)
        if count == 1:
            squares = p.square().sum((3, 4)) * (1 if x is None else x.square().sum((2, 3)))
        elif x is not None and count <= (p.shape[4] * x.shape[3]) // (p.shape[4] + x.shape[3]):
            squares = ((p @ p.mT) * (x @ x.mT)).sum((3, 4))
        else:
            each = outer(p, x)
            squares = each.square().sum((3, 4))
            block.terms[group.key] = each.sum(2)
        total += squares.sum((0, 2)).double()
    if any(group.operand == AUTOGRAD for group in groups):
        for sequence in range(batch):
            alone = block.rows_by_autograd(slice(sequence, sequence + 1))
            total += torch.stack(
                [torch.cat([g.flatten() for g in terms.values()]).double().square().sum() for terms in alone]
            )
    return total
