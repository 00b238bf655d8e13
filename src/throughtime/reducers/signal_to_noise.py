"""Is the far gradient a signal or the batch's noise? (‖m‖² − v/B) / (v/B) of the per-sequence terms at each lag."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from throughtime.linearize import Linearization
from throughtime.reducers.products import AUTOGRAD, Blocks, grouped, outer
from throughtime.reducers.reducer import Reducer
from throughtime.scaled import Scaled
from throughtime.sweep import Block


class SignalToNoise(Reducer):
    """m the mean and v the variance (B − 1) of the per-sequence terms G_b(τ) over all parameters of the layer."""

    def __init__(self, linearization: Linearization) -> None:
        super().__init__(linearization)
        self.groups = grouped(linearization)
        trace = linearization.trace
        self.sums = {"single": Scaled.zeros(trace.steps), "sequences": torch.tensor(trace.batch)}

    def update(self, block: Block) -> None:
        assert block.lags is not None
        self.scaled("single").add_at(block.lags, sequence_squares(block, self.groups), 2 * block.common)

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


def sequence_squares(block: Block, groups: list[Blocks]) -> Tensor:
    """Σ_b ‖G_b(τ)‖² over all ledger rows, (L,), in units of 4^common."""
    lags, count, batch = block.adjoint.shape[:3]
    total = torch.zeros(lags, dtype=torch.float64)
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
            squares = outer(p, x).square().sum((3, 4))
        total += squares.sum((0, 2)).double().cpu()
    if any(group.operand == AUTOGRAD for group in groups):
        for sequence in range(batch):
            alone = block.rows_by_autograd(slice(sequence, sequence + 1))
            squares = [sum(float(g.double().square().sum()) for g in terms.values()) for terms in alone]
            total += torch.tensor(squares, dtype=torch.float64)
    return total
