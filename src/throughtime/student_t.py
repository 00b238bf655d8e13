"""Student's t, for intervals."""

from __future__ import annotations

import math


def t_quantile(probability: float, dof: int) -> float:
    """Quantile of Student's t for an integer number of degrees of freedom, .5 ≤ probability < 1.

    By bisection of the distribution's finite trigonometric series (Abramowitz & Stegun 1964, 26.7.3 and 26.7.4):
    P(|t| ≤ x) = A(θ) with θ = arctan(x / √ν), so that θ is searched in the bounded interval [0, π/2).
    """
    if dof < 1 or not 0.5 <= probability < 1:
        raise ValueError(f"t_quantile is defined for dof ≥ 1 and .5 ≤ probability < 1, not ({probability}, {dof})")
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        if _within(middle, dof) < 2 * probability - 1:
            low = middle
        else:
            high = middle
    return math.sqrt(dof) * math.tan(low)


def _within(theta: float, dof: int) -> float:
    """P(|t| ≤ √ν tan θ)."""
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = dof % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for i in range(odd, dof - 1, 2):
        total += term
        term *= cosine**2 * (i + 1) / (i + 2)
    return 2 / math.pi * (theta + sine * total) if odd else sine * total
