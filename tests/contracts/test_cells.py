"""What holds for every registered cell: its equations are the published ones and its closed form is their derivative."""

import pytest
import torch
from torch import Tensor, nn

from reference import STEPS, drawn, step_of
from throughtime.cells import REGISTRY, Cell, Weights, pull_by_autograd
from throughtime.cells.activations import tanh_slope
from throughtime.cells.cell import gradients_by_autograd, split
from throughtime.recurrent import Recurrent

FUSED = {
    "gru": nn.GRU,
    "lstm": nn.LSTM,
    "rnn-tanh": nn.RNN,
    "rnn-relu": lambda *sizes, **options: nn.RNN(*sizes, nonlinearity="relu", **options),
}
TIGHT = {"rtol": 1e-12, "atol": 1e-12}


def same(one: tuple[Tensor, ...], other: tuple[Tensor, ...], **tolerances: float) -> None:
    """Banks of pre-activation adjoints."""
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, **tolerances)


every_cell = pytest.mark.parametrize("key", REGISTRY)


def draw(cell: Cell, hidden: int, inputs: int, bias: bool = True, spread: float = 1.0, seed: int = 0) -> Weights:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return spread * torch.randn(*shape, generator=generator, dtype=torch.float64)

    made = drawn(cell, inputs, hidden, normal, bias)
    if "weight_hh" in made:
        made["weight_hh"] /= hidden**0.5
    for name in made.keys() - {"peephole"}:
        if not name.startswith(("weight", "bias")):
            made[name] /= max(1.0, spread)  # logarithms: their exponentials overflow before any gate saturates
    return Weights(**made)


def scene(key: str, hidden: int = 4, inputs: int = 3, batch: int = 5, spread: float = 1.0, bias: bool = True):
    """A cell, weights, one input, one carry, and the carry that follows."""
    cell = REGISTRY[key]
    w = draw(cell, hidden, inputs, bias, spread)
    torch.manual_seed(1)
    x = torch.randn(batch, inputs, dtype=torch.float64)
    before = torch.randn(batch, cell.carry_size(w), dtype=torch.float64)
    return cell, w, x, before, cell.step(w, x, dict.fromkeys(cell.ports, before))


def by_reference(key: str, cell: Cell, w: Weights, x: Tensor, ports: dict[str, Tensor]) -> Tensor:
    """One step by the reference's equations: the next carry."""
    copies = {name: value.expand(x.shape[0], *value.shape) for name, value in w.tensors().items()}
    states = {port: split(value, len(cell.states)) for port, value in ports.items()}
    moved = step_of(key, cell)(copies, x, {port: (parts[0], parts[-1]) for port, parts in states.items()})
    h = moved.read(moved.core)
    return h if len(cell.states) == 1 else torch.cat((h, moved.core), dim=-1)


def test_every_registered_cell_has_independent_equations():
    assert set(REGISTRY) <= set(STEPS)


@every_cell
@pytest.mark.parametrize("bias", [True, False])
def test_forward_equals_the_reference(key, bias):
    cell, w, x, before, after = scene(key, bias=bias)
    torch.testing.assert_close(after, by_reference(key, cell, w, x, dict.fromkeys(cell.ports, before)), **TIGHT)


@pytest.mark.parametrize("key", FUSED)
@pytest.mark.parametrize("bias", [True, False])
def test_forward_equals_torchs_fused_layer(key, bias):
    cell = REGISTRY[key]
    fused = FUSED[key](3, 4, bias=bias).double()
    w = Weights(*(getattr(fused, f"{name}_l0", None) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")))
    x, states = torch.randn(6, 5, 3).double(), torch.randn(len(cell.states), 1, 5, 4).double()
    given = tuple(states) if len(states) > 1 else states[0]
    output, last = fused(x, given)
    own_output, own_last = Recurrent(cell, w)(x, given)
    torch.testing.assert_close(own_output, output, **TIGHT)
    torch.testing.assert_close(own_last, last, **TIGHT)


@every_cell
def test_carries_are_rebuilt_from_the_output(key):
    cell, w, *_ = scene(key)
    x, carry = torch.randn(7, 2, 3).double(), torch.randn(2, cell.carry_size(w)).double()
    run = [carry]
    for step in x:
        run.append(cell.step(w, step, dict.fromkeys(cell.ports, run[-1])))
    truth = torch.stack(run)
    torch.testing.assert_close(cell.carries(w, x, cell.output(truth[1:]), carry), truth, **TIGHT)


def unit_adjoints(cell: Cell, w: Weights, x: Tensor, before: Tensor, after: Tensor) -> tuple[Tensor, dict, Tensor]:
    """One unit adjoint for every coordinate of the carry, and factors and places that go with them."""
    units = torch.eye(after.shape[-1], dtype=after.dtype)
    factors = {
        name: value[:1].expand(len(units), *value.shape[1:])
        for name, value in cell.factors(w, x, before, after).items()
    }
    return units, factors, before[:1].expand(len(units), -1)


@every_cell
def test_each_path_is_the_derivative_by_its_port(key):
    """Row i of ∂after/∂port is what a unit adjoint at coordinate i sends through that port."""
    cell, w, x, before, after = scene(key)
    units, factors, _ = unit_adjoints(cell, w, x, before, after)
    pulled = cell.pull(w, factors, units)

    def run(*values: Tensor) -> Tensor:
        return by_reference(key, cell, w, x[:1], dict(zip(cell.ports, values, strict=True)))[0]

    jacobians = torch.autograd.functional.jacobian(run, (before[:1],) * len(cell.ports))
    for port, jacobian in zip(cell.ports, jacobians, strict=True):
        parts = dict(zip(cell.states, split(jacobian[:, 0], len(cell.states)), strict=True))
        read = cell.port_state.get(port, cell.states[0])
        torch.testing.assert_close(pulled.paths[port], parts.pop(read), **TIGHT)
        assert all((other == 0).all() for other in parts.values()), f"{port} reads more than {read}"


@every_cell
def test_paths_add_up_to_the_jacobian(key):
    cell, w, x, before, after = scene(key)
    units, factors, _ = unit_adjoints(cell, w, x, before, after)
    pulled = cell.pull(w, factors, units)

    def run(value: Tensor) -> Tensor:
        return by_reference(key, cell, w, x[:1], dict.fromkeys(cell.ports, value))[0]

    jacobian = torch.autograd.functional.jacobian(run, before[:1])[:, 0]
    torch.testing.assert_close(pulled.carry, jacobian, **TIGHT)
    summed = dict.fromkeys(cell.states, torch.zeros(()))
    for port, path in pulled.paths.items():
        read = cell.port_state.get(port, cell.states[0])
        summed[read] = summed[read] + path
    torch.testing.assert_close(torch.cat([summed[state] for state in cell.states], dim=-1), jacobian, **TIGHT)


@every_cell
def test_jacobian_equals_finite_differences(key):
    cell, w, x, before, after = scene(key)
    units, factors, at = unit_adjoints(cell, w, x, before, after)
    jacobian = cell.pull(w, factors, units, paths=False).carry
    here, reach = x[:1].expand(len(units), -1), 1e-6 * units
    ahead, behind = (by_reference(key, cell, w, here, dict.fromkeys(cell.ports, at + side * reach)) for side in (1, -1))
    torch.testing.assert_close(jacobian, ((ahead - behind) / 2e-6).T, rtol=1e-7, atol=1e-8)


@every_cell
@pytest.mark.parametrize("spread", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("hidden", [1, 4])
def test_closed_form_equals_autograd_path_by_path(key, spread, hidden):
    cell, w, x, before, after = scene(key, hidden=hidden, spread=spread)
    adjoint = torch.randn_like(after)
    closed, slow = (
        cell.pull(w, cell.factors(w, x, before, after), adjoint),
        pull_by_autograd(cell, w, x, before, adjoint),
    )
    scale = {"rtol": 1e-12, "atol": 1e-12 * max(1.0, spread)}
    same(closed.pre, slow.pre, **scale)
    torch.testing.assert_close(closed.carry, slow.carry, **scale)
    assert closed.paths.keys() == slow.paths.keys() == set(cell.ports)
    for port in cell.ports:
        torch.testing.assert_close(closed.paths[port], slow.paths[port], **scale)


@every_cell
def test_without_paths_the_pullback_is_the_same(key):
    cell, w, x, before, after = scene(key)
    factors, adjoint = cell.factors(w, x, before, after), torch.randn_like(after)
    told, plain = cell.pull(w, factors, adjoint), cell.pull(w, factors, adjoint, paths=False)
    assert not plain.paths
    same(plain.pre, told.pre, **TIGHT)
    torch.testing.assert_close(plain.carry, told.carry, **TIGHT)


@every_cell
def test_leading_axes_are_free(key):
    cell, w, x, before, after = scene(key, batch=6)
    factors, adjoint = cell.factors(w, x, before, after), torch.randn_like(after)
    flat = cell.pull(w, factors, adjoint)
    folded = cell.pull(w, {name: f.unflatten(0, (2, 3)) for name, f in factors.items()}, adjoint.unflatten(0, (2, 3)))
    same(tuple(bank.flatten(0, 1) for bank in folded.pre), flat.pre, **TIGHT)
    torch.testing.assert_close(folded.carry.flatten(0, 1), flat.carry, **TIGHT)
    for port in cell.ports:
        torch.testing.assert_close(folded.paths[port].flatten(0, 1), flat.paths[port], **TIGHT)


@every_cell
@pytest.mark.parametrize("bias", [True, False])
def test_products_make_the_gradient_of_every_parameter(key, bias):
    """Pre-activation adjoint ⊗ operand, block by block, is autograd's gradient of one step of the reference."""
    cell, w, x, before, after = scene(key, bias=bias)
    adjoint = torch.randn_like(after)
    leaves = {name: value.clone().requires_grad_() for name, value in w.tensors().items()}
    forward = by_reference(key, cell, Weights(**leaves), x, dict.fromkeys(cell.ports, before))
    truth = dict(zip(leaves, torch.autograd.grad(forward, list(leaves.values()), adjoint), strict=True))
    factors = cell.factors(w, x, before, after)
    banks, operands = cell.pull(w, factors, adjoint).pre, cell.operands(factors, x, before)
    pre = {
        name: bank[:, place] for names, bank in zip(cell.banks, banks, strict=True) for place, name in enumerate(names)
    }
    seen: dict[str, set[str]] = {}
    for product in cell.products:
        if product.parameter not in truth:
            continue
        gates = cell.blocks(product.parameter)
        blocks = truth[product.parameter].unflatten(0, (len(gates), -1))
        for gate, name in zip(product.gates, product.pre, strict=True):
            p = pre[name]
            if product.operand == "1":
                made = p.sum(0)
            else:
                x_or_h = operands[product.operand]
                made = (p * x_or_h).sum(0) if product.elementwise else p.T @ x_or_h
            torch.testing.assert_close(made, blocks[gates.index(gate)], **TIGHT)
            assert gate not in seen.setdefault(product.parameter, set()), "a block made twice"
            seen[product.parameter].add(gate)
    assert seen == {name: set(cell.blocks(name)) for name in truth if cell.blocks(name)}
    rest = [name for name in truth if not cell.blocks(name)]
    by_autograd = gradients_by_autograd(cell, w, rest, x, before, adjoint) if rest else []
    for name, made in zip(rest, by_autograd, strict=True):
        torch.testing.assert_close(made, truth[name], **TIGHT)


@every_cell
def test_the_adjoint_of_the_input_is_autograds(key):
    cell, w, x, before, after = scene(key)
    adjoint, leaf = torch.randn_like(after), x.clone().requires_grad_()
    forward = by_reference(key, cell, w, leaf, dict.fromkeys(cell.ports, before))
    (truth,) = torch.autograd.grad(forward, leaf, adjoint)
    pre = cell.pull(w, cell.factors(w, x, before, after), adjoint).pre
    torch.testing.assert_close(cell.to_input(w, pre), truth, **TIGHT)


@every_cell
def test_pre_activations_are_those_of_the_equations(key):
    cell, w, x, before, _ = scene(key)
    copies = {name: value.expand(x.shape[0], *value.shape) for name, value in w.tensors().items()}
    parts = split(before, len(cell.states))
    moved = step_of(key, cell)(copies, x, dict.fromkeys(cell.ports, (parts[0], parts[-1])))
    seen = cell.pre_activations(w, x, before)
    assert set(cell.pre) <= set(seen)
    for gate in cell.sigmoids:
        torch.testing.assert_close(seen[gate], moved.logits[gate], **TIGHT)
    log_keep = cell.log_keep(w, x, {gate: seen[gate] for gate in cell.sigmoids})
    assert (log_keep is None) == (moved.keep is None)
    if log_keep is not None:
        torch.testing.assert_close(log_keep.exp(), moved.keep, **TIGHT)
    assert "carry" in cell.ports or not cell.diagonal
    assert cell.reset is None or cell.reset in cell.sigmoids


@every_cell
def test_saturated_gates_in_float32(key):
    """Where σ is exactly 0 or 1 in float32, the closed form says what autograd says, finite and zero in the same places."""
    cell, w, x, before, _ = scene(key, spread=300.0)
    w, x, before = Weights(**{name: value.float() for name, value in w.tensors().items()}), x.float(), before.float()
    after, adjoint = cell.step(w, x, dict.fromkeys(cell.ports, before)), torch.randn_like(before)
    closed, slow = (
        cell.pull(w, cell.factors(w, x, before, after), adjoint),
        pull_by_autograd(cell, w, x, before, adjoint),
    )
    scale = float(slow.carry.abs().max()) + 1
    same(closed.pre, slow.pre, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(closed.carry, slow.carry, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slope_of_tanh_rounds_as_autograd_does(dtype):
    """Near saturation two roundings of 1 − y² instead of one miss autograd by 1e-4 in float32."""
    a = torch.linspace(-9, 9, 2001, dtype=dtype, requires_grad=True)
    y = torch.tanh(a)
    (slope,) = torch.autograd.grad(y.sum(), a)
    torch.testing.assert_close(tanh_slope(y.detach()), slope, rtol=1e-6, atol=0)
