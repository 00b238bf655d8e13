"""The functions of gates and candidates, each with its slope. Gates lie in [0, 1].

"hard-sigmoid" is that of Keras up to 2 and of ONNX with its defaults, clip(0.2 a + 0.5, 0, 1); "hard-sigmoid-6" that of
Keras 3 and torch, relu6(a + 3) / 6.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Function:
    """value: of a pre-activation. slope: the derivative there, from the value. beyond: |a| from which a gate is all but
    fixed (a sigmoid's slope is under .0025, a hard one's is 0)."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    beyond: float = 0.0


def tanh_slope(value: Tensor) -> Tensor:
    """tanh′ = 1 − tanh² of the value of tanh, by autograd's own kernel.

    Near saturation 1 − y·y in two roundings and in one (a fused multiply-add) differ: in float32 by 1e-4 at y = tanh(6).
    """
    return torch.ops.aten.tanh_backward(value.new_ones(()).expand_as(value), value)


def _inside(value: Tensor) -> Tensor:
    return ((value > 0) & (value < 1)).to(value.dtype)


GATES = {
    "sigmoid": Function(torch.sigmoid, lambda value: value * (1 - value), 6.0),
    "hard-sigmoid": Function(lambda a: (0.2 * a + 0.5).clamp(0, 1), lambda value: 0.2 * _inside(value), 2.5),
    # torch's own hardsigmoid has 1/6 in float32 in its derivative, in float64 too.
    "hard-sigmoid-6": Function(lambda a: (a + 3).clamp(0, 6) / 6, lambda value: _inside(value) / 6, 3.0),
}
CANDIDATES = {
    "tanh": Function(torch.tanh, tanh_slope),
    "relu": Function(torch.relu, lambda value: (value > 0).to(value.dtype)),
}


def told(gate: str, activation: str, output_activation: str = "") -> dict[str, str]:
    """What a cell's convention says of its functions: those that are not the usual ones."""
    words = {"gate": gate} if gate != "sigmoid" else {}
    words |= {"activation": activation} if activation != "tanh" else {}
    return words | ({"output_activation": output_activation} if output_activation not in ("", activation) else {})
