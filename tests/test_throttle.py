"""The throttle's physics, its excitations, and the best-fit rate."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from throughtime.errors import InputError
from throughtime.tasks.throttle import SAMPLING, Throttle, aprbs, best_fit_rate, multisine

VOLTS = (-1.0, 5.0)


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


def excited(steps: int = 60, batch: int = 8) -> np.ndarray:
    return aprbs(steps, batch, generator(), amplitude=VOLTS, hold=(5, 40))


def test_it_rests_at_the_limp_home_angle():
    plant = Throttle()
    angle, speed = plant.simulate(np.zeros((50, 1)))
    assert angle == pytest.approx(plant.home, abs=1e-12)
    assert speed == pytest.approx(0, abs=1e-12)
    assert plant.acceleration(np.array(plant.home), np.array(0.0), np.array(0.0)) == 0


def test_without_voltage_the_spring_brings_it_home_from_both_sides():
    """The preload is larger than dry friction; within the smoothed preload friction may hold it."""
    plant = Throttle()
    assert plant.preload > plant.static
    angle, _ = plant.simulate(np.zeros((80, 3)), angle=np.array([0.01, 0.4, 0.7]))
    assert angle[-1] == pytest.approx(plant.home, abs=plant.width)


def test_without_voltage_energy_is_only_lost():
    """The motor's terminals are shorted at 0 V: its current brakes, like friction."""
    plant = Throttle()
    angle, speed = np.array([1.0, 0.05, 1.45, 0.02]), np.array([0.0, 8.0, 20.0, -15.0])
    angles, speeds = plant.simulate(np.zeros((15, 4)), angle, speed, substeps=200)
    energy = plant.energy(np.vstack([angle, angles]), np.vstack([speed, speeds]))
    assert (np.diff(energy, axis=0) <= 1e-9).all()
    assert (energy[-1] < 0.9 * energy[0]).all()


def test_energy_is_the_work_of_the_springs():
    """d(energy)/dθ at rest is the torque of the springs and stops."""
    plant = Throttle()
    angles = np.array([-0.01, 0.05, 0.118, 0.123, 0.7, 1.51])
    step = 1e-7
    slope = (plant.energy(angles + step, 0.0) - plant.energy(angles - step, 0.0)) / (2 * step)
    assert slope == pytest.approx(plant.spring(angles) + plant.stop(angles, np.zeros(6)), abs=1e-5)


def test_stops_are_held():
    plant = Throttle()
    angle, speed = plant.simulate(np.array([[12.0, -12.0]] * 60))
    assert plant.upper < angle[-1, 0] < plant.upper + 0.02
    assert plant.lower - 0.02 < angle[-1, 1] < plant.lower
    assert np.abs(speed[-1]).max() < 1e-3
    assert angle.max() < plant.upper + 0.08
    assert angle.min() > plant.lower - 0.08


def test_friction_holds_it_open():
    """Between the voltages that open and close it the plate stays where it is: the output is not a function of the input."""
    plant = Throttle()
    hold = (plant.preload + plant.stiffness * 0.8) * plant.resistance / plant.motor
    angle, _ = plant.simulate(np.full((60, 2), hold), angle=np.array([0.8, 1.0]))
    assert angle[-1] == pytest.approx([0.8, 1.0], abs=0.02)


def test_the_step_is_small_enough():
    plant, volts = Throttle(), excited()
    once, _ = plant.simulate(volts)
    twice, _ = plant.simulate(volts, substeps=60)
    assert np.abs(once - twice).max() < 1e-3
    assert np.sqrt(((once - twice) ** 2).mean()) < 1e-4


def test_against_another_solver():
    plant, volts = Throttle(), excited(40, 1)[:, 0]
    state, told = np.array([plant.home, 0.0]), []
    for held in volts:
        solved = solve_ivp(
            lambda _, s, held=held: [s[1], float(plant.acceleration(s[0], s[1], held))],
            (0, SAMPLING), state, method="LSODA", rtol=1e-9, atol=1e-11, max_step=1e-3,
        )  # fmt: skip
        state = solved.y[:, -1]
        told.append(state[0])
    assert plant.simulate(volts)[0] == pytest.approx(np.array(told), abs=1e-3)


def test_aprbs_has_its_amplitudes_and_holds():
    u = aprbs(3000, 20, generator(), amplitude=VOLTS, hold=(5, 40))
    assert u.shape == (3000, 20)
    assert VOLTS[0] <= u.min() < VOLTS[0] + 0.1
    assert VOLTS[1] - 0.1 < u.max() <= VOLTS[1]
    holds = np.concatenate([np.diff(np.flatnonzero(np.diff(column))) for column in u.T])
    assert holds.min() == 5
    assert holds.max() == 40
    assert holds.mean() == pytest.approx(22.5, abs=1)
    assert u.mean() == pytest.approx(2, abs=0.1)


def test_multisine_has_its_amplitudes_and_its_band():
    u = multisine(300, 5, generator(), amplitude=VOLTS, band=(0.5, 4.0))
    assert u.min(0) == pytest.approx(VOLTS[0])
    assert u.max(0) == pytest.approx(VOLTS[1])
    spectrum = np.abs(np.fft.rfft(u - u.mean(0), axis=0))
    frequency = np.fft.rfftfreq(300, SAMPLING)
    inside = (frequency >= 0.5) & (frequency <= 4.0)
    assert inside.sum() == 11
    assert spectrum[~inside].max() < 1e-9 * spectrum.max()
    assert spectrum[inside] == pytest.approx(np.broadcast_to(spectrum[inside][:1], (11, 5)), rel=1e-9)


def test_best_fit_rate():
    y = np.array([1.0, 2.0, 3.0, 4.0])
    assert best_fit_rate(y, y) == 100
    assert best_fit_rate(y, np.full(4, 2.5)) == 0
    assert best_fit_rate(y, y + 1) == pytest.approx(100 * (1 - 2 / np.sqrt(5)))
    assert best_fit_rate(np.stack([y, y], 1), np.stack([y, 5 - y], 1)) == pytest.approx([100, -100])


def test_bad_input_says_what_to_do():
    with pytest.raises(InputError, match="1 ≤ shortest"):
        aprbs(10, 1, generator(), amplitude=VOLTS, hold=(0, 4))
    with pytest.raises(InputError, match="Hz"):
        multisine(100, 1, generator(), amplitude=VOLTS, band=(0.1, 0.2))
    with pytest.raises(InputError, match="record"):
        Throttle().simulate(np.zeros((0, 2)))


@pytest.mark.parametrize(
    ("fails", "words"),
    [
        (lambda: multisine(2, 1, np.random.default_rng(0), amplitude=(0, 1), band=(0.5, 4)), "3 or more"),
        (lambda: Throttle().simulate(np.zeros((5, 3)), angle=np.zeros(2)), "(3,)"),
        (lambda: Throttle().simulate(np.zeros((5, 3)), speed=np.zeros((3, 1))), "(3,)"),
    ],
)
def test_what_does_not_fit_is_said(fails, words):
    with pytest.raises(InputError) as error:
        fails()
    assert words in str(error.value)


def test_a_record_that_does_not_change_has_no_best_fit_rate():
    rate = best_fit_rate(np.ones((5, 2)) * [1, 0] + np.arange(5)[:, None] * [0, 1], np.zeros((5, 2)))
    assert np.isnan(rate[0])
    assert np.isfinite(rate[1])
