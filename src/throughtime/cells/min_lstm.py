"""minLSTM: an LSTM whose gates read the input alone and add up to 1. Feng et al. 2024 (arXiv:2410.01201), section 3.2.

f = σ(W_f x + b_f)      i = σ(W_i x + b_i)      n = W_n x + b_n
h = f′∘h₋ + i′∘n        f′ = f / (f + i), i′ = i / (f + i)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from throughtime.cells.cell import Cell, Node, Product, Tensors, Weights, split, unchanged


@dataclass(frozen=True)
class MinLSTM(Cell):
    """minLSTM: weight_ih (3·H, D) and bias_ih (3·H,), gates f, i, n. The one path is the carry."""

    name: ClassVar[str] = "minlstm"
    gates: ClassVar = ("f", "i", "n")
    ports: ClassVar = ("carry",)
    pre: ClassVar = ("f", "i", "n")
    sigmoids: ClassVar = ("f", "i")
    products: ClassVar = (
        Product("weight_ih", "x", ("f", "i", "n"), ("f", "i", "n")),
        Product("bias_ih", "1", ("f", "i", "n"), ("f", "i", "n")),
    )

    def shapes(self, inputs: int, hidden: int) -> dict[str, tuple[int, ...]]:
        return {"weight_ih": (3 * hidden, inputs), "bias_ih": (3 * hidden,)}

    @property
    def diagonal(self) -> bool:
        return True

    def log_keep(self, w: Weights, x: Tensor, pre: Tensors) -> Tensor:
        return logsigmoid(logsigmoid(pre["f"]) - logsigmoid(pre["i"]))

    def step(self, w: Weights, x: Tensor, ports: Mapping[str, Tensor], node: Node = unchanged) -> Tensor:
        f, i, n = (node(name, value) for name, value in zip(self.pre, split(w.into(x), 3), strict=True))
        odds = logsigmoid(f) - logsigmoid(i)  # ln f/i: f/(f + i) is 0/0 where both are shut
        return torch.sigmoid(odds) * ports["carry"] + torch.sigmoid(-odds) * n
