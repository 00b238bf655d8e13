"""Training as its user would do it, with what a history needs kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from calibration.tasks import Task
from throughtime.diagnosis.rule import History
from throughtime.flow import LayerFlow
from throughtime.recording.recorder import record

MEASURED = 128
"""Sequences in the batch that is measured."""
TRAINED = 32


@dataclass
class Training:
    """Losses and gradient norms by step, and copies of the network.

    network: before the step `kept_at`, the snapshot asked for. burst: before the step with the largest finite norm. leap: the
    farthest that one step moved the weights, relative to their length.
    """

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    network: nn.Module | None = None
    kept_at: int = 0
    burst: nn.Module | None = None
    leap: float = 0.0

    def history(self, steps: int) -> History:
        """What was known after so many steps."""
        return History(np.array(self.losses[:steps]), np.array(self.norms[:steps]))

    def late(self, last: int) -> float:
        """Mean of the last losses; infinite after a loss that was not finite."""
        return float(np.mean(self.losses[-last:])) if np.isfinite(self.losses).all() else float("inf")


def train(
    network: nn.Module,
    task: Task,
    seed: int,
    steps: int,
    *,
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
    clip: float | None = 1.0,
    snapshot: int | None = None,
    keep_burst: bool = False,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Training:
    """Train in place, on fresh data at every step, so that the training loss is the held-out loss."""
    generator = torch.Generator().manual_seed(seed)
    parameters = list(network.parameters())
    descent = optimizer(parameters) if optimizer else torch.optim.Adam(parameters, 1e-2)
    out, largest = Training(), 0.0
    for step in range(steps):
        x, y = task.draw(TRAINED, generator)
        value = (loss or task.loss)(network(x), y)
        descent.zero_grad()
        value.backward()
        norm = nn.utils.clip_grad_norm_(parameters, clip or float("inf"))
        finite = bool(torch.isfinite(value) and torch.isfinite(norm))
        if finite and step == snapshot:
            out.network, out.kept_at = copy.deepcopy(network), step
        if keep_burst and finite and norm > largest:
            out.burst, largest = copy.deepcopy(network), norm.item()
        out.losses.append(value.item())
        out.norms.append(norm.item())
        if not finite:
            break
        old = nn.utils.parameters_to_vector(parameters).detach().clone()
        descent.step()
        moved = nn.utils.parameters_to_vector(parameters).detach() - old
        out.leap = max(out.leap, float(moved.norm() / old.norm()))
    return out


def measured(network: nn.Module, task: Task, seed: int, *, demand: bool = True, scale: float = 1.0) -> LayerFlow:
    """The layer on a batch of its own."""
    x, y = task.draw(MEASURED, torch.Generator().manual_seed(10_000 + seed))
    with record(network) as recorded:
        task.loss(network(scale * x), y).backward()
    network.zero_grad()
    flow = recorded.flow(bias="horizon", hops=False, origin_step=False, signal_to_noise=False, demand=demand)
    return next(iter(flow.layers.values()))
