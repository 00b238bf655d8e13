"""How often the gradient leaves the carry port on its way: λ^(m) is the part that left it exactly m times.

λ^(m)_{k−1} = λ^(m)_k C_k + λ^(m−1)_k (J_k − C_k), C_k the carry port's Jacobian. Told here: m = 0, that which went by the
carry port alone, and the rest.
"""

from __future__ import annotations

import numpy as np
import torch

from throughtime.linearize import Linearization
from throughtime.reducers.reducer import Reducer
from throughtime.scaled import Scaled, power_of_two, rescale
from throughtime.sweep import DEAD, Block


class Hops(Reducer):
    """Share Σ⟨λ^(0), λ⟩ / Σ⟨λ, λ⟩ by lag. Only for a cell with a carry port."""

    def __init__(self, linearization: Linearization) -> None:
        super().__init__(linearization)
        steps = linearization.trace.steps
        self.sums = {"carried": Scaled.zeros(steps), "whole": Scaled.zeros(steps)}
        self.rows: torch.Tensor | None = None
        self.exponent = torch.zeros(0, dtype=torch.int64)

    def update(self, block: Block) -> None:
        assert block.lags is not None
        if self.rows is None:  # lag 0: nothing has left the port yet
            first = int(block.lags.argmin())
            self.rows, self.exponent = block.total[first], block.common[first].expand(block.total.shape[1:3])
        rows, exponent = self.rows[-len(block.origins) :], self.exponent[-len(block.origins) :]
        keep = block.factors["keep"]
        carried, whole = (
            torch.zeros(len(block.lags), dtype=torch.float64),
            torch.zeros(len(block.lags), dtype=torch.float64),
        )
        for place in torch.argsort(block.lags).tolist():
            shift = power_of_two((exponent - block.common[place]).clamp(-1000, 1000))
            inner = (rows.double() * block.total[place].double()).sum(-1)
            carried[place] = (inner * shift).sum()
            whole[place] = block.total[place].double().square().sum()
            rows = rows * keep[place]
            peak = torch.linalg.vector_norm(rows, ord=float("inf"), dim=-1)
            rows, exponent = rescale(rows, exponent, peak)
            exponent = torch.where(peak > 0, exponent, DEAD)
        self.rows, self.exponent = rows, exponent
        for name, value in (("carried", carried), ("whole", whole)):
            sums = self.scaled(name)
            sums.add_at(block.lags, value, 2 * block.common)

    def finish(self) -> dict[str, np.ndarray]:
        """ "0" and "rest" → (T,) shares that add up to 1."""
        carried, whole = self.scaled("carried"), self.scaled("whole")
        zero = carried.over(whole)
        return {"0": zero, "rest": 1 - zero}
