"""LSTM without peepholes: PyTorch, cuDNN, Keras, ONNX.

i = σ(W_ii x + b_ii + W_hi h₋ + b_hi), f and o likewise, g = tanh(W_ig x + b_ig + W_hg h₋ + b_hg)
c = f∘c₋ + i∘g          h = o∘tanh(c)

A constant that some programs add to the forget gate's logit when they run (forget_bias of TensorFlow 1's cells, 1 by
default) belongs in f's block of a bias: the same network, the same gradients.

Hochreiter & Schmidhuber 1997; the forget gate by Gers, Schmidhuber & Cummins 2000.

The carry is (h, c), stacked. h and c have different units, so paths, units and hops are told on the **total cell adjoint**
d = λᶜ + λʰ∘o∘tanh′(c): d₋ = f∘d (carry) + o₋∘tanh′(c₋)∘Σ_g W_gᵀ p_g, g = input, forget, candidate, output.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from throughtime.cells.activations import CANDIDATES, GATES, Function, told
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
class LSTM(Cell):
    """LSTM, gates i, f, g, o. gate, activation: in place of σ and of both tanh, of `throughtime.cells.activations`;
    output_activation: in place of the tanh of c, where it is another one."""

    gate: str = "sigmoid"
    activation: str = "tanh"
    output_activation: str = ""

    name: ClassVar[str] = "lstm"
    gates: ClassVar = ("i", "f", "g", "o")
    states: ClassVar = ("h", "c")
    ports: ClassVar = ("carry", "input", "forget", "candidate", "output")
    port_state: ClassVar = {"carry": "c"}
    pre: ClassVar = ("i", "f", "g", "o")
    sigmoids: ClassVar = ("i", "f", "o")
    landing: ClassVar = ("slope",)
    products: ClassVar = (
        Product("weight_ih", "x", ("i", "f", "g", "o"), ("i", "f", "g", "o")),
        Product("weight_hh", "h", ("i", "f", "g", "o"), ("i", "f", "g", "o")),
        Product("bias_ih", "1", ("i", "f", "g", "o"), ("i", "f", "g", "o")),
        Product("bias_hh", "1", ("i", "f", "g", "o"), ("i", "f", "g", "o")),
    )

    @property
    def keep(self) -> tuple[str, int]:
        return ("f", 1)

    @property
    def convention(self) -> Mapping[str, str]:
        return told(self.gate, self.activation, self.output_activation)

    @property
    def shows(self) -> Function:
        """The function of c in the output."""
        return CANDIDATES[self.output_activation or self.activation]

    def step(self, w: Weights, x: Tensor, ports: Mapping[str, Tensor], node: Node = unchanged) -> Tensor:
        i, f, g, o = self._gates(w, x, {port: self.output(value) for port, value in ports.items()}, node)
        _, c_before = split(ports["carry"], 2)
        c = self.opened(f) * c_before + self.opened(i) * CANDIDATES[self.activation].value(g)
        return torch.cat((self.opened(o) * self.shows.value(c), c), dim=-1)

    @staticmethod
    def _gates(w: Weights, x: Tensor, h: Mapping[str, Tensor], node: Node) -> Iterator[Tensor]:
        """The pre-activations i, f, g, o, from h at each port."""
        ins = split(w.into(x), 4)
        readers = (("i", "input"), ("f", "forget"), ("g", "candidate"), ("o", "output"))
        for place, (name, port) in enumerate(readers):
            yield node(name, ins[place] + torch.nn.functional.linear(h[port], *w.rows(place, 4)))

    def pre_activations(self, w: Weights, x: Tensor, before: Tensor) -> Tensors:
        return self._logits(w, x, self.output(before))

    def _logits(self, w: Weights, x: Tensor, h_before: Tensor) -> Tensors:
        sums = w.into(x) + torch.nn.functional.linear(h_before, w.weight_hh, w.bias_hh)
        return dict(zip(LSTM.pre, split(sums, 4), strict=True))

    def carries(self, w: Weights, x: Tensor, output: Tensor, initial: Tensor) -> Tensor:
        """A fused LSTM returns no c but the last: it is rebuilt by an elementwise scan over the recomputed gates."""
        h_0, c = self.split(initial)
        h = torch.cat([h_0[None], output])
        logits = self._logits(w, x, h[:-1])
        i, f, g = self.opened(logits["i"]), self.opened(logits["f"]), CANDIDATES[self.activation].value(logits["g"])
        cells = c.new_empty(len(h), *c.shape)
        cells[0] = c
        new = i * g
        for k in range(output.shape[0]):
            torch.addcmul(new[k], f[k], cells[k], out=cells[k + 1])
        return torch.cat((h, cells), dim=-1)

    def factors(self, w: Weights, x: Tensor, before: Tensor, after: Tensor, pre: Tensors | None = None) -> Tensors:
        (_, c_before), (_, c) = self.split(before), self.split(after)
        pre = pre or self.pre_activations(w, x, before)
        gate, act = GATES[self.gate], CANDIDATES[self.activation]
        i, f, o = (gate.value(pre[name]) for name in self.sigmoids)
        g, shown = act.value(pre["g"]), self.shows.value(c)
        local = stack_gates((g * gate.slope(i), c_before * gate.slope(f), i * act.slope(g), shown * gate.slope(o)))
        return {"keep": f, "local": local, "slope": o * self.shows.slope(shown)}

    def pull(self, w: Weights, factors: Tensors, adjoint: Tensor, paths: bool = True) -> Pulled:
        at_h, at_c = split(adjoint, 2)
        d = torch.addcmul(at_c, at_h, factors["slope"])
        pre = stack_gates((d, d, d, at_h)) * factors["local"]
        kept = d * factors["keep"]
        by_gate = back_through(pre, w.weight_hh.unflatten(0, (4, -1)))
        if not paths:
            return Pulled((pre,), torch.cat((by_gate.sum(0), kept), dim=-1), {})
        parts = {"carry": kept, **dict(zip(("input", "forget", "candidate", "output"), by_gate, strict=True))}
        return Pulled((pre,), torch.cat((by_gate.sum(0), kept), dim=-1), parts)

    def units(self, carry_size: int) -> int:
        return carry_size // 2

    def total(self, w: Weights, adjoint: Tensor, factors: Tensors) -> Tensor:
        at_h, at_c = split(adjoint, 2)
        return torch.addcmul(at_c, at_h, factors["slope"])

    def path_total(self, w: Weights, port: str, path: Tensor, factors: Tensors) -> Tensor:
        return path if port == "carry" else path * factors["slope"]
