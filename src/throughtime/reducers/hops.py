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
        at = contiguous(torch.searchsorted(self.origins, block.origins.cpu())[None]), block.sequences
        if int(block.lags.min()) == 0:  # nothing has left the port yet
            place = int(block.lags.argmin())
            if not self.rows.numel():
                self.exponent = self.exponent.to(block.total.device)
                self.rows = block.total.new_zeros(*self.exponent.shape, block.total.shape[-1])
            self.rows[at], self.exponent[at] = block.total[place], block.common[place]
        order = torch.argsort(block.lags)
        keep = [block.factors["keep"][place] for place in order.tolist()]
        passed, exponents, _, rows, exponent = march(
            lambda turn, rows: (rows * keep[turn], None), self.rows[at], self.exponent[at], len(keep)
        )
        carried = torch.stack(passed).double()  # a copy: the rows may be the ones that are kept
        self.rows[at], self.exponent[at] = rows, exponent
        total, common = block.total[order].double(), block.common[order, None, None]
        inner = (carried * total).sum(-1)
        carried = (inner * power_of_two((torch.stack(exponents) - common).clamp(-1000, 1000))).sum((1, 2))
        back = torch.argsort(order)
        self.add("carried", block, carried[back])
        self.add("whole", block, total.square().sum((1, 2, 3))[back])

    def finish(self) -> dict[str, np.ndarray]:
        """ "0" and "rest" → (T,) shares that add up to 1."""
        carried, whole = self.scaled("carried"), self.scaled("whole")
        zero = carried.over(whole)
        return {"0": zero, "rest": 1 - zero}
