"""The terms themselves: G(τ) of every lag, as one long vector. They add up over batches, which norms and shares do not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from throughtime.block import Block
from throughtime.linearize import Linearization
from throughtime.reducers.products import add_terms, entries, grouped, outer, sizes_of_rows
from throughtime.reducers.reducer import Reducer
from throughtime.scaled import EMPTY, Scaled, power_of_two

AT_ONCE = 2**20  # numbers of G(τ) of several lags that may be made at once


@dataclass(frozen=True)
class Row:
    """A gate block of a parameter, as the vector holds it. parameter, name: the weight's, and its state_dict name.

    gate: None for a parameter whose blocks are not told apart. index: of the block. size: numbers in it.
    """

    parameter: str
    name: str
    gate: str | None
    index: int
    size: int


def rows_of(linearization: Linearization) -> list[Row]:
    """The rows of the ledger in the order in which the vector holds them."""
    trace = linearization.trace
    tensors = trace.weights.tensors()
    sizes = [
        int(block[0].numel())
        for group in grouped(linearization)
        for block in group.of(tensors[group.parameter]).split(1)
    ]
    return [
        Row(
            row.parameter,
            trace.names.get(row.parameter, row.parameter),
            None if row.gate is None else row.gate.rpartition(".")[2],  # of a stack's cell without the layer's name
            row.index,
            size,
        )
        for row, size in zip(entries(linearization), sizes, strict=True)
    ]


def flat(linearization: Linearization, parameters: dict[str, Tensor]) -> Tensor:
    """Arrays by parameter as the vector (W,), float64; zero where one is lacking."""
    tensors = linearization.trace.weights.tensors()
    parts = [
        group.of(parameters.get(group.parameter, torch.zeros_like(tensors[group.parameter]))).flatten()
        for group in grouped(linearization)
    ]
    return torch.cat(parts).double().cpu()


class LagTerms(Reducer):
    """G(τ) of the lags below `told` as columns (W, lags), and the tail's sum (W, 1). Memory: 8·W bytes a lag."""

    def __init__(self, linearization: Linearization, told: int | None = None) -> None:
        super().__init__(linearization)
        self.groups = grouped(linearization)
        self.open: list[Tensor] | None = None  # G(τ) of a lag whose rows are not all in
        weights = sum(row.size for row in rows_of(linearization))
        steps = linearization.trace.steps
        self.sums = {
            "terms": columns(weights, steps if told is None else min(told, steps)),
            "tail": columns(weights, 1),
            "tail_sizes": torch.zeros((), dtype=torch.float64),
        }

    def update(self, block: Block) -> None:
        assert block.lags is not None
        if self.open is not None or not block.last:  # rows of one lag in several blocks: added up first
            terms = self.open or [None] * len(self.groups)
            self.open = [add_terms(group, block, term) for group, term in zip(self.groups, terms, strict=True)]
            if not block.last:
                return
            parts, self.open = self.open, None
            self._put(block.lags, parts, block.common)
            return
        made = [group.factors(block) for group in self.groups]
        room = max(1, AT_ONCE // max(1, self.scaled("terms").mantissa.shape[0]))
        for first in range(0, len(block.lags), room):
            at = slice(first, first + room)
            parts = [outer(p[:, at], None if x is None else x[at]) for p, x in made]
            self._put(block.lags[at], parts, block.common[at])

    def _put(self, lags: Tensor, parts: list[Tensor], exponent: Tensor) -> None:
        """Into the columns of these lags, at once: they are too large to wait as other sums do."""
        made = torch.cat([part.transpose(0, 1).flatten(1) for part in parts], dim=1).T.double().cpu()
        _add(self.scaled("terms"), lags, made, exponent.long().cpu())

    def tail(self, block: Block) -> None:
        made = [group.factors(block) for group in self.groups]
        tail, sizes = self.scaled("tail"), self.tensor("tail_sizes")
        sizes += sizes_of_rows(block, self.groups)
        for place in range(len(block.common)):
            parts = [outer(p[:, place], None if x is None else x[place]).flatten() for p, x in made]
            made_here = torch.cat(parts)[:, None].double().cpu()
            _add(tail, torch.zeros(1, dtype=torch.int64), made_here, block.common[place : place + 1].long().cpu())

    def finish(self) -> dict[str, np.ndarray]:
        """ "terms" (W, lags) and "tail" (W, 1)."""
        return {name: self.scaled(name).value().numpy() for name in ("terms", "tail")}


def _add(sums: Scaled, lags: Tensor, value: Tensor, exponent: Tensor) -> None:
    """Add value (W, L) · 2^exponent (L,) to these columns."""
    mantissa, power = sums.mantissa, sums.exponent
    new = torch.maximum(power[lags], exponent)
    mantissa[:, lags] = mantissa[:, lags] * power_of_two(power[lags] - new) + value * power_of_two(exponent - new)
    power[lags] = new


def columns(count: int, lags: int) -> Scaled:
    """Nothing summed yet, one lag's numbers side by side in memory."""
    return Scaled(torch.zeros(lags, count, dtype=torch.float64).T, torch.full((lags,), EMPTY, dtype=torch.int64))
