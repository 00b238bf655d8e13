"""Training of many replicas at once, each with its own learning rate and its own clipping, as if it were alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from reproduce.rehmer_kroll.replicas import Kind, Parameters, simulated

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Of Adam, torch's own."""
Draw = Callable[[int], tuple[Tensor, Tensor]]
"""A batch by number: x (T, B, D), y (T, B, O), the same for all replicas."""


@dataclass(frozen=True)
class Recipe:
    """learning_rate, clip: (R,), one a replica; clip is of the norm of the replica's whole gradient, inf for none.

    optimizer: "adam" or "sgd". cut: see `replicas.states`.
    """

    steps: int
    learning_rate: Tensor
    clip: Tensor
    optimizer: str = "adam"
    cut: int | None = None


@dataclass(frozen=True)
class Trained:
    """parameters: after the last step. norms: (steps, R) local gradient norms ‖∂L/∂θ‖ before clipping. losses: (steps, R).

    kept: parameters before step k, for the steps that were asked for. A replica whose loss or gradient is not finite
    stays where it was from then on, and its norms and losses are NaN.
    """

    parameters: Parameters
    norms: Tensor
    losses: Tensor
    kept: dict[int, Parameters]


def loss(y: Tensor, guess: Tensor, first: int = 0) -> Tensor:
    """Mean squared error of each replica from step `first` on: y (T, B, O), guess (T, R, B, O) → (R,)."""
    return (guess[first:] - y[first:, None]).square().mean((0, 2, 3))


def gradients(kind: Kind, p: Parameters, x: Tensor, y: Tensor, first: int = 0, cut: int | None = None):
    """(losses (R,), gradients by name, norms (R,)) of one batch."""
    leaves = {name: value.detach().requires_grad_() for name, value in p.items()}
    losses = loss(y, simulated(kind, leaves, x, cut), first)
    found = dict(zip(leaves, torch.autograd.grad(losses.sum(), list(leaves.values())), strict=True))
    squares = torch.stack([grad.flatten(1).double().square().sum(1) for grad in found.values()])
    return losses.detach(), found, squares.sum(0).sqrt()


def train(kind: Kind, p: Parameters, batches: Draw, recipe: Recipe, first: int = 0, keep: tuple[int, ...] = ()):
    """Train all replicas on the same batches. first: the first step of a sequence that the loss counts."""
    p = {name: value.clone() for name, value in p.items()}
    replicas = len(recipe.learning_rate)
    mean = {name: torch.zeros_like(value) for name, value in p.items()}
    square = {name: torch.zeros_like(value) for name, value in p.items()}
    norms, losses, kept = [], [], {}
    alive = torch.ones(replicas, dtype=torch.bool)
    for step in range(recipe.steps):
        if step in keep:
            kept[step] = {name: value.clone() for name, value in p.items()}
        value, grads, norm = gradients(kind, p, *batches(step), first, recipe.cut)
        alive &= torch.isfinite(value) & torch.isfinite(norm)
        norms.append(torch.where(alive, norm, torch.nan))
        losses.append(torch.where(alive, value, torch.nan))
        factor = (recipe.clip / (norm + 1e-6)).clamp(max=1.0)  # as torch's clip_grad_norm_
        for name, grad in grads.items():
            shape = (-1, 1, 1)
            one = alive.view(shape)
            grad = torch.where(one, grad * factor.to(grad.dtype).view(shape), 0)
            rate = recipe.learning_rate.to(grad.dtype).view(shape)
            if recipe.optimizer == "sgd":
                p[name] = p[name] - rate * grad
                continue
            mean[name] = BETAS[0] * mean[name] + (1 - BETAS[0]) * grad
            square[name] = BETAS[1] * square[name] + (1 - BETAS[1]) * grad.square()
            root = (square[name] / (1 - BETAS[1] ** (step + 1))).sqrt() + EPSILON
            moved = p[name] - rate / (1 - BETAS[0] ** (step + 1)) * mean[name] / root
            p[name] = torch.where(one, moved, p[name])
    if recipe.steps in keep:
        kept[recipe.steps] = p
    return Trained(p, torch.stack(norms), torch.stack(losses), kept)
