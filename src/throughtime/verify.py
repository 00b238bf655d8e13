"""Does the remedy help? Paired short trainings of the untreated and the treated network, judged by an interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Verification:
    """Paired result of `remedy` against no remedy, one pair a seed.

    metric: what was measured after training, e.g. "test accuracy" or "loss"; higher_is_better: its sense.
    before, after: (seeds,) the metric untreated and treated; difference: mean of after − before with its 95 % t-interval
    (low, high); verdict: "helps", "no help" or "harms".
    curves: training loss by step, "untreated" and "treated", each (seeds, steps).
    """

    remedy: str
    metric: str
    higher_is_better: bool
    steps: int
    seeds: tuple[int, ...]
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    difference: float
    low: float
    high: float
    verdict: str
    curves: dict[str, NDArray[np.float64]]
