"""The tasks on which networks are trained: the throttle, and a pure delay with a known needed lag."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reproduce.rehmer_kroll.replicas import Kind, Parameters, simulated
from throughtime.tasks.synthetic import delayed_input
from throughtime.tasks.throttle import Throttle, aprbs, best_fit_rate, multisine

VOLTS, HOLD, BAND = (-1.0, 5.0), (5, 40), (0.5, 4.0)
"""Amplitude of both excitations in V; hold of the APRBS in samples of 10 ms; band of the multisine in Hz."""
STEPS, TEST_STEPS, RECORDS, HELD_OUT = 150, 300, 256, 32
BATCH = {"throttle": 16, "delay": 32}


@dataclass(frozen=True)
class Task:
    """x (T, N, D), y (T, N, O): train, validation (for the learning rate) and test. first: the first step that counts.

    lag: of a delay, whose batches are drawn afresh without end. units: mean and standard deviation of input and of output
    that were brought to 0 and 1.
    """

    name: str
    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    first: int
    lag: int | None = None
    units: tuple[tuple[float, float], tuple[float, float]] = ((0.0, 1.0), (0.0, 1.0))

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Batch `number`: the same for every network."""
        generator = torch.Generator().manual_seed(number)
        if self.lag is not None:
            return delay_data(self.lag, BATCH["delay"], generator)
        x, y = self.train
        rows = torch.randperm(x.shape[1], generator=generator)[: BATCH["throttle"]]
        return x[:, rows], y[:, rows]


def throttle_task(
    steps: int = STEPS, test_steps: int = TEST_STEPS, records: int = RECORDS, held_out: int = HELD_OUT
) -> Task:
    """Voltage to angle, every record from rest at the limp-home angle; trained on APRBS, tested on multisine.

    Both are brought to the training records' mean and variance. The networks run free: they read the voltage alone.
    """
    plant, generator = Throttle(), np.random.default_rng(0)
    volts = [
        aprbs(steps, records, generator, amplitude=VOLTS, hold=HOLD),
        aprbs(steps, held_out, generator, amplitude=VOLTS, hold=HOLD),
        multisine(test_steps, held_out, generator, amplitude=VOLTS, band=BAND),
    ]
    angles = [plant.simulate(given)[0] for given in volts]

    (volts_unit, angle_unit) = ((float(part[0].mean()), float(part[0].std())) for part in (volts, angles))

    def brought(values: np.ndarray, to: tuple[float, float]) -> Tensor:
        return torch.from_numpy((values - to[0]) / to[1]).float()[..., None]

    train, validation, test = (
        (brought(u, volts_unit), brought(y, angle_unit)) for u, y in zip(volts, angles, strict=True)
    )
    return Task("throttle", train, validation, test, first=0, units=(volts_unit, angle_unit))


def delay_data(lag: int, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The white input `lag` steps back, asked for at the last of lag + 10 steps; y is 0 before, and does not count."""
    x, y = delayed_input(lag + 10, batch, generator, lags=(lag,))
    return x, torch.cat([torch.zeros(lag + 9, batch, 1), y[None]])


def delay_task(lag: int) -> Task:
    """See `delay_data`. Chance: a best-fit rate of 0."""
    validation, test = (delay_data(lag, 512, torch.Generator().manual_seed(seed)) for seed in (10**6, 10**6 + 1))
    return Task(f"delay {lag}", validation, validation, test, first=lag + 9, lag=lag)


def bfr(task: Task, kind: Kind, p: Parameters, on: tuple[Tensor, Tensor]) -> np.ndarray:
    """Best-fit rate of each replica in percent, all records taken as one: (R,). −∞ where the output is not finite."""
    x, y = on
    with torch.no_grad():
        guess = simulated(kind, p, x)[task.first :, :, :, 0].double().transpose(1, 2).flatten(0, 1).numpy()
    told = y[task.first :, :, 0].double().flatten().numpy()
    with np.errstate(invalid="ignore", over="ignore"):
        rate = best_fit_rate(told[:, None], guess)
    return np.where(np.isfinite(rate), rate, -np.inf)
