"""Leaky rate network of neuroscience, by Euler steps dt of τ ḣ = −h + φ(W_in x + W_rec h + b): α = dt/τ.

h = (1 − α) h₋ + α φ(W_in x + W_rec h₋ + b)         rates leak: Song, Yang & Wang 2016, Yang et al. 2019
h = (1 − α) h₋ + α (W_in x + W_rec φ(h₋) + b)       potentials leak (`inside`): Sompolinsky, Crisanti & Sommers 1988
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from throughtime.cells.activations import tanh_slope
from throughtime.cells.cell import Cell, Node, Product, Pulled, Tensors, Weights, unchanged


@dataclass(frozen=True)
class Rate(Cell):
    """Leaky rate network. activation: "tanh" or "relu". alpha: dt/τ, in (0, 1]. inside: whether φ acts on h₋ itself."""

    activation: str = "tanh"
    alpha: float = 0.2
    inside: bool = False

    name: ClassVar[str] = "rate"
    gates: ClassVar = ("a",)
    ports: ClassVar = ("carry", "recurrent")
    pre: ClassVar = ("a",)
    products: ClassVar = (
        Product("weight_ih", "x", ("a",), ("a",)),
        Product("weight_hh", "rate", ("a",), ("a",)),
        Product("bias_ih", "1", ("a",), ("a",)),
        Product("bias_hh", "1", ("a",), ("a",)),
    )

    @property
    def convention(self) -> Mapping[str, str]:
        leak = "potential" if self.inside else "rate"
        return {"activation": self.activation, "alpha": f"{self.alpha:g}", "leak": leak}

    def _rate(self, value: Tensor) -> Tensor:
        return torch.tanh(value) if self.activation == "tanh" else torch.relu(value)

    def _slope(self, rate: Tensor) -> Tensor:
        return tanh_slope(rate) if self.activation == "tanh" else (rate > 0).to(rate.dtype)

    @property
    def diagonal(self) -> bool:
        return True

    def log_keep(self, w: Weights, x: Tensor, pre: Tensors) -> Tensor:
        kept = math.log1p(-self.alpha) if self.alpha < 1 else -math.inf
        return x.new_full((*x.shape[:-1], self.carry_size(w)), kept)

    def step(self, w: Weights, x: Tensor, ports: Mapping[str, Tensor], node: Node = unchanged) -> Tensor:
        read = self._rate(ports["recurrent"]) if self.inside else ports["recurrent"]
        a = node("a", w.into(x) + torch.nn.functional.linear(read, w.weight_hh, w.bias_hh))
        return (1 - self.alpha) * ports["carry"] + self.alpha * (a if self.inside else self._rate(a))

    def factors(self, w: Weights, x: Tensor, before: Tensor, after: Tensor, pre: Tensors | None = None) -> Tensors:
        keep = torch.full_like(before, 1 - self.alpha)
        if self.inside:
            rate = self._rate(before)
            return {"keep": keep, "slope": self._slope(rate), "rate": rate}
        a = (pre or self.pre_activations(w, x, before))["a"]
        return {"keep": keep, "slope": self._slope(self._rate(a)), "rate": before}

    def pull(self, w: Weights, factors: Tensors, adjoint: Tensor, paths: bool = True) -> Pulled:
        kept, pre = adjoint * factors["keep"], self.alpha * adjoint
        pre = pre if self.inside else pre * factors["slope"]
        recurrent = pre @ w.weight_hh
        recurrent = recurrent * factors["slope"] if self.inside else recurrent
        told = {"carry": kept, "recurrent": recurrent} if paths else {}
        return Pulled((pre.unsqueeze(-2),), kept + recurrent, told)

    def operands(self, factors: Tensors, x: Tensor, before: Tensor) -> Tensors:
        return {"x": x, "rate": factors["rate"]}
