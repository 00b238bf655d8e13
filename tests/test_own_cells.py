"""Registered cells of the user's own: against copies of the parameters, and against the shipped cell of the same equations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import throughtime as tt
from throughtime.errors import InputError, RecordError
from throughtime.recording import own

T, B, D, H = 7, 3, 3, 5


@pytest.fixture(autouse=True)
def registry():
    before = dict(own._REGISTRY)
    yield
    own._REGISTRY.clear()
    own._REGISTRY.update(before)


class LayerNormGRU(nn.Module):
    """As world models have it: one product of input and state, normalised; update biased towards keeping."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(D + H, 3 * H, bias=False), nn.LayerNorm(3 * H)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        r, n, z = self.norm(self.linear(torch.cat((x, h), dim=-1))).chunk(3, dim=-1)
        z = torch.sigmoid(z - 1)
        return z * torch.tanh(torch.sigmoid(r) * n) + (1 - z) * h


class Pair(nn.Module):
    """Two states, and an output beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(D, H)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]):
        h, c = self.cell(x, state)
        return h, (h, c)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.GRUCell(D, H)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.inner(x, h)


class Loop(nn.Module):
    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        two = isinstance(self.cell, Pair | nn.LSTMCell)
        state, out = (x.new_zeros(B, H), x.new_zeros(B, H)) if two else x.new_zeros(B, H), []
        for now in x:
            made = self.cell(now, state)
            state = made[1] if isinstance(self.cell, Pair) else made
            out.append(state[0] if two else state)
        return torch.stack(out)


def drawn() -> Tensor:
    return torch.randn(T, B, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def loss(output: Tensor) -> Tensor:
    return (output * torch.cos(torch.arange(T * B * H).reshape(T, B, H))).sum()


def flow_of(model: nn.Module) -> tt.LayerFlow:
    with tt.record(model) as record:
        loss(model(drawn())).backward()
    return record.flow(demand=False, tolerance=0).layers["cell"]


def terms(make, names: list[str]) -> dict[tuple[str, int], Tensor]:
    """(parameter, lag) → G(lag): a module of its own for every step."""
    cells = [make() for _ in range(T)]
    h, out = torch.zeros(B, H, dtype=torch.float64), []
    for cell, now in zip(cells, drawn(), strict=True):
        h = cell(now, h)
        out.append(h)
    parts = torch.stack(out) * torch.cos(torch.arange(T * B * H).reshape(T, B, H))
    sums: dict[tuple[str, int], Tensor] = {}
    for t in range(T):
        for k in range(t + 1):
            values = [dict(cells[k].named_parameters())[name] for name in names]
            for name, grad in zip(names, torch.autograd.grad(parts[t].sum(), values, retain_graph=True), strict=True):
                sums[name, t - k] = sums.get((name, t - k), torch.zeros_like(grad)) + grad
    return sums


def test_a_registered_module_is_decomposed_by_lag():
    tt.register_cell(LayerNormGRU)
    torch.manual_seed(0)
    model = Loop(LayerNormGRU())

    def again() -> nn.Module:
        cell = LayerNormGRU().double()
        cell.load_state_dict(model.cell.state_dict())
        return cell

    layer = flow_of(model)
    assert layer.residual < 1e-12
    assert list(layer.paths) == ["recurrent"]
    names = [name for name, _ in model.cell.named_parameters()]
    assert set(layer.parameters) == {f"cell.{name}" for name in names}
    sums = terms(again, names)
    for name in names:
        whole = sum(sums[name, lag] for lag in range(T))
        told = layer.parameters[f"cell.{name}"]
        for lag in range(T):
            share = float((sums[name, lag] * whole).sum() / whole.square().sum())
            np.testing.assert_allclose(told.share[lag], share, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(10 ** told.log10_norm[lag], float(sums[name, lag].norm()), rtol=1e-9)


def test_named_ports_split_the_way_back():
    """The paths of the README's example; together they are the one path of the module's own forward."""
    torch.manual_seed(0)
    model = Loop(LayerNormGRU())
    tt.register_cell(LayerNormGRU)
    whole = flow_of(model)

    @tt.register_cell(LayerNormGRU, ports=("carry", "gates"))
    def step(cell, x, at):
        r, n, z = cell.norm(cell.linear(torch.cat((x, at["gates"]), dim=-1))).chunk(3, dim=-1)
        z = torch.sigmoid(z - 1)
        return z * torch.tanh(torch.sigmoid(r) * n) + (1 - z) * at["carry"]

    split = flow_of(model)
    assert list(split.paths) == ["carry", "gates"]
    np.testing.assert_allclose(split.paths["carry"][1:] + split.paths["gates"][1:], 1, rtol=1e-12)
    np.testing.assert_allclose(split.adjoint.log10_norm, whole.adjoint.log10_norm, rtol=1e-12)
    np.testing.assert_allclose(split.share, whole.share, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("kind", "plain"), [(Plain, nn.GRUCell), (Pair, nn.LSTMCell)])
def test_equals_the_shipped_cell(kind, plain):
    tt.register_cell(kind)
    torch.manual_seed(0)
    model = Loop(kind())
    inner = next(model.cell.children())
    same = Loop(plain(D, H))
    same.cell.load_state_dict(inner.state_dict())
    mine, shipped = flow_of(model), flow_of(same)
    assert mine.residual < 1e-12
    np.testing.assert_allclose(mine.share, shipped.share, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(mine.signal_to_noise, shipped.signal_to_noise, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(mine.adjoint.log10_norm, shipped.adjoint.log10_norm, rtol=1e-9)
    np.testing.assert_allclose(mine.bias, shipped.bias, rtol=1e-7, atol=1e-11)


def test_a_function_that_is_not_the_forward_is_found_out():
    @tt.register_cell(LayerNormGRU, ports=("carry", "gates"))
    def step(cell, x, at):
        return at["carry"] * 0.5 + at["gates"] * 0.5

    with pytest.raises(RecordError, match=r"got a step of LayerNormGRU .*run again.*; expected .*; do this: "):
        flow_of(Loop(LayerNormGRU()))


def test_dropout_inside_a_cell_is_found_out():
    class Dropping(Plain):
        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return nn.functional.dropout(self.inner(x, h), 0.5, self.training)

    tt.register_cell(Dropping)
    model = Loop(Dropping())
    with pytest.raises(RecordError, match="eval mode"):
        flow_of(model)
    assert flow_of(model.eval()).residual < 1e-12


def test_the_module_is_left_as_it_was():
    tt.register_cell(LayerNormGRU)
    model = Loop(LayerNormGRU())
    loss(model(drawn())).backward()
    plain = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    random = torch.get_rng_state()
    flow_of(model)
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(a, p.grad) for a, p in zip(plain, model.parameters(), strict=True))
    assert not model.cell._forward_hooks
    assert not model.cell._forward_pre_hooks


def test_a_state_that_is_not_given_is_asked_for():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(D, H)

        def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
            return torch.tanh(self.linear(x) + (0 if h is None else h))

    tt.register_cell(Own)
    cell = Own()
    with tt.record(cell) as record:
        cell(torch.randn(B, D)).sum().backward()
    with pytest.raises(InputError, match="give the first step its state"):
        record.flow()


def test_a_cell_fed_with_its_own_state():
    """The state is the input too: the same share comes round outside as in the shipped cell of the same equations."""

    class Fed(nn.Module):
        def __init__(self, cell: nn.Module) -> None:
            super().__init__()
            self.cell = cell
            self.double()

        def forward(self) -> Tensor:
            h = torch.linspace(-1, 1, B * H, dtype=torch.float64).reshape(B, H)
            for _ in range(T):
                h = self.cell(h, h)
            return h

    class Square(Plain):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.inner = nn.GRUCell(H, H)

    tt.register_cell(Square)
    torch.manual_seed(0)
    told = []
    mine, same = Fed(Square()), Fed(nn.GRUCell(H, H))
    same.cell.load_state_dict(mine.cell.inner.state_dict())
    for model in (mine, same):
        with tt.record(model) as record:
            model().square().sum().backward()
        told.append(record.flow(demand=False).layers["cell"])
    assert told[0].residual < 1e-12
    assert told[0].external is not None
    np.testing.assert_allclose(told[0].external, told[1].external, rtol=1e-9)


def test_a_parameter_that_the_step_never_uses_has_a_gradient_of_zero():
    class Idle(LayerNormGRU):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.ones(2, 2))

    tt.register_cell(Idle)
    layer = flow_of(Loop(Idle()))
    assert layer.residual < 1e-12
    assert (layer.parameters["cell.unused"].log10_norm == -np.inf).all()


@pytest.mark.parametrize(("kind", "ports"), [(nn.GRU(D, H), ("a",)), (3, ("a",)), (Plain, ()), (Plain, ("a", "a"))])
def test_what_cannot_be_registered(kind, ports):
    with pytest.raises(InputError):
        tt.register_cell(kind, ports=ports)
