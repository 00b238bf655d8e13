"""Intervals: of a median by bootstrap, of a share by Wilson's formula."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Z = 1.959964
"""Of a 95 % interval."""
RESAMPLED = 4000


def median(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """(median, low, high): percentile bootstrap, 95 %."""
    values = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(0).integers(0, len(values), (RESAMPLED, len(values)))
    low, high = np.quantile(np.median(values[drawn], axis=1), [0.025, 0.975])
    return float(np.median(values)), float(low), float(high)


def share(hits: int, of: int) -> tuple[float, float, float]:
    """(share, low, high): Wilson 1927, 95 %."""
    if not 0 <= hits <= of or of == 0:
        raise ValueError(f"got {hits} of {of}; expected 0 ≤ hits ≤ of and of > 0")
    p = hits / of
    centre = (p + Z**2 / (2 * of)) / (1 + Z**2 / of)
    margin = Z / (1 + Z**2 / of) * math.sqrt(p * (1 - p) / of + Z**2 / (4 * of**2))
    return p, max(0.0, centre - margin), min(1.0, centre + margin)
