"""One short training: a fresh network under a seed, its steps, and what is measured of it afterwards."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from throughtime.errors import InputError
from throughtime.flow import Array

Batch = Any
"""A tensor x, a tuple or list (x, y), or a dict: whatever the user's loss takes."""
Loss = Callable[[nn.Module, Batch], Tensor]


@dataclass(frozen=True)
class Plan:
    """How every run of a verification trains and is measured."""

    batches: Sequence[Batch]
    loss: Loss
    metric: Callable[[nn.Module], float]
    steps: int
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    clip: float | None


@dataclass(frozen=True)
class Run:
    """One training: its metric (NaN if it diverged), the metric before its first step where needed, its curve."""

    value: float
    untrained: float
    curve: Array


def fresh(model: nn.Module | Callable[[], nn.Module], seed: int, notes: list[str]) -> nn.Module:
    """A network of the same kind with new parameters drawn under `seed`."""
    torch.manual_seed(seed)
    if not isinstance(model, nn.Module):
        network = model()
        if not isinstance(network, nn.Module):
            raise InputError(
                f"a factory that returned a {type(network).__name__}",
                "an nn.Module",
                "return the model from the factory",
            )
        return network
    try:
        network = copy.deepcopy(model)
    except (RuntimeError, TypeError) as problem:
        raise InputError(
            f"a {type(model).__name__} that cannot be copied ({problem})",
            "a model that copy.deepcopy takes",
            "pass a function that builds the model instead of the model",
        ) from problem
    covered: set[int] = set()
    for module in network.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
            covered |= {id(parameter) for parameter in module.parameters()}
    kept = [name for name, p in network.named_parameters() if p.requires_grad and id(p) not in covered]
    if not covered:
        raise InputError(
            f"a {type(model).__name__} in which no module has reset_parameters()",
            "fresh parameters for every seed",
            "pass a function that builds the model instead of the model",
        )
    note = f"the same in every run, since no reset_parameters() covers them: {', '.join(kept)}"
    if kept and note not in notes:
        notes.append(note)
    return network


def check_other(start: list[Tensor], starts: list[list[Tensor]]) -> None:
    """Pairs that begin alike are one pair: an interval over them would have no width."""
    if any(all(map(torch.equal, start, other)) for other in starts):
        raise InputError(
            "the same initial parameters under two seeds",
            "parameters that torch's random numbers decide",
            "leave torch.manual_seed out of the factory",
        )


def trained(network: nn.Module, plan: Plan, seed: int, tick: Callable[[int], None]) -> Run:
    """One run, under the random numbers of `seed`; a loss or metric that is not finite gives the value NaN."""
    torch.manual_seed(seed)
    initial = copy.deepcopy(network.state_dict())
    parameters = [p for p in network.parameters() if p.requires_grad]
    if not parameters:
        raise InputError("a model without trainable parameters", "something to train", "unfreeze its parameters")
    network.train()
    optimizer = plan.optimizer(parameters)
    curve = np.full(plan.steps, np.nan)
    for step in range(plan.steps):
        value = plan.loss(network, plan.batches[step % len(plan.batches)])
        curve[step] = _scalar(value)
        if not math.isfinite(curve[step]):
            break
        _descend(value, parameters, optimizer, plan.clip)
        tick(step + 1)
    metric = _measure(network, plan.metric) if np.isfinite(curve).all() else math.nan
    if math.isfinite(metric):
        return Run(metric, math.nan, curve)
    network.load_state_dict(initial)
    return Run(math.nan, _measure(network, plan.metric), curve)


def _scalar(loss: Tensor) -> float:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"that is a {type(loss).__name__}"
        raise InputError(f"a loss {got}", "loss(model, batch) → scalar tensor", "reduce the loss, e.g. by .mean()")
    return loss.item()


def _descend(
    loss: Tensor, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, clip: float | None
) -> None:
    # autograd.grad and not backward(): a loss that calls some other model must not leave gradients in it.
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True) if loss.requires_grad else [None]
    if all(gradient is None for gradient in gradients):
        raise InputError(
            "a loss that does not depend on the parameters of the model it was given",
            "loss(model, batch) that calls this model",
            "use the function's own argument and no model from outside, and do not detach",
        )
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    if clip is not None:
        nn.utils.clip_grad_norm_(parameters, clip)
    optimizer.step()


def _measure(network: nn.Module, metric: Callable[[nn.Module], float]) -> float:
    network.eval()
    with torch.no_grad():
        return float(metric(network))


def mean_loss(network: nn.Module, loss: Loss, batches: Sequence[Batch]) -> float:
    return sum(_scalar(loss(network, batch)) for batch in batches) / len(batches)
