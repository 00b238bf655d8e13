"""GRU with the reset gate after the product: PyTorch, cuDNN, Keras' default, ONNX linear_before_reset=1.

r = σ(W_ir x + b_ir + W_hr h₋ + b_hr)          z = σ(W_iz x + b_iz + W_hz h₋ + b_hz)
m = W_hn h₋ + b_hn      n = tanh(W_in x + b_in + r∘m)
h = z∘h₋ + (1 − z)∘n   (z keeps; with `keeps=False` z and 1 − z change places, as in Chung et al. 2014)

Cho et al. 2014 (arXiv:1406.1078v3); the variant with r after the product is cuDNN's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from throughtime.cells.activations import CANDIDATES, GATES, told
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
class GRU(Cell):
    """GRU, reset after the product. keeps: whether z multiplies the old state (torch) or the candidate.

    gate, activation: in place of σ and tanh, of `throughtime.cells.activations`.
    """

    keeps: bool = True
    gate: str = "sigmoid"
    activation: str = "tanh"

    name: ClassVar[str] = "gru"
    gates: ClassVar = ("r", "z", "n")
    ports: ClassVar = ("carry", "update", "candidate", "reset")
    pre: ClassVar = ("r", "z", "m", "n")
    sigmoids: ClassVar = ("r", "z")
    reset: ClassVar = "r"
    products: ClassVar = (
        Product("weight_ih", "x", ("r", "z", "n"), ("r", "z", "n")),
        Product("weight_hh", "h", ("r", "z", "n"), ("r", "z", "m")),
        Product("bias_ih", "1", ("r", "z", "n"), ("r", "z", "n")),
        Product("bias_hh", "1", ("r", "z", "n"), ("r", "z", "m")),
    )

    @property
    def keep(self) -> tuple[str, int]:
        return ("z", 1 if self.keeps else -1)

    @property
    def convention(self) -> Mapping[str, str]:
        return {"reset": "after", "z": "keeps" if self.keeps else "takes"} | told(self.gate, self.activation)

    def step(self, w: Weights, x: Tensor, ports: Mapping[str, Tensor], node: Node = unchanged) -> Tensor:
        in_r, in_z, in_n = split(w.into(x), 3)
        linear = torch.nn.functional.linear
        r = self.opened(node("r", in_r + linear(ports["reset"], *w.rows(0, 3))))
        z = self.opened(node("z", in_z + linear(ports["update"], *w.rows(1, 3))))
        m = node("m", linear(ports["candidate"], *w.rows(2, 3)))
        n = CANDIDATES[self.activation].value(node("n", in_n + r * m))
        keep, take = (z, 1 - z) if self.keeps else (1 - z, z)
        return keep * ports["carry"] + take * n

    def pre_activations(self, w: Weights, x: Tensor, before: Tensor) -> Tensors:
        in_r, in_z, in_n = split(w.into(x), 3)
        h_r, h_z, m = split(torch.nn.functional.linear(before, w.weight_hh, w.bias_hh), 3)
        r = in_r + h_r
        return {"r": r, "z": in_z + h_z, "m": m, "n": torch.addcmul(in_n, self.opened(r), m)}

    def factors(self, w: Weights, x: Tensor, before: Tensor, after: Tensor, pre: Tensors | None = None) -> Tensors:
        pre = pre or self.pre_activations(w, x, before)
        gate, act = GATES[self.gate], CANDIDATES[self.activation]
        r, z, m, n = gate.value(pre["r"]), gate.value(pre["z"]), pre["m"], act.value(pre["n"])
        keep, take = (z, 1 - z) if self.keeps else (1 - z, z)
        by_n = take * act.slope(n)
        by_z = (before - n) if self.keeps else (n - before)
        local = stack_gates((by_n * m * gate.slope(r), by_z * gate.slope(z), by_n * r, by_n))
        return {"keep": keep, "local": local}

    def jacobian(self, w: Weights, factors: Tensors) -> Tensor:
        blocks = w.weight_hh.view(3, -1, w.weight_hh.shape[-1])
        made = torch.einsum("tbgi,gij->tbij", factors["local"][..., :3, :], blocks)
        made.diagonal(dim1=-2, dim2=-1).add_(factors["keep"])
        return made

    def pull(self, w: Weights, factors: Tensors, adjoint: Tensor, paths: bool = True) -> Pulled:
        pre = adjoint.unsqueeze(-2) * factors["local"]
        kept = adjoint * factors["keep"]
        # r, z, m: the rows of weight_hh in order
        by_gate = back_through(pre[..., :3, :], w.weight_hh.view(3, -1, adjoint.shape[-1]))
        reset, update, candidate = by_gate.unbind()
        carry = kept + reset + update + candidate
        if not paths:
            return Pulled((pre,), carry, {})
        return Pulled((pre,), carry, {"carry": kept, "update": update, "candidate": candidate, "reset": reset})
