"""DreamerV3's GRU: block-diagonal recurrent weights, one layer norm over all gates. Hafner et al. 2023 (arXiv:2301.04104).

a = W x + b + (U_1 h₋¹, …, U_K h₋ᴷ) of each gate; â = (a − mean) / √(var + ε) over the 3·H numbers
(r̃, ñ, ũ) = g∘â + c
r = σ(r̃)      n = tanh(r∘ñ)      u = σ(ũ − 1)      h = (1 − u)∘h₋ + u∘n

The cell of Dreamer's world model since V2 (its −1 makes the state keep at first); the blocks are V3's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from throughtime.cells.cell import Cell, Node, Product, Tensors, Weights, split, unchanged
from throughtime.errors import InputError


@dataclass(frozen=True)
class BlockGRU(Cell):
    """Gates r, n, u. weight_hh (3·H, H/K): the rows of a gate block by block. norm_weight, bias_norm (3·H,): g and c.

    blocks_of: K, which divides H. eps: ε. The bias b is usually absent.
    """

    blocks_of: int = 8
    eps: float = 1e-3

    name: ClassVar[str] = "block-gru"
    gates: ClassVar = ("r", "n", "u")
    ports: ClassVar = ("carry", "reset", "candidate", "update")
    pre: ClassVar = ("in_r", "in_n", "in_u", "r", "n", "u")
    sigmoids: ClassVar = ("r", "u")
    reset: ClassVar = "r"
    products: ClassVar = (
        Product("weight_ih", "x", ("r", "n", "u"), ("in_r", "in_n", "in_u")),
        Product("bias_ih", "1", ("r", "n", "u"), ("in_r", "in_n", "in_u")),
        Product("norm_weight", "normed_r", ("r",), ("r",), elementwise=True),
        Product("norm_weight", "normed_n", ("n",), ("n",), elementwise=True),
        Product("norm_weight", "normed_u", ("u",), ("u",), elementwise=True),
        Product("bias_norm", "1", ("r", "n", "u"), ("r", "n", "u")),
    )

    @property
    def keep(self) -> tuple[str, int]:
        return ("u", -1)

    @property
    def multiple(self) -> int:
        return self.blocks_of

    @property
    def convention(self) -> Mapping[str, str]:
        return {"blocks": str(self.blocks_of), "eps": f"{self.eps:g}"}

    def shapes(self, inputs: int, hidden: int) -> dict[str, tuple[int, ...]]:
        if hidden % self.blocks_of:
            raise InputError(f"{hidden} units in {self.blocks_of} blocks", "blocks that divide them", "check blocks_of")
        rows = 3 * hidden
        return {
            "weight_ih": (rows, inputs),
            "weight_hh": (rows, hidden // self.blocks_of),
            "bias_ih": (rows,),
            "norm_weight": (rows,),
            "bias_norm": (rows,),
        }

    def dimensions(self, w: Weights) -> tuple[int, int]:
        return w.weight_ih.shape[1], w.weight_ih.shape[0] // 3

    def _recurrent(self, w: Weights, gate: int, h: Tensor) -> Tensor:
        """A gate's block-diagonal product with h (..., H)."""
        blocks = w.weight_hh.unflatten(0, (3, self.blocks_of, -1))[gate]  # (K, H/K, H/K)
        return torch.einsum("kij,...kj->...ki", blocks, h.unflatten(-1, (self.blocks_of, -1))).flatten(-2)

    def _sums(self, w: Weights, x: Tensor, ports: Mapping[str, Tensor], node: Node) -> Tensor:
        """Before the norm, (..., 3·H)."""
        readers = zip(split(w.into(x), 3), ("reset", "candidate", "update"), self.pre[:3], strict=True)
        return torch.cat(
            [
                node(name, into + self._recurrent(w, gate, ports[port]))
                for gate, (into, port, name) in enumerate(readers)
            ],
            dim=-1,
        )

    def _normed(self, sums: Tensor) -> Tensor:
        return torch.nn.functional.layer_norm(sums, sums.shape[-1:], eps=self.eps)

    def step(self, w: Weights, x: Tensor, ports: Mapping[str, Tensor], node: Node = unchanged) -> Tensor:
        scaled = w.norm_weight * self._normed(self._sums(w, x, ports, node))
        r, n, u = split(scaled if w.bias_norm is None else scaled + w.bias_norm, 3)
        r, n, u = node("r", r), node("n", n), node("u", u - 1)
        new = torch.tanh(torch.sigmoid(r) * n)
        return torch.sigmoid(-u) * ports["carry"] + torch.sigmoid(u) * new

    def factors(self, w: Weights, x: Tensor, before: Tensor, after: Tensor, pre: Tensors | None = None) -> Tensors:
        pre = pre or self.pre_activations(w, x, before)
        normed = split(self._normed(torch.cat([pre[name] for name in self.pre[:3]], dim=-1)), 3)
        made = super().factors(w, x, before, after, pre)
        return made | dict(zip(("normed_r", "normed_n", "normed_u"), normed, strict=True))

    def operands(self, factors: Tensors, x: Tensor, before: Tensor) -> Tensors:
        return {"x": x, **{name: factors[name] for name in ("normed_r", "normed_n", "normed_u")}}
