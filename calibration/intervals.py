"""How often the intervals over batches hold the truth: `python -m calibration.intervals [data sets]`.

A GRU as it is initialised, Gaussian inputs, a target that is the input some steps ago and noise. Each data set is so many
batches; the truth is the same numbers of a sample so large that its own noise does not matter. Nominal: 95 %.
"""

from __future__ import annotations

import sys
from functools import reduce

import numpy as np
import torch
from torch import nn

from throughtime.asked import Asked
from throughtime.diagnosis.measure import StepReader
from throughtime.flow import LayerFlow
from throughtime.streaming.accumulate import accumulate, flow_of
from throughtime.streaming.sums import LayerSums, merge

STEPS, LAG, NOISE = 24, 3, 2.0
PLAIN = Asked(demand=False, origin_step=False, hops=False, signal_to_noise=False)
LAGS = (0, 2, 5, 8)
LEVELS = (0.1, 0.01)


def network() -> nn.Module:
    """The same in every data set."""
    torch.manual_seed(0)
    return nn.ModuleDict({"rnn": nn.GRU(2, 8), "head": nn.Linear(8, 1)}).double()


def error(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Of a regression on the last output."""
    x, y = batch
    output = model.get_submodule("rnn")(x)[0]
    return nn.functional.mse_loss(model.get_submodule("head")(output[-1]), y, reduction="sum")


def sums_of(model: nn.Module, number: int, size: int, generator: torch.Generator, noise: float = NOISE) -> LayerSums:
    """The sums of a batch that is drawn anew."""
    x = torch.randn(STEPS, size, 2, generator=generator, dtype=torch.float64)
    y = x[-1 - LAG, :, :1] + noise * torch.randn(size, 1, generator=generator, dtype=torch.float64)
    return accumulate(StepReader(error)(model, number, (x, y)).traces[0], number, PLAIN, STEPS)


def told(model: nn.Module, batches: int, size: int, generator: torch.Generator, noise: float = NOISE) -> LayerFlow:
    """The flow of one data set."""
    sums = reduce(merge, (sums_of(model, number, size, generator, noise) for number in range(batches)))
    return flow_of({"rnn": sums}, PLAIN).layers["rnn"]


def coverage(batches: int, size: int, sets: int) -> dict[str, float]:
    """By number: the fraction of data sets whose interval holds the truth; and the mean width of the horizon's."""
    model, generator = network(), torch.Generator().manual_seed(1)
    truth = told(model, 100, 4000, generator)
    hits: dict[str, list[float]] = {}
    for _ in range(sets):
        layer = told(model, batches, size, generator)
        ends = layer.intervals
        assert ends is not None
        for level in LEVELS:
            low, high = ends.horizon[level]
            true = truth.horizon[level]
            assert true is not None
            hits.setdefault(f"horizon {level:g}", []).append(
                (low is None or low <= true) and (high is None or true <= high)
            )
            width = np.nan if low is None or high is None else high - low
            hits.setdefault(f"width {level:g}", []).append(width)
        each = (("bias", ends.bias, truth.bias), ("share", ends.share, truth.share))
        for name, (low, high), true in (*each, ("log10_arriving", ends.log10_arriving, truth.log10_arriving)):
            for lag in LAGS[1:] if name == "log10_arriving" else LAGS:
                hits.setdefault(f"{name} {lag}", []).append(low[lag] <= true[lag] <= high[lag])
    return {name: float(np.nanmean(values)) for name, values in hits.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    for batches, size in ((16, 16), (40, 16), (40, 4)):
        found = coverage(batches, size, count)
        print(f"{batches} batches of {size}: " + ", ".join(f"{name} {value:.3g}" for name, value in found.items()))
        sys.stdout.flush()
