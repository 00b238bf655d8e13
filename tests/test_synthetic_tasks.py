"""The synthetic tasks have the chance baselines that their docstrings state."""

from __future__ import annotations

import math

import pytest
import torch

from throughtime.tasks import synthetic


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_autoregressive_is_stationary():
    x = synthetic.autoregressive(30, 20_000, generator(), rho=0.9, mean=1.0)
    assert x.shape == (30, 20_000, 1)
    assert x[[0, 29]].var(1).flatten().tolist() == pytest.approx([1, 1], abs=0.05)
    assert float(x.mean()) == pytest.approx(1, abs=0.02)
    assert float(((x[20] - 1) * (x[17] - 1)).mean()) == pytest.approx(0.9**3, abs=0.03)


def test_delayed_input():
    x, y = synthetic.delayed_input(10, 5, generator(), lags=(0, 7))
    assert torch.equal(y, x[9] + x[2])
    _, noisy = synthetic.delayed_input(10, 20_000, generator(), lags=(3,), noise=2.0)
    assert float(noisy.var()) == pytest.approx(5, rel=0.05)


def test_adding_costs_a_sixth_by_chance():
    x, y = synthetic.adding(51, 50_000, generator())
    assert x.shape == (51, 50_000, 2)
    assert (x[:25, :, 1].sum(0) == 1).all()
    assert (x[25:, :, 1].sum(0) == 1).all()
    assert torch.allclose(y[:, 0], (x[..., 0] * x[..., 1]).sum(0))
    assert float((y - 1).pow(2).mean()) == pytest.approx(1 / 6, rel=0.02)


def test_copy_memory_chance():
    delay = 30
    x, y = synthetic.copy_memory(delay, 64, generator())
    assert x.shape == (delay + 20, 64, 10)
    assert torch.equal(x.argmax(2)[:10], y[-10:])
    assert (x.argmax(2) == 9).sum(0).eq(1).all()
    assert (x[delay + 9, :, 9] == 1).all()
    logits = torch.full((*y.shape, 10), -1e9)  # blanks for sure, then a guess among eight symbols
    logits[:-10, :, 8] = 0.0
    logits[-10:, :, :8] = 0.0
    chance = torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())
    assert float(chance) == pytest.approx(10 * math.log(8) / (delay + 20))


def test_delayed_xor_hides_each_input():
    x, y = synthetic.delayed_xor(12, 50_000, generator(), lags=(1, 9))
    assert torch.equal(y.bool(), x[10, :, 0] != x[2, :, 0])
    assert float(y.float().mean()) == pytest.approx(0.5, abs=0.01)
    assert float((x[10, :, 0] * (y - 0.5)).mean()) == pytest.approx(0, abs=0.01)


def test_flip_flop_holds_the_last_pulse():
    x, y = synthetic.flip_flop(20, 20_000, generator(), rate=0.1)
    pulse = x != 0
    assert torch.equal(y[pulse], x[pulse])
    assert torch.equal(y[1:][~pulse[1:]], y[:-1][~pulse[1:]])
    assert float(y[9].pow(2).mean()) == pytest.approx(1 - 0.9**10, rel=0.02)


@pytest.mark.parametrize(
    "make",
    [
        lambda g: synthetic.delayed_input(12, 4, g, lags=(3,)),
        lambda g: synthetic.adding(12, 4, g),
        lambda g: synthetic.copy_memory(12, 4, g),
        lambda g: synthetic.delayed_xor(12, 4, g, lags=(0, 5)),
        lambda g: synthetic.flip_flop(12, 4, g),
    ],
)
def test_the_users_random_numbers_stay(make):
    before = torch.get_rng_state()
    first, second = make(generator()), make(generator())
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
