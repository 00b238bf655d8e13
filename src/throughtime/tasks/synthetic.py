"""Synthetic sequence tasks with known answers and known chance baselines.

Every function draws from the generator it is given and returns (x, y): x (T, B, D) float32 with time first, y as said.
"""

from __future__ import annotations

import torch
from torch import Tensor


def autoregressive(
    steps: int, batch: int, generator: torch.Generator, *, rho: float = 0.0, mean: float = 0.0, size: int = 1
) -> Tensor:
    """(T, B, D) stationary Gaussian inputs of variance 1: correlation rho^k at distance k, white where rho is 0."""
    noise = torch.randn(steps, batch, size, generator=generator)
    if rho:
        for t in range(1, steps):
            noise[t] = rho * noise[t - 1] + (1 - rho**2) ** 0.5 * noise[t]
    return noise + mean


def delayed_input(
    steps: int,
    batch: int,
    generator: torch.Generator,
    *,
    lags: tuple[int, ...] = (40,),
    rho: float = 0.0,
    mean: float = 0.0,
    noise: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """y (B, 1): the sum of the inputs at `lags` (0 is the last input), plus noise of standard deviation `noise`.

    Chance, squared error: the variance of y; for one lag 1 + noise².
    """
    x = autoregressive(steps, batch, generator, rho=rho, mean=mean)
    y = x[[steps - 1 - lag for lag in lags]].sum(0)
    return x, y + noise * torch.randn(batch, 1, generator=generator)


def adding(steps: int, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The adding problem (Hochreiter & Schmidhuber 1997): x[..., 0] values U[0, 1], x[..., 1] one marker in each half.

    y (B, 1): the sum of the two marked values. Chance, squared error: 1/6, by always saying 1.
    """
    values = torch.rand(steps, batch, generator=generator)
    half = steps // 2
    first = torch.randint(0, half, (batch,), generator=generator)
    second = torch.randint(half, steps, (batch,), generator=generator)
    marker = torch.zeros(steps, batch)
    sequence = torch.arange(batch)
    marker[first, sequence] = 1.0
    marker[second, sequence] = 1.0
    return torch.stack([values, marker], dim=-1), (values * marker).sum(0)[:, None]


def copy_memory(delay: int, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Copy memory: 10 symbols out of 8, delay − 1 blanks, a cue, 10 blanks in which the symbols are to be repeated.

    x (delay + 20, B, 10) one-hot: classes 0–7 symbols, 8 blank, 9 cue. y (delay + 20, B) int64 classes, blank until the
    last 10 steps. Chance, cross-entropy in nats a step: 10 ln 8 / (delay + 20), by guessing a symbol at the end.
    """
    symbols = torch.randint(0, 8, (10, batch), generator=generator)
    classes = torch.full((delay + 20, batch), 8)
    classes[:10] = symbols
    classes[delay + 9] = 9
    y = torch.full((delay + 20, batch), 8)
    y[-10:] = symbols
    return torch.nn.functional.one_hot(classes, 10).float(), y


def delayed_xor(
    steps: int, batch: int, generator: torch.Generator, *, lags: tuple[int, int] = (0, 40)
) -> tuple[Tensor, Tensor]:
    """x (T, B, 1) random signs ±1; y (B,) int64: whether the two at `lags` (0 is the last input) differ.

    Either sign alone says nothing about y. Chance: accuracy 1/2, cross-entropy ln 2.
    """
    x = torch.randint(0, 2, (steps, batch, 1), generator=generator).float() * 2 - 1
    first, second = (x[steps - 1 - lag, :, 0] for lag in lags)
    return x, (first != second).long()


def flip_flop(
    steps: int, batch: int, generator: torch.Generator, *, bits: int = 3, rate: float = 0.1
) -> tuple[Tensor, Tensor]:
    """The flip-flop of Sussillo & Barak (2013): pulses ±1 at `rate` on each channel, the last of which is to be held.

    x (T, B, bits); y (T, B, bits), the sign of the last pulse, 0 before the first. Chance, squared error at step t
    (0-based): 1 − (1 − rate)^(t+1), by always saying 0.
    """
    pulse = torch.rand(steps, batch, bits, generator=generator) < rate
    sign = torch.randint(0, 2, (steps, batch, bits), generator=generator).float() * 2 - 1
    x = pulse * sign
    y = torch.zeros_like(x)
    held = torch.zeros(batch, bits)
    for t in range(steps):
        held = torch.where(pulse[t], sign[t], held)
        y[t] = held
    return x, y
