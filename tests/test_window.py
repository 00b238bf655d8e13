"""Truncation windows: against backward passes that are really truncated, and never a window below the demand.

The reference trains as trainers do: it steps torch's own cell forward, detaches the state where a window begins, and adds up
what autograd gives for the losses of each pass. It knows neither lags nor adjoints.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import throughtime as tt
from throughtime.cells.cell import Weights
from throughtime.cells.rate import Rate
from throughtime.linearize import Linearization
from throughtime.recurrent import Recurrent
from throughtime.tasks.synthetic import autoregressive, delayed_input
from throughtime.trace import Trace
from throughtime.truncation import passes
from throughtime.truncation.advice import first_of
from throughtime.truncation.gradient import Window, gradients
from throughtime.truncation.lost import Lost
from throughtime.truncation.result import Row

T, B, D, H = 13, 4, 2, 3
LENGTHS = [13, 13, 8, 5]
WINDOWS = [
    Window(*each) for each in ((1, 1), (1, 4), (4, 4), (5, 5), (12, 12), (13, 13), (20, 20), (2, 5), (3, 4), (5, 13))
]
Params = dict[str, Tensor]


@pytest.fixture(autouse=True)
def little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least number of rounds: what is tested is not the clock."""
    monkeypatch.setattr(passes, "SECONDS", 0)


Step = Callable[[Tensor, tuple[Tensor, ...], Params], tuple[Tensor, tuple[Tensor, ...]]]


class Gain(nn.Module):
    """A cell of the user's own, with a parameter that stands in no product."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(D + H, H), nn.LayerNorm(H)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return 0.5 * h + torch.tanh(self.norm(self.linear(torch.cat((x, h), dim=-1))))


tt.register_cell(Gain)


@dataclass(frozen=True)
class Case:
    """A layer, as it is called, and what makes one step of it."""

    make: Callable[[], nn.Module]
    layers: int = 1
    kinds: int = 1
    packed: bool = False
    looped: bool = False
    masked: bool = False
    at_cell: bool = False

    def layer(self) -> nn.Module:
        torch.manual_seed(3)
        return self.make().double()

    def run(self, layer: nn.Module, x: Tensor) -> Tensor:
        """(T, B, ·): everything that a loss may read."""
        if self.looped:
            state: Any = tuple(torch.zeros(B, H).double() for _ in range(self.kinds))
            out = []
            for k in range(T):
                if self.masked:
                    state = tuple(each * mask(k) for each in state)
                made = layer(x[k], state if self.kinds > 1 else state[0])
                state = made if isinstance(made, tuple) else (made,)
                out.append(state[-1] if self.at_cell else state[0])
            return torch.stack(out)
        if self.packed:
            return pad_packed_sequence(layer(pack_padded_sequence(x, torch.tensor(LENGTHS)))[0])[0]
        return layer(x)[0]

    def step(
        self, layer: nn.Module, x: Tensor, states: tuple[Tensor, ...], k: int
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One step by the layer's own forward, on sequences of one step."""
        if self.looped:
            if self.masked:
                states = tuple(each * mask(k) for each in states)
            made = layer(x, states if self.kinds > 1 else states[0])
            after = made if isinstance(made, tuple) else (made,)
            return (after[-1] if self.at_cell else after[0]), after
        out, made = layer(x[None], states if self.kinds > 1 else states[0])
        return out[0], made if isinstance(made, tuple) else (made,)

    def zeros(self, layer: nn.Module) -> tuple[Tensor, ...]:
        if self.looped:
            return tuple(torch.zeros(B, H).double() for _ in range(self.kinds))
        widths = [getattr(layer, "proj_size", 0) or H, H][: self.kinds]
        return tuple(torch.zeros(self.layers, B, width).double() for width in widths)


def mask(step: int) -> Tensor:
    """Episode ends: of the first two sequences at step 6."""
    out = torch.ones(B, 1, dtype=torch.float64)
    out[:2] = step != 6
    return out


def rate() -> Recurrent:
    shapes = Rate().shapes(D, H)
    return Recurrent(Rate(), Weights(**{name: torch.randn(shape) * 0.6 for name, shape in shapes.items()}))


CASES = {
    "GRU": Case(lambda: nn.GRU(D, H)),
    "LSTM": Case(lambda: nn.LSTM(D, H), kinds=2),
    "RNN": Case(lambda: nn.RNN(D, H)),
    "RNN-relu": Case(lambda: nn.RNN(D, H, nonlinearity="relu")),
    "GRU-2": Case(lambda: nn.GRU(D, H, 2), layers=2),
    "LSTM-3": Case(lambda: nn.LSTM(D, H, 3), layers=3, kinds=2),
    "LSTM-proj": Case(lambda: nn.LSTM(D, H, 2, proj_size=2), layers=2, kinds=2),
    "GRU-packed": Case(lambda: nn.GRU(D, H), packed=True),
    "LSTM-2-packed": Case(lambda: nn.LSTM(D, H, 2), layers=2, kinds=2, packed=True),
    "GRUCell": Case(lambda: nn.GRUCell(D, H), looped=True),
    "LSTMCell": Case(lambda: nn.LSTMCell(D, H), looped=True, kinds=2),
    "LSTMCell-c": Case(lambda: nn.LSTMCell(D, H), looped=True, kinds=2, at_cell=True),
    "RNNCell-done": Case(lambda: nn.RNNCell(D, H), looped=True, masked=True),
    "own": Case(Gain, looped=True),
    "Recurrent": Case(rate),
}
every_case = pytest.mark.parametrize("name", CASES)
LOSSES = ["every", "some", "last"]


@functools.cache
def drawn() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return tuple(torch.randn(T, B, width, generator=generator, dtype=torch.float64) for width in (D, H))  # type: ignore[return-value]


def loss_at(out: Tensor, step: int, case: Case, which: str) -> Tensor:
    """What the loss takes at one step, out (B, ·): nonlinear in the output, of the sequences that are not over."""
    _, direction = drawn()
    last = torch.tensor(LENGTHS if case.packed else [T] * B) - 1
    on = {"every": step <= last, "some": (step % 4 == 1) & (step <= last), "last": step == last}[which]
    return ((out + 0.3 * out**2) * direction[step, :, : out.shape[-1]]).sum(-1) @ on.double()


@functools.cache
def traced(name: str, which: str) -> Trace:
    """The outermost trace of the recorded step."""
    case, (x, _) = CASES[name], drawn()
    layer = case.layer()
    with tt.record(layer) as record:
        out = case.run(layer, x)
        torch.stack([loss_at(out[k], k, case, which) for k in range(len(out))]).sum().backward()
    return record.traces()[0]


@functools.cache
def truth(name: str, which: str, window: Window) -> Params:
    """What truncated BPTT gives: each pass runs from a detached state and counts the losses of its own K1 steps."""
    case, (x, _) = CASES[name], drawn()
    layer = case.layer()
    states = [case.zeros(layer)]
    with torch.no_grad():
        for k in range(T):
            states.append(case.step(layer, x[k], states[-1], k)[1])
    layer.zero_grad()
    for done in range(0, T, window.k1):
        begin = max(0, done + window.k1 - window.k2)
        state, loss = states[begin], torch.zeros((), dtype=torch.float64)
        for k in range(begin, min(done + window.k1, T)):
            out, state = case.step(layer, x[k], state, k)
            if k >= done:
                loss = loss + loss_at(out, k, case, which)
        if loss.requires_grad:
            loss.backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in layer.named_parameters()}


def named(trace: Trace, given: Params) -> Params:
    """By the module's own names."""
    return {trace.names[name].removeprefix(f"{trace.module}."): value for name, value in given.items()}


def off(got: Params, wanted: Params, whole: Params) -> float:
    assert got.keys() == wanted.keys()
    size = sum(float(value.square().sum()) for value in whole.values()) ** 0.5
    return max(float((got[name] - value).norm()) for name, value in wanted.items()) / size


# --- the gradient --------------------------------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("which", LOSSES)
def test_the_truncated_gradient_is_that_of_truncated_passes(name, which):
    trace = traced(name, which)
    lin, whole = Linearization(trace), truth(name, which, Window(T, T))
    for window in WINDOWS:
        assert off(named(trace, gradients(lin, window)), truth(name, which, window), whole) < 1e-10, window


@every_case
def test_truncation_matters_in_these_cases(name):
    whole = truth(name, "every", Window(T, T))
    for window in (Window(4, 4), Window(1, 4), Window(2, 5)):
        assert off(truth(name, "every", window), whole, whole) > 1e-3


def test_chunks_give_nothing_for_what_stands_before_the_last_one():
    """With a loss at the last step alone, chunks of 5 over 13 steps keep its last three."""
    got = gradients(Linearization(traced("GRU", "last")), Window(5, 5))
    wanted = gradients(Linearization(traced("GRU", "last")), Window(1, 3))
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_the_size_of_the_loss_does_not_matter_in_float32(scale):
    torch.manual_seed(0)
    layer, x = nn.GRU(D, H), torch.randn(T, B, D)
    found = []
    for factor in (1.0, scale):
        with tt.record(layer) as record:
            (layer(x)[0].square().sum() * factor).backward()
        [trace] = record.traces()
        found.append(gradients(Linearization(trace), Window(4, 4)))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name] / scale, value, rtol=1e-4, atol=1e-6 * float(value.abs().max()))


def test_no_term_underflows():
    """An adjoint that falls to 1e-60 in float32 and grows back: the state is multiplied by 1e-2 thirty times, then by 1e2."""
    cell, factors = nn.RNNCell(1, 1), torch.tensor([1.0] + 30 * [1e2] + 30 * [1e-2])
    with torch.no_grad():
        for name, value in {"weight_ih": 0.0, "weight_hh": 1.0, "bias_ih": 0.0, "bias_hh": 0.0}.items():
            getattr(cell, name).fill_(value)
    with tt.record(cell) as record:
        h = torch.zeros(1, 1)
        for factor in factors:
            h = cell(torch.zeros(1, 1), h * factor)
        h.sum().backward()
    lin = Linearization(record.traces()[0])
    passed = np.cumprod([1.0, *factors.double().flip(0).tolist()])[:-1]  # by lag
    for window, lags in ((Window(1, 61), 61), (Window(61, 61), 61), (Window(40, 40), 21), (Window(1, 40), 40)):
        assert float(gradients(lin, window)["bias_ih"]) == pytest.approx(passed[:lags].sum(), rel=1e-5)


# --- bias, cosine, intervals ----------------------------------------------------------------------------------------------


class Net(nn.Module):
    """A recurrent layer under a head, and the loss at every step or the last."""

    def __init__(self, kind: type[nn.RNNBase] = nn.GRU, layers: int = 1) -> None:
        super().__init__()
        self.rnn, self.head = kind(D, H, layers), nn.Linear(H, 1)  # type: ignore[call-arg]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


def batch(seed: int = 0, size: int = B) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(T, size, D, generator=generator, dtype=torch.float64)
    return x, torch.randn(T, size, 1, generator=generator, dtype=torch.float64)


def square(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().sum()


def by_hand(net: Net, batches: list[tuple[Tensor, Tensor]], window: Window) -> Tensor:
    """The truncated gradient of the layer's weights as one vector, by a loop over the fused layer."""
    net = copy.deepcopy(net)
    net.zero_grad()
    for x, y in batches:
        for done in range(0, T, window.k1):
            begin, end = max(0, done + window.k1 - window.k2), min(done + window.k1, T)
            with torch.no_grad():
                state = net.rnn(x[:begin])[1] if begin else None
            out = net.head(net.rnn(x[begin:end], state)[0])
            square(out[done - begin :], y[done:end]).backward()
    return torch.cat([parameter.grad.flatten() for parameter in net.rnn.parameters()])


def compared(net: Net, batches: list[tuple[Tensor, Tensor]], window: Window) -> tuple[float, float]:
    whole, got = by_hand(net, batches, Window(T, T)), by_hand(net, batches, window)
    return float((whole - got).norm() / whole.norm()), float(whole @ got / whole.norm() / got.norm())


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(1)
    return Net().double()


@pytest.mark.parametrize(("kind", "layers"), [(nn.GRU, 1), (nn.LSTM, 2), (nn.RNN, 1)])
def test_bias_and_cosine_are_those_of_truncated_passes(kind, layers):
    torch.manual_seed(1)
    net, batches = Net(kind, layers).double(), [batch(0), batch(1)]
    told = tt.window(net, batches, square, windows=[3, (2, 5), "4,8"], cost=False, tolerance=0)
    assert {str(row.window) for row in told.pairs} >= {"2,5", "4,8"}
    assert 3 in {row.window.k2 for row in told.chunks}
    for row in (*told.chunks, *told.sliding, *told.pairs):
        bias, cosine = compared(net, batches, row.window)
        assert row.whole.bias == pytest.approx(bias, rel=1e-9, abs=1e-10), row.window
        assert row.whole.cosine == pytest.approx(cosine, rel=1e-10), row.window


def test_the_interval_is_the_jackknifes(net):
    """Four sequences, each left out in turn."""
    x, y = batch()
    told = tt.window(net, (x, y), square, windows=[5], cost=False)
    row = next(row for row in told.chunks if row.window.k2 == 5)
    rest = [[k for k in range(B) if k != one] for one in range(B)]
    again = np.array([compared(net, [(x[:, keep], y[:, keep])], Window(5, 5))[0] for keep in rest])
    error = np.sqrt(3 / 4 * np.square(again - again.mean()).sum())
    margin = 3.182446305284263 * error  # of Student's t with 3 degrees of freedom, two-sided 95 %
    bias, _ = compared(net, [(x, y)], Window(5, 5))
    assert (row.whole.low, row.whole.high) == pytest.approx((max(0, bias - margin), bias + margin), rel=1e-6)


def test_few_sequences_have_no_interval(net):
    told = tt.window(net, batch(size=3), square, cost=False)
    assert all(np.isnan(row.whole.low) for row in told.chunks)


class Two(Net):
    """Two recurrent modules in series, and one that steps a cell of its own."""

    def __init__(self, packed: bool = False) -> None:
        super().__init__()
        self.middle, self.top, self.packed = nn.LSTM(H, H, 2, batch_first=True), nn.GRUCell(H, H), packed

    def begin(self, size: int) -> list[Any]:
        zeros = torch.zeros(2, size, H).double()
        return [zeros[:1], (zeros, zeros), zeros[0]]

    def pieces(self, x: Tensor, states: list[Any], lengths: list[int] | None = None) -> tuple[Tensor, list[Any]]:
        if lengths is None:
            out, first = self.rnn(x, states[0])
        else:
            out, first = self.rnn(pack_padded_sequence(x, torch.tensor(lengths)), states[0])
            out = pad_packed_sequence(out, total_length=len(x))[0]
        out, second = self.middle(torch.tanh(out).transpose(0, 1), states[1])
        told, third = [], states[2]
        for now in out.transpose(0, 1):
            third = self.top(now, third)
            told.append(third)
        return self.head(torch.stack(told)), [first, second, third]

    def forward(self, x: Tensor) -> Tensor:
        return self.pieces(x, self.begin(x.shape[1]), LENGTHS if self.packed else None)[0]


def detached(state: Any) -> Any:
    return tuple(each.detach() for each in state) if isinstance(state, tuple) else state.detach()


def two_by_hand(net: Two, batches: list[tuple[Tensor, Tensor]], size: int) -> dict[str, Tensor]:
    """The step in chunks, all states passed on and detached; sequences that are over are left out of the loss."""
    net = copy.deepcopy(net)
    for x, y in batches:
        states = net.begin(x.shape[1])
        for begin in range(0, T, size):
            piece = x[begin : begin + size]
            out, states = net.pieces(piece, [detached(state) for state in states])
            square(out, y[begin : begin + size]).backward()
    return {name: value.grad for name, value in net.named_parameters()}


def check_through(rows, net, batches):
    """Bias and cosine of each module, and of all together, are those of loops that are really cut."""
    whole = two_by_hand(net, batches, T)
    for row in rows:
        cut = two_by_hand(net, batches, row.window.k2)
        for module in ("rnn", "middle", "top", ""):
            names = [n for n in whole if n.startswith(module) and not n.startswith("head")]
            g, k = (torch.cat([each[name].flatten() for name in names]) for each in (whole, cut))
            got = row.layers[module] if module else row.whole
            assert got.bias == pytest.approx(float((g - k).norm() / g.norm()), rel=1e-9, abs=1e-12)
            assert got.cosine == pytest.approx(float(g @ k / g.norm() / k.norm()), rel=1e-9)


def test_several_modules_are_told_by_the_step_run_in_chunks():
    torch.manual_seed(1)
    net, batches = Two().double(), [batch(seed) for seed in range(4)]
    told = tt.window(net, batches, square, needed_lag=4, cost=False)
    assert told.through
    check_through(told.chunks, net, batches)
    assert told.chunks[2].whole.low < told.chunks[2].whole.bias < told.chunks[2].whole.high
    assert any("Several recurrent modules" in reason for reason in told.reasons)


def test_within_each_module_the_chunks_would_be_others():
    """What the upper modules cut off matters: the numbers of each module's own trace are not those of the step in chunks."""
    torch.manual_seed(1)
    net = Two().double()
    told = tt.window(net, batch(), square, needed_lag=4, cost=False)
    together = next(row for row in told.chunks if row.window.k2 == 5)
    with tt.record(net) as record:
        x, y = batch()
        square(net(x), y).backward()
    trace = record.traces()[0]
    alone, whole = (gradients(Linearization(trace), w) for w in (Window(5, 5), Window(T, T)))
    g, k = (torch.cat([value.flatten() for value in each.values()]) for each in (whole, alone))
    assert abs(float((g - k).norm() / g.norm()) - together.layers["rnn"].bias) > 1e-3


def test_packed_calls_are_cut_too():
    """Chunks of a packed batch: the same as those of each sequence alone."""
    torch.manual_seed(1)
    net, (x, y) = Two(packed=True).double(), batch()
    inside = (torch.arange(T)[:, None] < torch.tensor(LENGTHS))[..., None]
    told = tt.window(net, (x, y), lambda out, target: ((out - target) * inside).square().sum())
    assert told.through
    assert all(row.cost is not None and row.cost.residual < 1e-10 for row in (*told.chunks, *told.pairs))
    alone = [([x[:length, b : b + 1]], y[:length, b : b + 1]) for b, length in enumerate(LENGTHS)]

    def by_hand(size: int) -> Tensor:
        fresh = copy.deepcopy(net)
        for [one], target in alone:
            states = fresh.begin(1)
            for begin in range(0, len(one), size):
                out, states = fresh.pieces(one[begin : begin + size], [detached(state) for state in states])
                square(out, target[begin : begin + size]).backward()
        return torch.cat([value.grad.flatten() for value in fresh.rnn.parameters()])

    whole, cut = by_hand(T), by_hand(5)
    row = next(row for row in told.chunks if row.window.k2 == 5)
    assert row.layers["rnn"].bias == pytest.approx(float((whole - cut).norm() / whole.norm()), rel=1e-9)


def test_a_step_that_calls_a_layer_twice_is_told_within_each():
    class Twice(Two):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + super().forward(x.flip(0))

    torch.manual_seed(1)
    told = tt.window(Twice().double(), batch(), square, cost=False)
    assert not told.through
    assert any("each one's lags are within it" in reason for reason in told.reasons)


# --- data sets ------------------------------------------------------------------------------------------------------------


MANY = 11


@functools.cache
def streamed() -> tuple[Net, list[tuple[Tensor, Tensor]], Any]:
    torch.manual_seed(1)
    net, batches = Net().double(), [batch(seed, size) for seed, size in enumerate([4, 3, 4, 5, 1, 4, 4, 2, 4, 6, 4])]
    options = {"windows": [3, (2, 5), "4,8"], "needed_lag": 4, "cost": False, "tolerance": 0, "stop_when": None}
    return net, batches, tt.window(net, iter(batches), square, **options)


def test_of_many_batches_bias_and_cosine_are_those_of_truncated_passes():
    net, batches, told = streamed()
    assert told.flow.stream == tt.flow.Stream(MANY, "all batches were read")
    assert told.batch == sum(x.shape[1] for x, _ in batches)
    assert {str(row.window) for row in told.pairs} >= {"2,5", "4,8"}
    for row in (*told.chunks, *told.sliding, *told.pairs):
        bias, cosine = compared(net, batches, row.window)
        assert row.whole.bias == pytest.approx(bias, rel=1e-9, abs=1e-10), row.window
        assert row.whole.cosine == pytest.approx(cosine, rel=1e-10), row.window


def test_of_many_batches_the_interval_leaves_out_groups_of_them():
    """Eight groups: batches 0 and 8, 1 and 9, 2 and 10, and one each."""
    net, batches, told = streamed()
    assert told.over == "batches"
    for row in (told.chunks[3], told.pairs[0]):
        rest = [[each for k, each in enumerate(batches) if k % 8 != group] for group in range(8)]
        again = np.array([compared(net, some, row.window)[0] for some in rest])
        margin = 2.364624251592785 * np.sqrt(7 / 8 * np.square(again - again.mean()).sum())  # Student's t, 7 degrees
        wanted = max(0, row.whole.bias - margin), row.whole.bias + margin
        assert (row.whole.low, row.whole.high) == pytest.approx(wanted, rel=1e-6)


def test_of_many_batches_sliding_windows_have_the_flows_intervals():
    net, batches, told = streamed()
    wanted = tt.diagnose(net, batches, square, stop_when=None, tolerance=0).flow.layers["rnn"].intervals
    for row in told.sliding:
        if row.window.k2 < T:
            assert (row.whole.low, row.whole.high) == pytest.approx(wanted.bias[:, row.window.k2 - 1])
            assert row.whole.low <= row.whole.bias <= row.whole.high
    assert "sliding.low" not in {each.field for each in told.missing}


def test_what_was_read_is_told():
    _, _, told = streamed()
    document, text = told.to_dict(), " ".join(repr(told).split())
    assert document["stream"] == {"batches": MANY, "stopped": "all batches were read", "partial": False}
    assert document["over"] == "batches"
    assert f"{MANY} batches: all batches were read. The windows were chosen on the first 8" in text
    assert "over batches" in text


def test_many_batches_are_joined_up_to_eight(net):
    """One by one or joined, the same numbers; and no more are read than are asked for."""
    batches = [batch(seed) for seed in range(MANY)]
    few = tt.window(net, iter(batches), square, cost=False, limit=8)
    assert (few.over, few.flow.stream.batches, few.batch) == ("sequences", 8, 8 * B)
    early = tt.window(net, iter(batches * 9), square, cost=False, limit=60)
    assert 8 < early.flow.stream.batches < 60
    assert "known to ±" in early.flow.stream.stopped


def test_several_modules_of_many_batches_are_told_by_the_step_run_in_chunks():
    torch.manual_seed(1)
    net, batches = Two().double(), [batch(seed, 2) for seed in range(9)]
    options = {"cost": False, "demand": False, "stop_when": None}
    told = tt.window(net, batches, square, needed_lag=4, windows=[(2, 5)], **options)
    assert (told.through, told.over) == (True, "batches")
    check_through(told.chunks[::3], net, batches)
    told_apart = {each.field: each.reason for each in told.missing}
    assert told_apart["sliding.whole"] == told_apart["pairs.whole"]
    assert "within each module" in told_apart["sliding.whole"]
    text = " ".join(repr(told).split())
    assert "sliding windows and K1,K2: within each module" in text
    # The same pair, of the lowest module's own traces alone: that is what "within each module" means.
    pair = next(row for row in told.pairs if row.window == Window(2, 5))
    sums: Params = {}
    wholes: Params = {}
    for x, y in batches:
        with tt.record(net) as record:
            square(net(x), y).backward()
        lin = Linearization(record.traces()[0])
        for into, window in ((sums, pair.window), (wholes, Window(T, T))):
            for name, value in gradients(lin, window).items():
                into[name] = into.get(name, 0) + value
    g, k = (torch.cat([value.flatten() for value in each.values()]) for each in (wholes, sums))
    assert pair.layers["rnn"].bias == pytest.approx(float((g - k).norm() / g.norm()), rel=1e-9)


def test_later_batches_may_be_longer(net):
    """The first eight are of 6 steps, the others of 13: the whole sequence is one of the windows."""
    batches = [(x[:6], y[:6]) if place < 8 else (x, y) for place, (x, y) in enumerate(map(batch, range(MANY)))]
    told = tt.window(net, batches, square, needed_lag=4, windows=[5], cost=False, tolerance=0, stop_when=None)
    assert (told.steps, told.chunks[-1].window.k2, told.chunks[-1].whole.bias) == (T, T, 0.0)

    def by_steps(size: int) -> Tensor:
        copied = copy.deepcopy(net)
        for x, y in batches:
            state = None
            for begin in range(0, len(x), size):
                out, state = copied.rnn(x[begin : begin + size], None if state is None else state.detach())
                square(copied.head(out), y[begin : begin + size]).backward()
        return torch.cat([parameter.grad.flatten() for parameter in copied.rnn.parameters()])

    whole, cut = by_steps(T), by_steps(5)
    row = next(row for row in told.chunks if row.window.k2 == 5)
    assert row.whole.bias == pytest.approx(float((whole - cut).norm() / whole.norm()), rel=1e-9)


def test_a_layer_that_only_late_batches_use_is_missing():
    class Late(Net):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.GRU(D, H)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((self.other if x.shape[1] == 2 else self.rnn)(x)[0])

    torch.manual_seed(1)
    batches = [batch(seed, 2 if seed > 8 else 3) for seed in range(MANY)]
    net = Late().double()
    told = tt.window(net, batches, square, needed_lag=4, cost=False, stop_when=None)
    assert list(told.flow.layers) == ["rnn"]
    assert told.chunks[2].whole.bias == pytest.approx(compared(net, batches[:9], told.chunks[2].window)[0], rel=1e-9)
    reasons = {each.field: each.reason for each in told.missing + told.flow.missing}
    assert "not reached in the first 8 batches" in reasons["layers.other"]


def test_a_ctrl_c_over_many_batches_keeps_what_was_done(net):
    def broken() -> Any:
        yield from (batch(seed) for seed in range(10))
        raise KeyboardInterrupt

    before = copy.deepcopy(net.state_dict())
    told = tt.window(net, broken(), square, needed_lag=4, cost=False, tolerance=0)
    assert (told.flow.stream.batches, told.flow.stream.partial) == (10, True)
    row = next(row for row in told.chunks if row.window.k2 == 5)
    bias, _ = compared(net, [batch(seed) for seed in range(10)], row.window)
    assert row.whole.bias == pytest.approx(bias, rel=1e-9)
    assert "interrupted after 10 batches" in " ".join(repr(told).split())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_of_many_batches_the_size_of_the_loss_does_not_matter(net, scale):
    batches, options = [batch(seed) for seed in range(9)], {"needed_lag": 4, "cost": False, "stop_when": None}
    wanted, got = (
        tt.window(net, batches, lambda a, b, factor=factor: square(a, b) * factor, **options) for factor in (1, scale)
    )
    for a, b in zip((*wanted.chunks, *wanted.pairs), (*got.chunks, *got.pairs), strict=True):
        assert dataclasses.astuple(a.whole) == pytest.approx(dataclasses.astuple(b.whole), rel=1e-9)


def test_where_the_groups_take_too_much_there_is_no_interval(net, monkeypatch):
    monkeypatch.setattr("throughtime.truncation.gather.MEMORY", 1000)
    told = tt.window(net, [batch(seed) for seed in range(9)], square, needed_lag=4, cost=False, stop_when=None)
    assert all(np.isnan(row.whole.low) for row in told.chunks)
    assert "more than" in {each.field: each.reason for each in told.missing}["chunks.low"]
    bias, _ = compared(net, [batch(seed) for seed in range(9)], told.chunks[2].window)
    assert told.chunks[2].whole.bias == pytest.approx(bias, rel=1e-9)


# --- what is really measured ----------------------------------------------------------------------------------------------


def measured(name: str, which: str, windows: list[Window]) -> Any:
    case, (x, _) = CASES[name], drawn()
    layer = case.layer()
    with tt.record(layer) as record:
        out = case.run(layer, x)
        torch.stack([loss_at(out[k], k, case, which) for k in range(len(out))]).sum().backward()
    traces = record.traces()
    lowest = next(trace for trace in traces if not trace.cell.compound)
    own = passes.layer_of(layer, traces[0], lowest)
    return passes.measure([own], windows, lambda layer, window: gradients(Linearization(layer.trace), window))


@every_case
@pytest.mark.parametrize("which", LOSSES)
def test_the_measured_passes_have_the_computed_gradient(name, which):
    full, costs = measured(name, which, WINDOWS)
    for window, cost in costs.items():
        assert cost.residual < 1e-10, window
        assert cost.low <= cost.time <= cost.high
    assert costs[Window(T, T)] == full


@pytest.mark.parametrize("name", ["GRU", "LSTM-3", "GRUCell"])
def test_memory_grows_with_the_window(name):
    full, costs = measured(name, "every", WINDOWS)
    case = CASES[name]
    for window, cost in costs.items():
        held = max(min(done + window.k1, T) - max(0, done + window.k1 - window.k2) for done in range(0, T, window.k1))
        per_step = full.memory / T
        assert (held - 2) * per_step <= cost.memory <= (held + 2) * per_step, window
        assert cost.memory >= held * B * H * 8 * case.layers  # one state of every layer and step, at least


def test_what_cannot_be_compared_has_no_residual():
    torch.manual_seed(0)
    net = nn.GRU(D, H, 2, dropout=0.5).double()
    told = tt.window(net, batch(size=2)[0], lambda out: out[0].sum(), windows=[4])
    assert all(row.cost is not None and np.isnan(row.cost.residual) for row in told.chunks)


def test_what_autograd_keeps_is_counted_as_autograd_keeps_it():
    """An Elman net of one unit: torch keeps, of each step, at least the state that tanh made."""
    layer = nn.RNN(1, 64, bias=False)
    kept = []
    for steps in (100, 200):
        x = torch.randn(steps, 8, 1)
        told = tt.window(layer, x, lambda out: out[0].sum())
        assert told.full is not None
        kept.append(told.full.memory)
    grown = (kept[1] - kept[0]) / 100
    assert 64 * 8 * 4 <= grown <= 6 * 64 * 8 * 4


# --- the advice -----------------------------------------------------------------------------------------------------------


class Last(nn.Module):
    """Says something at the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(1, 16), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][-1])


class Every(Last):
    """Says something at every step."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


def last_task(seed: int, lag: int = 30) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(seed)
    return Last(), delayed_input(60, 128, torch.Generator().manual_seed(seed), lags=(lag,))


def every_task(seed: int, lag: int = 30) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(seed)
    x = autoregressive(90, 64, torch.Generator().manual_seed(seed))
    return Every(), (x, x.roll(lag, 0))


def beyond(lag: int) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda output, target: (output - target)[lag:].square().mean()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("level", [0.01, 0.5, 0.99])
def test_never_a_window_below_the_demanded_lag(seed, level):
    for (net, data), loss in ((last_task(seed), nn.MSELoss()), (every_task(seed), beyond(30))):
        told = tt.window(net, data, loss, level=level, cost=False, windows=[(2, 10)])
        assert told.farthest == 30
        assert told.recommended is not None
        for row in (told.recommended, *told.alternatives):
            assert row.window.k2 >= 31
            assert row.reaching >= 0.5
            assert row.whole.bias <= level or row.window.k2 == told.steps


def test_a_smaller_word_of_the_user_does_not_lower_it():
    net, data = last_task(0)
    told = tt.window(net, data, nn.MSELoss(), needed_lag=5, level=0.9, cost=False)
    assert told.farthest == 30
    assert told.recommended is not None
    assert told.recommended.window.k2 >= 31


def no_demand(seed: int = 0) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    net, (x, _) = last_task(seed)
    return net, (x, torch.randn(128, 1, generator=torch.Generator().manual_seed(seed + 100)))


def test_without_demand_there_is_no_recommendation():
    net, data = no_demand()
    told = tt.window(net, data, nn.MSELoss(), cost=False)
    assert told.farthest is None
    assert told.recommended is None
    assert told.alternatives == ()
    words = " ".join(told.reasons)
    for each in ("No demand was detected (B=128", "not “not needed”", "no window is recommended", "needed_lag"):
        assert each in words
    assert told.chunks
    assert "none recommended" in repr(told)


def test_a_stated_lag_makes_one():
    net, data = no_demand()
    told = tt.window(net, data, nn.MSELoss(), needed_lag=20, cost=False)
    assert told.recommended is not None
    assert 21 <= told.recommended.window.k2 < 60


def test_a_lag_outside_of_the_sequence_is_told():
    net, data = no_demand()
    told = tt.window(net, data, nn.MSELoss(), needed_lag=60, cost=False)
    assert told.recommended is None
    assert any("record at least 61" in reason for reason in told.reasons)


def test_one_loss_is_cut_once_and_not_in_chunks():
    net, data = last_task(0)
    told = tt.window(net, data, nn.MSELoss())
    assert told.recommended is not None
    assert (told.recommended.window.k1, told.recommended.window.k2) == (1, 31)
    assert told.recommended.cost is not None
    assert told.full is not None
    assert told.recommended.cost.memory < 0.6 * told.full.memory
    assert any("The loss stands at 1 step of 60" in reason for reason in told.reasons)
    # Chunks of 31 steps: the last one holds 29, and no loss reaches lag 30.
    chunk = next(row for row in told.chunks if row.window.k2 == 31)
    assert chunk.reaching == 0


def test_reaching_counts_the_losses_of_each_chunk(net):
    told = tt.window(net, batch(), square, needed_lag=4, windows=[6], cost=False)
    row = next(row for row in told.chunks if row.window.k2 == 6)
    # Steps 4 … 12 could reach back 4; in chunks that begin at 0, 6 and 12 steps 4, 5, 10 and 11 do.
    assert row.reaching == pytest.approx(4 / 9)
    pair = next(row for row in told.pairs)
    assert pair.reaching == 1


def test_where_the_gradient_does_not_arrive_the_advice_says_so():
    torch.manual_seed(0)
    x, y = delayed_input(100, 256, torch.Generator().manual_seed(0), lags=(90,))
    told = tt.window(Last(), (x, y), nn.MSELoss(), cost=False)
    assert told.farthest == 90
    assert any("Cure the reach first" in reason for reason in told.reasons)


def test_both_directions_have_no_chunks():
    torch.manual_seed(0)
    net = nn.GRU(D, H, bidirectional=True).double()
    told = tt.window(net, batch()[0], lambda out: out[0].square().sum(), needed_lag=3)
    assert told.chunks == ()
    assert told.recommended is None
    assert told.sliding
    assert "runs back in time" in " ".join(told.reasons)
    json.loads(told.to_json())


def row(k: int, bias: float, reaching: float = 1.0) -> Row:
    return Row(Window(k, k), Lost(bias, 1.0), {}, reaching)


def test_one_lucky_window_is_not_taken():
    rows = [row(10, 0.05), row(20, 0.2), row(30, 0.08), row(40, 0.01)]
    for order in itertools.permutations(rows):
        found = first_of(order, 5, 0.1)
        assert found is not None
        assert found.window.k2 == 30
    assert first_of(rows, 30, 0.1) == rows[3]
    assert first_of(rows, 40, 0.1) is None
    assert first_of(rows, None, 0.9) is None
    assert first_of([replace(rows[3], reaching=0.49)], 5, 0.9) is None


# --- the door -------------------------------------------------------------------------------------------------------------


def test_the_model_is_left_as_it_was():
    torch.manual_seed(0)
    net = Net()
    net.rnn.weight_hh_l0.requires_grad_(False)
    net.head.weight.grad = torch.ones_like(net.head.weight)
    before = copy.deepcopy(net.state_dict())
    state = torch.get_rng_state()
    x, y = (each.float() for each in batch())
    tt.window(net, (x, y), square)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not net.rnn.weight_hh_l0.requires_grad
    assert torch.equal(net.head.weight.grad, torch.ones_like(net.head.weight))
    assert net.rnn.weight_ih_l0.grad is None
    assert not net.rnn._forward_hooks


@pytest.mark.parametrize("stop", range(0, 12, 3))
def test_an_interruption_leaves_it_too(stop):
    net, count = Net().double(), itertools.count()
    before = copy.deepcopy(net.state_dict())

    def progress(*_: Any) -> None:
        if next(count) == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tt.window(net, batch(), square, progress=progress)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("given", [0, -1, (5, 3), (0, 4), "a", "1,2,3", "", 2.5, (1, 2, 3), None])
def test_a_window_that_is_none_is_an_error(net, given):
    with pytest.raises(tt.ThroughtimeError, match=r"got (the|a) window"):
        tt.window(net, batch(), square, windows=[given])


@pytest.mark.parametrize("given", [17, "17", Window(17, 17)])
def test_a_single_window_needs_no_list(net, given):
    told = tt.window(net, batch(), square, windows=given, cost=False)
    assert 17 in {row.window.k2 for row in told.chunks}


def test_where_max_lag_ends_the_lags_no_tolerance_is_named(net):
    told = tt.window(net, batch(), square, max_lag=3, cost=False)
    assert "max_lag ended them" in {each.field: each.reason for each in told.missing}["sliding.bias"]


def test_other_words_that_are_wrong_are_errors(net):
    with pytest.raises(tt.ThroughtimeError, match="no loss"):
        tt.window(net, batch())
    with pytest.raises(tt.ThroughtimeError, match="level"):
        tt.window(net, batch(), square, level=1.5)
    with pytest.raises(tt.ThroughtimeError, match="needed_lag"):
        tt.window(net, batch(), square, needed_lag=-1)


def test_the_views_hold_every_window(net):
    told = tt.window(net, batch(), square, needed_lag=4, windows=[6, (2, 8)])
    document = json.loads(told.to_json(indent=1))
    assert document["schema"] == "throughtime/window/1"
    assert document["farthest"] == 4
    assert document["recommended"]["k2"] >= 5
    assert [each["k2"] for each in document["chunks"]] == [row.window.k2 for row in told.chunks]
    assert all(each["cost"]["residual"] < 1e-10 for each in document["chunks"])
    text = repr(told)
    lines = text.splitlines()
    for row in told.chunks:
        assert any(f"│ {row.window}" in " ".join(line.split()) for line in lines), row.window
    assert "2,8" in text
    assert "│ 4 * │" in " ".join(text.split())
    assert "5 *" not in text
    assert "reach" in text
