"""S6, the selective diagonal recurrence inside Mamba. Gu & Dao 2023 (arXiv:2312.00752), algorithm 2 and equation 4.

Δ = softplus(W_Δ (W_r x) + b_Δ)          B = W_B x          S = exp(Δ A)∘S₋ + (Δ∘x) Bᵀ,  A = −exp(a)

Each of the D channels of x has a state of N numbers: the carry and the output are S, D·N numbers, channel by channel. The
paper's readout S C, with C another product of x, stands outside; B̄ = Δ B, as in its code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear, softplus

from throughtime.cells.cell import Cell, Node, Product, Tensors, Weights, unchanged


@dataclass(frozen=True)
class S6(Cell):
    """S6: weight_low (R, D) and weight_dt (D, R), W_r and W_Δ; bias_dt (D,); weight_b (N, D); a (D, N). rank: R."""

    rank: int = 1

    name: ClassVar[str] = "s6"
    gates: ClassVar = ("low", "dt", "b")
    ports: ClassVar = ("carry",)
    pre: ClassVar = ("low", "dt", "b", "x")  # x: where it enters as it is
    products: ClassVar = (
        Product("weight_low", "x", ("low",), ("low",)),
        Product("weight_dt", "low", ("dt",), ("dt",)),
        Product("bias_dt", "1", ("dt",), ("dt",)),
        Product("weight_b", "x", ("b",), ("b",)),
    )

    @property
    def diagonal(self) -> bool:
        return True

    @property
    def banks(self) -> tuple[tuple[str, ...], ...]:
        return (("low",), ("dt",), ("b",), ("x",))

    def shapes(self, inputs: int, hidden: int) -> dict[str, tuple[int, ...]]:
        return {
            "weight_low": (self.rank, inputs),
            "weight_dt": (inputs, self.rank),
            "bias_dt": (inputs,),
            "weight_b": (hidden, inputs),
            "a": (inputs, hidden),
        }

    def dimensions(self, w: Weights) -> tuple[int, int]:
        return w.a.shape[0], w.a.shape[1]

    def carry_size(self, w: Weights) -> int:
        return w.a.numel()

    def log_keep(self, w: Weights, x: Tensor, pre: Tensors) -> Tensor:
        delta = softplus(linear(linear(x, w.weight_low), w.weight_dt, w.bias_dt))
        return (-torch.exp(w.a) * delta.unsqueeze(-1)).flatten(-2)

    def step(self, w: Weights, x: Tensor, ports: Mapping[str, Tensor], node: Node = unchanged) -> Tensor:
        low = node("low", linear(x, w.weight_low))
        delta = softplus(node("dt", linear(low, w.weight_dt, w.bias_dt))).unsqueeze(-1)
        b = node("b", linear(x, w.weight_b)).unsqueeze(-2)
        keep = torch.exp(-torch.exp(w.a) * delta).flatten(-2)
        return keep * ports["carry"] + (delta * node("x", x).unsqueeze(-1) * b).flatten(-2)

    def factors(self, w: Weights, x: Tensor, before: Tensor, after: Tensor, pre: Tensors | None = None) -> Tensors:
        return super().factors(w, x, before, after, pre) | {"low": linear(x, w.weight_low)}

    def operands(self, factors: Tensors, x: Tensor, before: Tensor) -> Tensors:
        return {"x": x, "low": factors["low"]}

    def to_input(self, w: Weights, pre: tuple[Tensor, ...]) -> Tensor:
        return super().to_input(w, pre) + pre[3].squeeze(-2)
