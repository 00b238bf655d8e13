"""Gradients of any size: a loss times 2^k says what the loss says, with every norm moved by k; nothing leaves float64."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
import pytest
import torch
from torch import Tensor

import throughtime as tt
from test_decomposition import LOSSES, Scene, every_cell, from_start, layer_of, numbers
from throughtime.asked import Asked
from throughtime.cells import REGISTRY
from throughtime.flow import LayerFlow
from throughtime.streaming.accumulate import accumulate, border, flow_of
from throughtime.streaming.sums import merge

BEYOND = [-900, 560]  # 2^560 = 4e168, whose square is no float64


def record(scene: Scene, power: int = 0, data: int = 1, dtype: torch.dtype = torch.float64) -> tt.Record:
    """A scene's step; its backward pass begins with 2^power. data: the seed of inputs and states."""
    model = layer_of(scene, dtype)
    generator = torch.Generator().manual_seed(data)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    x, states = normal(scene.steps, scene.batch, scene.inputs), REGISTRY[scene.key].states
    width = model(x)[0].shape[-1]
    start = tuple(normal(1, scene.batch, width).requires_grad_() for _ in states)
    with tt.record(model) as made:
        outputs, last = model(x, start if len(states) > 1 else start[0])
        last = last if isinstance(last, tuple) else (last,)
        LOSSES[scene.loss](outputs, [part[0] for part in last]).backward(torch.tensor(2.0**power, dtype=dtype))
    return made


def said(layer: LayerFlow, power: int = 0) -> dict[str, np.ndarray]:
    """All that a flow says, with its norms as those of a loss of 2^−power."""
    move, tail, told = power * np.log10(2), layer.tail, numbers(layer) | from_start(layer)
    sizes = ("adjoint", "by sequence", "norm", "log10_norm")
    out = {name: value - move if name.startswith(sizes) else value for name, value in told.items()}
    for name in ("cancellation", "log10_arriving", "bias", "cosine"):
        out[name] = np.asarray(getattr(layer, name))
    out["horizon"] = np.array([np.nan if lag is None else lag for lag in layer.horizon.values()])
    out["arriving total"] = layer.adjoint.log10_arriving_total
    out["arriving by sequence"] = layer.adjoint.arriving_by_sequence
    out["half-lives"] = np.array([unit.half_life for unit in layer.units])
    if layer.origin_step is not None:
        out["map"] = layer.origin_step.log10_norm - move
    if tail is not None:
        out["tail"] = np.array([tail.first_lag, tail.share, tail.bound, tail.log10_norm - move])
    return out


def agree(got: LayerFlow, wanted: LayerFlow, power: int = 0, rtol: float = 1e-10) -> None:
    told, truth = said(got, power), said(wanted)
    assert told.keys() == truth.keys()
    for name, value in truth.items():
        np.testing.assert_allclose(told[name], value, rtol=rtol, atol=rtol, err_msg=name)
    for name in ("residual", "error"):
        assert getattr(got, name) <= max(1e-12, 10 * getattr(wanted, name)), name


@every_cell
@pytest.mark.parametrize("power", BEYOND)
def test_a_loss_of_any_size_says_the_same(key, power):
    scene = Scene(key, "masked", steps=7, hidden=3, batch=3)
    for asked in ({"tolerance": 0}, {"max_lag": 2, "bias": "horizon"}):
        got, wanted = (record(scene, k).flow(demand=False, **asked).layers["rnn"] for k in (power, 0))
        agree(got, wanted, power)


def streamed(scenes: Sequence[Scene], powers: Sequence[int], **options) -> LayerFlow:
    """Batches one by one, merged."""
    pairs = zip(scenes, powers, strict=True)
    traces = [record(scene, power, data).traces()[0] for data, (scene, power) in enumerate(pairs)]
    asked = Asked(demand=False, **options)
    told, by_hand = border(traces[0], asked)
    parts = [accumulate(trace, batch, asked, told, by_hand) for batch, trace in enumerate(traces)]
    return flow_of({"rnn": reduce(merge, parts)}, asked).layers["rnn"]


@pytest.mark.parametrize("key", ["gru", "lstm"])
@pytest.mark.parametrize("power", BEYOND)
@pytest.mark.parametrize("max_lag", [None, 2])
def test_batches_of_any_size_say_the_same(key, power, max_lag):
    scenes = [Scene(key, "masked", steps=steps, hidden=3) for steps in (7, 5, 6)]
    got, wanted = (streamed(scenes, [k] * 3, max_lag=max_lag) for k in (power, 0))
    agree(got, wanted, power)


@pytest.mark.parametrize("key", ["gru", "lstm", "rnn-tanh"])
@pytest.mark.parametrize("loss", ["last step", "masked"])
def test_what_float32_rounds_coarsely_is_not_held_against_the_terms(key, loss):
    """At 1e-31 autograd's gradient has its seven digits, at 1e-42 not three: shares are then of the terms' own sum."""
    scene = Scene(key, loss, steps=30, hidden=6, gain=0.8)
    wanted = record(scene, 0, dtype=torch.float32).flow(demand=False).layers["rnn"]
    for power in (-95, -115, -128, -140):
        record_of = record(scene, power, dtype=torch.float32)
        got = record_of.flow(demand=False).layers["rnn"]
        (trace,) = record_of.traces()
        asked = Asked(demand=False)
        merged = flow_of({"rnn": accumulate(trace, 0, asked, 30)}, asked).layers["rnn"]
        for layer in (got, merged):
            told = power > -100
            assert np.isnan(layer.error) != told
            assert np.isnan(layer.residual) != told
            why = [each.reason for each in layer.missing if each.field == "share"]
            assert bool(why) != told
            assert told or "float32 rounds it coarsely" in why[0]
            np.testing.assert_allclose(np.nansum(layer.share), 1, atol=1e-6)
            digits = 3e-6 if power > -130 else 3e-3  # what entered was rounded too
            np.testing.assert_allclose(layer.share, wanted.share, atol=digits)
            np.testing.assert_allclose(layer.bias, wanted.bias, atol=digits)


@pytest.mark.parametrize(("key", "gate"), [("gru", 0), ("gru", 1), ("lstm", 1)])
@pytest.mark.parametrize("loss", ["last step", "every step"])
def test_a_gate_whose_gradient_is_1e_minus_26_of_the_others(key, gate, loss):
    """σ(−60) = 9e-27: the gate's terms are numbers of float32, but their squares are not."""
    flows = []
    for dtype in (torch.float32, torch.float64):
        model = layer_of(Scene(key, loss, hidden=6, inputs=3), dtype)
        with torch.no_grad():
            model.get_parameter("bias_ih_l0").unflatten(0, (-1, 6))[gate] -= 60
        x = torch.randn(20, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        with tt.record(model) as made:
            LOSSES[loss](model(x.to(dtype))[0], []).backward()
        flows.append(made.flow(demand=False).layers["rnn"])
    got, wanted = flows
    blocks = 0
    for name, terms in wanted.parameters.items():
        for which, row in terms.gates.items():
            told, near = got.parameters[name].gates[which], row.log10_norm > -38
            blocks += bool(np.nanmax(row.log10_norm) < -20)
            np.testing.assert_allclose(told.share, row.share, atol=1e-4, err_msg=f"{name} {which}")
            np.testing.assert_allclose(
                told.log10_norm[near], row.log10_norm[near], atol=1e-3, err_msg=f"{name} {which}"
            )
            assert told.residual <= 1e-5
    assert blocks >= 4  # of weights and biases


@pytest.mark.parametrize("power", BEYOND)
def test_estimates_from_some_origins_of_any_size(power):
    scene = Scene("gru", "every step", steps=9, hidden=3)
    got, wanted = (record(scene, k).sample(6, groups=3, tolerance=0)["rnn"] for k in (power, 0))
    for name in ("share", "share_error", "beyond", "beyond_error", "squared_bias", "squared_bias_error"):
        np.testing.assert_allclose(getattr(got, name), getattr(wanted, name), rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("power", BEYOND)
@pytest.mark.parametrize("layers", [1, 2])
def test_windows_of_a_gradient_of_any_size(power, layers):
    torch.manual_seed(0)
    model = torch.nn.GRU(2, 3, layers).double()
    x = torch.randn(12, 5, 2, dtype=torch.float64)

    def told(k: int) -> tt.WindowReport:
        return tt.window(
            model, (x,), lambda model, batch: model(batch[0])[0].square().sum() * 2.0**k, needed_lag=2, cost=False
        )

    got, wanted = told(power), told(0)
    assert got.recommended == wanted.recommended
    for which in ("chunks", "sliding", "pairs"):
        for row, truth in zip(getattr(got, which), getattr(wanted, which), strict=True):
            for each, other in (
                (row.whole, truth.whole),
                *((row.layers[name], truth.layers[name]) for name in truth.layers),
            ):
                for name in ("bias", "cosine", "low", "high"):
                    np.testing.assert_allclose(getattr(each, name), getattr(other, name), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("key", ["gru", "lstm"])
@pytest.mark.parametrize("power", [-1000, 1000])
def test_the_diagnosis_of_a_gradient_of_any_size(key, power):
    scene = Scene(key, "masked", steps=30, hidden=4)
    got, wanted = (record(scene, k).flow(demand=False).diagnose(needed_lag=12) for k in (power, 0))
    assert [each.code for each in got.findings] == [each.code for each in wanted.findings]
    for each, truth in zip(got.findings, wanted.findings, strict=True):
        assert each.value == pytest.approx(truth.value, rel=1e-9, nan_ok=True)
    for text in (got.to_json(), repr(got), got._repr_html_()):
        assert "NaN" not in text
        assert "Infinity" not in text


@pytest.mark.parametrize("power", BEYOND)
def test_both_directions_of_a_gradient_of_any_size(power):
    torch.manual_seed(0)
    model, x = torch.nn.GRU(2, 3, 2, bidirectional=True).double(), torch.randn(6, 3, 2, dtype=torch.float64)

    def flow(k: int) -> tt.Flow:
        with tt.record(model) as made:
            model(x)[0].square().sum().backward(torch.tensor(2.0**k, dtype=torch.float64))
        return made.flow(demand=False)

    got, wanted = flow(power), flow(0)
    assert got.layers.keys() == wanted.layers.keys()
    for name, layer in wanted.layers.items():
        agree(got.layers[name], layer, power)
