"""Total lag through several modules in series: against copies of the parameters for every step, layer and direction.

Between the unrolled layers of the reference runs the model's own code: autograd's gradient of copy k, for the part of the
loss that enters at step t, is the term at the offset t − k.
"""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import throughtime as tt
from test_series import FUNCTIONS, KINDS, Sums, compare

T, B, D, H = 6, 3, 3, 4
LENGTHS = torch.tensor([4, 6, 3])
Run = Callable[[Tensor], tuple[Tensor, Tensor]]
"""(T, B, D) to the outputs (T, B, W) and the last states (N, B, H)."""


class Time(nn.Module):
    """A module over (B, channels, T) on (T, B, channels)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, y: Tensor) -> Tensor:
        return self.inner(y.permute(1, 2, 0)).permute(2, 0, 1)


def causal() -> nn.Module:
    return Time(nn.Sequential(nn.ConstantPad1d((2, 0), 0.0), nn.Conv1d(H, H, 3)))


class Net(nn.Module):
    """low → between → high, with either cell, both directions, and other ways from the lower module to the loss."""

    def __init__(self, between: nn.Module, kinds=("GRU", "LSTM"), both=False, layers=1, way="") -> None:
        super().__init__()
        wide = H // 2 if both else H
        self.low = getattr(nn, kinds[0])(D, wide, layers, bidirectional=both)
        self.between, self.way = between, way
        self.high = getattr(nn, kinds[1])(H, H)

    def run(self, x: Tensor, low: Run, high: Run) -> Tensor:
        """(T, B, W): the loss at step t takes row t."""
        y, states = low(x)
        torch.manual_seed(3)
        z = self.between(y)
        if self.way == "states":
            z = z + states[-1]
        if self.way == "in place":
            z = z.relu_()
        out, _ = high(z)
        return torch.cat((out, y.sin()), dim=-1) if self.way == "skip" else out

    def forward(self, x: Tensor) -> Tensor:
        def fused(module: nn.RNNBase) -> Run:
            def run(x: Tensor) -> tuple[Tensor, Tensor]:
                if self.way == "packed":
                    packed = pack_padded_sequence(x, LENGTHS, enforce_sorted=False)
                    out, states = module(packed)
                    return pad_packed_sequence(out)[0], states
                out, states = module(x)
                return out, states[0] if isinstance(states, tuple) else states

            return run

        return self.run(x, fused(self.low), fused(self.high))


CASES: dict[str, Callable[[], Net]] = {
    "linear": lambda: Net(nn.Linear(H, H)),
    "directly": lambda: Net(nn.Identity()),
    "layer norm": lambda: Net(nn.LayerNorm(H), ("LSTM", "GRU")),
    "dropout": lambda: Net(nn.Sequential(nn.Linear(H, H), nn.ReLU(), nn.Dropout(0.4)), ("RNN", "GRU")),
    "causal convolution": lambda: Net(causal()),
    "convolution": lambda: Net(Time(nn.Conv1d(H, H, 3, padding=1))),
    "batch norm": lambda: Net(Time(nn.BatchNorm1d(H))),
    "both directions": lambda: Net(nn.Linear(H, H), both=True, layers=2),
    "stack": lambda: Net(nn.Linear(H, H), ("LSTM", "LSTM"), layers=2),
    "skip": lambda: Net(nn.Linear(H, H), way="skip"),
    "states": lambda: Net(nn.Linear(H, H), way="states"),
    "states of both": lambda: Net(nn.Linear(H, H), ("GRU", "RNN"), both=False, layers=2, way="states"),
    "in place": lambda: Net(nn.Linear(H, H), way="in place"),
    "packed": lambda: Net(nn.Linear(H, H), way="packed"),
}
every_case = pytest.mark.parametrize("case", CASES)


def made(case: str) -> tuple[Net, Tensor, Tensor]:
    """The model, its input, and what the loss takes of the output."""
    torch.manual_seed(1)
    model = CASES[case]().double()
    x, directions = torch.randn(T, B, D, dtype=torch.float64), torch.randn(T, B, 2 * H, dtype=torch.float64)
    if model.way == "packed":
        directions = directions * (torch.arange(T)[:, None] < LENGTHS)[..., None]
    return model, x, directions


def taken(out: Tensor, directions: Tensor, step: int) -> Tensor:
    return (out[step] * directions[step, :, : out.shape[-1]]).sum()


@functools.cache
def flow_of(case: str) -> tt.Flow:
    model, x, directions = made(case)
    with tt.record(model) as record:
        out = model(x)
        sum(taken(out, directions, t) for t in range(T)).backward(retain_graph=True)  # type: ignore[union-attr]
    return record.flow(demand=False, tolerance=0)


def unrolled(module: nn.RNNBase, name: str, copies: dict[tuple[str, int, int], Tensor], lengths: list[int]) -> Run:
    """The module step by step, with own parameters at each step and for each sequence; kept by (name, step, sequence)."""
    kind = type(module).__name__

    def one(x: Tensor, b: int) -> tuple[Tensor, Tensor]:
        into, ends, length = [x[k].reshape(1, 1, -1) for k in range(lengths[b])], [], lengths[b]
        for layer in range(module.num_layers):
            sides = []
            for direction in range(2 if module.bidirectional else 1):
                end = f"_l{layer}{'_reverse' if direction else ''}"
                zero = torch.zeros(1, 1, module.hidden_size, dtype=x.dtype)
                state, side = (zero, zero) if kind == "LSTM" else (zero,), {}
                for k in reversed(range(length)) if direction else range(length):
                    weights = [getattr(module, kind + end).detach().clone().requires_grad_() for kind in KINDS[:4]]
                    copies.update({(f"{name}.{kind}{end}", k, b): w for kind, w in zip(KINDS, weights, strict=False)})
                    given = state if kind == "LSTM" else state[0]
                    side[k], *after = FUNCTIONS[kind](into[k], given, weights, True, 1, 0.0, False, False, False)
                    state = tuple(after)
                sides.append(side)
                ends.append(state[0][0, 0])
            into = [torch.cat([side[k] for side in sides], dim=-1) for k in range(length)]
        out = torch.stack([value.reshape(-1) for value in into])
        return nn.functional.pad(out, (0, 0, 0, len(x) - length)), torch.stack(ends)

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        each = [one(x[:, b], b) for b in range(x.shape[1])]
        return torch.stack([out for out, _ in each], dim=1), torch.stack([ends for _, ends in each], dim=1)

    return run


def truth(case: str) -> Sums:
    model, x, directions = made(case)
    copies: dict[tuple[str, int, int], Tensor] = {}
    lengths = LENGTHS.tolist() if model.way == "packed" else [T] * B
    out = model.run(x, unrolled(model.low, "low", copies, lengths), unrolled(model.high, "high", copies, lengths))
    again, *_ = made(case)
    torch.testing.assert_close(out, again(x))
    sums: Sums = {}
    for t in range(T):
        value = taken(out, directions, t)
        grads = torch.autograd.grad(value, list(copies.values()), retain_graph=True, allow_unused=True)
        for (name, k, _), grad in zip(copies, grads, strict=True):
            if grad is not None:
                sums[name, t - k] = sums.get((name, t - k), torch.zeros_like(grad)) + grad
    return sums


@every_case
def test_shares_and_norms_by_signed_offset(case):
    flow = flow_of(case)
    wholes = [flow.layers[name] for name in ("series", "series_reverse") if name in flow.layers]
    compare(wholes, truth(case))
    assert wholes[0].residual < 1e-12
    assert wholes[0].lag == "total"
    np.testing.assert_allclose(sum(whole.share.sum() for whole in wholes), 1, rtol=1e-12)
    ahead = case in ("convolution", "both directions", "states", "states of both", "batch norm")
    assert (len(wholes) == 2) == ahead


@pytest.mark.parametrize("case", ["convolution", "causal convolution"])
def test_adjoints_where_a_gradient_is_moved_between_modules(case):
    """Of the lower module, all that autograd finds at its states; of the upper one, into which nothing comes, its own lags."""
    model, x, directions = made(case)
    flow = flow_of(case)
    states = [torch.zeros(B, H, dtype=torch.float64)]
    for now in x:
        states.append(torch.gru_cell(now, states[-1], *(getattr(model.low, f"{kind}_l0") for kind in KINDS[:4])))
    y = torch.stack(states[1:])
    out = model.run(x, lambda _: (y, y[-1]), lambda z: model.high(z))
    for delta in (-2, -1, 1, 2, T - 1):
        steps = [t for t in range(T) if 0 <= t - delta < T]
        grads = [
            torch.autograd.grad(taken(out, directions, t), states[1 + t - delta], retain_graph=True, allow_unused=True)[
                0
            ]
            for t in steps
        ]
        low = sum(float(grad.square().sum()) for grad in grads if grad is not None) / (len(steps) * B)
        high = 10 ** (2 * flow.layers["high"].adjoint.log10_norm[delta]) if delta > 0 else 0.0
        whole = flow.layers.get("series" if delta > 0 else "series_reverse")
        got = 0.0 if whole is None else 10 ** (2 * whole.adjoint.log10_norm[abs(delta)])
        np.testing.assert_allclose(got, low + high, rtol=1e-9, err_msg=f"{delta}")


@every_case
def test_each_layer_alone_is_told_as_before(case):
    model, x, directions = made(case)
    with tt.record(model) as record:
        out = model(x)
        sum(taken(out, directions, t) for t in range(T)).backward()  # type: ignore[union-attr]
    plain, flow = record.flow(demand=False, tolerance=0, total=False), flow_of(case)
    assert not set(plain.layers) & {"series", "low_reverse"}
    for name, layer in plain.layers.items():
        assert layer.lag == flow.layers[name].lag == "within-layer"
        np.testing.assert_array_equal(layer.share, flow.layers[name].share)
        np.testing.assert_array_equal(layer.adjoint.log10_norm, flow.layers[name].adjoint.log10_norm)


def test_a_stack_and_the_same_layers_as_modules_agree():
    torch.manual_seed(0)
    stack, x = nn.GRU(H, H, 2).double(), torch.randn(T, B, H, dtype=torch.float64)
    modules = Net(nn.Identity(), ("GRU", "GRU")).double()
    modules.low = nn.GRU(H, H).double()
    for module, layer in ((modules.low, "_l0"), (modules.high, "_l1")):
        for kind in KINDS[:4]:
            getattr(module, f"{kind}_l0").data.copy_(getattr(stack, kind + layer))
    with tt.record(stack) as record:
        stack(x)[0].sin().sum().backward()
    one = record.flow(demand=False, tolerance=0).layers["rnn"]
    with tt.record(modules) as record:
        modules(x).sin().sum().backward()  # nothing lies between: the graph need not be kept
    two = record.flow(demand=False, tolerance=0).layers["series"]
    np.testing.assert_allclose(two.share, one.share, rtol=1e-10)
    np.testing.assert_allclose(two.bias, one.bias, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(two.adjoint.log10_norm, one.adjoint.log10_norm, atol=1e-10)
    np.testing.assert_allclose(two.log10_arriving, one.log10_arriving, atol=1e-10)
    assert two.horizon == one.horizon
    assert two.loss_steps == one.loss_steps


def reason(flow: tt.Flow) -> str:
    assert "series" not in flow.layers
    return next((each.reason for each in flow.missing if each.field == "layers.series"), "")


def test_a_freed_graph_says_what_to_do():
    model, x, _ = made("linear")
    with tt.record(model) as record:
        model(x).sum().backward()
    assert "retain_graph=True" in reason(record.flow(demand=False))


def test_an_optimizer_step_before_the_flow_is_told():
    model, x, _ = made("linear")
    with tt.record(model) as record:
        model(x).sum().backward(retain_graph=True)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert "optimizer" in reason(record.flow(demand=False))


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y):
        return 2 * y

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


class Custom(nn.Module):
    def forward(self, y: Tensor) -> Tensor:
        return Doubled.apply(y)


class Halved(nn.Module):
    def forward(self, y: Tensor) -> Tensor:
        return y[::2]


@pytest.mark.parametrize(
    ("between", "why"), [(Custom(), "function of your own"), (Halved(), "same steps")], ids=["function", "steps"]
)
def test_what_cannot_be_told_says_why(between, why):
    model, x = Net(between).double(), torch.randn(T, B, D, dtype=torch.float64)
    with tt.record(model) as record:
        model(x).sum().backward(retain_graph=True)
    assert why in reason(record.flow(demand=False))


def test_states_given_from_one_module_to_the_next_have_no_common_time():
    class Translator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.GRU(D, H), nn.GRU(D, H)

        def forward(self, x: Tensor) -> Tensor:
            return self.decoder(x, self.encoder(x)[1])[0]

    model, x = Translator(), torch.randn(T, B, D)
    with tt.record(model) as record:
        model(x).sum().backward(retain_graph=True)
    assert "common time" in reason(record.flow(demand=False))


def test_modules_side_by_side_are_no_series():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.GRU(D, H), nn.GRU(D, H)

        def forward(self, x: Tensor) -> Tensor:
            return self.one(x)[0] + self.two(x)[0]

    model, x = Both(), torch.randn(T, B, D)
    with tt.record(model) as record:
        model(x).sum().backward(retain_graph=True)
    assert reason(record.flow(demand=False)) == ""


def test_the_users_step_is_left_as_it_was():
    """Gradients, random numbers and calls of the user's own hooks, with and without the record and its flow."""

    def step(record: bool) -> tuple[list[Tensor], list[int]]:
        model, x, _ = made("dropout")
        calls = [0, 0]

        def count(place: int) -> None:
            calls[place] += 1

        model.between.register_full_backward_hook(lambda *_: count(0))
        model.between.register_forward_hook(lambda _, __, y: y.register_hook(lambda _: count(1)) and None)
        torch.manual_seed(5)
        if record:
            with tt.record(model) as seen:
                model(x).square().sum().backward(retain_graph=True)
            assert "series" in seen.flow(demand=False).layers
        else:
            model(x).square().sum().backward(retain_graph=True)
        return [*(p.grad for p in model.parameters() if p.grad is not None), torch.rand(3)], calls

    (plain, once), (seen, calls) = step(record=False), step(record=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, seen, strict=True))
    assert once == calls == [1, 1]


class Mark:
    """Something to see die."""


def marked(out: Tensor) -> weakref.ref[Mark]:
    """What lives as long as the node that made a tensor."""
    mark = Mark()
    assert out.grad_fn is not None
    out.grad_fn.metadata["mark"] = mark
    return weakref.ref(mark)


def test_nothing_is_kept_alive_longer_than_the_record():
    model, x, _ = made("linear")
    with tt.record(model) as record:
        out = model(x)
        held = marked(out)
        out.sum().backward(retain_graph=True)
    flow = record.flow(demand=False)
    del out, record
    gc.collect()
    assert held() is None
    assert "series" in flow.layers


def test_a_freed_graph_is_let_go_with_the_block():
    model, x, _ = made("linear")
    with tt.record(model) as record:
        out = model(x)
        held = marked(out)
        out.sum().backward()
    del out
    gc.collect()
    assert held() is None
    assert len(record.calls) == 2


def test_diagnose_keeps_the_graph_itself():
    """Two batches, in float32: the whole is told, the model and its buffers are as they were."""
    torch.manual_seed(0)
    model = Net(nn.Sequential(nn.Linear(H, H), nn.Dropout(0.2)), both=True, layers=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = [(torch.randn(T, 16, D), torch.randn(T, 16, H)) for _ in range(2)]
    report = tt.diagnose(model, batches, nn.MSELoss())
    whole = report.flow.layers["series"]
    assert whole.batch == 32
    assert whole.residual < 1e-5
    assert whole.demand is not None
    assert report.flow.layers["low"].lag == "within-layer"
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert len(whole.loss_steps) == T


def test_the_loss_at_one_step_has_one_origin_also_in_float32():
    torch.manual_seed(0)
    model, x = Net(nn.LayerNorm(H)), torch.randn(30, 8, D)
    with tt.record(model) as record:
        model(x)[-1].square().sum().backward(retain_graph=True)
    whole = record.flow(demand=False).layers["series"]
    assert whole.loss_steps == (29,)
    assert whole.residual < 1e-5
