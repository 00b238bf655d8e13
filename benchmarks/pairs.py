"""Ratios of times that share a noisy machine: works take turns, each turn gives one ratio to the first of them.

Times are processor seconds of this process, which runs one thread: other programs on the machine disturb them least.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

LEVEL = 0.95
RESAMPLES = 2000


@dataclass(frozen=True)
class Timing:
    """Median seconds of one work, the median of its ratios to the base, and their bootstrap interval."""

    seconds: float
    ratio: float
    low: float
    high: float


def measure(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Let the works take turns for some rounds after one to warm up; the first is the base of all ratios."""
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            gc.collect()
            start = time.process_time()
            work()
            times[name].append(time.process_time() - start)
    base = next(iter(times.values()))
    return {name: _timing(own, base) for name, own in times.items()}


def _timing(own: list[float], base: list[float]) -> Timing:
    ratios = [a / b for a, b in zip(own, base, strict=True)]
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    edge = round((1 - LEVEL) / 2 * RESAMPLES)
    return Timing(statistics.median(own), statistics.median(ratios), medians[edge], medians[-1 - edge])
