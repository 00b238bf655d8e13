"""The terms of the ledger: every gate block of every parameter as a product of row factors, Σ p ⊗ x.

Of a stacked weight, p is the adjoint of a block's pre-activation and x the operand; of a bias there is no x; of an elementwise
parameter p is multiplied by the operand first. G(τ) is the sum over all rows, and its norm is a sum of two Gram matrices, so
that no array of the weight's size is needed where the rows are few. A parameter that stands in no product has its terms from
autograd: one row a lag, which is the term itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from itertools import groupby
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from throughtime.block import Block
from throughtime.linearize import Linearization
from throughtime.scaled import power_of_two

Made = TypeVar("Made")

AUTOGRAD = "autograd"  # the operand of parameters that stand in no product


@dataclass(frozen=True)
class Entry:
    """One gate block of one parameter, a row of the ledger. bank, place: of its pre-activation; index: of its block.

    gate: None for a parameter whose blocks are not told apart.
    """

    parameter: str
    gate: str | None
    operand: str
    bank: int = 0
    place: int = 0
    index: int = 0
    elementwise: bool = False


def once(make: Callable[[Linearization], Made]) -> Callable[[Linearization], Made]:
    """The same function; what it made of a linearization is kept as long as that is."""
    kept: WeakKeyDictionary[Linearization, Made] = WeakKeyDictionary()

    @wraps(make)
    def made(linearization: Linearization) -> Made:
        if linearization not in kept:
            kept[linearization] = make(linearization)
        return kept[linearization]

    return made


@once
def entries(linearization: Linearization) -> list[Entry]:
    """The rows of the ledger, in the order of the cell's products; parameters that the layer lacks are left out."""
    cell, there = linearization.cell, linearization.trace.weights.tensors()
    place = {name: (bank, at) for bank, names in enumerate(cell.banks) for at, name in enumerate(names)}
    made = [
        Entry(
            product.parameter,
            gate,
            product.operand,
            *place[pre],
            cell.blocks(product.parameter).index(gate),
            product.elementwise,
        )
        for product in cell.products
        if product.parameter in there
        for gate, pre in zip(product.gates, product.pre, strict=True)
    ]
    told = {row.parameter for row in made}
    return made + [Entry(name, None, AUTOGRAD) for name in there if name not in told]


@dataclass(frozen=True)
class Blocks:
    """Gate blocks of one parameter that share operand and bank: ledger rows that follow each other.

    count: of the blocks that the parameter stacks. places, indices: see `Entry`; the places lie side by side.
    """

    parameter: str
    operand: str
    bank: int
    elementwise: bool
    count: int
    places: list[int]
    indices: list[int]

    @property
    def key(self) -> str:
        """Under which a block keeps their terms."""
        return f"{self.parameter} {self.operand} {self.bank} {self.places}"

    def of(self, parameter: Tensor) -> Tensor:
        """These blocks of a parameter: (K, H, width); width 1 where there is no operand to multiply with."""
        if self.operand == AUTOGRAD:
            return parameter.reshape(1, -1, 1)
        blocks = parameter.unflatten(0, (self.count, -1))[self.indices]
        return blocks if blocks.ndim == 3 else blocks.unsqueeze(-1)

    def put(self, blocks: Tensor, parameter: Tensor) -> None:
        """Write blocks, as `of` gives them, to where they stand in the parameter."""
        if self.operand == AUTOGRAD:
            parameter.copy_(blocks.reshape(parameter.shape))
        else:
            places = parameter.unflatten(0, (self.count, -1))
            places[self.indices] = blocks.reshape(places[self.indices].shape)

    def factors(self, block: Block) -> tuple[Tensor, Tensor | None]:
        """p (K, L, N, H) and x (L, N, width), or None: G(τ) = Σ_N p ⊗ x, in units of 2^common."""
        if self.operand == AUTOGRAD:
            return _by_autograd(block, self.parameter), None
        pre = pre_first(block, self.bank)
        p = pre[self.places[0] : self.places[-1] + 1]
        x = operand(block, self.operand)
        return (p * x, None) if self.elementwise and x is not None else (p, x)


@once
def grouped(linearization: Linearization) -> list[Blocks]:
    """The rows of `entries` that one matrix product serves: of one parameter, operand and bank, places side by side."""
    numbered = enumerate(entries(linearization))
    alike = groupby(
        numbered,
        lambda each: (each[1].parameter, each[1].operand, each[1].bank, each[1].elementwise, each[1].place - each[0]),
    )
    return [
        Blocks(
            *key[:4], len(linearization.cell.blocks(key[0])) or 1, [r.place for r in group], [r.index for r in group]
        )
        for key, each in alike
        for group in [[row for _, row in each]]
    ]


def operand(block: Block, name: str) -> Tensor | None:
    """The operand at the block's rows: (L, R·B, width); None for a bias."""
    if name == "1":
        return None
    return block.take(block.window.operands[name]).flatten(1, 2).to(block.linearization.terms_in)


def add_terms(group: Blocks, block: Block, total: Tensor | None) -> Tensor:
    """G(τ) of the block's rows (K, L, H, width), in units of 2^common, added to a total in place; None is nothing yet.

    Terms that the block keeps are not made again.
    """
    if group.key in block.terms:
        made = block.terms[group.key]
    elif group.operand == "1":
        made = block.sums[group.bank][group.places].unsqueeze(-1)
    else:
        p, x = group.factors(block)
        if total is not None and x is not None and p.shape[1] == 1:
            total[:, 0].baddbmm_(p[:, 0].mT, x.expand(len(p), -1, -1))
            return total
        made = outer(p, x)
    return made if total is None else total.add_(made)


def outer(p: Tensor, x: Tensor | None) -> Tensor:
    """Σ p ⊗ x over rows: (…, N, H), (…, N, width) to (…, H, width); x None is a bias, whose operand is 1.

    A bias is summed and not multiplied by ones: matrix products add long columns up with a growing error.
    """
    return p.sum(-2).unsqueeze(-1) if x is None else p.mT @ x


def pre_first(block: Block, bank: int = 0) -> Tensor:
    """The block's pre-activation adjoints as (P, L, R·B, H)."""
    return block.pre[bank].movedim(-2, 0).flatten(2, 3)


def _by_autograd(block: Block, name: str) -> Tensor:
    """(1, L, 1, numbers of the parameter): its term at each lag."""
    made = torch.stack([terms[name].flatten() for terms in block.by_autograd])[None, :, None]
    return made.to(block.linearization.terms_in)


def term_squares(block: Block, groups: list[Blocks]) -> Tensor:
    """‖G(τ)‖² of each ledger row (rows, L), in units of 4^common."""
    grams: dict[str, Tensor] = {}
    pre_grams: dict[int, Tensor] = {}
    out = []
    for group in groups:
        p, x = group.factors(block)
        rows, hidden = p.shape[2:]
        if x is None or rows > (hidden * x.shape[2]) // (hidden + x.shape[2]) + 1:
            out.append(outer(p, x).square().sum((2, 3)))
            continue
        if group.bank not in pre_grams:
            pre = pre_first(block, group.bank)
            pre_grams[group.bank] = pre @ pre.mT
        if group.operand not in grams:
            grams[group.operand] = x @ x.mT
        own = pre_grams[group.bank][group.places]
        out.append((own * grams[group.operand]).sum((2, 3)).clamp_min(0))
    return torch.cat(out)


def sizes_of_rows(block: Block, groups: list[Blocks], unit: int = 0) -> Tensor:
    """Σ‖p ⊗ x‖ over the rows of all lags, sequences and groups, float64, in units of 2^unit: no row is larger than that."""
    total = torch.zeros(len(block.common), dtype=torch.float64, device=block.adjoint.device)
    for group in groups:
        p, x = group.factors(block)
        size = torch.linalg.vector_norm(p, dim=(0, 3)).double()
        total += (size if x is None else size * torch.linalg.vector_norm(x, dim=-1).double()).sum(1)
    return (total * power_of_two(block.common - unit)).sum().cpu()
