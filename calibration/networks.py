"""The networks of the calibration, and the ways in which they begin."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from throughtime.init import chrono_

CELLS: dict[str, Any] = {"GRU": nn.GRU, "LSTM": nn.LSTM, "RNN": nn.RNN}


class Network(nn.Module):
    """A recurrent layer and a linear reading at every step."""

    def __init__(self, cell: str, inputs: int, outputs: int, hidden: int = 24, **options: Any) -> None:
        super().__init__()
        self.rnn = CELLS[cell](inputs, hidden, **options)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(T, B, D) → (T, B, O)."""
        return self.head(self.rnn(x)[0])


@torch.no_grad()
def begin(layer: Any, way: str, max_lag: int) -> None:
    """Initialise in place: "default", "chrono", "keep 2" (bias of the keeping gate), "orthogonal 0.9" (gain),
    "identity"."""
    name, _, number = way.partition(" ")
    size = layer.hidden_size
    if name == "chrono":
        chrono_(layer, max_lag)
    elif name == "keep":
        layer.bias_ih_l0[size : 2 * size] = float(number)
        layer.bias_hh_l0[size : 2 * size] = 0
    elif name == "gain":
        layer.weight_hh_l0.normal_(0, float(number) / size**0.5)
    elif name != "default":
        layer.bias_ih_l0.zero_()
        layer.bias_hh_l0.zero_()
        if name == "identity":
            layer.weight_hh_l0.copy_(float(number or 1) * torch.eye(size))
        else:
            nn.init.orthogonal_(layer.weight_hh_l0, float(number))
