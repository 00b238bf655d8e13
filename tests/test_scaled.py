"""Numbers that leave float32: exact powers of two, and adjoints of 1e-300 and 1e+60 as they are."""

from __future__ import annotations

import functools
import math

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import throughtime as tt
from throughtime.cells import REGISTRY, Weights
from throughtime.flow import Adjoint, LayerFlow
from throughtime.linearize import Linearization
from throughtime.recurrent import Recurrent
from throughtime.reducers.adjoints import Adjoints
from throughtime.reducers.hops import Hops
from throughtime.reducers.origin_step import OriginSteps
from throughtime.reducers.paths import Paths
from throughtime.scaled import Scaled, power_of_two, rescale
from throughtime.sweep import sweep
from throughtime.trace import Trace

LAG = 600


@pytest.mark.parametrize(("dtype", "low", "high"), [(torch.float64, -1022, 1023), (torch.float32, -126, 127)])
def test_power_of_two_is_exact_for_every_exponent(dtype, low, high):
    exponent = torch.arange(low, high + 1)
    exact = [math.ldexp(1.0, int(e)) for e in exponent]
    assert power_of_two(exponent, dtype).tolist() == exact
    assert [power_of_two(e, dtype).item() for e in exponent] == exact  # one number alone takes another kernel
    assert power_of_two(torch.tensor([low - 1, -(2**40)]), dtype).tolist() == [0, 0]
    assert power_of_two(torch.tensor([high + 1, 2**40]), dtype).tolist() == [math.inf, math.inf]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rescaling_changes_no_number(dtype):
    generator = torch.Generator().manual_seed(0)
    sizes = torch.logspace(-36, 36, 73, dtype=torch.float64)
    rows = (sizes[:, None] * (0.5 + torch.rand(73, 4, generator=generator, dtype=torch.float64))).to(dtype)
    rows[5] = 0
    exponent = torch.arange(73) - 40
    peak = rows.abs().amax(1)
    new, powers = rescale(rows, exponent, peak)
    for row, power, old, was in zip(new.tolist(), powers.tolist(), rows.tolist(), exponent.tolist(), strict=True):
        assert [mpmath.ldexp(value, power) for value in row] == [mpmath.ldexp(value, was) for value in old]
    assert new[5].eq(0).all()
    alive = new.abs().amax(1) > 0
    assert (new.abs().amax(1)[alive].log2().abs() <= 30).all()


@pytest.mark.parametrize("waiting", [0, 50, 10**6])
def test_what_names_an_entry_again_is_added_and_waits_in_bounded_memory(waiting, monkeypatch):
    """A lag in several lanes, as a sweep of many origins tells it. All numbers are small integers times powers of two."""
    monkeypatch.setattr("throughtime.scaled.WAITING", waiting)
    generator = torch.Generator().manual_seed(0)
    total, wanted = Scaled.zeros(3, 6), torch.zeros(3, 6, dtype=torch.float64)
    for _ in range(40):
        index = torch.randint(0, 6, (int(torch.randint(0, 3, (), generator=generator)),), generator=generator).unique()
        value = torch.randint(-9, 9, (3, len(index)), generator=generator).double()
        exponent = torch.randint(-4, 4, (len(index),), generator=generator)
        total.add_at(index, value, exponent)
        wanted[:, index] += value * 2.0**exponent
        assert sum(each[1].numel() for parts in total._waiting.values() for each in parts) <= waiting
    assert torch.equal(total.value(), wanted)


def test_sums_of_very_different_sizes():
    total, other = Scaled.zeros(2, 4), Scaled.zeros(2, 4)
    total.add_at(torch.tensor([0, 1]), torch.tensor([[3.0, 5.0], [0.0, -1.0]]), torch.tensor([-4000, 2000]))
    total.add_at(torch.tensor([0]), torch.tensor([[1.0], [2.0]]), torch.tensor([-4001]))
    other.add_at(torch.tensor([1, 2]), torch.tensor([[1.0, 1.0], [1.0, 1.0]]), torch.tensor([2001, -3000]))
    both = total + other
    log10 = both.log10()
    assert log10[0, 0] == pytest.approx(math.log10(3.5) - 4000 * math.log10(2), abs=1e-9)
    assert log10[0, 1] == pytest.approx(math.log10(7) + 2000 * math.log10(2), abs=1e-9)
    assert log10[0, 2] == pytest.approx(-3000 * math.log10(2), abs=1e-9)
    assert np.isnan(log10[:, 3]).all()
    ratio = both.over(total)
    assert ratio[0, :2].tolist() == [1.0, 1.4]
    assert np.isnan(ratio[0, 2:]).all()
    assert both.value()[0].tolist() == [0.0, math.inf, 0.0, 0.0]


# Adjoints beyond the range of float32.

MODELS = {
    "gru": nn.GRU,
    "lstm": nn.LSTM,
    "rnn-tanh": nn.RNN,
    "rnn-relu": functools.partial(nn.RNN, nonlinearity="relu"),
}


def flow_of(model: nn.Module, x: Tensor, at: int = -1) -> LayerFlow:
    model.zero_grad()
    with tt.record(model) as record:
        output, _ = model(x)
        output[at].sum().backward()
    return record.flow(demand=False).layers["rnn"]


def gradient_at_start(model: nn.Module, x: Tensor, lag: int) -> Tensor:
    """∂L/∂h at `lag` steps before the last, by autograd in the model's own precision."""
    _, state = model(x[:-lag])
    h = (state[0] if isinstance(state, tuple) else state).detach().requires_grad_()
    output, _ = model(x[-lag:], (h, state[1].detach()) if isinstance(state, tuple) else h)
    return torch.autograd.grad(output[-1].sum(), h)[0]


@pytest.mark.parametrize("key", MODELS)
def test_tiny_adjoints_in_float32_equal_those_in_float64(key):
    torch.manual_seed(0)
    low = MODELS[key](3, 16)
    if key == "rnn-relu":
        with torch.no_grad():
            low.bias_ih_l0.add_(1.0)  # units that live
    high = MODELS[key](3, 16).double()
    high.load_state_dict(low.state_dict())
    x = torch.randn(700, 2, 3)
    told, truth = flow_of(low, x), flow_of(high, x.double())
    assert truth.adjoint.log10_norm[LAG] < -45  # below the smallest number of float32
    assert gradient_at_start(low, x, LAG).eq(0).all()
    np.testing.assert_allclose(told.adjoint.log10_norm, truth.adjoint.log10_norm, atol=2e-3)
    np.testing.assert_allclose(told.adjoint.by_sequence, truth.adjoint.by_sequence, atol=2e-3)
    for state, sizes in truth.adjoint.by_state.items():
        np.testing.assert_allclose(told.adjoint.by_state[state], sizes, atol=2e-3)
    for name, terms in truth.parameters.items():
        np.testing.assert_allclose(told.parameters[name].log10_norm, terms.log10_norm, atol=5e-3, err_msg=name)
        for gate, row in terms.gates.items():
            np.testing.assert_allclose(told.parameters[name].gates[gate].log10_norm, row.log10_norm, atol=2e-2)
    for path, shares in truth.paths.items():
        np.testing.assert_allclose(told.paths[path], shares, atol=5e-3)
    assert told.origin_step is not None
    assert truth.origin_step is not None
    np.testing.assert_allclose(told.origin_step.log10_norm, truth.origin_step.log10_norm, atol=2e-3)
    assert told.residual <= 1e-5


@pytest.mark.parametrize("key", ["gru", "lstm"])
@pytest.mark.parametrize("last", [1, 3])
def test_sequences_without_loss_do_not_hide_tiny_adjoints(key, last):
    """Rows that are exactly zero stand beside rows of 1e-60."""
    torch.manual_seed(0)
    model, x = MODELS[key](3, 8), torch.randn(300, 3, 3)
    layers = []
    for rows in (x, x[:, 1:2]):
        with tt.record(model) as record:
            output, _ = model(rows)
            output[-last:, 1 if rows is x else 0].sum().backward()
        layers.append(record.flow(demand=False, tolerance=0).layers["rnn"])
    batch, alone = layers
    assert alone.adjoint.log10_norm[250] < -45
    np.testing.assert_allclose(batch.adjoint.log10_norm, alone.adjoint.log10_norm, atol=1e-3)
    for name, terms in alone.parameters.items():
        np.testing.assert_allclose(batch.parameters[name].log10_norm, terms.log10_norm, atol=1e-3, err_msg=name)
    for path, shares in alone.paths.items():
        np.testing.assert_allclose(batch.paths[path], shares, atol=1e-3)
    assert np.all(batch.adjoint.by_sequence[:, 1] == batch.adjoint.log10_norm)
    assert np.isnan(batch.adjoint.by_sequence[:, [0, 2]]).all()


@pytest.mark.parametrize("key", ["gru", "lstm"])
def test_float64_itself_equals_its_own_far_gradient(key):
    """The float64 run, that the others are held against, by autograd from a state handed over at lag 600."""
    torch.manual_seed(0)
    model = MODELS[key](3, 16).double()
    x = torch.randn(700, 2, 3).double()
    layer = flow_of(model, x)
    far = gradient_at_start(model, x, LAG)
    size = torch.log10(far.square().sum().sqrt() / math.sqrt(2))  # root mean square over two sequences
    name = layer.adjoint.by_state["h"] if key == "lstm" else layer.adjoint.log10_norm
    assert name[LAG] == pytest.approx(float(size), abs=1e-9)


def test_two_units_against_fifty_digits():
    """A tanh net of two units: the product of 600 Jacobians in 50-digit arithmetic, from the same float32 weights."""
    torch.manual_seed(3)
    model = nn.RNN(1, 2)
    x = torch.randn(700, 1, 1)
    layer = flow_of(model, x)
    with mpmath.workdps(50):

        def exact(value: Tensor) -> mpmath.matrix:
            return mpmath.matrix(value.detach().double().tolist())

        w, u = exact(model.weight_hh_l0), exact(model.weight_ih_l0)
        b = exact(model.bias_ih_l0) + exact(model.bias_hh_l0)
        h, states = mpmath.matrix([0, 0]), []
        for now in x[:, 0, 0].double().tolist():
            h = (w * h + u * mpmath.matrix([now]) + b).apply(mpmath.tanh)
            states.append(h)
        adjoint = mpmath.matrix([[1, 1]])
        sizes = []
        for h in reversed(states):
            sizes.append(mpmath.log10(mpmath.norm(adjoint)))
            adjoint = adjoint * mpmath.diag([1 - value**2 for value in h]) * w
        truth = [float(size) for size in sizes]
    assert truth[LAG] < -100
    np.testing.assert_allclose(layer.adjoint.log10_norm, truth, atol=2e-3)


def test_one_carry_unit_against_fifty_digits():
    """A GRU of one unit whose gates depend on the input alone: along the carry path λ is the product of the gates."""
    torch.manual_seed(1)
    model = nn.GRU(1, 1)
    with torch.no_grad():
        model.weight_hh_l0.zero_()
        model.bias_ih_l0.copy_(torch.tensor([0.0, -0.5, 0.0]))
    x = torch.randn(700, 1, 1)
    layer = flow_of(model, x)
    with mpmath.workdps(50):
        row, bias = model.weight_ih_l0[1].item(), model.bias_ih_l0[1].item() + model.bias_hh_l0[1].item()
        gates = [1 / (1 + mpmath.exp(-(mpmath.mpf(row) * now + bias))) for now in x[:, 0, 0].double().tolist()]
        product, truth = mpmath.mpf(1), []
        for gate in reversed(gates):
            truth.append(float(mpmath.log10(product)))
            product *= gate
        timescale = -len(gates) / mpmath.fsum(mpmath.log(gate) for gate in gates)
    assert truth[LAG] < -100
    np.testing.assert_allclose(layer.adjoint.log10_norm, truth, atol=1e-4)
    np.testing.assert_allclose(layer.paths["carry"][1:], 1, rtol=1e-6)
    assert layer.units[0].timescale == pytest.approx(float(timescale), rel=1e-5)


def adjoints_of(trace: Trace, **options) -> tuple[Adjoint, dict[str, np.ndarray], np.ndarray]:
    """The adjoints of a trace, its paths and its map, by the sweep alone."""
    lin = Linearization(trace)
    used = [Adjoints(lin), Paths(lin), OriginSteps(lin)]
    hops = Hops(lin) if trace.cell.keep else None
    sweep(lin, [*used, *([hops] if hops else [])], **options)
    adjoints, paths, places = used
    told = paths.finish()
    if hops is not None:
        told |= {f"hops {name}": value for name, value in hops.finish().items()}
    return adjoints.finish(), told, places.finish().log10_norm


@pytest.mark.parametrize("losses", [1, 3])
def test_growth_beyond_float32_of_a_relu_net(losses):
    """A relu net of matrix 1.4 Q at a state so small that it stays finite: its adjoint reaches 1e58."""
    hidden, steps = 8, 400
    torch.manual_seed(0)
    mixing = torch.softmax(torch.randn(hidden, hidden), dim=1)  # positive rows that sum to 1: all units stay alive
    weights = Weights(torch.zeros(hidden, 1), 1.4 * mixing)
    cell = REGISTRY["rnn-relu"]
    carries = [torch.full((2, hidden), 1e-30)]
    with torch.no_grad():
        for _ in range(steps):
            carry = cell.step(weights, torch.zeros(2, 1), {"recurrent": carries[-1]})
            carries.append(
                carry * (1e-30 / carry.max()) if carry.max() > 1 else carry
            )  # only its sign counts for slopes
    gradient = torch.zeros(steps, 2, hidden)
    gradient[-losses:] = 1.0
    trace = Trace(
        "rnn", cell, weights, torch.zeros(steps, 2, 1), torch.stack(carries), gradient, {}, None, torch.float32
    )
    told, paths, places = adjoints_of(trace, tolerance=0)
    matrix, adjoint, truth = weights.weight_hh.double(), torch.ones(hidden, dtype=torch.float64), []
    for _ in range(steps):
        truth.append(float(adjoint.norm().log10()))
        adjoint = adjoint @ matrix
    assert truth[-1] > 55
    np.testing.assert_allclose(told.log10_norm, truth, atol=1e-3)
    np.testing.assert_allclose(paths["recurrent"][1:], 1)
    np.testing.assert_allclose(places[-1][::-1], truth, atol=1e-3)


@pytest.mark.parametrize("key", ["gru", "gru-reset-before", "lstm", "rnn-tanh"])
@pytest.mark.parametrize("losses", [1, 3])
def test_growth_beyond_float32_at_a_fixed_point(key, losses):
    """Zero input and state: the Jacobian is the same at every step, and float64 says what float32 must."""
    cell, hidden, steps = REGISTRY[key], 6, 300
    generator = torch.Generator().manual_seed(2)
    rows = len(cell.gates) * hidden
    weights = Weights(torch.zeros(rows, 1), 4 * torch.randn(rows, hidden, generator=generator) / hidden**0.5)
    carries = torch.zeros(steps + 1, 2, len(cell.states) * hidden)
    gradient = torch.zeros(steps, 2, carries.shape[-1])
    gradient[-losses:, :, :hidden] = torch.randn(losses, 2, hidden, generator=generator)

    def trace(dtype: torch.dtype) -> Trace:
        w = Weights(**{name: value.to(dtype) for name, value in weights.tensors().items()})
        x = torch.zeros(steps, 2, 1, dtype=dtype)
        return Trace("rnn", cell, w, x, carries.to(dtype), gradient.to(dtype), {}, None, dtype)

    low, low_paths, low_map = adjoints_of(trace(torch.float32), tolerance=0)
    high, high_paths, high_map = adjoints_of(trace(torch.float64), tolerance=0)
    assert high.log10_norm.max() > 45
    np.testing.assert_allclose(low.log10_norm, high.log10_norm, atol=1e-3)
    np.testing.assert_allclose(low.by_sequence, high.by_sequence, atol=1e-3)
    np.testing.assert_allclose(low_map, high_map, atol=1e-3)
    for name, shares in high_paths.items():
        scale = 1e-3 * max(1, np.nanmax(np.abs(shares)))
        np.testing.assert_allclose(low_paths[name], shares, atol=scale, err_msg=name)


def test_one_sequence_far_below_another_in_the_same_batch():
    """One sequence keeps its gradient, the other loses it at once: both are told, 1e-137 beside 1."""
    cell = REGISTRY["gru"]
    model = Recurrent(cell, Weights(torch.tensor([[0.0], [20.0], [0.0]]), torch.zeros(3, 1)))
    x = torch.ones(80, 2, 1)
    x[:, 1] = -0.2
    layer = flow_of(model, x)
    np.testing.assert_allclose(layer.adjoint.by_sequence[:, 0], 0, atol=1e-5)
    gate = 1 / (1 + math.exp(4.0))
    truth = np.arange(80) * math.log10(gate)
    assert truth[-1] < -130
    np.testing.assert_allclose(layer.adjoint.by_sequence[:, 1], truth, atol=1e-3)
    np.testing.assert_allclose(layer.adjoint.arriving_by_sequence[:, 1], truth, atol=1e-3)


def test_one_unit_far_below_another_has_its_half_life():
    """A unit whose adjoint is 1e-30 of its neighbour's is small, not dead."""
    cell = REGISTRY["gru"]
    weights = Weights(torch.zeros(6, 1), torch.zeros(6, 2), torch.tensor([0.0, 0.0, 2.0, 0.0, 0.5, 0.5]))
    model = Recurrent(cell, weights)
    model.zero_grad()
    with tt.record(model) as record:
        output, _ = model(torch.zeros(30, 1, 1))
        (output[-1] * torch.tensor([1.0, 1e-30])).sum().backward()
    units = record.flow(demand=False).layers["rnn"].units
    assert [unit.half_life for unit in units] == [6.0, 1.0]  # ln ½ / ln σ(2) = 5.5; σ(0) = ½
    assert units[1].kind != "dead"


@pytest.mark.parametrize("logit", [-80.0, 80.0])
@pytest.mark.parametrize("last", [1, 4])
def test_gates_whose_every_step_is_1e_minus_35(logit, last):
    """A carry of σ(−80) = 1.8e-35 a step leaves float32 within two; beside it, one that keeps everything or half."""
    model = Recurrent(REGISTRY["gru"], Weights(torch.tensor([[0.0], [1.0], [0.0]]), torch.zeros(3, 1)))
    x = torch.zeros(20, 2, 1)
    x[:, 1] = logit
    with tt.record(model) as record:
        output, _ = model(x)
        output[-last:].sum().backward()
    layer = record.flow(demand=False, tolerance=0).layers["rnn"]
    gates = [0.5, 1 / (1 + math.exp(-logit))]
    for b, gate in enumerate(gates):
        truth = np.arange(20) * math.log10(gate)
        np.testing.assert_allclose(layer.adjoint.by_sequence[:, b], truth, atol=1e-3)
        np.testing.assert_allclose(layer.adjoint.arriving_by_sequence[:, b], truth, atol=1e-3)
    timescale = -2 / sum(math.log(gate) if gate < 1 else -math.exp(-logit) for gate in gates)
    assert layer.units[0].timescale == pytest.approx(timescale, rel=1e-5)
