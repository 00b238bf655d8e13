"""The gradient that a record explains is what this very call contributed, and the terms add up to it."""

import math

import pytest
import torch
from torch import nn

import throughtime as tt
from record_cases import (
    CASES,
    KINDS,
    READS,
    B,
    Case,
    D,
    H,
    Net,
    T,
    Tied,
    built,
    data,
    first,
    last,
    layer,
    loss_of,
    plain,
    truth,
)

LIMIT = {torch.float64: 1e-10, torch.float32: 1e-4}
OFF = {"demand": False, "signal_to_noise": False, "hops": False, "origin_step": False}


def check(build, dtype=torch.float64, tolerance: float | None = None) -> tt.Flow:
    """Record what was built and compare with the truth."""
    expected = truth(build)
    model, step = built(build)
    with tt.record(model) as rec:
        step(model)
    limit = LIMIT[dtype] if tolerance is None else tolerance
    traces = rec.traces()
    assert traces
    for trace in traces:
        for name, value in trace.weight_gradients.items():
            torch.testing.assert_close(
                value, expected[trace.name][name].to(value), rtol=limit, atol=limit * float(value.abs().max())
            )
        assert set(trace.weight_gradients) == set(expected[trace.name])
    flow = rec.flow(**OFF)
    for part in flow.layers.values():
        assert math.isnan(part.error) if expected.get(part.name) == {} else part.error <= limit
        if tolerance is None and not math.isnan(part.residual):
            assert part.residual <= limit
    return flow


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("state", ["none", "given", "with gradient"])
def test_layouts(kind, bias, batch_first, batched, state):
    def step(model: nn.Module) -> None:
        count = B if batched else 1
        shape = (T, D) if not batched else (B, T, D) if batch_first else (T, B, D)
        initial = None
        if state != "none":
            parts = [data(*((1, count, H) if batched else (1, H)), seed=seed) for seed in (2, 3)]
            parts = [part.requires_grad_(state == "with gradient") for part in parts]
            initial = tuple(parts) if kind == "lstm" else parts[0]
        out, end = model(data(*shape), initial)
        (out.tanh().square().sum() + last(end).sum()).backward()

    flow = check(lambda: (layer(kind, bias=bias, batch_first=batch_first), step))
    part = flow.layers["rnn"]
    assert (part.steps, part.batch) == (T, B if batched else 1)
    assert all(math.isnan(terms.residual) is (state != "with gradient") for terms in part.initial_state.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("read", READS)
def test_losses(kind, batch_first, read):
    check(lambda: (layer(kind, batch_first=batch_first), lambda model: READS[read](*model(data())).backward()))


@pytest.mark.parametrize("name", CASES)
def test_cases(name):
    check(CASES[name], torch.float32 if name == "float32" else torch.float64)


def test_a_frozen_layer_is_explained_by_its_own_terms():
    def build() -> Case:
        model = nn.Sequential(nn.Linear(D, D).double(), Net(layer("lstm")))
        model[1].rnn.requires_grad_(False)
        return model, plain

    part = check(build).layers["1.rnn"]
    assert math.isnan(part.residual)
    assert "frozen" in " ".join(each.reason for each in part.missing)


def test_learned_states_get_their_gradient():
    model, step = CASES["learned states"]()
    with tt.record(model) as rec:
        step(model)
    given = rec.traces()[0].initial_gradient
    torch.testing.assert_close(given[:, :H].sum(0), model.h.grad[0, 0])
    torch.testing.assert_close(given[:, H:].sum(0), model.c.grad[0, 0])
    assert all(terms.residual <= 1e-10 for terms in rec.flow(**OFF).layers["rnn"].initial_state.values())


@pytest.mark.parametrize("name", ["one state for both", "input as state"])
def test_a_state_given_twice_gets_no_gradient_of_its_own(name):
    model, step = built(CASES[name])
    with tt.record(model) as rec:
        step(model)
    assert rec.traces()[0].initial_gradient is None
    assert all(math.isnan(terms.residual) for terms in rec.flow(**OFF).layers["rnn"].initial_state.values())


def test_the_gradient_is_not_the_grad():
    """Where the two differ, the record holds this call's: penalties and ties make `.grad` another quantity."""
    for name in ("tied", "penalties", "accumulated and clipped", "optimiser inside"):
        model, step = CASES[name]()
        weight = next(module for module in model.modules() if isinstance(module, nn.RNNBase)).weight_hh_l0
        with tt.record(model) as rec:
            step(model)
        found = rec.traces()[0].weight_gradients["weight_hh"]
        assert weight.grad is None or not torch.allclose(weight.grad, found, rtol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_bfloat16_model(kind, batch_first):
    def build() -> Case:
        model, x = layer(kind, batch_first=batch_first).bfloat16(), data().bfloat16()
        return model, lambda m: m(x)[0].float().square().mean().backward()

    flow = check(build, tolerance=2e-2)
    assert flow.layers["rnn"].dtype == "bfloat16"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_autocast(kind, batch_first):
    def step(m: nn.Module) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = m(data().float()).float().square().mean()
        loss.backward()

    flow = check(lambda: (Net(layer(kind, batch_first=batch_first)).float(), step), tolerance=2e-2)
    assert flow.layers["rnn"].dtype == "bfloat16"


@pytest.mark.parametrize("inside", [True, False], ids=["backward under autocast", "forward alone"])
def test_tied_weights_under_autocast(inside):
    """Autocast casts a weight once and shares the cast between calls."""

    def step(m: nn.Module) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = m(data().float()).float().square().mean()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()

    check(lambda: (Tied().float(), step), tolerance=2e-2)


def test_a_scaled_loss_scales_the_gradient():
    model, found = Net(layer()).float(), []
    for scale in (1.0, 65536.0):
        with tt.record(model) as rec:
            (scale * loss_of(model, data().float())).backward()
        found.append(rec.traces()[0].weight_gradients["weight_hh"])
    assert torch.equal(found[0] * 65536, found[1])


@pytest.mark.parametrize("layers", [["one"], ["two"], ["two", "one"]])
def test_chosen_layers_alone(layers):
    model, step = CASES["series and parallel"]()
    with tt.record(model, layers=layers) as rec:
        step(model)
    assert sorted(set(rec.flow(**OFF).layers) - {"series"}) == sorted(layers)


def test_a_second_name_can_be_asked_for():
    model, step = CASES["two names"]()
    with tt.record(model, layers=["again"]) as rec:
        step(model)
    assert "again.weight_hh_l0" in rec.flow(**OFF).layers["again"].parameters


def test_unreached_layers_are_told():
    model, _ = CASES["series and parallel"]()
    with tt.record(model) as rec:
        loss = model.one(data())[0].sum()
        model.two(data(T, B, H))
        loss.backward()
    assert list(rec.flow(**OFF).layers) == ["one"]
    assert rec.unreached == ["two", "beside"]


def test_other_layers_called_by_a_recorded_one_are_left_out():
    """A raw fused call of another module inside the block is not mistaken for the recorded layer."""
    model, beside = Net(layer()), layer()
    with tt.record(model) as rec:
        model.rnn.register_forward_hook(lambda *_: beside(data()) and None)
        (loss_of(model) + first(beside(data())).sum()).backward()
    assert len(rec.calls) == 1
    assert rec.flow(**OFF).residual <= 1e-10


def test_corrupted_weights_break_the_contract_and_strict_false_shows_it():
    model, step = CASES["tied"]()
    with tt.record(model) as rec:
        step(model)
    rec.calls[0].shared.weights["weight_hh_l0"].mul_(1.01)
    with pytest.raises(tt.errors.ResidualError, match=r"got terms of layer 'one' .* expected .* do this"):
        rec.flow(**OFF)
    flow = rec.flow(strict=False, **OFF)
    assert flow.layers["one"].residual > 1e-4
    assert flow.layers["two"].residual <= 1e-10


def test_weights_changed_behind_autograd_break_the_contract():
    model = Net(layer())
    with tt.record(model) as rec:
        loss = loss_of(model)
        model.rnn.weight_hh_l0.data.mul_(1.1)
        loss.backward()
    with pytest.raises(tt.errors.ResidualError):
        rec.flow(**OFF)
