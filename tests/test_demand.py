"""Demand against slow, obvious ground truth, and on tasks whose needed lags are known."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from calibration import demand as cases

from throughtime import demand as module
from throughtime import lagged
from throughtime.demand import Demand, measure
from throughtime.errors import InputError


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive_covariance(g: torch.Tensor, u: torch.Tensor, lag: int) -> float:
    """‖Σ_t Σ_b g[t, b] ⊗ u[t − lag, b]‖², by three loops."""
    c = torch.zeros(g.shape[2], u.shape[2], dtype=torch.float64)
    for t in range(lag, len(g)):
        for b in range(g.shape[1]):
            for i in range(g.shape[2]):
                c[i] += g[t, b, i] * u[t - lag, b]
    return float(c.pow(2).sum())


def naive_distance(g: torch.Tensor, u: torch.Tensor, lag: int) -> float:
    """Σ_t Σ_bb′ A[b, b′] B[b, b′], A and B the distances less row means and column means, plus the mean."""

    def centred(x: torch.Tensor) -> torch.Tensor:
        d = torch.stack([(x - row).norm(dim=1) for row in x])
        return d - d.mean(0) - d.mean(1)[:, None] + d.mean()

    return sum(float((centred(g[t]) * centred(u[t - lag])).sum()) for t in range(lag, len(g)) if g[t].any())


def orders(batch: int, count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.stack([torch.arange(batch)] + [torch.randperm(batch, generator=generator) for _ in range(count)])


# --- the statistic ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [lagged.by_product, lagged.by_transform])
@pytest.mark.parametrize("origins", [[6], [2, 5], list(range(7))])
@pytest.mark.parametrize(("form", "naive"), [(lagged.PRODUCTS, naive_covariance), (lagged.DISTANCES, naive_distance)])
@pytest.mark.parametrize("chunk", [lagged.CHUNK, 1])
def test_sums_equal_the_loops_they_stand_for(way, origins, form, naive, chunk, monkeypatch):
    monkeypatch.setattr(lagged, "CHUNK", chunk)
    g, u, several = torch.zeros(7, 6, 4, dtype=torch.float64), random(7, 6, 3), orders(6)
    g[origins] = random(len(origins), 6, 4, seed=2)
    nearest = random(7, 6, 3, seed=3)  # lag 0 has a right side of its own
    got = way(g[origins], torch.tensor(origins), [nearest, u], several, form)
    want = [[naive(g[:, order], u if lag else nearest, lag) for lag in range(7)] for order in several]
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-9, atol=1e-9)


def test_products_of_one_order_hold_no_more_than_is_allowed(monkeypatch):
    """However many directions both sides have."""
    sizes, irfft = [], torch.fft.irfft
    monkeypatch.setattr(torch.fft, "irfft", lambda x, n, **how: sizes.append(n * x[0].numel()) or irfft(x, n, **how))
    left, right, several = random(30, 2, 8), random(30, 2, 9, seed=1), orders(2)
    whole = lagged.by_transform(left, torch.arange(30), [right], several, lagged.PRODUCTS)
    assert max(sizes) == 64 * 4 * 8 * 9
    sizes.clear()
    with lagged.at_once(64 * 8 * 2):
        parts = lagged.by_transform(left, torch.arange(30), [right], several, lagged.PRODUCTS)
    assert max(sizes) == 64 * 8 * 2
    torch.testing.assert_close(parts, whole)


def test_inner_products_between_sequences_give_the_same_statistic():
    g, u, several = random(1, 6, 4), random(7, 6, 3, seed=1), orders(6)
    arguments = (g, torch.tensor([6]), [u], several)
    np.testing.assert_allclose(
        lagged.by_product(*arguments, lagged.GRAMS), lagged.by_product(*arguments, lagged.PRODUCTS), rtol=1e-9
    )


def test_rank_reduction_leaves_the_norm():
    g = random(3, 8, 2) @ random(2, 16, seed=1)  # rank 2 of 16 units
    u = random(3, 8, 5, seed=2)
    rotated = module._rotated(g, torch.Generator())
    assert rotated.shape == (3, 8, 2)
    for lag in range(3):
        assert naive_covariance(rotated, u, lag) == pytest.approx(naive_covariance(g, u, lag), rel=1e-9)


def test_partial_statistic_is_that_of_two_regressions():
    """With sequences enough: ‖Cov(residual of g, residual of u)‖² over what is left of g, both given nearer inputs."""
    g, u = random(1, 80, 2), random(4, 80, 1, seed=1)
    g, u = g - g.mean(1, keepdim=True), u - u.mean(1, keepdim=True)
    residuals, bases = zip(*(module._less_nearer(u, count) for count in range(2)), strict=True)
    got, _ = module._statistics(g, torch.tensor([3]), residuals, bases, orders(80), "covariance")
    for lag in range(1, 4):
        x = u[3 - lag + 1]
        left = [y - x @ torch.linalg.lstsq(x, y).solution for y in (g[0], u[3 - lag])]
        want = (left[0].T @ left[1]).pow(2).sum() / left[0].pow(2).sum()
        assert float(got[0, lag]) == pytest.approx(float(want), rel=1e-4)


# --- the judgement ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", ["equal", "heavy"])
def test_permutation_test_is_exact(spread):
    """Whichever of the exchangeable rows is the observed one, exactly 5 % of them are above the threshold."""
    rows = np.random.default_rng(0).normal(size=(100, 7)) ** (2 if spread == "equal" else 8)
    alarms = 0
    for observed in range(100):
        z, threshold = module._judged(np.roll(rows, -observed, axis=0), np.ones(7, dtype=bool), 0.95)
        alarms += bool((z > threshold).any())
    assert alarms == 5


def test_z_is_measured_in_units_of_the_null():
    rows = np.random.default_rng(0).normal(size=(200, 3)) ** 2
    z, _ = module._judged(rows, np.ones(3, dtype=bool), 0.95)
    np.testing.assert_allclose(z, (rows[0] - rows[1:].mean(0)) / rows[1:].std(0, ddof=1))


def test_lags_without_null_variance_are_not_counted():
    rows = np.random.default_rng(0).normal(size=(200, 3)) ** 2
    rows[:, 1] = 5.0
    z, threshold = module._judged(rows, np.array([True, True, False]), 0.95)
    assert np.isnan(z[1])
    assert np.isnan(z[2])
    assert math.isfinite(threshold)


# --- what it finds ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_digits_behind_noise(seed):
    g, x = cases.digits(seed)
    assert g.shape == (100, 64, 48)
    assert measure(g, x).lags == tuple(range(92, 100))


@pytest.mark.parametrize("seed", range(3))
def test_single_lag_is_found_alone(seed):
    assert measure(*cases.delayed(seed, noise=2.0)).lags == (40,)


def test_autocorrelated_inputs_do_not_reach_beyond_the_true_lags():
    runs = [measure(*cases.delayed(seed, lags=(0, 1, 2), rho=0.9)) for seed in range(6)]
    assert all({0, 1, 2} <= set(run.lags) for run in runs)
    assert sum(run.farthest == 2 for run in runs) >= 5
    assert sum(measure(*cases.delayed(seed, rho=0.9)).farthest == 40 for seed in range(6)) >= 5


def test_autocorrelation_that_ends_does_not_reach_beyond():
    assert sum(measure(*cases.segment(seed)).lags == (40,) for seed in range(6)) >= 5


def test_losses_at_every_step():
    runs = [measure(*cases.delayed_every_step(seed)) for seed in range(6)]
    assert all(10 in run.lags for run in runs)
    assert sum(run.farthest == 10 for run in runs) >= 4


def test_xor_and_adding_are_not_detected():
    """The limit that is printed with every result: first-order only."""
    assert sum(not measure(*cases.xor(seed)).lags for seed in range(5)) >= 3
    assert sum(not measure(*cases.adding(seed)).lags for seed in range(5)) >= 3


def test_distance_covariance_sees_a_square():
    assert sum(measure(*cases.square(seed)).lags == (40,) for seed in range(4)) <= 2
    assert sum(40 in measure(*cases.square(seed), method="distance").lags for seed in range(4)) == 4


def test_distance_covariance_at_every_step():
    x = random(12, 64, 1)
    g = torch.cat([torch.zeros(3, 64, 1), x[:-3] ** 2])
    assert 3 in measure(g, x, method="distance").lags
    assert measure(random(12, 64, 1, seed=5), x, method="distance").lags == ()


def test_second_input_that_repeats_the_first_is_not_named():
    """Covariates that stay the same over time: only the nearest copy can be told."""
    x = random(1, 64, 2).expand(9, 64, 2)
    g = torch.zeros(9, 64, 1)
    g[-1] = x[-1, :, :1]
    demand = measure(g, x)
    assert demand.lags == (0,)
    assert np.isnan(demand.z[1:]).all()


def test_both_ways_over_time_agree(monkeypatch):
    g, x = cases.delayed_every_step(0)
    by_transform = measure(g, x)
    monkeypatch.setattr(module, "FEW_STEPS", 60)
    monkeypatch.setattr(module, "_left_by_nearer", lambda *_: 1.0)
    np.testing.assert_allclose(measure(g, x).z, by_transform.z, rtol=1e-3, atol=1e-3)


def test_loss_in_the_middle_leaves_farther_lags_open():
    x = random(10, 64, 2)
    g = torch.zeros(10, 64, 3)
    g[6] = x[4, :, :1]
    demand = measure(g, x)
    assert demand.lags == (2,)
    assert np.isnan(demand.z[7:]).all()


# --- padded sequences ------------------------------------------------------------------------------------------------


def padded(seed: int, lag: int | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Lengths 20 to 40, inputs of mean 1, zeros beyond the end, loss at each own last step."""
    lengths = torch.randint(20, 41, (96,), generator=torch.Generator().manual_seed(seed))
    x = (random(40, 96, 1, seed=seed) + 1) * (torch.arange(40)[:, None, None] < lengths[:, None])
    g = torch.zeros(40, 96, 1, dtype=torch.float64)
    last, sequence = lengths - 1, torch.arange(96)
    own = x[last - lag, sequence] if lag is not None else random(96, 1, seed=seed + 100) + 1
    g[last, sequence] = own
    return g, x, lengths


def test_lengths_count_lags_from_each_end():
    assert measure(*padded(0, 7)[:2], lengths=padded(0, 7)[2]).lags == (7,)


def test_lengths_raise_no_alarm_by_themselves():
    runs = [padded(seed, None) for seed in range(20)]
    assert sum(bool(measure(g, x, lengths=lengths).lags) for g, x, lengths in runs) <= 4
    assert sum(bool(measure(g, x).lags) for g, x, _ in runs) >= 15  # padding taken for data: nearly always an alarm


def test_lengths_with_losses_along_the_sequence_use_the_common_steps():
    x, lengths = random(12, 40, 1), torch.arange(40) % 5 + 8
    g = torch.cat([torch.zeros(2, 40, 1), x[:-2]])
    demand = measure(g, x, lengths=lengths)
    assert 2 in demand.lags
    assert np.isnan(demand.z[8:]).all()


# --- edges -----------------------------------------------------------------------------------------------------------


def test_one_step():
    x = random(1, 64, 2)
    assert measure(x[..., :1], x).lags == (0,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_and_scales(dtype):
    g, x = cases.delayed(0)
    assert measure((g * 1e-25).to(dtype), (x * 1e10).to(dtype)).lags == (40,)


def test_arrays_and_graphs_are_taken():
    g, x = cases.delayed(0)
    want = measure(g, x)
    np.testing.assert_array_equal(measure(g.numpy(), x.numpy()).z, want.z)
    np.testing.assert_array_equal(measure(g, x.clone().requires_grad_()).z, want.z)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        np.testing.assert_array_equal(measure(g, x).z, want.z)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: (random(5, 1, 2), random(5, 1, 3)), "only 1 sequence"),
        (lambda: (random(5, 2, 2), random(5, 2, 3)), "only 2 sequence"),
        (lambda: (torch.ones(5, 8, 2), random(5, 8, 3)), "do not differ over the batch"),
        (lambda: (torch.zeros(5, 8, 2), random(5, 8, 3)), "no gradient"),
        (lambda: (random(5, 8, 2), random(5, 1, 3).expand(5, 8, 3)), "inputs do not differ"),
    ],
)
def test_what_cannot_be_measured_says_why(make, reason):
    demand = measure(*make())
    assert demand.missing is not None
    assert reason in demand.missing
    assert reason in repr(demand)
    assert np.isnan(demand.z).all()
    assert len(demand.z) == 5
    assert math.isnan(demand.threshold)
    assert demand.lags == ()
    assert demand.farthest is None


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((random(5, 8), random(5, 8, 3)), {}),
        ((random(5, 8, 2), random(6, 8, 3)), {}),
        ((random(5, 8, 2), random(5, 9, 3)), {}),
        ((random(5, 8, 2), random(5, 8, 0)), {}),
        ((random(5, 8, 2) * float("nan"), random(5, 8, 3)), {}),
        ((random(5, 8, 2), random(5, 8, 3) / 0), {}),
        ((random(5, 8, 2).to(torch.complex64), random(5, 8, 3)), {}),
        ((random(5, 8, 2), random(5, 8, 3)), {"permutations": 18}),
        ((random(5, 8, 2), random(5, 8, 3)), {"level": 1.0}),
        ((random(5, 8, 2), random(5, 8, 3)), {"method": "mutual information"}),
        ((random(5, 8, 2), random(5, 8, 3)), {"nearer": -1}),
        ((random(5, 8, 2), random(5, 8, 3)), {"lengths": [5] * 7}),
        ((random(5, 8, 2), random(5, 8, 3)), {"lengths": [6] * 8}),
    ],
)
def test_bad_input_says_got_expected_do(arguments, options):
    with pytest.raises(InputError) as caught:
        measure(*arguments, **options)
    assert caught.value.expected
    assert caught.value.do


def test_the_users_random_numbers_stay():
    torch.manual_seed(3)
    np.random.seed(3)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = measure(random(5, 30, 2), random(5, 30, 2000, seed=1))
    assert torch.equal(before, torch.get_rng_state())
    assert (numpy_before == np.random.get_state()[1]).all()
    np.testing.assert_array_equal(first.z, measure(random(5, 30, 2), random(5, 30, 2000, seed=1)).z)
    assert not np.array_equal(first.z, measure(random(5, 30, 2), random(5, 30, 2000, seed=1), seed=1).z)


def test_the_data_stay():
    g, x = random(5, 30, 2), random(5, 30, 3, seed=1)
    copies = g.clone(), x.clone()
    measure(g, x, lengths=[5] * 30)
    assert torch.equal(g, copies[0])
    assert torch.equal(x, copies[1])


def test_many_input_dimensions():
    x = random(20, 64, 1500)
    g = torch.zeros(20, 64, 3)
    g[-1] = x[7, :, :3]
    assert measure(g, x).lags == ()  # three of 1500 dimensions, 64 sequences: nobody could tell
    g[-1] = x[7] @ random(1500, 3, seed=9)
    assert 0 <= len(measure(g, x).lags) <= 2


def test_what_is_left_out_to_save_time_is_said(monkeypatch):
    x = random(12, 64, 6)
    g = torch.cat([torch.zeros(3, 64, 6), 3 * x[:-3]]) + 0.1 * random(12, 64, 6, seed=1)
    monkeypatch.setattr(module, "BUDGET", 1e7)
    demand = measure(g, x)
    assert demand.note is not None
    assert "variance" in demand.note
    assert 3 in demand.lags


def test_few_sequences_carry_a_caution():
    demand = measure(random(5, 8, 2), random(5, 8, 3))
    assert demand.note is not None
    assert "little power" in demand.note


def test_repr_is_one_honest_line():
    z = np.array([0.1, 9.0, 8.0, 0.2, 7.0])
    found = Demand(z, 4.4, (1, 2, 4), 64)
    assert repr(found) == (
        "Demand(lags 1–2, 4: 3 of 5 lags; largest z 9.0 at lag 1, threshold 4.4, B=64, covariance, 199 permutations)"
    )
    assert found.farthest == 4
    nothing = dataclasses.replace(found, threshold=10.0, lags=())
    assert "not detected, which is not 'not needed'" in repr(nothing)
    assert nothing.farthest is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.level = 0.5  # type: ignore[misc]


# --- calibration -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("case", cases.NULL, ids=lambda case: case.name)
def test_false_alarms_are_as_stated(case):
    """Within the central 99 % of a binomial of 200 runs at 5 %: 3 to 19 alarms."""
    assert 3 <= sum(bool(demand.lags) for demand in cases.read(case, 200)) <= 19


@pytest.mark.slow
def test_digits_adding_and_xor_over_many_seeds():
    digits = [measure(*cases.digits(seed)) for seed in range(40)]
    assert np.mean([set(range(92, 100)) <= set(demand.lags) for demand in digits]) >= 0.7
    assert np.mean([sum(lag in demand.lags for lag in range(92, 100)) for demand in digits]) >= 7.5
    assert np.mean([not set(demand.lags) <= set(range(92, 100)) for demand in digits]) <= 0.15
    assert np.mean([bool(measure(*cases.adding(seed)).lags) for seed in range(40)]) < 0.5
    assert np.mean([bool(measure(*cases.xor(seed)).lags) for seed in range(40)]) <= 0.2
