"""Ratios of times that share a noisy machine: works take turns, each turn gives one ratio to the first of them.

On the CPU times are processor seconds of this process, which runs one thread: other programs on the machine disturb them least.
On CUDA they are seconds by the clock, up to the end of what was started.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

LEVEL = 0.95
RESAMPLES = 2000

Times = dict[str, list[float]]


@dataclass(frozen=True)
class Timing:
    """Median seconds of one work, the median of its ratios to the base, and their bootstrap interval."""

    seconds: float
    ratio: float
    low: float
    high: float


def turns(works: Mapping[str, Callable[[], object]], rounds: int, device: str = "cpu", warm: bool = True) -> Times:
    """Seconds of each work: they take turns for some rounds, after one to warm up."""
    if warm:
        for work in works.values():
            work()
    times: Times = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            gc.collect()
            start = _now(device)
            work()
            times[name].append(_now(device) - start)
    return times


def _now(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def compared(times: Times) -> dict[str, Timing]:
    """Each work against the first."""
    base = next(iter(times.values()))
    return {name: timing(own, [a / b for a, b in zip(own, base, strict=True)]) for name, own in times.items()}


def timing(seconds: Sequence[float], ratios: Sequence[float]) -> Timing:
    """Medians, and the interval of the ratios' by resampling rounds."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    edge = round((1 - LEVEL) / 2 * RESAMPLES)
    return Timing(statistics.median(seconds), statistics.median(ratios), medians[edge], medians[-1 - edge])
