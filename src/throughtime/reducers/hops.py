"""How often the gradient leaves the carry port on its way: λ^(m) is the part that left it exactly m times.

λ^(m)_{k−1} = λ^(m)_k C_k + λ^(m−1)_k (J_k − C_k), C_k the carry port's Jacobian. Told here: m = 0, that which went by the
carry port alone, and the rest.
"""

from __future__ import annotations

import numpy as np
import torch

from throughtime.linearize import Linearization
from throughtime.reducers.reducer import Reducer
from throughtime.scaled import Scaled, march, power_of_two
from throughtime.sweep import Block


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
        order = torch.argsort(block.lags)
        keep = [block.factors["keep"][place] for place in order.tolist()]
        passed, exponents, _, self.rows, self.exponent = march(
            lambda turn, rows: (rows * keep[turn], None), rows, exponent, len(keep)
        )
        total, common = block.total[order].double(), block.common[order, None, None]
        inner = (torch.stack(passed).double() * total).sum(-1)
        carried = (inner * power_of_two((torch.stack(exponents) - common).clamp(-1000, 1000))).sum((1, 2))
        whole = total.square().sum((1, 2, 3))
        for name, value in (("carried", carried), ("whole", whole)):
            sums = self.scaled(name)
            sums.add_at(block.lags[order], value, 2 * block.common[order])

    def finish(self) -> dict[str, np.ndarray]:
        """ "0" and "rest" → (T,) shares that add up to 1."""
        carried, whole = self.scaled("carried"), self.scaled("whole")
        zero = carried.over(whole)
        return {"0": zero, "rest": 1 - zero}
