"""A task that needs both scales at once, and a GRU trained on it here."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import throughtime as tt

STEPS, BATCH, UNITS, RATE = 100, 64, 32, 0.04
TRAINING, LEARNING_RATE, CLIP = 1500, 5e-3, 1.0


def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """x (T, B, 3): a value N(0, 1), a marker with probability `RATE`, a signal N(0, 1). y (T, B, 2), at every step:

    the value at the last marker (25 steps ago on average; 0 before the first), and the mean of the signal's last two values
    before this one.
    """
    value, signal = torch.randn(2, STEPS, BATCH, generator=generator)
    marker = torch.rand(STEPS, BATCH, generator=generator) < RATE
    held, kept = torch.zeros(BATCH), []
    for t in range(STEPS):
        held = torch.where(marker[t], value[t], held)
        kept.append(held)
    filtered = torch.zeros(STEPS, BATCH)
    filtered[2:] = (signal[1:-1] + signal[:-2]) / 2
    return torch.stack([value, marker.float(), signal], -1), torch.stack([torch.stack(kept), filtered], -1)


class Latch(nn.Module):
    """nn.GRU(3, 32) and a linear reading of every step: (T, B, 3) → (T, B, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, UNITS)
        self.head = nn.Linear(UNITS, 2)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.head(self.rnn(x)[0])


def chance() -> list[float]:
    """The squared error of always saying 0, for both outputs."""
    generator = torch.Generator().manual_seed(0)
    return torch.stack([batch(generator)[1].square().mean((0, 1)) for _ in range(20)]).mean(0).tolist()


def trained(seed: int, chrono: bool, steps: int = TRAINING) -> tuple[Latch, list[float]]:
    """A trained network and its squared error on new sequences, for both outputs. chrono: the initialisation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Latch()
        if chrono:
            tt.init.chrono_(model.rnn, max_lag=STEPS)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        x, y = batch(generator)
        optimiser.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()
        schedule.step()
    x, y = batch(generator)
    with torch.no_grad():
        return model, (model(x) - y).square().mean((0, 1)).tolist()
