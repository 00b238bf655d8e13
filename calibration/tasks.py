"""The tasks of the calibration: what is drawn, how the loss is taken, what chance scores, which lag is needed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from throughtime.tasks import digits, synthetic

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """draw(batch, generator) → (x (T, B, D), y); loss(output (T, B, O), y); chance: the loss of knowing nothing.

    lag: the farthest lag needed, by construction. told: whether the user says so; else demand has to find out.
    """

    inputs: int
    outputs: int
    lag: int
    draw: Callable[[int, torch.Generator], Batch]
    loss: Callable[[Tensor, Tensor], Tensor]
    chance: float
    told: bool = False


def cue(lag: int, classes: int = 4) -> Task:
    """Which of four cues stood at the first step, then noise."""

    def draw(batch: int, generator: torch.Generator) -> Batch:
        x = 0.3 * torch.randn(lag + 1, batch, classes, generator=generator)
        y = torch.randint(0, classes, (batch,), generator=generator)
        x[0] += 2 * one_hot(y, classes)
        return x, y

    return Task(classes, classes, lag, draw, _last_cross_entropy, math.log(classes))


def near_and_far(lag: int) -> Task:
    """The cue of `lag` steps back, and, for a fifth as much, the sum of the last three inputs."""
    far = cue(lag)

    def draw(batch: int, generator: torch.Generator) -> Batch:
        x, y = far.draw(batch, generator)
        return x, torch.cat([2 * x[-3:, :, 0].sum(0)[:, None], y[:, None]], dim=1)

    def loss(output: Tensor, y: Tensor) -> Tensor:
        last = output[-1]
        return 0.2 * mse_loss(last[:, 4], y[:, 0]) / 1.08 + cross_entropy(last[:, :4], y[:, 1].long()) / far.chance

    return Task(4, 5, lag, draw, loss, 1.2, told=True)


def delayed(lag: int) -> Task:
    """The input `lag` steps back, among others of the same kind."""

    def draw(batch: int, generator: torch.Generator) -> Batch:
        return synthetic.delayed_input(lag + 3, batch, generator, lags=(lag,))

    return Task(1, 1, lag, draw, lambda output, y: mse_loss(output[-1], y), 1.0)


def total(steps: int) -> Task:
    """The sum of all inputs: every lag is needed, and each is next to another."""

    def draw(batch: int, generator: torch.Generator) -> Batch:
        x = torch.randn(steps, batch, 1, generator=generator)
        return x, x.sum(0) / steps**0.5

    return Task(1, 1, steps - 1, draw, lambda output, y: mse_loss(output[-1], y), 1.0)


def flip_flop(steps: int, rate: float) -> Task:
    """Three bits to be held, a loss at every step of the second half."""
    half = steps // 2

    def draw(batch: int, generator: torch.Generator) -> Batch:
        return synthetic.flip_flop(steps, batch, generator, rate=rate)

    chance = sum(1 - (1 - rate) ** (t + 1) for t in range(half, steps)) / (steps - half)
    return Task(3, 3, half, draw, lambda output, y: mse_loss(output[half:], y[half:]), chance)


def copy(delay: int) -> Task:
    """Copy memory, scored where the symbols are to be repeated. Its lag is told: each symbol is needed at one step
    only."""

    def draw(batch: int, generator: torch.Generator) -> Batch:
        return synthetic.copy_memory(delay, batch, generator)

    def loss(output: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(output[-10:].flatten(0, 1), y[-10:].flatten())

    return Task(10, 10, delay + 10, draw, loss, math.log(8), told=True)


def adding(steps: int) -> Task:
    """The adding problem: demand hardly sees it, so the lag is told, that of the middle of the first half."""

    def draw(batch: int, generator: torch.Generator) -> Batch:
        return synthetic.adding(steps, batch, generator)

    return Task(2, 1, steps * 3 // 4, draw, lambda output, y: mse_loss(output[-1], y), 1 / 6, told=True)


def real_digits(noise_steps: int) -> Task:
    """Real digits by rows, then noise."""
    data = _digits(noise_steps)

    def draw(batch: int, generator: torch.Generator) -> Batch:
        chosen = torch.randint(0, len(data.labels), (batch,), generator=generator)
        return data.inputs[:, chosen], data.labels[chosen]

    return Task(8, 10, noise_steps + 7, draw, _last_cross_entropy, math.log(10))


@cache
def _digits(noise_steps: int) -> digits.Split:
    return digits.digits(noise_steps).train


def _last_cross_entropy(output: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(output[-1], y)


TASKS: dict[str, Callable[[], Task]] = {
    "cue 20": lambda: cue(20),
    "cue 40": lambda: cue(40),
    "near and far 30": lambda: near_and_far(30),
    "delayed input 8": lambda: delayed(8),
    "sum of 40": lambda: total(40),
    "flip-flop 40": lambda: flip_flop(40, 0.05),
    "copy memory 20": lambda: copy(10),
    "adding 30": lambda: adding(30),
    "digits 17": lambda: real_digits(10),
    "digits 37": lambda: real_digits(30),
}
