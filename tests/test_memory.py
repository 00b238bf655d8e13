"""What the decomposition holds: no more than it needs."""

import platform
import subprocess
import sys
from dataclasses import replace
from textwrap import dedent

import numpy as np
import pytest
import torch
from torch import nn

import throughtime as tt
from throughtime import gates
from throughtime.asked import Asked
from throughtime.budget import Room, in_bytes, in_words
from throughtime.errors import InputError
from throughtime.explain import explain
from throughtime.linearize import Linearization, Window
from throughtime.order import Order
from throughtime.reducers.initial_state import InitialState
from throughtime.streaming.accumulate import borders, terms_of
from throughtime.sweep import sweep
from throughtime.trace import Trace


def trace(layer: nn.Module, steps: int, batch: int = 2) -> Trace:
    """With a loss at every step."""
    torch.manual_seed(0)
    with tt.record(layer) as rec:
        layer(torch.randn(steps, batch, layer.input_size))[0].square().sum().backward()
    return rec.traces()[0]


def test_what_reaches_the_initial_state_holds_no_rows_of_other_origins():
    lin = Linearization(trace(nn.GRU(2, 3), 20))
    kept = InitialState(lin)
    sweep(lin, [kept], 0)
    assert len(kept.told) == 20
    for tensors in kept.told.values():
        for tensor in tensors:
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_gates_are_the_same_when_they_are_asked_for_again():
    lin = Linearization(trace(nn.LSTM(2, 3), 9))
    once, again = gates.told(lin, None), gates.told(lin, None)
    assert list(once) == list(again) == ["i", "f", "o"]
    for name, gate in once.items():
        np.testing.assert_array_equal(gate.logits, again[name].logits)
        np.testing.assert_array_equal(gate.tally, again[name].tally)


def test_portions_say_the_same_as_all_steps_at_once(monkeypatch):
    layer = nn.GRU(2, 3)
    x = torch.randn(30, 2, 2)
    with tt.record(layer) as rec:
        layer(nn.utils.rnn.pack_padded_sequence(x, [30, 7]))[1].square().sum().backward()
    wanted = rec.flow(demand=False).layers["rnn"]
    monkeypatch.setattr("throughtime.trace.PORTION", 6)
    monkeypatch.setattr("throughtime.gates.PORTION", 5)
    monkeypatch.setattr("throughtime.reducers.adjoints.PORTION", 30)
    got = rec.flow(demand=False).layers["rnn"]
    for one, other in zip(got.units, wanted.units, strict=True):
        np.testing.assert_allclose(
            [one.timescale, one.half_life], [other.timescale, other.half_life], rtol=1e-6, equal_nan=True
        )
        assert (one.kind, one.rule) == (other.kind, other.rule)
    for name, gate in got.gates.items():
        np.testing.assert_allclose(gate.mean, wanted.gates[name].mean, rtol=1e-6)
        np.testing.assert_array_equal(gate.histogram, wanted.gates[name].histogram)
        np.testing.assert_array_equal(gate.logit_quantiles, wanted.gates[name].logit_quantiles)
    np.testing.assert_array_equal(got.entering, wanted.entering)


# A budget.


@pytest.mark.parametrize(
    ("said", "size"),
    [
        ("4GB", 4 * 10**9),
        ("500 MB", 5 * 10**8),
        ("2GiB", 2**31),
        ("1.5kb", 1500),
        ("0.5GB", 5 * 10**8),
        (".5 MiB", 2**19),
        (" 7 ", 7),
        (10**6, 10**6),
        (np.int64(3), 3),
        (np.float32(2**20), 2**20),
    ],
)
def test_sizes_are_read(said, size):
    assert in_bytes(said) == size


@pytest.mark.parametrize(
    "said", ["", "much", "4 XB", "-1GB", 0, -5, True, float("nan"), float("inf"), "1e9", [4], "0.5", "9999999999GB"]
)
def test_what_is_no_size_is_refused(said):
    with pytest.raises(InputError, match=r"got memory=.*; expected .*'500 MB'"):
        in_bytes(said)


@pytest.mark.parametrize(
    ("size", "words"), [(4e9, "4 GB"), (1.23e9, "1.3 GB"), (500, "500 bytes"), (2_000_001, "2.1 MB")]
)
def test_sizes_are_told_rounded_up(size, words):
    assert in_words(size) == words


def test_too_little_is_told_before_the_work():
    told = trace(nn.GRU(2, 3), 20)
    calls = []
    with pytest.raises(
        InputError, match=r"memory='1 MB' for layer 'rnn' \(T=20, B=2, H=3.*at least .* MB.*raise memory"
    ):
        explain([told], memory="1MB", progress=lambda *done: calls.append(done))
    assert not calls
    with pytest.raises(InputError, match="memory beside total=True"):
        explain([told], memory="1GB", total=True)


def test_the_least_that_is_told_is_enough_for_all_layers():
    layer = nn.LSTM(4, 8, bidirectional=True)
    with tt.record(layer) as rec:
        layer(torch.randn(120, 5, 4))[0].square().sum().backward()
    with pytest.raises(InputError) as raised:
        rec.flow(memory=1000)
    least = str(raised.value).split("at least ")[1].split(":")[0]
    assert len(rec.flow(memory=least).layers) == 2


def test_the_least_that_is_told_is_enough():
    told = trace(nn.GRU(2, 3), 20)
    with pytest.raises(InputError) as raised:
        explain([told], memory=1000)
    least = str(raised.value).split("at least ")[1].split(":")[0]
    assert explain([told], memory=least).layers["rnn"].residual < 1e-4


def test_a_few_origins_far_apart_are_gathered(monkeypatch):
    """Where the factors of all steps are not kept, those between the origins are not made."""
    made = []
    factors = Window._factors
    monkeypatch.setattr(Window, "_factors", lambda self, at: made.append(self) or factors(self, at))
    for layer in (nn.GRU(2, 3), nn.LSTM(2, 3)):
        torch.manual_seed(0)
        layer = layer.double()
        with tt.record(layer) as rec:
            out = layer(torch.randn(120, 2, 2, dtype=torch.float64))[0]
            out[[5, 60, 100]].square().sum().backward()
        wanted = rec.flow(demand=False).layers["rnn"]
        with monkeypatch.context() as small:
            small.setattr("throughtime.explain.room", lambda *_: Room(12, 0, 1, 1))
            made.clear()
            got = rec.flow(demand=False, memory="1GB").layers["rnn"]
        assert max(len(window) for window in made) < 20
        assert any(window.steps is not None for window in made)
        np.testing.assert_allclose(got.share, wanted.share, atol=1e-12)
        np.testing.assert_allclose(got.bias, wanted.bias, atol=1e-12)
        for port, path in wanted.paths.items():
            np.testing.assert_allclose(got.paths[port], path, atol=1e-10)


def test_padded_sequences_are_the_same_within_a_budget(monkeypatch):
    layer = nn.GRU(2, 3).double()
    x = torch.randn(30, 3, 2, dtype=torch.float64)
    with tt.record(layer) as rec:
        out, _ = layer(nn.utils.rnn.pack_padded_sequence(x, [30, 12, 7]))
        out.data.square().sum().backward()
    wanted = rec.flow().layers["rnn"]
    monkeypatch.setattr("throughtime.explain.room", lambda *_: Room(12, 0, 1, 1))
    got = rec.flow(memory="1GB").layers["rnn"]
    np.testing.assert_allclose(got.share, wanted.share, atol=1e-12)
    np.testing.assert_allclose(got.demand.z, wanted.demand.z, rtol=1e-4)
    for name, gate in wanted.gates.items():
        np.testing.assert_array_equal(got.gates[name].histogram, gate.histogram)
        np.testing.assert_allclose(got.gates[name].logit_quantiles, gate.logit_quantiles, atol=1e-12)


def test_batches_within_a_budget_and_a_run_that_goes_on_with_another(tmp_path):
    torch.manual_seed(0)
    layer = nn.GRU(2, 3)
    batches = [torch.randn(20, 4, 2) for _ in range(3)]

    def flow(**options):
        step = {"loss": lambda model, x: model(x)[0].square().sum(), "stop_when": None}
        return tt.diagnose(layer, iter(batches), **step, **options).flow.layers["rnn"]

    free = flow()
    for memory, limit in (("200MB", 2), (300 * 10**6, 3)):
        within = flow(memory=memory, limit=limit, resume=tmp_path / "state.pt")
    np.testing.assert_allclose(within.share, free.share, atol=1e-5)
    np.testing.assert_allclose(within.bias, free.bias, atol=1e-5)
    assert within.batches == 3


def test_the_least_of_a_loader_does_not_grow_with_the_budget():
    """Terms by lag take what is left beside the least, of all layers together."""
    torch.manual_seed(0)
    layer = nn.LSTM(16, 128)
    batches = [torch.randn(300, 2, 16) for _ in range(2)]

    def flow(memory):
        told = {"memory": memory, "demand": False, "stop_when": None}
        return tt.diagnose(layer, iter(batches), lambda model, x: model(x)[0][-1].square().sum(), **told).flow

    with pytest.raises(InputError) as raised:
        flow(1000)
    least = str(raised.value).split("at least ")[1].split(":")[0]
    few, more = (flow(memory).layers["rnn"].tail.first_lag for memory in (least, "100MB"))
    assert 1 <= few < more < 300


def test_terms_of_several_layers_share_the_budget():
    asked = Asked(memory=100 * 10**6, demand=False)
    traces = [replace(trace(nn.LSTM(16, 128), 300), name=name) for name in ("a", "b")]
    (alone,) = borders(traces[:1], asked, look=False).values()
    both = borders(traces, asked, look=False)
    assert terms_of(traces[0], alone[0]) <= 50 * 10**6
    assert all(told[0] == alone[0] // 2 for told in both.values())


def test_the_total_lag_of_several_layers_is_left_out_within_a_budget():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(2, 3, num_layers=2, bidirectional=True)

        def forward(self, x):
            return self.rnn(x)[0]

    model = Both()
    with tt.record(model) as rec:
        model(torch.randn(9, 2, 2)).square().sum().backward()
    (free, within) = (rec.flow(demand=False, memory=memory) for memory in (None, "200MB"))
    assert set(within.layers) < set(free.layers)
    assert any("leave memory out" in each.reason for each in within.missing)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_order_statistics_are_those_of_sorting(dtype):
    draw = np.random.default_rng(0)
    numbers = np.concatenate([draw.normal(size=500), [0.0, -0.0, 1e-40, -3e38, 3e38], np.ones(50)]).astype(dtype)
    ranks = [0, 1, 17, 200, 300, len(numbers) - 2, len(numbers) - 1]
    order = Order(ranks)
    while not order.found:
        for part in np.array_split(numbers, 7):
            order.see(part)
        order.narrow()
    assert order.values() == {rank: float(np.sort(numbers)[rank]) for rank in ranks}


PEAK = """
import resource, sys
from pathlib import Path
import torch
from torch import nn
from throughtime.cells import REGISTRY, Weights
from throughtime.explain import explain
from throughtime.trace import Trace

def made(steps):
    layer = nn.GRU(32, 64)
    x = torch.randn(steps, batch, 32)
    with torch.no_grad():
        carries = torch.cat((torch.zeros(1, batch, 64), layer(x)[0]))
    gradient = torch.zeros(steps, batch, 64)
    gradient[0 if every else -1:] = torch.randn(batch, 64)
    weights = {name.removesuffix("_l0"): value.detach() for name, value in layer.named_parameters()}
    given = {name: torch.zeros_like(value) for name, value in weights.items()}
    return Trace("rnn", REGISTRY["gru"], Weights(**weights), x, carries, gradient, given, None, torch.float32)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

steps, batch, every = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "every"
memory = None if sys.argv[4] == "free" else sys.argv[4]
torch.set_num_threads(1)
options = dict(strict=False, demand=False, hops=False, signal_to_noise=False, origin_step=False, bias="horizon")
if every:
    options["max_lag"] = 12  # every lag takes as much
explain([made(3)], memory=memory and "1GB", **options)
trace = made(steps)
now = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
ballast = torch.ones(max(0, peak() - now), dtype=torch.uint8)  # what is added now is seen
before = peak()
explain([trace], memory=memory, **options)
print((peak() - before) / 1e6)
"""


def megabytes(*arguments: object) -> float:
    command = [sys.executable, "-c", PEAK, *map(str, arguments)]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("steps", "batch", "loss", "memory"), [(20_000, 1, "last", 85), (1000, 16, "every", 70)])
def test_no_more_is_added_than_the_budget(steps, batch, loss, memory):
    """No margin: the formulas of `throughtime.budget` have their own. And it is less than without a budget."""
    within = megabytes(steps, batch, loss, f"{memory}MB")
    assert within <= memory
    assert within < megabytes(steps, batch, loss, "free")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the pages of a process are glibc's to keep")
def test_memory_of_one_decomposition_is_there_for_the_next():
    """Each of its 1,700 pages would have to be cleared by the system again."""
    run = """
        import resource, torch, throughtime as tt
        from throughtime.explain import explain
        layer = torch.nn.GRU(32, 32)
        with tt.record(layer) as rec:
            layer(torch.randn(100, 16, 32))[0][-1].sum().backward()
        traces = rec.traces()
        for _ in range(4):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            explain(traces, demand=False)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    """
    done = subprocess.run([sys.executable, "-c", dedent(run)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 300
