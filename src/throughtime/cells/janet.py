"""JANET, "just another network": an LSTM with its forget gate alone. van der Westhuizen & Lasenby 2018 (arXiv:1804.04849).

s = W_f x + b_f + U_f h₋        g = tanh(W_g x + b_g + U_g h₋)        h = σ(s)∘h₋ + (1 − σ(s − β))∘g

β > 0 lets in more than the forget gate lets go.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from throughtime.cells.activations import tanh_slope
from throughtime.cells.cell import (
    Cell,
    Node,
    Product,
    Pulled,
    Tensors,
    Weights,
    back_through,
    split,
    stack_gates,
    unchanged,
)


@dataclass(frozen=True)
class JANET(Cell):
    """JANET, gates f, g. beta: see above; 1 in the paper's experiments."""

    beta: float = 1.0

    name: ClassVar[str] = "janet"
    gates: ClassVar = ("f", "g")
    ports: ClassVar = ("carry", "forget", "candidate")
    pre: ClassVar = ("f", "g")
    sigmoids: ClassVar = ("f",)
    products: ClassVar = (
        Product("weight_ih", "x", ("f", "g"), ("f", "g")),
        Product("weight_hh", "h", ("f", "g"), ("f", "g")),
        Product("bias_ih", "1", ("f", "g"), ("f", "g")),
        Product("bias_hh", "1", ("f", "g"), ("f", "g")),
    )

    @property
    def keep(self) -> tuple[str, int]:
        return ("f", 1)

    @property
    def convention(self) -> Mapping[str, str]:
        return {"beta": f"{self.beta:g}"}

    def step(self, w: Weights, x: Tensor, ports: Mapping[str, Tensor], node: Node = unchanged) -> Tensor:
        in_f, in_g = split(w.into(x), 2)
        linear = torch.nn.functional.linear
        f = node("f", in_f + linear(ports["forget"], *w.rows(0, 2)))
        g = torch.tanh(node("g", in_g + linear(ports["candidate"], *w.rows(1, 2))))
        return torch.sigmoid(f) * ports["carry"] + torch.sigmoid(self.beta - f) * g

    def factors(self, w: Weights, x: Tensor, before: Tensor, after: Tensor, pre: Tensors | None = None) -> Tensors:
        pre = pre or self.pre_activations(w, x, before)
        f, take, g = torch.sigmoid(pre["f"]), torch.sigmoid(self.beta - pre["f"]), torch.tanh(pre["g"])
        by_f = before * (f * (1 - f)) - g * (take * (1 - take))
        return {"keep": f, "local": stack_gates((by_f, take * tanh_slope(g)))}

    def pull(self, w: Weights, factors: Tensors, adjoint: Tensor, paths: bool = True) -> Pulled:
        pre, kept = adjoint.unsqueeze(-2) * factors["local"], adjoint * factors["keep"]
        by_gate = back_through(pre, w.weight_hh.unflatten(0, (2, -1)))
        parts = dict(zip(self.ports, (kept, *by_gate), strict=True)) if paths else {}
        return Pulled((pre,), by_gate.sum(0) + kept, parts)
