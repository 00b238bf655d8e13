"""Replicas side by side are what each is alone: forward, gradients, Adam, clipping, against torch's own modules."""

from __future__ import annotations

import pytest
import torch
from reproduce.rehmer_kroll.replicas import ELMAN, GRU, KINDS, Network, chosen, count, draw, simulated, states
from reproduce.rehmer_kroll.training import Recipe, gradients, train

STEPS, BATCH, UNITS = 12, 3, 5


def batch(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(STEPS, BATCH, 2, generator=generator, dtype=torch.float64)
    return x, torch.randn(STEPS, BATCH, 1, generator=generator, dtype=torch.float64)


def drawn(kind, seeds=range(4)):
    return draw(kind, 2, UNITS, 1, seeds, torch.float64)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_replicas_are_torchs_modules(kind):
    p = drawn(kind)
    x, y = batch(0)
    together = simulated(kind, p, x)
    losses, grads, norms = gradients(kind, p, x, y, first=3)
    for replica in range(4):
        alone = Network(kind, p, replica)
        assert sum(value.numel() for value in alone.parameters()) == count(kind, 2, UNITS, 1)
        out = alone(x)
        assert torch.allclose(together[:, replica], out, rtol=1e-12, atol=1e-12)
        value = (out[3:] - y[3:]).square().mean()
        value.backward()
        assert float(losses[replica]) == pytest.approx(float(value.detach()), rel=1e-12)
        assert torch.allclose(grads["w_hh"][replica], alone.rnn.weight_hh_l0.grad.T, rtol=1e-10, atol=1e-14)
        whole = torch.cat([value.grad.flatten() for value in alone.parameters()]).norm()
        assert float(norms[replica]) == pytest.approx(float(whole), rel=1e-10)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("kind", [ELMAN, GRU], ids=lambda kind: kind.name)
def test_training_together_is_training_alone(kind, optimizer):
    p, rates, clips = drawn(kind), [0.01, 0.03, 0.1, 0.02], [0.1, float("inf"), 0.05, 0.2]
    recipe = Recipe(6, torch.tensor(rates, dtype=torch.float64), torch.tensor(clips, dtype=torch.float64), optimizer)
    done = train(kind, p, batch, recipe, keep=(0, 6))
    assert torch.equal(done.kept[0]["w_hh"], p["w_hh"])
    for replica in range(4):
        alone = Network(kind, p, replica)
        make = torch.optim.Adam if optimizer == "adam" else torch.optim.SGD
        steps = make(alone.parameters(), lr=rates[replica])
        for number in range(6):
            x, y = batch(number)
            steps.zero_grad()
            (alone(x) - y).square().mean().backward()
            norm = torch.nn.utils.clip_grad_norm_(alone.parameters(), clips[replica])
            assert float(done.norms[number, replica]) == pytest.approx(float(norm), rel=1e-9)
            steps.step()
        assert torch.allclose(done.parameters["w_hh"][replica], alone.rnn.weight_hh_l0.T, rtol=1e-9, atol=1e-12)
        assert torch.equal(done.kept[6]["head"], done.parameters["head"])


def test_a_run_that_diverges_stays_where_it_was_and_harms_no_other():
    p = drawn(ELMAN)
    rate, clip = torch.full((4,), 0.01), torch.full((4,), torch.inf)
    sound = train(ELMAN, p, batch, Recipe(5, rate, clip))
    p["head"][1] = torch.inf
    ill = train(ELMAN, p, batch, Recipe(5, rate, clip))
    assert torch.isnan(ill.losses[:, 1]).all()
    assert torch.equal(ill.parameters["w_hh"][1], p["w_hh"][1])
    assert torch.equal(chosen(ill.parameters, [0, 2, 3])["w_hh"], chosen(sound.parameters, [0, 2, 3])["w_hh"])


def test_a_cut_lets_no_gradient_through():
    p = {name: value.requires_grad_() for name, value in drawn(GRU).items()}
    x, _ = batch(0)
    x.requires_grad_()
    at = 9
    (cut,) = torch.autograd.grad(states(GRU, p, x, cut=4)[at].sum(), x)
    (whole,) = torch.autograd.grad(states(GRU, p, x)[at].sum(), x)
    reached = cut.abs().sum((1, 2)) > 0
    assert reached.tolist() == [step in (8, 9) for step in range(STEPS)]
    assert torch.allclose(cut[8:10], whole[8:10])
    assert (whole[:10].abs().sum((1, 2)) > 0).all()


def test_each_replica_may_read_its_own_input():
    p = drawn(GRU)
    x, _ = batch(0)
    own = torch.stack([x, 2 * x, x, -x], 1)
    got = states(GRU, p, own)[-1]
    assert torch.allclose(got[1], states(GRU, p, 2 * x)[-1][1])
    assert torch.allclose(got[3], states(GRU, p, -x)[-1][3])
