"""One unit with one gate: x⁺ = z x + (1 − z) tanh(w x), the smallest system in which the thesis can be tried.

The local gradient is dx_N/dw, by the forward recursion

    d⁺ = (z + (1 − z)(1 − t²) w) d + (1 − z)(1 − t²) x,      t = tanh(w x), d_0 = 0.

The gate is a number z, or z = σ(a + v x), which depends on the state; then each step's factor also holds
z(1 − z) v (x − t).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

START = 0.01  # x_0
SEARCHED = np.unique(np.concatenate([np.linspace(0.5, 3, 2001), 1 + np.geomspace(1e-5, 2, 2001)]))
"""Values of w that are searched for a peak, in units of the critical one: close together just beyond it, where the peaks
are narrow (their width falls like 1/N)."""


@dataclass(frozen=True)
class Gate:
    """z = σ(logit + slope · x). A gate that is a number has slope 0."""

    logit: float
    slope: float = 0.0

    @classmethod
    def of(cls, z: float) -> Gate:
        """The constant gate z, 0 ≤ z < 1; z = 0 is the Elman unit."""
        with np.errstate(divide="ignore"):
            return cls(float(np.log(z) - np.log1p(-z)))

    def values(self, x: Array) -> Array:
        """z at the states x."""
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp(-(self.logit + self.slope * x)))

    @property
    def at_rest(self) -> float:
        """z at x = 0."""
        return float(self.values(np.zeros(1))[0])


@dataclass(frozen=True)
class Run:
    """x: x_N; by_weight: dx_N/dw; by_state: dx_N/dx_0. Each in the shape of w."""

    x: Array
    by_weight: Array
    by_state: Array


def run(w: Array, steps: int, gate: Gate, start: float = START) -> Run:
    """N steps from x_0 = start, for all w at once."""
    w = np.asarray(w, dtype=np.float64)
    x, by_weight, by_state = np.full(w.shape, start), np.zeros(w.shape), np.ones(w.shape)
    for _ in range(steps):
        z, t = gate.values(x), np.tanh(w * x)
        slope = (1 - z) * (1 - t**2)
        factor = z + slope * w + z * (1 - z) * gate.slope * (x - t)
        by_weight = factor * by_weight + slope * x
        by_state = factor * by_state
        x = z * x + (1 - z) * t
    return Run(x, by_weight, by_state)


def flip(z: float) -> float:
    """w at which x = 0 loses its stability to a 2-cycle: there z + (1 − z) w = −1."""
    return -(1 + z) / (1 - z)


@dataclass(frozen=True)
class Peak:
    """The largest |dx_N/dw| over an interval of w, and where it stands."""

    height: float
    w: float


def peak(steps: int, gate: Gate, critical: float = 1.0, start: float = START) -> Peak:
    """The peak between .5 and 3 times the critical w: the best of a grid, then of a finer one between its neighbours."""
    w, found = np.sort(critical * SEARCHED), Peak(0.0, critical)
    for _ in range(3):
        heights = np.abs(run(w, steps, gate, start).by_weight)
        best = int(heights.argmax())
        found = Peak(float(heights[best]), float(w[best]))
        w = np.linspace(w[max(best - 1, 0)], w[min(best + 1, len(w) - 1)], 201)
    return found


@dataclass(frozen=True)
class Scaling:
    """height ≈ exp(constant) · N^by_steps · (1 − z)^by_gate, least squares on logarithms.

    The errors are standard errors of the fit. Nothing is random here: they measure how far the heights are from such a
    law. worst: the largest relative distance of a height from it.
    """

    by_steps: float
    by_steps_error: float
    by_gate: float
    by_gate_error: float
    worst: float


def scaling(steps: tuple[int, ...], gates: tuple[float, ...], least: float = 0.0) -> Scaling:
    """How the height of the peak at w > 0 goes with N and with the constant gate, where N(1 − z) ≥ least."""
    pairs = [(N, z) for N in steps for z in gates if N * (1 - z) >= least]
    design = np.array([(1.0, np.log(N), np.log(1 - z)) for N, z in pairs])
    told = np.log([peak(N, Gate.of(z)).height for N, z in pairs])
    solution = np.linalg.lstsq(design, told, rcond=None)[0]
    left_over = told - design @ solution
    variance = left_over @ left_over / (len(told) - design.shape[1])
    errors = np.sqrt(variance * np.diag(np.linalg.inv(design.T @ design)))
    worst = float(np.expm1(np.abs(left_over)).max())
    (_, by_steps, by_gate), (_, steps_error, gate_error) = solution.tolist(), errors.tolist()
    return Scaling(by_steps, steps_error, by_gate, gate_error, worst)
