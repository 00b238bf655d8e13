"""The set-up of weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from calibration.case import Case, network_of
from calibration.tasks import TASKS
from calibration.training import measured
from throughtime.diagnosis.report import Needed


def set_up(kind: str, cell: str, seed: int) -> list[Case]:
    """Weights set as the kind says, some trained for ten steps afterwards: then the set-up is gone."""
    task = TASKS["delayed input 8"]()
    network = network_of(task, cell, "default", seed)
    with torch.no_grad():
        SET_UPS[kind](network.rnn)
    layer = measured(network, task, seed, demand=False)
    stacked = kind.startswith("orthogonal stack") and cell != "RNN"
    both = kind == "all biases of block 1 at one" and cell == "LSTM"
    unknown = Needed(layer.name, (), "unknown")
    truth = {"TT401": stacked, "TT402": both}
    return [Case("set-up", f"{kind}, {cell}", seed, "before", layer, unknown, None, truth)]


def _orthogonal(layer: Any, gain: float = 1.0) -> None:
    nn.init.orthogonal_(layer.weight_hh_l0, gain)


def _orthogonal_by_gate(layer: Any) -> None:
    for block in layer.weight_hh_l0.split(layer.hidden_size):
        nn.init.orthogonal_(block)


def _block_one(layer: Any, names: tuple[str, ...], value: float = 1.0) -> None:
    size = layer.hidden_size
    for name in names:
        getattr(layer, name)[size : 2 * size] = value


BIASES = ("bias_ih_l0", "bias_hh_l0")
SET_UPS: dict[str, Callable[[Any], Any]] = {
    "default": lambda layer: None,
    "orthogonal stack": _orthogonal,
    "orthogonal stack, gain 1.41": partial(_orthogonal, gain=2**0.5),
    "orthogonal by gate": _orthogonal_by_gate,
    "xavier": lambda layer: nn.init.xavier_uniform_(layer.weight_hh_l0),
    "all biases of block 1 at one": partial(_block_one, names=BIASES),
    "one bias of block 1 at one": partial(_block_one, names=BIASES[:1]),
    "both biases of block 1 at a half": partial(_block_one, names=BIASES, value=0.5),
}
