"""The adjoint by origin and step: a map of log10 RMS over the batch of ‖λ[t, k]‖."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from throughtime.block import Block
from throughtime.flow import OriginStep
from throughtime.linearize import Linearization
from throughtime.reducers.adjoints import loss_pairs
from throughtime.reducers.reducer import Reducer
from throughtime.scaled import power_of_two

SIDE = 512  # cells a side at most; a longer sequence is told by blocks of steps


def width_of(steps: int) -> int:
    """Steps a cell, a power of two: maps of different lengths then fit into each other."""
    width = 1
    while -(-steps // width) > SIDE:
        width *= 2
    return width


@dataclass(frozen=True)
class Places:
    """Sums by cell (rows, columns), which add up: log2 Σ‖λ‖² and the number of pairs (t, b). origins: (rows,) of cells."""

    width: int
    origins: Tensor
    log2: Tensor
    count: Tensor

    def __add__(self, other: Places) -> Places:
        width = max(self.width, other.width)
        parts = [part._of(width) for part in (self, other)]
        columns = max(part.log2.shape[1] for part in parts)
        origins = torch.unique(torch.cat([part.origins for part in parts]))
        log2 = torch.full((len(origins), columns), -torch.inf, dtype=torch.float64)
        count = torch.zeros(len(origins), columns, dtype=torch.float64)
        for part in parts:
            rows, inside = torch.searchsorted(origins, part.origins), slice(part.log2.shape[1])
            log2[rows, inside] = torch.logaddexp2(log2[rows, inside], part.log2)
            count[rows, inside] += part.count
        return Places(width, origins, log2, count)

    def _of(self, width: int) -> Places:
        """The same in wider cells."""
        fold = width // self.width
        if fold == 1:
            return self
        origins = torch.unique(self.origins // fold)
        rows = torch.searchsorted(origins, self.origins // fold)
        columns = torch.arange(self.log2.shape[1]) // fold
        cell = (rows[:, None] * (columns[-1] + 1) + columns).flatten()
        shape = (len(origins), int(columns[-1]) + 1)
        top = torch.full((shape[0] * shape[1],), -torch.inf, dtype=torch.float64)
        top = top.scatter_reduce(0, cell, self.log2.flatten(), "amax")
        base = torch.where(torch.isfinite(top), top, 0.0)
        mantissa = torch.zeros_like(base).index_add(0, cell, torch.exp2(self.log2.flatten() - base[cell]))
        count = torch.zeros_like(base).index_add(0, cell, self.count.flatten())
        return Places(width, origins, (torch.log2(mantissa) + base).reshape(shape), count.reshape(shape))

    def finish(self) -> OriginStep:
        """See `throughtime.flow.OriginStep`."""
        mean = self.log2 - torch.log2(self.count)
        mean[self.count == 0] = torch.nan
        return OriginStep(
            origins=self.origins.numpy() * self.width,
            steps=np.arange(self.log2.shape[1], dtype=np.int64) * self.width,
            log10_norm=(0.5 * np.log10(2) * mean).numpy(),
        )


class OriginSteps(Reducer):
    """Kept as log2 of sums of squares, one a cell. The pairs of a cell are counted, and not seen: a dead row is no block."""

    def __init__(self, linearization: Linearization) -> None:
        super().__init__(linearization)
        steps = linearization.trace.steps
        self.width = width_of(steps)
        self.origins = sorted({t // self.width for t in linearization.trace.origins()})
        self.columns = -(-steps // self.width)
        row = torch.full((steps // self.width + 1,), -1, dtype=torch.int64)
        row[self.origins] = torch.arange(len(self.origins))
        self.row_of = row
        self.pairs = loss_pairs(linearization).sum(1)
        self.told = 0
        self.log2 = torch.full((len(self.origins) * self.columns,), -torch.inf, dtype=torch.float64)
        self.merged: Places | None = None

    def update(self, block: Block) -> None:
        assert block.lags is not None
        self.told = max(self.told, int(block.lags.max()) + 1)
        top = block.exponent.amax(2)
        norms = torch.linalg.vector_norm(block.adjoint, dim=-1).double().square()
        squares = (norms * power_of_two(2 * (block.exponent - top[..., None]))).sum(2)
        origins = block.origins.expand(block.steps.shape).flatten()
        cell = self.row_of[origins // self.width] * self.columns + block.steps.flatten() // self.width
        self.later.tell((torch.log2(squares) + 2 * top).flatten(), lambda value: self._put(cell, value))

    def _put(self, cell: Tensor, value: Tensor) -> None:
        """Values as log2, to these cells."""
        touched, inverse = torch.unique(cell, return_inverse=True)
        highest = torch.full(touched.shape, -torch.inf, dtype=torch.float64).scatter_reduce(0, inverse, value, "amax")
        base = torch.where(torch.isfinite(highest), highest, 0.0)
        mantissa = torch.zeros_like(base).index_add(0, inverse, torch.exp2(value - base[inverse]))
        self.log2[touched] = torch.logaddexp2(self.log2[touched], torch.log2(mantissa) + base)

    def places(self) -> Places:
        """What adds up."""
        if self.merged is not None:
            return self.merged
        self.later.settle()
        count = torch.zeros(len(self.origins), self.columns, dtype=torch.float64)
        for origin in self.linearization.trace.origins():
            steps = torch.arange(max(0, origin - self.told + 1), origin + 1) // self.width
            row = count[int(self.row_of[origin // self.width])]
            row.index_add_(0, steps, self.pairs[origin].double().expand(len(steps)))
        shape = len(self.origins), self.columns
        return Places(self.width, torch.tensor(self.origins, dtype=torch.int64), self.log2.reshape(shape), count)

    def join(self, one: OriginSteps, other: OriginSteps) -> None:
        """Origins may differ: a mask can leave a step without loss in one of two batches."""
        self.merged = one.places() + other.places()

    def finish(self) -> OriginStep:
        """See `throughtime.flow.OriginStep`."""
        return self.places().finish()
