"""Linear recurrent unit: a complex diagonal recurrence. Orvieto et al. 2023 (arXiv:2303.06349), equations 2 to 7.

λ = exp(−exp(ν) + i exp(θ))          s = λ∘s₋ + exp(γ)∘(B x)

ν, θ and γ are the paper's ν^log, θ^log and γ^log; B = B_re + i B_im. The carry and the output are Re s and Im s side by
side, 2N numbers; the paper's readout Re(C s) + D x stands outside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from throughtime.cells.cell import Cell, Node, Product, Pulled, Tensors, Weights, split, stack_gates, unchanged


@dataclass(frozen=True)
class LRU(Cell):
    """LRU of N complex numbers: weight_ih (2·N, D), B_re over B_im; nu, theta, gamma (N,)."""

    name: ClassVar[str] = "lru"
    gates: ClassVar = ("re", "im")
    ports: ClassVar = ("recurrent",)
    pre: ClassVar = ("re", "im")
    products: ClassVar = (Product("weight_ih", "x", ("re", "im"), ("re", "im")),)

    def shapes(self, inputs: int, hidden: int) -> dict[str, tuple[int, ...]]:
        return {"weight_ih": (2 * hidden, inputs), "nu": (hidden,), "theta": (hidden,), "gamma": (hidden,)}

    def carry_size(self, w: Weights) -> int:
        return w.weight_ih.shape[0]

    @staticmethod
    def _eigenvalues(w: Weights) -> tuple[Tensor, Tensor]:
        """Re λ and Im λ, each (N,)."""
        size, angle = torch.exp(-torch.exp(w.nu)), torch.exp(w.theta)
        return size * torch.cos(angle), size * torch.sin(angle)

    def log_keep(self, w: Weights, x: Tensor, pre: Tensors) -> Tensor:
        """ln |λ| of the number to which each coordinate belongs."""
        return -torch.exp(w.nu).repeat(2).expand(*x.shape[:-1], -1)

    def step(self, w: Weights, x: Tensor, ports: Mapping[str, Tensor], node: Node = unchanged) -> Tensor:
        b_re, b_im = (node(name, value) for name, value in zip(self.pre, split(w.into(x), 2), strict=True))
        (re, im), (l_re, l_im), scale = split(ports["recurrent"], 2), self._eigenvalues(w), torch.exp(w.gamma)
        return torch.cat((l_re * re - l_im * im + scale * b_re, l_im * re + l_re * im + scale * b_im), dim=-1)

    def pull(self, w: Weights, factors: Tensors, adjoint: Tensor, paths: bool = True) -> Pulled:
        (re, im), (l_re, l_im), scale = split(adjoint, 2), self._eigenvalues(w), torch.exp(w.gamma)
        carry = torch.cat((l_re * re + l_im * im, l_re * im - l_im * re), dim=-1)
        return Pulled((stack_gates((scale * re, scale * im)),), carry, {"recurrent": carry} if paths else {})
