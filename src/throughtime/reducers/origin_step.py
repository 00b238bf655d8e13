"""The adjoint by origin and step: a map of log10 RMS over the batch of ‖λ[t, k]‖."""

from __future__ import annotations

import numpy as np
import torch

from throughtime.block import Block
from throughtime.flow import OriginStep
from throughtime.linearize import Linearization
from throughtime.reducers.adjoints import loss_pairs
from throughtime.reducers.reducer import Reducer
from throughtime.scaled import power_of_two

SIDE = 512  # cells a side at most; a longer sequence is told by blocks of steps


class OriginSteps(Reducer):
    """Kept as log2 of sums of squares, one a cell."""

    def __init__(self, linearization: Linearization) -> None:
        super().__init__(linearization)
        steps = linearization.trace.steps
        self.width = -(-steps // SIDE)
        self.origins = sorted({t // self.width for t in linearization.trace.origins()})
        self.columns = -(-steps // self.width)
        row = torch.full((steps // self.width + 1,), -1, dtype=torch.int64)
        row[self.origins] = torch.arange(len(self.origins))
        self.row_of = row
        self.pairs = loss_pairs(linearization)
        cells = len(self.origins) * self.columns
        self.log2 = torch.full((cells,), -torch.inf, dtype=torch.float64)
        self.count = torch.zeros(cells, dtype=torch.float64)

    def update(self, block: Block) -> None:
        top = block.exponent.amax(2)
        norms = torch.linalg.vector_norm(block.adjoint, dim=-1).double().square()
        squares = (norms * power_of_two(2 * (block.exponent - top[..., None]))).sum(2)
        value = (torch.log2(squares) + 2 * top).flatten().cpu()
        origins = block.origins.expand(block.steps.shape).flatten()
        cell = self.row_of[origins // self.width] * self.columns + block.steps.flatten() // self.width
        touched, inverse = torch.unique(cell, return_inverse=True)
        highest = torch.full(touched.shape, -torch.inf, dtype=torch.float64).scatter_reduce(0, inverse, value, "amax")
        base = torch.where(torch.isfinite(highest), highest, 0.0)
        mantissa = torch.zeros_like(base).index_add(0, inverse, torch.exp2(value - base[inverse]))
        self.log2[touched] = torch.logaddexp2(self.log2[touched], torch.log2(mantissa) + base)
        self.count.index_add_(0, cell, self.pairs[origins, block.sequences].sum(1).double())

    def initial(self, lag: int | None, adjoint: torch.Tensor, exponent: torch.Tensor) -> None:
        """Steps of an origin that no block named, because nothing of it was left, are told as zero."""
        if lag is not None:
            first = self.row_of[(lag - 1) // self.width] * self.columns
            cells = self.count[first : first + (lag - 1) // self.width + 1]
            cells[cells == 0] = 1

    def join(self, one: OriginSteps, other: OriginSteps) -> None:
        """Origins may differ: a mask can leave a step without loss in one of two batches."""
        self.origins = sorted({*one.origins, *other.origins})
        cells = len(self.origins) * self.columns
        self.log2 = torch.full((cells,), -torch.inf, dtype=torch.float64)
        self.count = torch.zeros(cells, dtype=torch.float64)
        for part in (one, other):
            rows = torch.tensor([self.origins.index(origin) for origin in part.origins], dtype=torch.int64)
            cell = (rows[:, None] * self.columns + torch.arange(self.columns)).flatten()
            self.log2[cell] = torch.logaddexp2(self.log2[cell], part.log2)
            self.count[cell] += part.count

    def finish(self) -> OriginStep:
        """See `throughtime.flow.OriginStep`."""
        mean = self.log2 - torch.log2(self.count)
        mean[self.count == 0] = torch.nan
        return OriginStep(
            origins=np.array(self.origins, dtype=np.int64) * self.width,
            steps=np.arange(self.columns, dtype=np.int64) * self.width,
            log10_norm=(0.5 * np.log10(2) * mean).reshape(len(self.origins), self.columns).numpy(),
        )
