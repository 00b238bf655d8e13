"""LSTM with peepholes: its gates look at the cell too. Gers & Schmidhuber 2000; the operator LSTM of ONNX with P.

i = σ(W_ii x + b_ii + W_hi h₋ + b_hi + p_i∘c₋)      f = σ(W_if x + b_if + W_hf h₋ + b_hf + p_f∘c₋)
g = tanh(W_ig x + b_ig + W_hg h₋ + b_hg)            c = f∘c₋ + i∘g
o = σ(W_io x + b_io + W_ho h₋ + b_ho + p_o∘c)       h = o∘tanh(c)

The carry is (h, c). The total cell adjoint has one more part than that of `throughtime.cells.lstm`, since o reads c:
d = λᶜ + λʰ∘(o∘tanh′(c) + tanh(c)∘o(1 − o)∘p_o).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from throughtime.cells.activations import CANDIDATES
from throughtime.cells.cell import Node, Product, Pulled, Tensors, Weights, back_through, split, stack_gates, unchanged
from throughtime.cells.lstm import LSTM


@dataclass(frozen=True)
class LSTMPeepholes(LSTM):
    """LSTM, gates i, f, g, o, and peephole (3·H,): p_i, p_f, p_o."""

    name: ClassVar[str] = "lstm-peepholes"
    ports: ClassVar = (*LSTM.ports, "input-peephole", "forget-peephole")
    port_state: ClassVar = {"carry": "c", "input-peephole": "c", "forget-peephole": "c"}
    products: ClassVar = (
        *LSTM.products,
        Product("peephole", "c_before", ("i", "f"), ("i", "f"), elementwise=True),
        Product("peephole", "c", ("o",), ("o",), elementwise=True),
    )

    def shapes(self, inputs: int, hidden: int) -> dict[str, tuple[int, ...]]:
        return {**super().shapes(inputs, hidden), "peephole": (3 * hidden,)}

    def step(self, w: Weights, x: Tensor, ports: Mapping[str, Tensor], node: Node = unchanged) -> Tensor:
        h, c_before = ({port: split(value, 2)[place] for port, value in ports.items()} for place in (0, 1))
        sums = dict(zip(self.pre, self._gates(w, x, h, unchanged), strict=True))
        p_i, p_f, p_o = split(w.peephole, 3)
        i = self.opened(node("i", sums["i"] + p_i * c_before["input-peephole"]))
        f = self.opened(node("f", sums["f"] + p_f * c_before["forget-peephole"]))
        c = f * c_before["carry"] + i * CANDIDATES[self.activation].value(node("g", sums["g"]))
        o = self.opened(node("o", sums["o"] + p_o * c))
        return torch.cat((o * self.shows.value(c), c), dim=-1)

    def pre_activations(self, w: Weights, x: Tensor, before: Tensor) -> Tensors:
        h, c = self.split(before)
        made = self._logits(w, x, h)
        p_i, p_f, p_o = split(w.peephole, 3)
        i, f = made["i"] + p_i * c, made["f"] + p_f * c
        after = self.opened(f) * c + self.opened(i) * CANDIDATES[self.activation].value(made["g"])
        return {"i": i, "f": f, "g": made["g"], "o": made["o"] + p_o * after}

    def carries(self, w: Weights, x: Tensor, output: Tensor, initial: Tensor) -> Tensor:
        """c is rebuilt step by step: its gates read it."""
        h_0, c = self.split(initial)
        h = torch.cat([h_0[None], output])
        sums, (p_i, p_f, _) = self._logits(w, x, h[:-1]), split(w.peephole, 3)
        cells, g = [c], CANDIDATES[self.activation].value(sums["g"])
        for k in range(output.shape[0]):
            i, f = self.opened(sums["i"][k] + p_i * c), self.opened(sums["f"][k] + p_f * c)
            c = f * c + i * g[k]
            cells.append(c)
        return torch.cat((h, torch.stack(cells)), dim=-1)

    def factors(self, w: Weights, x: Tensor, before: Tensor, after: Tensor, pre: Tensors | None = None) -> Tensors:
        made = super().factors(w, x, before, after, pre or self.pre_activations(w, x, before))
        c_before, c, p_o = self.split(before)[1], self.split(after)[1], split(w.peephole, 3)[2]
        return made | {"slope": made["slope"] + made["local"][..., 3, :] * p_o, "c_before": c_before, "c": c}

    def pull(self, w: Weights, factors: Tensors, adjoint: Tensor, paths: bool = True) -> Pulled:
        at_h, at_c = split(adjoint, 2)
        d = torch.addcmul(at_c, at_h, factors["slope"])
        pre = stack_gates((d, d, d, at_h)) * factors["local"]
        kept, (p_i, p_f, _) = d * factors["keep"], split(w.peephole, 3)
        peeped = pre[..., 0, :] * p_i, pre[..., 1, :] * p_f
        by_gate = back_through(pre, w.weight_hh.unflatten(0, (4, -1)))
        parts = dict(zip(self.ports, (kept, *by_gate, *peeped), strict=True)) if paths else {}
        return Pulled((pre,), torch.cat((by_gate.sum(0), kept + peeped[0] + peeped[1]), dim=-1), parts)

    def operands(self, factors: Tensors, x: Tensor, before: Tensor) -> Tensors:
        return {**super().operands(factors, x, before), "c_before": factors["c_before"], "c": factors["c"]}

    def path_total(self, w: Weights, port: str, path: Tensor, factors: Tensors) -> Tensor:
        return path if port in self.port_state else path * factors["slope"]
