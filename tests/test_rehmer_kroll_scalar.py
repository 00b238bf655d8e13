"""The scalar study: derivatives against autograd, 60-digit differences, and the numbers it must reproduce."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from reproduce.rehmer_kroll.scalar import Gate, flip, peak, run, scaling

GATES = [Gate.of(0.0), Gate.of(0.5), Gate.of(0.9), Gate(0.3, 4.0), Gate(0.0, -8.0)]
WEIGHTS = np.array([-4.0, -1.02, 0.6, 1.0, 1.3, 2.5])


@pytest.mark.parametrize("gate", GATES)
def test_derivatives_are_autograds(gate):
    w = torch.tensor(WEIGHTS, requires_grad=True)
    start = torch.full_like(w, 0.01, requires_grad=True)
    x = start
    for _ in range(40):
        z = torch.sigmoid(gate.logit + gate.slope * x)
        x = z * x + (1 - z) * torch.tanh(w * x)
    by_weight, by_state = torch.autograd.grad(x.sum(), (w, start))
    got = run(WEIGHTS, 40, gate)
    assert got.x == pytest.approx(x.detach().numpy(), rel=1e-11)
    assert got.by_weight == pytest.approx(by_weight.numpy(), rel=1e-9)
    assert got.by_state == pytest.approx(by_state.numpy(), rel=1e-9)


@pytest.mark.parametrize("gate", [Gate.of(0.0), Gate.of(0.9), Gate(0.3, 4.0)])
def test_derivative_by_60_digits(gate):
    def state(w):
        x = mpmath.mpf("0.01")
        for _ in range(50):
            z = 1 / (1 + mpmath.exp(-(gate.logit + gate.slope * x))) if np.isfinite(gate.logit) else mpmath.mpf(0)
            x = z * x + (1 - z) * mpmath.tanh(w * x)
        return x

    with mpmath.workdps(60):
        step = mpmath.mpf(10) ** -20
        for w in (1.07, 1.9):
            told = (state(mpmath.mpf(w) + step) - state(mpmath.mpf(w) - step)) / (2 * step)
            assert run(np.array([w]), 50, gate).by_weight[0] == pytest.approx(float(told), rel=1e-10)


@pytest.mark.parametrize(
    ("steps", "z", "height", "w"),
    [(50, 0.0, "8.56", "1.075"), (50, 0.5, "5.57", "1.162"), (50, 0.9, "1.29", "1.836"),
     (200, 0.0, "17.2", "1.015"), (200, 0.5, "12.4", "1.033"), (200, 0.9, "4.83", "1.199")],
)  # fmt: skip
def test_the_known_peaks(steps, z, height, w):
    found = peak(steps, Gate.of(z))

    def half(digits):  # of the last digit given
        return 0.5 * 10.0 ** -len(digits.split(".")[1])

    assert found.height == pytest.approx(float(height), abs=half(height))
    assert found.w == pytest.approx(float(w), abs=half(w))


def test_without_a_gate_both_signs_are_the_same():
    """tanh is odd: with z = 0 the orbit of −w is that of w with alternating signs."""
    right, other = (run(sign * np.linspace(0.5, 3, 50), 50, Gate.of(0.0)) for sign in (1, -1))
    assert np.abs(other.by_weight) == pytest.approx(np.abs(right.by_weight), rel=1e-12)


@pytest.mark.parametrize(("z", "at"), [(0.0, -1.0), (0.5, -3.0), (0.9, -19.0)])
def test_below_the_flip_the_gradient_is_small_and_beyond_it_large(z, at):
    assert flip(z) == pytest.approx(at)
    inside = np.abs(run(np.linspace(0.95 * at, -0.05, 300), 200, Gate.of(z)).by_weight).max()
    found = peak(200, Gate.of(z), flip(z))
    assert found.w < at
    assert found.w == pytest.approx(at, rel=0.05)
    assert inside < 0.1 * found.height


def test_a_gate_is_a_clock():
    """x⁺ − x = (1 − z)(tanh(wx) − x): steps of size 1 − z in time N(1 − z), so that equal times give equal peaks."""
    fine, finer = (peak(round(50 / (1 - z)), Gate.of(z)) for z in (0.9, 0.98))
    assert fine.height == pytest.approx(finer.height, rel=0.02)
    assert fine.height == pytest.approx(peak(50, Gate.of(0.0)).height, rel=0.1)


def test_a_gate_that_depends_on_the_state_moves_no_fixed_point_and_no_bifurcation():
    for slope in (-8.0, 8.0):
        gate = Gate(0.0, slope)
        below, above = run(np.array([0.9, 1.5]), 60_000, gate).x
        assert below == pytest.approx(0, abs=1e-12)
        assert above == pytest.approx(np.tanh(1.5 * above), abs=1e-12)
        assert above > 0.1
        # at rest and at the fixed point the gate's own path is shut: the factor is z + (1 − z)(1 − t²) w
        at = run(np.array([1.5]), 1, gate, start=float(above)).by_state[0]
        z = gate.values(np.array([above]))[0]
        assert at == pytest.approx(z + (1 - z) * (1 - above**2) * 1.5, rel=1e-9)


def test_a_gate_that_depends_on_the_state_can_make_one_unit_chaotic():
    """Without a gate the map is monotone, and a monotone map of one variable has no chaos."""
    w = np.linspace(-9, -1.5, 500)
    elman = np.abs(run(w, 200, Gate.of(0.0)).by_weight).max()
    assert elman < 20
    assert np.abs(run(w, 200, Gate(0.0, 4.0)).by_weight).max() > 1e30


def test_scaling_is_the_slope_between_two_lengths():
    """In a balanced design the fitted exponent is the mean over gates of ln(ratio of heights) / ln(ratio of lengths)."""
    gates = (0.0, 0.5, 0.75)
    slopes = [np.log(peak(800, Gate.of(z)).height / peak(200, Gate.of(z)).height) / np.log(4) for z in gates]
    found = scaling((200, 800), gates)
    assert found.by_steps == pytest.approx(np.mean(slopes), rel=1e-9)
    assert found.by_gate == pytest.approx(found.by_steps, abs=0.1)
    assert scaling((200, 800), (0.0, 0.5, 0.75), least=200.0).by_steps < found.by_steps
