"""What the decomposition holds: no more than it needs."""

import platform
import subprocess
import sys
from textwrap import dedent

import numpy as np
import pytest
import torch
from torch import nn

import throughtime as tt
from throughtime import gates
from throughtime.linearize import Linearization
from throughtime.reducers.initial_state import InitialState
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
