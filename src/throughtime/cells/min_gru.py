"""minGRU: a GRU whose gate and candidate read the input alone. Feng et al. 2024 (arXiv:2410.01201), section 3.1.

z = σ(W_z x + b_z)          n = W_n x + b_n          h = (1 − z)∘h₋ + z∘n
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from throughtime.cells.cell import Cell, Node, Product, Pulled, Tensors, Weights, split, stack_gates, unchanged


@dataclass(frozen=True)
class MinGRU(Cell):
    """minGRU: weight_ih (2·H, D) and bias_ih (2·H,), gates z, n. The one path is the carry."""

    name: ClassVar[str] = "mingru"
    gates: ClassVar = ("z", "n")
    ports: ClassVar = ("carry",)
    pre: ClassVar = ("z", "n")
    sigmoids: ClassVar = ("z",)
    products: ClassVar = (
        Product("weight_ih", "x", ("z", "n"), ("z", "n")),
        Product("bias_ih", "1", ("z", "n"), ("z", "n")),
    )

    @property
    def keep(self) -> tuple[str, int]:
        return ("z", -1)

    def shapes(self, inputs: int, hidden: int) -> dict[str, tuple[int, ...]]:
        return {"weight_ih": (2 * hidden, inputs), "bias_ih": (2 * hidden,)}

    def step(self, w: Weights, x: Tensor, ports: Mapping[str, Tensor], node: Node = unchanged) -> Tensor:
        z, n = (node(name, value) for name, value in zip(self.pre, split(w.into(x), 2), strict=True))
        z = torch.sigmoid(z)
        return (1 - z) * ports["carry"] + z * n

    def factors(self, w: Weights, x: Tensor, before: Tensor, after: Tensor, pre: Tensors | None = None) -> Tensors:
        pre = pre or self.pre_activations(w, x, before)
        z = torch.sigmoid(pre["z"])
        return {"keep": 1 - z, "local": stack_gates(((pre["n"] - before) * (z * (1 - z)), z))}

    def pull(self, w: Weights, factors: Tensors, adjoint: Tensor, paths: bool = True) -> Pulled:
        kept = adjoint * factors["keep"]
        return Pulled((adjoint.unsqueeze(-2) * factors["local"],), kept, {"carry": kept} if paths else {})
