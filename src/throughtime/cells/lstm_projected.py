"""LSTM whose output is a projection of what the cells show: torch's proj_size. Sak, Senior & Beaufays 2014.

c = f∘c₋ + i∘g          h = W_hr (o∘tanh(c))

with the gates of `throughtime.cells.lstm`, which read the projected h₋. The carry is (h, c) of widths P and H; paths, units
and hops are told on the total cell adjoint d = λᶜ + (W_hrᵀ λʰ)∘o∘tanh′(c), of width H.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from throughtime.cells.activations import CANDIDATES
from throughtime.cells.cell import Node, Product, Pulled, Tensors, Weights, back_through, stack_gates, unchanged
from throughtime.cells.lstm import LSTM


@dataclass(frozen=True)
class LSTMProjected(LSTM):
    """LSTM, gates i, f, g, o, and weight_hr (P, H). projected: P."""

    projected: int = 1

    gates: ClassVar = ("i", "f", "g", "o", "h")
    pre: ClassVar = ("i", "f", "g", "o", "h")
    products: ClassVar = (*LSTM.products, Product("weight_hr", "m", ("h",), ("h",)))

    @property
    def banks(self) -> tuple[tuple[str, ...], ...]:
        return (LSTM.pre, ("h",))

    @property
    def convention(self) -> Mapping[str, str]:
        return {"projected": str(self.projected), **super().convention}

    def carry_size(self, w: Weights) -> int:
        return self.projected + w.weight_hh.shape[0] // 4

    def units(self, carry_size: int) -> int:
        return carry_size - self.projected

    def split(self, carry: Tensor) -> tuple[Tensor, ...]:
        return carry[..., : self.projected], carry[..., self.projected :]

    def step(self, w: Weights, x: Tensor, ports: Mapping[str, Tensor], node: Node = unchanged) -> Tensor:
        i, f, g, o = self._gates(w, x, {port: self.split(value)[0] for port, value in ports.items()}, node)
        c = self.opened(f) * self.split(ports["carry"])[1] + self.opened(i) * CANDIDATES[self.activation].value(g)
        h = node("h", torch.nn.functional.linear(self.opened(o) * self.shows.value(c), w.weight_hr))
        return torch.cat((h, c), dim=-1)

    def factors(self, w: Weights, x: Tensor, before: Tensor, after: Tensor, pre: Tensors | None = None) -> Tensors:
        pre = pre or self.pre_activations(w, x, before)
        return {
            **super().factors(w, x, before, after, pre),
            "m": self.opened(pre["o"]) * self.shows.value(self.split(after)[1]),
        }

    def pull(self, w: Weights, factors: Tensors, adjoint: Tensor, paths: bool = True) -> Pulled:
        at_h, at_c = self.split(adjoint)
        at_m = at_h @ w.weight_hr
        d = torch.addcmul(at_c, at_m, factors["slope"])
        pre = stack_gates((d, d, d, at_m)) * factors["local"]
        kept = d * factors["keep"]
        by_gate = back_through(pre, w.weight_hh.unflatten(0, (4, -1)))
        parts = {"carry": kept, **dict(zip(("input", "forget", "candidate", "output"), by_gate, strict=True))}
        return Pulled((pre, at_h.unsqueeze(-2)), torch.cat((by_gate.sum(0), kept), dim=-1), parts if paths else {})

    def operands(self, factors: Tensors, x: Tensor, before: Tensor) -> Tensors:
        return {**super().operands(factors, x, before), "m": factors["m"]}

    def total(self, w: Weights, adjoint: Tensor, factors: Tensors) -> Tensor:
        at_h, at_c = self.split(adjoint)
        return torch.addcmul(at_c, at_h @ w.weight_hr, factors["slope"])

    def path_total(self, w: Weights, port: str, path: Tensor, factors: Tensors) -> Tensor:
        return path if port == "carry" else (path @ w.weight_hr) * factors["slope"]
