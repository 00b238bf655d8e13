"""Elman RNN: h = φ(W_ih x + b_ih + W_hh h₋ + b_hh), φ tanh or relu. Elman 1990."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from throughtime.cells.activations import tanh_slope
from throughtime.cells.cell import Cell, Node, Product, Pulled, Tensors, Weights, unchanged


@dataclass(frozen=True)
class RNN(Cell):
    """Elman RNN. activation: "tanh" or "relu"."""

    activation: str = "tanh"

    name: ClassVar[str] = "rnn"
    gates: ClassVar = ("a",)
    ports: ClassVar = ("recurrent",)
    pre: ClassVar = ("a",)
    products: ClassVar = (
        Product("weight_ih", "x", ("a",), ("a",)),
        Product("weight_hh", "h", ("a",), ("a",)),
        Product("bias_ih", "1", ("a",), ("a",)),
        Product("bias_hh", "1", ("a",), ("a",)),
    )

    @property
    def convention(self) -> Mapping[str, str]:
        return {"activation": self.activation}

    def step(self, w: Weights, x: Tensor, ports: Mapping[str, Tensor], node: Node = unchanged) -> Tensor:
        a = node("a", w.into(x) + torch.nn.functional.linear(ports["recurrent"], w.weight_hh, w.bias_hh))
        return torch.tanh(a) if self.activation == "tanh" else torch.relu(a)

    def factors(self, w: Weights, x: Tensor, before: Tensor, after: Tensor, pre: Tensors | None = None) -> Tensors:
        return {"slope": tanh_slope(after) if self.activation == "tanh" else (after > 0).to(after.dtype)}

    def pull(self, w: Weights, factors: Tensors, adjoint: Tensor, paths: bool = True) -> Pulled:
        pre = adjoint * factors["slope"]
        carry = pre @ w.weight_hh
        return Pulled((pre.unsqueeze(-2),), carry, {"recurrent": carry} if paths else {})
