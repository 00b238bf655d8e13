"""Sums over batches: what is added up batch by batch says what all batches joined into one say."""

import copy
import functools
import io
import itertools
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

import throughtime as tt
from reference import drawn
from throughtime.asked import Asked
from throughtime.cells import REGISTRY, Weights
from throughtime.errors import InputError
from throughtime.explain import explain
from throughtime.gates import STEP
from throughtime.scaled import Scaled
from throughtime.streaming import accumulate as module
from throughtime.streaming import sums as sums_module
from throughtime.streaming.accumulate import accumulate, border, flow_of
from throughtime.streaming.sums import from_plain, merge, plain
from throughtime.trace import Trace, joined

EVERY_CELL = sorted(REGISTRY)
DEFAULT = Asked()


def leaves(name, value):
    """Every number of a flow, with its path."""
    if is_dataclass(value) and not isinstance(value, type):
        return [pair for f in fields(value) for pair in leaves(f"{name}.{f.name}", getattr(value, f.name))]
    if isinstance(value, dict):
        return [pair for key, each in value.items() for pair in leaves(f"{name}.{key}", each)]
    if isinstance(value, list | tuple):
        return [pair for place, each in enumerate(value) for pair in leaves(f"{name}.{place}", each)]
    return [(name, value)]


def same(got, wanted, rtol=1e-10, but=()):
    """Every field of two flows; residuals are rounding, and only small."""
    got, wanted = dict(leaves("", got)), dict(leaves("", wanted))
    skip = (".intervals", *but)
    got = {name: value for name, value in got.items() if not name.startswith(skip) and name != ".batches"}
    wanted = {name: value for name, value in wanted.items() if not name.startswith(skip) and name != ".batches"}
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        if name.endswith((".residual", ".error")):
            assert (got[name] < 1e-9) == (value < 1e-9), name
        elif isinstance(value, np.ndarray | float | torch.Tensor):
            np.testing.assert_allclose(got[name], value, rtol=rtol, atol=rtol, err_msg=name)
        else:
            assert got[name] == value, name


def direct(pattern, output):
    """What enters at the output: (T, B, H)."""
    on = torch.zeros(*output.shape[:2], 1, dtype=output.dtype)
    if pattern == "every":
        on[:] = 1
    elif pattern == "last":
        on[-1] = 1
    else:  # no two sequences have the same steps of loss, and one has none
        for b in range(output.shape[1] - 1):
            on[b :: b + 2, b] = 1
    return torch.cos(3 * output) * on


@functools.cache
def run(key, steps=7, batch=4, seed=1, pattern="every", dtype=torch.float64):
    """A run of a cell, always with the same weights, and by autograd what it gives them and the initial state."""
    cell = REGISTRY[key]

    def normal(seed):
        generator = torch.Generator().manual_seed(seed)
        return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    weights, draw = Weights(**drawn(cell, 2, 3, normal(0))), normal(seed)
    x, initial = draw(steps, batch, 2).detach(), draw(batch, cell.carry_size(weights))
    carries = [initial]
    for now in x:
        carries.append(cell.step(weights, now, dict.fromkeys(cell.ports, carries[-1])))
    output = torch.stack([cell.output(carry) for carry in carries[1:]])
    g = direct(pattern, output.detach())
    tensors = weights.tensors()
    grads = torch.autograd.grad((g * output).sum(), [*tensors.values(), initial], allow_unused=True)
    of = [*tensors.values(), initial]
    *grads, at_start = (torch.zeros_like(w) if g is None else g for g, w in zip(grads, of, strict=True))
    gradient = torch.cat((g, g.new_zeros(steps, batch, initial.shape[-1] - g.shape[-1])), dim=-1)
    plain_weights = Weights(**{name: tensor.detach() for name, tensor in tensors.items()})
    given = dict(zip(tensors, grads, strict=True))
    return Trace("rnn", cell, plain_weights, x, torch.stack(carries).detach(), gradient, given, at_start, dtype)


def batches(key, pattern="every"):
    """Three batches, of other sizes, and the second of other lengths."""
    return [run(key, 7, 5, 1, pattern), run(key, 5, 4, 2, pattern), run(key, 7, 4, 3, pattern)]


def added_up(traces, asked=DEFAULT, told=100):
    return functools.reduce(merge, (accumulate(trace, i, asked, told) for i, trace in enumerate(traces)))


def streamed(traces, asked=DEFAULT, told=100):
    return flow_of({"rnn": added_up(traces, asked, told)}, asked).layers["rnn"]


@pytest.mark.parametrize("pattern", ["every", "last", "ragged"])
@pytest.mark.parametrize("key", EVERY_CELL)
def test_streamed_batches_are_the_joined_batches(key, pattern):
    traces = batches(key, pattern)
    wanted = explain([joined(traces)], tolerance=0).layers["rnn"]
    same(streamed(traces), wanted)
    assert streamed(traces).batches == 3


def test_streaming_takes_every_field_seriously():
    """A batch that is left out shows in every kind of field."""
    wanted = dict(leaves("", explain([joined(batches("gru"))], tolerance=0).layers["rnn"]))
    got = dict(leaves("", streamed(batches("gru")[:2])))
    kinds = ("share", "adjoint", "parameters", "initial_state", "demand", "paths", "hops", "signal_to_noise", "bias")
    for kind in (*kinds, "units", "gates", "origin_step", "entering", "batch"):
        pairs = [(got.get(name), value) for name, value in wanted.items() if name.startswith(f".{kind}")]
        assert any(not np.array_equal(a, b, equal_nan=isinstance(b, float | np.ndarray)) for a, b in pairs), kind


@pytest.mark.parametrize("told", [1, 3])
@pytest.mark.parametrize("key", ["gru", "lstm", "rnn-tanh", "lru"])
def test_what_lies_beyond_the_border_is_one_tail(key, told):
    traces = batches(key)
    wanted = explain([joined(traces)], tolerance=0, max_lag=told - 1).layers["rnn"]
    assert wanted.tail is not None
    autograd = any(not REGISTRY[key].blocks(name) for name in traces[0].weights.tensors())
    # What autograd gives a parameter at a step is one row of the bound, whatever the batch.
    same(streamed(traces, told=told), wanted, but=(".tail.bound",) if autograd else ())


def test_the_border_is_where_the_first_tail_begins():
    trace = run("rnn-tanh", 200, 2)
    first = explain([trace]).layers["rnn"].tail.first_lag
    assert border(trace, DEFAULT) == (first, False)
    assert border(trace, Asked(max_lag=4)) == (5, True)
    same(streamed([trace], told=first), replace(explain([trace], max_lag=first - 1).layers["rnn"]))


def test_terms_take_no_more_than_their_memory(monkeypatch):
    trace = run("rnn-tanh", 200, 2)
    weights = sum(value.numel() for value in trace.weights.tensors().values())
    monkeypatch.setattr(module, "MEMORY", 32 * weights * 6 + 1)
    assert border(trace, DEFAULT) == (6, True)
    sums = accumulate(trace, 0, DEFAULT, 6)
    assert sums.terms.mantissa.shape == (weights, 6)
    layer = streamed([trace, run("rnn-tanh", 200, 2, seed=2)], told=6)
    assert layer.tail.first_lag == 6
    assert layer.residual < 1e-10
    assert {each.field for each in layer.missing} >= {"lists", "tail.tolerance"}


def as_numbers(sums):
    """Everything in sums but the exponents, of which there are several for one number."""
    scaled = {name: value.value() for name, value in sums.sums.items() if isinstance(value, Scaled)}
    return replace(sums, sums=sums.sums | scaled, terms=sums.terms.value(), tail=sums.tail.value())


@pytest.mark.parametrize("key", ["gru", "lstm"])
def test_batches_merge_in_any_order(key):
    parts = [accumulate(trace, i, DEFAULT, 5) for i, trace in enumerate([*batches(key), run(key, 6, 3, 9, "ragged")])]
    wanted = functools.reduce(merge, parts)
    for order in itertools.permutations(range(4)):
        a, b, c, d = (parts[place] for place in order)
        for merged in (merge(merge(a, b), merge(c, d)), merge(a, merge(b, merge(c, d)))):
            same(as_numbers(merged), as_numbers(wanted), rtol=1e-12)
    same(flow_of({"rnn": merged}, DEFAULT).layers["rnn"], flow_of({"rnn": wanted}, DEFAULT).layers["rnn"], rtol=1e-12)


def test_sums_merge_into_new_ones():
    one, other = (accumulate(trace, i, DEFAULT, 5) for i, trace in enumerate(batches("lstm")[:2]))
    before = copy.deepcopy(plain(one)), copy.deepcopy(plain(other))
    merge(one, other)
    for told, kept in zip((one, other), before, strict=True):
        same(plain(told), kept, rtol=0)


@pytest.mark.parametrize("key", ["gru", "lstm", "s6"])
def test_saved_sums_go_on_as_if_they_had_not_been(key):
    traces = batches(key)
    file = io.BytesIO()
    torch.save(plain(added_up(traces[:2])), file)
    file.seek(0)
    back = from_plain(torch.load(file, weights_only=True))
    got = flow_of({"rnn": merge(back, accumulate(traces[2], 2, DEFAULT, 100))}, DEFAULT).layers["rnn"]
    same(got, streamed(traces), rtol=0)
    assert got.intervals is None  # three batches are too few


def test_many_logits_are_counted(monkeypatch):
    traces, asked = [run("gru", 60, 16, seed, "last") for seed in range(3)], Asked(demand=False, hops=False)
    exact = streamed(traces, asked).gates["z"]
    monkeypatch.setattr("throughtime.gates.ROOM", 4000)
    counted = streamed(traces, asked).gates["z"]
    np.testing.assert_allclose(counted.logit_quantiles, exact.logit_quantiles, atol=2 * STEP)
    assert not np.array_equal(counted.logit_quantiles, exact.logit_quantiles)
    same(replace(counted, logit_quantiles=0.0), replace(exact, logit_quantiles=0.0), rtol=1e-12)


def test_of_many_sequences_a_fair_sample_is_kept(monkeypatch):
    monkeypatch.setattr(sums_module, "SEQUENCES", 30)
    monkeypatch.setattr(module, "SEQUENCES", 30)
    parts = [accumulate(run("gru", 7, 20, seed), seed, DEFAULT, 100) for seed in range(8)]
    whole = functools.reduce(merge, parts)
    assert len(whole.sample.batch) == 30
    assert whole.sequences == 160
    assert len(set(whole.sample.batch.tolist())) >= 6
    other = functools.reduce(merge, reversed(parts))
    same(plain(other.sample), plain(whole.sample), rtol=0)
    layer = flow_of({"rnn": whole}, DEFAULT).layers["rnn"]
    assert layer.demand.sequences == 30
    assert "30 sequences drawn from 160" in layer.demand.note
    assert layer.batch == 160
    # whom the lot falls on does not depend on what was seen before
    for batch, place in zip(whole.sample.batch.tolist(), whole.sample.place.tolist(), strict=True):
        assert place in parts[batch].sample.place.tolist()


def test_the_lot_falls_on_all_alike():
    chosen = np.zeros(1000)
    for first in range(40):
        batch, place = np.divmod(np.arange(1000), 10)
        chosen[np.argsort(sums_module._lot(batch + 1000 * first, place))[:100]] += 1
    assert chosen.mean() == 4
    assert 2.5 < chosen.var() < 5  # binomial: 40 · .1 · .9 = 3.6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s, "batch 0 of layer 'rnn' in both"),
        (lambda s: replace(s, batches={1: 4}, told=7), "lags told apart"),
        (lambda s: replace(s, batches={1: 4}, weights={n: w + 1 for n, w in s.weights.items()}), "weights of layer"),
        (lambda s: replace(s, batches={1: 4}, about=replace(s.about, cell="lstm")), "differ in cell"),
    ],
    ids=["twice", "borders", "weights", "cells"],
)
def test_sums_that_do_not_belong_together(change, words):
    sums = accumulate(run("gru"), 0, DEFAULT, 5)
    with pytest.raises(InputError, match=words):
        merge(sums, change(sums))


def test_a_batch_without_gradient_adds_nothing_but_its_sequences():
    trace = run("gru", 7, 5)
    silent = replace(
        trace,
        gradient=torch.zeros_like(trace.gradient),
        weight_gradients={name: torch.zeros_like(value) for name, value in trace.weight_gradients.items()},
        initial_gradient=torch.zeros_like(trace.initial_gradient),
    )
    for traces in ([trace, silent], [silent, trace]):
        same(streamed(traces), explain([joined(traces)], tolerance=0).layers["rnn"])
    with pytest.raises(InputError, match="exactly zero"):
        streamed([silent, silent])


@pytest.mark.parametrize("steps", [(600, 300), (300, 1100), (700, 1500)])
def test_maps_of_long_sequences_fit_into_each_other(steps):
    traces = [run("rnn-tanh", n, 2, seed, "last") for seed, n in enumerate(steps)]
    wanted, got = explain([joined(traces)], tolerance=0).layers["rnn"], streamed(traces, told=10**4)
    same(got.origin_step, wanted.origin_step, rtol=1e-9)
    assert max(got.origin_step.log10_norm.shape) <= 512


def test_padding_is_no_step_of_a_gate():
    """A packed batch tells of its gates what its sequences tell one by one."""
    torch.manual_seed(0)
    layer = nn.GRU(2, 4)
    parts = [torch.randn(n, 2) for n in (9, 5, 2)]
    with tt.record(layer) as packed:
        layer(nn.utils.rnn.pack_sequence(parts))[1].sum().backward()
    with tt.record(layer) as one_by_one:
        sum(layer(part[:, None])[1].sum() for part in parts).backward()
    got, wanted = (rec.flow().layers["rnn"] for rec in (packed, one_by_one))
    for name, gate in wanted.gates.items():
        assert got.gates[name].histogram.sum() == (9 + 5 + 2) * 4
        np.testing.assert_allclose(got.gates[name].logit_quantiles, gate.logit_quantiles, atol=1e-5)
        assert got.gates[name].mean == pytest.approx(gate.mean, rel=1e-5)
    assert [unit.timescale for unit in got.units] == pytest.approx([unit.timescale for unit in wanted.units], rel=1e-4)
