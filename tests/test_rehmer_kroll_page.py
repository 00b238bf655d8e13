"""The study as a whole at tiny size, its intervals, its tasks and its random cells."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from reproduce.registry import STUDIES
from reproduce.rehmer_kroll import intervals, supply, vector
from reproduce.rehmer_kroll.arms import KINDS, Job, Scale, run, start
from reproduce.rehmer_kroll.identification import Task, bfr, delay_task, throttle_task
from reproduce.rehmer_kroll.page import Size
from reproduce.rehmer_kroll.replicas import ELMAN, GRU, LSTM, draw
from reproduce.study import BLOCK, DOCS

from throughtime.progress import quiet
from throughtime.tasks.throttle import best_fit_rate

SCALE = Scale(seeds=(0, 1), choosing=(5,), steps=3, kept=(0, 3), rates=(1e-3, 1e-2))


@pytest.fixture(scope="module")
def throttle() -> Task:
    return throttle_task(steps=40, test_steps=100, records=24, held_out=24)


def test_the_study_fills_its_page(throttle):
    study = STUDIES["rehmer-kroll"]
    size = Size(SCALE, lengths=(50, 100), gains=(1.0, 2.0, 4.0, 8.0), vector_seeds=3, vector_steps=5, read=1, workers=1)
    made = study.make(quiet, size=size, task=throttle)  # type: ignore[call-arg]
    text = (DOCS / study.page).read_text(encoding="utf-8")
    assert {found["name"] for found in BLOCK.finditer(text)} == set(made.blocks)
    for path, svg in made.figures.items():
        assert f"({path})" in text
        assert svg.startswith("<?xml")
        assert "<dc:date>" not in svg
        assert (DOCS / path).is_file()
    assert not any("nan" in block for block in made.blocks.values())


def test_wilson():
    assert intervals.share(0, 20) == pytest.approx((0, 0, 0.1611), abs=1e-4)
    assert intervals.share(10, 20) == pytest.approx((0.5, 0.2993, 0.7007), abs=1e-4)
    with pytest.raises(ValueError, match="expected 0"):
        intervals.share(3, 2)


def test_the_interval_of_a_median_covers_it():
    """Of 200 samples of a known median, 95 % of the intervals should hold it; 88 % are less than 1 in 10,000."""
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        middle, low, high = intervals.median(generator.exponential(size=20))
        assert low <= middle <= high
        held += low <= math.log(2) <= high
    assert held >= 176


def test_the_throttle_task_is_what_it_says(throttle):
    x, y = throttle.train
    assert x.shape == y.shape == (40, 24, 1)
    for part, (mean, spread) in zip(throttle.train, throttle.units, strict=True):
        assert float(part.mean()) == pytest.approx(0, abs=1e-5)
        assert float(part.std(correction=0)) == pytest.approx(1, abs=1e-5)
        assert spread > 0
        assert mean > 0
    first, again = throttle.batch(3), throttle.batch(3)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], throttle.batch(4)[0])


def test_the_delay_counts_its_last_step_alone():
    task = delay_task(5)
    x, y = task.batch(0)
    assert torch.equal(y[task.first], x[-6])
    assert len(y) == task.first + 1


def test_best_fit_rate_of_replicas():
    task = delay_task(5)
    p = draw(GRU, 1, 4, 1, (0, 1))
    p["head"].zero_()
    p["bias"][0] = task.test[1][-1].mean()
    p["bias"][1] = math.nan
    got = bfr(task, GRU, p, task.test)
    assert got[0] == pytest.approx(0, abs=1e-4)
    assert got[1] == -math.inf
    told = task.test[1][-1, :, 0].double().numpy()
    assert got[0] == pytest.approx(best_fit_rate(told, np.full(512, float(p["bias"][0]))), abs=1e-6)


def test_arms_choose_by_validation_and_start_alike():
    arms = run(Job("delay 5", "elman"), SCALE, delay_task(5))
    assert [arm.clip for arm in arms] == [math.inf, 0.5]
    for arm in arms:
        assert arm.rate == max(arm.chosen_by, key=lambda rate: arm.chosen_by[rate])
        assert arm.norms.shape == (3, 2)
        assert torch.equal(arm.kept[0]["w_hh"], start(arm.job, (0, 1))["w_hh"])
    assert arms[0].norms[0] == pytest.approx(arms[1].norms[0])


def test_an_identity_start_is_an_integrator():
    p = start(Job("throttle", "elman", identity=True), (0,))
    units = len(p["w_hh"][0])
    state = (1e-4 * torch.ones(1, 1, units),)
    (after,) = ELMAN.step(torch.zeros(1, 1, units), state, p)
    assert torch.allclose(after, state[0], rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_transport_at_rest_is_a_power_of_the_one_step_jacobian(kind):
    """At the state 0 all gates are ½: the one-step Jacobians are W; ½ + ¼ W; and (h, c) ↦ (½ c⁺, ½ c + ½ W h)."""
    seeds, steps = (0, 1), 30
    gain = torch.tensor([1.5], dtype=torch.float64)
    p = vector.random(kind, gain, seeds)
    x = torch.zeros(steps, 2, 1, 1, dtype=torch.float64)
    zero = torch.zeros(2, 1, vector.UNITS, dtype=torch.float64)
    got = vector.sizes(kind, p, x, (zero,) * kind.states, torch.ones(2, vector.UNITS, dtype=torch.float64))
    one = torch.eye(vector.UNITS, dtype=torch.float64)
    for replica in range(2):
        place = {"elman": 0, "gru": 2, "lstm": 2}[kind.name] * vector.UNITS
        W = p["w_hh"][replica][:, place : place + vector.UNITS].T
        if kind is LSTM:
            to_cell = torch.cat([W / 2, one / 2], 1)
            jacobian = torch.cat([to_cell / 2, to_cell])
        else:
            jacobian = W if kind is ELMAN else one / 2 + W / 4
        power = torch.linalg.matrix_power(jacobian, steps)[: vector.UNITS]
        assert float(got.transport[replica]) == pytest.approx(float(torch.linalg.matrix_norm(power, ord=2)), rel=1e-9)


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_at_the_critical_gain_the_state_zero_is_marginal(kind):
    """The largest eigenvalue of W is near the gain (1 where it is critical), so that transport neither dies nor grows fast."""
    gain = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64) * vector.critical(kind)
    p = vector.random(kind, gain, range(40))
    x = torch.zeros(60, 120, 1, 1, dtype=torch.float64)
    zero = torch.zeros(120, 1, vector.UNITS, dtype=torch.float64)
    got = vector.sizes(kind, p, x, (zero,) * kind.states, torch.ones(120, vector.UNITS, dtype=torch.float64))
    rate = got.transport.log().reshape(3, 40).median(1).values / 60
    assert rate[0] < -0.15
    assert abs(rate[1]) < 0.1
    assert rate[2] > 0.15


def test_spearman():
    a = np.array([1.0, 2.0, 3.0, 4.0, np.nan])
    assert supply.spearman(a, np.exp(a)) == pytest.approx(1)
    assert supply.spearman(a, np.array([4.0, 3.0, 2.0, 1.0, 0.0])) == pytest.approx(-1)
    assert supply.spearman(a, np.array([2.0, 1.0, 4.0, 3.0, 0.0])) == pytest.approx(0.6)
