"""How often the gradient leaves the carry port on its way: λ^(m) is the part that left it exactly m times.

λ^(m)_{k−1} = λ^(m)_k C_k + λ^(m−1)_k (J_k − C_k), C_k the carry port's Jacobian. Told here: m = 0, that which went by the
carry port alone, and the rest.
"""

from __future__ import annotations

import numpy as np
import torch

from throughtime.block import Block, contiguous
from throughtime.linearize import Linearization
from throughtime.reducers.reducer import Reducer
from throughtime.scaled import Scaled, march, power_of_two


class Hops(Reducer):
    """Share Σ⟨λ^(0), λ⟩ / Σ⟨λ, λ⟩ by lag. Only for a cell with a carry port."""

    def __init__(self, linearization: Linearization) -> None:
        super().__init__(linearization)
        steps = linearization.trace.steps
        self.sums = {"carried": Scaled.zeros(steps), "whole": Scaled.zeros(steps)}
        self.origins = torch.tensor(linearization.trace.origins())
        self.rows = torch.zeros(0)
        self.exponent = torch.zeros(len(self.origins), linearization.trace.batch, dtype=torch.int64)

    def update(self, block: Block) -> None:
        assert block.lags is not None
        rows = contiguous(torch.searchsorted(self.origins, block.origins)[None])
        at = rows if isinstance(rows, slice) else rows.to(block.adjoint.device), block.sequences
        order = torch.argsort(block.lags)
        order, turns = order.tolist(), torch.argsort(order).tolist()
        if block.lags[order[0]] == 0:  # nothing has left the port yet
            if not self.rows.numel():
                self.exponent = self.exponent.to(block.total.device)
                self.rows = block.total.new_zeros(*self.exponent.shape, block.total.shape[-1])
            self.rows[at], self.exponent[at] = block.total[order[0]], block.common[order[0]]
        keep = [block.factors["keep"][place] for place in order]
        passed, exponents, _, rows, exponent = march(
            lambda turn, rows: (rows * keep[turn], None), self.rows[at], self.exponent[at], len(keep)
        )
        # In the block's order; a copy, for the rows may be the ones that are kept.
        carried, power = (torch.stack([each[turn] for turn in turns]) for each in (passed, exponents))
        self.rows[at], self.exponent[at] = rows, exponent
        total = block.total.double()
        inner = (carried.double() * total).sum(-1)
        shift = (power - block.common[:, None, None]).clamp(-1000, 1000)
        self.add("carried", block, (inner * power_of_two(shift)).sum((1, 2)))
        self.add("whole", block, total.square().sum((1, 2, 3)))

    def finish(self) -> dict[str, np.ndarray]:
        """ "0" and "rest" → (T,) shares that add up to 1."""
        carried, whole = self.scaled("carried"), self.scaled("whole")
        zero = carried.over(whole)
        return {"0": zero, "rest": 1 - zero}
