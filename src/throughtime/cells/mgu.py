"""Minimal gated unit: one gate that both resets and updates. Zhou et al. 2016 (arXiv:1603.09420), equations 6.

f = σ(W_f x + b_f + U_f h₋)      n = tanh(W_n x + b_n + U_n (f∘h₋))      h = (1 − f)∘h₋ + f∘n
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from throughtime.cells.cell import Cell, Node, Product, Tensors, Weights, split, unchanged


@dataclass(frozen=True)
class MGU(Cell):
    """Minimal gated unit, gates f, n."""

    name: ClassVar[str] = "mgu"
    gates: ClassVar = ("f", "n")
    ports: ClassVar = ("carry", "gate", "candidate")
    pre: ClassVar = ("f", "n")
    sigmoids: ClassVar = ("f",)
    products: ClassVar = (
        Product("weight_ih", "x", ("f", "n"), ("f", "n")),
        Product("weight_hh", "h", ("f",), ("f",)),
        Product("weight_hh", "fh", ("n",), ("n",)),
        Product("bias_ih", "1", ("f", "n"), ("f", "n")),
        Product("bias_hh", "1", ("f", "n"), ("f", "n")),
    )

    @property
    def keep(self) -> tuple[str, int]:
        return ("f", -1)

    def step(self, w: Weights, x: Tensor, ports: Mapping[str, Tensor], node: Node = unchanged) -> Tensor:
        in_f, in_n = split(w.into(x), 2)
        linear = torch.nn.functional.linear
        f = torch.sigmoid(node("f", in_f + linear(ports["gate"], *w.rows(0, 2))))
        n = torch.tanh(node("n", in_n + linear(f * ports["candidate"], *w.rows(1, 2))))
        return (1 - f) * ports["carry"] + f * n

    def factors(self, w: Weights, x: Tensor, before: Tensor, after: Tensor, pre: Tensors | None = None) -> Tensors:
        pre = pre or self.pre_activations(w, x, before)
        return super().factors(w, x, before, after, pre) | {"f": torch.sigmoid(pre["f"])}

    def operands(self, factors: Tensors, x: Tensor, before: Tensor) -> Tensors:
        return {"x": x, "h": before, "fh": factors["f"] * before}
