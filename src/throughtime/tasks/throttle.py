"""A nonlinear identification task: an electro-mechanical throttle, simulated. Motor voltage in, plate angle out.

    J θ̈ = (K/R)(u − K θ̇) − B θ̇ − spring(θ) − friction(θ̇) − stop(θ, θ̇)

- spring: a preload that pushes the plate towards its limp-home angle from both sides, and a stiffness:
  preload · sat((θ − home)/width) + stiffness · (θ − home);
- friction: (coulomb + (static − coulomb) e^{−(θ̇/stribeck)²}) · tanh(θ̇/creep), the Stribeck curve, smoothed over `creep`;
- stops at both ends: a stiff spring and damper that push only outward from the stop;
- the armature's inductance is left out: its time constant, 1 ms, is a tenth of the sampling interval.

J, B, K, R, preload, stiffness and coulomb are values for a Bosch DV-E5, referred to the plate, as a public simulation
quotes them from Loh, Thanom, Pyko & Lee 2013, "Electronic Throttle Control System: Modeling, Identification and
Model-Based Control Designs", Engineering 5, 587–600. Limp-home angle, stops, Stribeck and the widths of smoothing are our own
choice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from throughtime.errors import InputError

Array = NDArray[np.float64]

SAMPLING = 0.01
"""Seconds between samples: 100 Hz."""
SUBSTEPS = 30
"""Runge–Kutta steps between samples, a third of a millisecond each; see the test that halves them."""


@dataclass(frozen=True)
class Throttle:
    """The plant, SI units at the plate: kg m², N m s/rad, V s/rad (= N m/A), Ω, N m, N m/rad, rad, rad/s."""

    inertia: float = 0.0021
    viscous: float = 0.0088
    motor: float = 0.383
    resistance: float = 1.5
    preload: float = 0.396
    stiffness: float = 0.087
    coulomb: float = 0.284
    static: float = 0.32
    stribeck: float = 0.3
    creep: float = 0.03
    home: float = 0.12
    width: float = 0.01
    lower: float = 0.0
    upper: float = 1.5
    stop_stiffness: float = 200.0
    stop_damping: float = 0.6

    def spring(self, angle: Array) -> Array:
        """Torque of the return spring, which the motor has to overcome; 0 at the limp-home angle."""
        away = angle - self.home
        return self.preload * np.clip(away / self.width, -1, 1) + self.stiffness * away

    def friction(self, speed: Array) -> Array:
        """Torque of dry friction, against the speed."""
        level = self.coulomb + (self.static - self.coulomb) * np.exp(-((speed / self.stribeck) ** 2))
        return level * np.tanh(speed / self.creep)

    def stop(self, angle: Array, speed: Array) -> Array:
        """Torque of the stops, inward; they push and never pull."""
        over, under = angle - self.upper, self.lower - angle
        at_top = np.where(over > 0, np.maximum(self.stop_stiffness * over + self.stop_damping * speed, 0), 0)
        at_bottom = np.where(under > 0, np.maximum(self.stop_stiffness * under - self.stop_damping * speed, 0), 0)
        return at_top - at_bottom

    def acceleration(self, angle: Array, speed: Array, volts: Array) -> Array:
        """θ̈ in rad/s²."""
        drive = self.motor / self.resistance * (volts - self.motor * speed)
        against = self.viscous * speed + self.spring(angle) + self.friction(speed) + self.stop(angle, speed)
        return (drive - against) / self.inertia

    def energy(self, angle: Array, speed: Array) -> Array:
        """Kinetic energy and that of the springs and stops, J: it cannot grow while the motor gets no voltage."""
        away = np.abs(angle - self.home)
        near = np.minimum(away, self.width)
        preload = self.preload * (near**2 / (2 * self.width) + (away - near))
        beyond = np.maximum(angle - self.upper, 0) + np.maximum(self.lower - angle, 0)
        springs = preload + self.stiffness * away**2 / 2 + self.stop_stiffness * beyond**2 / 2
        return self.inertia * speed**2 / 2 + springs

    def simulate(
        self, volts: Array, angle: float | Array | None = None, speed: float | Array = 0.0, substeps: int = SUBSTEPS
    ) -> tuple[Array, Array]:
        """Angles and speeds, each (T, …), at the end of every sampling interval, over which the voltage (T, …) is held.

        angle, speed: where it starts, one for all records or (…); by default it rests at the limp-home angle.

        Raises InputError: no steps, substeps below 1, or a start that is of another number of records.
        """
        volts = np.asarray(volts, dtype=np.float64)
        if volts.ndim == 0 or len(volts) == 0 or substeps < 1:
            raise InputError(f"volts {volts.shape}, substeps={substeps}", "(T, …) and 1 or more", "pass a record")
        start, records = (self.home if angle is None else angle, speed), volts.shape[1:]
        if any(np.shape(each) not in ((), records) for each in start):
            shapes = " and ".join(str(np.shape(each)) for each in start)
            raise InputError(f"angle and speed of shapes {shapes}", f"one number, or {records}", "one for each record")
        state = np.full(records, start[0]), np.full(records, start[1])
        angles, speeds = np.empty_like(volts), np.empty_like(volts)
        for step, held in enumerate(volts):
            for _ in range(substeps):
                state = self._runge_kutta(*state, held, SAMPLING / substeps)
            angles[step], speeds[step] = state
        return angles, speeds

    def _runge_kutta(self, angle: Array, speed: Array, volts: Array, h: float) -> tuple[Array, Array]:
        a1 = self.acceleration(angle, speed, volts)
        s2 = speed + h / 2 * a1
        a2 = self.acceleration(angle + h / 2 * speed, s2, volts)
        s3 = speed + h / 2 * a2
        a3 = self.acceleration(angle + h / 2 * s2, s3, volts)
        s4 = speed + h * a3
        a4 = self.acceleration(angle + h * s3, s4, volts)
        return angle + h / 6 * (speed + 2 * s2 + 2 * s3 + s4), speed + h / 6 * (a1 + 2 * a2 + 2 * a3 + a4)


def aprbs(
    steps: int,
    batch: int,
    generator: np.random.Generator,
    *,
    amplitude: tuple[float, float],
    hold: tuple[int, int],
) -> Array:
    """(T, B) amplitude-modulated pseudo-random binary signals: levels U(amplitude), each held for U{hold} samples.

    Raises InputError: a hold below one sample, or an interval that is upside down.
    """
    (low, high), (shortest, longest) = amplitude, hold
    if not (1 <= shortest <= longest and low <= high):
        raise InputError(f"amplitude={amplitude}, hold={hold}", "low ≤ high and 1 ≤ shortest ≤ longest", "swap them")
    count = -(-steps // shortest)
    holds = generator.integers(shortest, longest + 1, (count, batch))
    levels = generator.uniform(low, high, (count, batch))
    ends = holds.cumsum(0)
    level = (ends[None] <= np.arange(steps)[:, None, None]).sum(1)  # ends passed so far
    return np.take_along_axis(levels, level, 0)


def multisine(
    steps: int,
    batch: int,
    generator: np.random.Generator,
    *,
    amplitude: tuple[float, float],
    band: tuple[float, float],
) -> Array:
    """(T, B) sums of the harmonics of the record's length that lie in `band` (Hz), of one amplitude and random phase.

    Each is brought to fill the interval `amplitude` exactly, so that it holds its largest and its smallest value.

    Raises InputError: no harmonic in the band, or a record too short to have any.
    """
    if steps < 3:
        raise InputError(f"steps={steps}", "3 or more", "ask for a longer record")
    harmonics = np.arange(1, (steps + 1) // 2)
    frequency = harmonics / (steps * SAMPLING)
    chosen = harmonics[(frequency >= band[0]) & (frequency <= band[1])]
    if len(chosen) == 0:
        raise InputError(f"band={band} Hz", f"{frequency[0]:.3g} to {frequency[-1]:.3g} Hz", "widen it")
    phase = generator.uniform(0, 2 * math.pi, (len(chosen), 1, batch))
    turns = 2 * math.pi * chosen[:, None, None] * np.arange(steps)[:, None] / steps
    wave = np.cos(turns + phase).sum(0)
    low, high = wave.min(0), wave.max(0)
    return amplitude[0] + (amplitude[1] - amplitude[0]) * (wave - low) / (high - low)


def best_fit_rate(measured: Array, simulated: Array) -> Array:
    """BFR in percent, 100 · (1 − ‖y − ŷ‖ / ‖y − ȳ‖), over the first axis: (T, …) → (…).

    100 is exact; 0 is no better than the mean of the record; below 0 worse. 100 · (1 − ‖·‖) is often cut off at 0; not here.
    NaN for a record that does not change: no rate is defined.
    """
    y, guess = np.asarray(measured, dtype=np.float64), np.asarray(simulated, dtype=np.float64)
    away = np.linalg.norm(y - y.mean(0), axis=0)
    return 100 * (1 - np.linalg.norm(y - guess, axis=0) / np.where(away > 0, away, np.nan))
