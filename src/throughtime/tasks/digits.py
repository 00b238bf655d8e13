"""Real digits that must be remembered: 8 rows of pixels, then noise, then the question which digit it was.

Needed lags: with n steps of noise the rows stand n … n + 7 steps before the loss, 92–99 by default. A torch.nn.GRU at
its default initialisation lets a fraction of about .5^92 of the gradient arrive there, and stays at chance.

Data: scikit-learn's copy of the test set of Alpaydin & Kaynak 1998, "Optical Recognition of Handwritten Digits" (UCI
Machine Learning Repository); licence in data/NOTICE.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import torch
from torch import Tensor, nn

from throughtime.errors import InputError
from throughtime.remedies import registered
from throughtime.verify import Progress, Verification, verify

ROWS, PIXELS, CLASSES = 8, 8, 10
NOISE_STEPS = 92
TEST = 360
"""Of the 1,797 digits, one fifth."""
BATCH = 64
SEEDS, STEPS, LEARNING_RATE, CLIP = range(4), 150, 5e-3, 1.0
"""Of the paired training. Measured: untreated .10–.12 (chance is .10), with chrono .44–.53, 28 s of one core in all;
after 200 steps .09–.10 and .62–.69."""


@dataclass(frozen=True, eq=False)
class Split:
    """inputs: (T, N, 8) float32, time first, T = 8 + noise steps; labels: (N,) int64, the digit."""

    inputs: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class Digits:
    """The task: 1,437 digits to train on and 360 to test on."""

    train: Split
    test: Split
    noise_steps: int

    @property
    def needed_lags(self) -> range:
        """Lags of the rows as the last step sees them."""
        return range(self.noise_steps, self.noise_steps + ROWS)

    def batches(
        self, count: int, size: int = BATCH, generator: torch.Generator | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """`count` batches (x, y) of the training split, x (T, size, 8) and y (size,), each digit once an epoch.

        generator: of the order; without one it is always the same.

        Raises InputError: a size that the training split does not hold.
        """
        labels = self.train.labels
        if not 1 <= size <= len(labels):
            raise InputError(f"a batch size of {size}", f"1 to {len(labels)}", f"pass size={BATCH}")
        generator = generator or torch.Generator().manual_seed(0)
        order: list[Tensor] = []
        while len(order) < count:
            epoch = torch.randperm(len(labels), generator=generator)
            order += [chosen for chosen in epoch.split(size) if len(chosen) == size]
        return [(self.train.inputs[:, chosen], labels[chosen]) for chosen in order[:count]]


class DigitClassifier(nn.Module):
    """nn.GRU(8, 48), and a linear reading of its last output."""

    def __init__(self, hidden_size: int = 48) -> None:
        super().__init__()
        self.rnn = nn.GRU(PIXELS, hidden_size)
        self.head = nn.Linear(hidden_size, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(T, B, 8) → logits (B, 10)."""
        return self.head(self.rnn(x)[0][-1])


def digits(noise_steps: int = NOISE_STEPS, generator: torch.Generator | None = None) -> Digits:
    """The digits in random order, read row by row from the top, each followed by `noise_steps` of noise.

    Pixels (0–16) are brought to mean 0 and variance 1 over all pixels of the training split. The noise is N(0, 1), so
    that neither mean nor variance tells it from a digit. It is drawn once for each digit.

    generator: of the split and the noise; without one both are always the same.

    Raises InputError: a negative number of steps.
    """
    if noise_steps < 0:
        raise InputError(f"noise_steps={noise_steps}", "0 or more", f"pass noise_steps={NOISE_STEPS}")
    generator = generator or torch.Generator().manual_seed(0)
    with np.load(str(files("throughtime.tasks") / "data" / "digits.npz")) as bundled:
        images = torch.from_numpy(bundled["images"]).float()
        labels = torch.from_numpy(bundled["labels"]).long()
    order = torch.randperm(len(labels), generator=generator)
    test, train = order[:TEST], order[TEST:]
    rows = ((images - images[train].mean()) / images[train].std()).transpose(0, 1)
    noise = torch.randn(noise_steps, len(labels), PIXELS, generator=generator)
    inputs = torch.cat([rows, noise])
    return Digits(Split(inputs[:, train], labels[train]), Split(inputs[:, test], labels[test]), noise_steps)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of the last step, in nats; `batch` is (x, y)."""
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)


def accuracy(model: nn.Module, split: Split) -> float:
    """Fraction of the digits recognised."""
    with torch.no_grad():
        return float((model(split.inputs).argmax(-1) == split.labels).float().mean())


def paired_training(
    task: Digits,
    needed_lag: int | None = None,
    seeds: Sequence[int] = SEEDS,
    steps: int = STEPS,
    progress: Progress | None = None,
) -> Verification:
    """Test accuracy of `DigitClassifier` without and with chrono initialisation, after short paired trainings.

    needed_lag: the farthest lag found by demand, which chrono is told; default: the farthest row's.
    """
    with one_thread():
        return verify(
            DigitClassifier,
            task.batches(steps),
            loss,
            registered()["chrono"],
            "rnn",
            needed_lag=task.needed_lags[-1] if needed_lag is None else needed_lag,
            seeds=seeds,
            steps=steps,
            metric=lambda model: accuracy(model, task.test),
            metric_name="test accuracy",
            higher_is_better=True,
            lr=LEARNING_RATE,
            clip=CLIP,
            progress=progress,
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """Small networks gain nothing from a second thread, and lose minutes to it where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
