"""GRU with the reset gate before the product: Cho et al. 2014 v3, Keras reset_after=False, ONNX linear_before_reset=0.

r = σ(W_ir x + W_hr h₋ + b_r)      z = σ(W_iz x + W_hz h₋ + b_z)      n = tanh(W_in x + W_hn (r∘h₋) + b_n)
h = z∘h₋ + (1 − z)∘n   (z keeps; with `keeps=False` z and 1 − z change places)

One bias (`bias_ih`) is usual; a second one, where given, is added to the recurrent side. Cho et al. 2014
(arXiv:1406.1078v3), the cell of Rehmer & Kroll 2020.
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
    split,
    stack_gates,
    unchanged,
)


@dataclass(frozen=True)
class GRUResetBefore(Cell):
    """GRU, reset before the product. keeps: whether z multiplies the old state (Cho 2014 v3) or the candidate.

    gate, activation: in place of σ and tanh, of `throughtime.cells.activations`.
    """

    keeps: bool = True
    gate: str = "sigmoid"
    activation: str = "tanh"

    name: ClassVar[str] = "gru"
    gates: ClassVar = ("r", "z", "n")
    ports: ClassVar = ("carry", "update", "candidate", "reset")
    pre: ClassVar = ("r", "z", "n")
    sigmoids: ClassVar = ("r", "z")
    reset: ClassVar = "r"
    products: ClassVar = (
        Product("weight_ih", "x", ("r", "z", "n"), ("r", "z", "n")),
        Product("weight_hh", "h", ("r", "z"), ("r", "z")),
        Product("weight_hh", "rh", ("n",), ("n",)),
        Product("bias_ih", "1", ("r", "z", "n"), ("r", "z", "n")),
        Product("bias_hh", "1", ("r", "z", "n"), ("r", "z", "n")),
    )

    @property
    def keep(self) -> tuple[str, int]:
        return ("z", 1 if self.keeps else -1)

    @property
    def convention(self) -> Mapping[str, str]:
        return {"reset": "before", "z": "keeps" if self.keeps else "takes"} | told(self.gate, self.activation)

    def step(self, w: Weights, x: Tensor, ports: Mapping[str, Tensor], node: Node = unchanged) -> Tensor:
        in_r, in_z, in_n = split(w.into(x), 3)
        linear = torch.nn.functional.linear
        r = self.opened(node("r", in_r + linear(ports["reset"], *w.rows(0, 3))))
        z = self.opened(node("z", in_z + linear(ports["update"], *w.rows(1, 3))))
        n = CANDIDATES[self.activation].value(node("n", in_n + linear(r * ports["candidate"], *w.rows(2, 3))))
        keep, take = (z, 1 - z) if self.keeps else (1 - z, z)
        return keep * ports["carry"] + take * n

    def factors(self, w: Weights, x: Tensor, before: Tensor, after: Tensor, pre: Tensors | None = None) -> Tensors:
        pre = pre or self.pre_activations(w, x, before)
        gate, act = GATES[self.gate], CANDIDATES[self.activation]
        r, z, n = gate.value(pre["r"]), gate.value(pre["z"]), act.value(pre["n"])
        keep, take = (z, 1 - z) if self.keeps else (1 - z, z)
        by_z = (before - n) if self.keeps else (n - before)
        return {
            "keep": keep,
            "r": r,
            "by_r": before * gate.slope(r),
            "by_z": by_z * gate.slope(z),
            "by_n": take * act.slope(n),
        }

    def pull(self, w: Weights, factors: Tensors, adjoint: Tensor, paths: bool = True) -> Pulled:
        w_r, w_z, w_n = w.weight_hh.unflatten(0, (3, -1))
        p_z, p_n = adjoint * factors["by_z"], adjoint * factors["by_n"]
        at_product = p_n @ w_n  # the adjoint of r∘h₋; W_n stands before W_r, so the products cannot be stacked
        p_r = at_product * factors["by_r"]
        kept, candidate = adjoint * factors["keep"], at_product * factors["r"]
        update, reset = p_z @ w_z, p_r @ w_r
        parts = {"carry": kept, "update": update, "candidate": candidate, "reset": reset} if paths else {}
        return Pulled((stack_gates((p_r, p_z, p_n)),), kept + candidate + update + reset, parts)

    def operands(self, factors: Tensors, x: Tensor, before: Tensor) -> Tensors:
        return {"x": x, "h": before, "rh": factors["r"] * before}
