"""The terms of the ledger: every gate block of every parameter as a product of pre-activation adjoints with an operand.

G(τ) of a block is Σ p ⊗ operand over all rows, p the adjoint of its pre-activation. Its norm is a sum of two Gram matrices, so
that no array of the weight's size is needed where the rows are few.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from throughtime.linearize import Linearization
from throughtime.sweep import Block


@dataclass(frozen=True)
class Entry:
    """One gate block of one parameter: row of the ledger. place: of its pre-activation; gate: of its rows."""

    parameter: str
    gate: str
    operand: str
    place: int
    index: int


def entries(linearization: Linearization) -> list[Entry]:
    """The rows of the ledger, in the order of the cell's products; parameters that the layer lacks are left out."""
    cell, there = linearization.cell, linearization.trace.weights.tensors()
    return [
        Entry(product.parameter, gate, product.operand, cell.pre.index(pre), cell.gates.index(gate))
        for product in cell.products
        if product.parameter in there
        for gate, pre in zip(product.gates, product.pre, strict=True)
    ]


def operand(block: Block, name: str) -> Tensor | None:
    """The operand at the block's rows: (L, R·B, width); None for a bias."""
    return None if name == "1" else block.take(block.window.operands[name]).flatten(1, 2)


def outer(p: Tensor, x: Tensor | None) -> Tensor:
    """Σ p ⊗ x over rows: (…, N, H), (…, N, width) to (…, H, width); x None is a bias, whose operand is 1.

    A bias is summed and not multiplied by ones: matrix products add long columns up with a growing error.
    """
    return p.sum(-2).unsqueeze(-1) if x is None else p.mT @ x


@dataclass(frozen=True)
class Blocks:
    """All gate blocks of one parameter with one operand: ledger rows that follow each other. places, indices: `Entry`."""

    parameter: str
    operand: str
    places: list[int]
    indices: list[int]

    def of(self, parameter: Tensor, gates: int) -> Tensor:
        """These blocks of a parameter: (K, H, width); width 1 for a bias."""
        blocks = parameter.unflatten(0, (gates, -1))[self.indices]
        return blocks if blocks.ndim == 3 else blocks.unsqueeze(-1)

    def pre(self, block_pre: Tensor) -> Tensor:
        """Their pre-activations of (P, …): (K, …), without a copy where they lie side by side."""
        first, last = self.places[0], self.places[-1] + 1
        side_by_side = self.places == list(range(first, last))
        return block_pre[first:last] if side_by_side else block_pre[self.places]


def grouped(rows: list[Entry]) -> list[Blocks]:
    """Ledger rows by parameter and operand, so that one matrix product serves all of their gates."""
    return [
        Blocks(parameter, name, [row.place for row in group], [row.index for row in group])
        for (parameter, name), each in groupby(rows, lambda row: (row.parameter, row.operand))
        for group in [list(each)]
    ]


def pre_first(block: Block) -> Tensor:
    """The block's pre-activation adjoints as (P, L, R·B, H)."""
    return block.pre.movedim(-2, 0).flatten(2, 3)


def term_squares(block: Block, groups: list[Blocks]) -> Tensor:
    """‖G(τ)‖² of each ledger row (rows, L), in units of 4^common."""
    pre = pre_first(block)
    rows, hidden = pre.shape[2:]
    grams: dict[str, Tensor] = {}
    pre_grams = None
    out = []
    for group in groups:
        x = operand(block, group.operand)
        if x is not None and rows <= (hidden * x.shape[2]) // (hidden + x.shape[2]) + 1:
            if pre_grams is None:
                pre_grams = pre @ pre.mT
            if group.operand not in grams:
                grams[group.operand] = x @ x.mT
            out.append((group.pre(pre_grams) * grams[group.operand]).sum((2, 3)).clamp_min(0))
        else:
            out.append(outer(group.pre(pre), x).square().sum((2, 3)))
    return torch.cat(out)
