"""Classes of units, each from a layer built so that its class is known."""

import numpy as np
import pytest
import torch
from torch import nn

import throughtime as tt
from throughtime import trace, units
from throughtime.linearize import Linearization
from throughtime.units import half_life


def kinds(layer: nn.Module, steps: int = 60) -> list[str]:
    torch.manual_seed(0)
    x = torch.randn(steps, 8, layer.input_size)
    with tt.record(layer) as rec:
        layer(x)[0][-1].square().sum().backward()
    return [unit.kind for unit in rec.flow(demand=False).layers["rnn"].units]


def gated(update: float, reset: float = 0.0) -> nn.GRU:
    """A GRU whose update and reset gates stand near these logits."""
    torch.manual_seed(0)
    layer = nn.GRU(2, 4)
    with torch.no_grad():
        layer.weight_ih_l0[:8] *= 0.01
        layer.weight_hh_l0[:8] *= 0.01
        layer.bias_ih_l0[:4], layer.bias_ih_l0[4:8] = reset, update
        layer.bias_hh_l0[:8] = 0
    return layer


@pytest.mark.parametrize(
    ("update", "reset", "kind"),
    [(4.0, 0.0, "long-term"), (0.0, 0.0, "short-term"), (2.2, 0.0, "short-term"), (4.0, -4.0, "resetting")],
)
def test_a_gate_decides_the_class(update, reset, kind):
    """Timescales 1/ln(1 + e^-update): 55, 1.4 and 9.5 steps; ten is the line."""
    assert kinds(gated(update, reset)) == [kind] * 4


def test_an_lstm_is_cut_off_by_its_forget_gate():
    torch.manual_seed(0)
    layer = nn.LSTM(2, 3)
    with torch.no_grad():
        layer.bias_ih_l0[3:6], layer.bias_hh_l0[3:6] = torch.tensor([-6.0, 0.0, 6.0]), 0
    assert kinds(layer) == ["resetting", "short-term", "long-term"]


def test_without_a_gate_the_half_life_decides():
    layer = nn.RNN(1, 2, nonlinearity="relu")
    with torch.no_grad():
        layer.weight_ih_l0.fill_(0.1)
        layer.bias_ih_l0.fill_(1.0)
        layer.weight_hh_l0.copy_(torch.diag(torch.tensor([0.99, 0.5])))
    assert kinds(layer, 120) == ["long-term", "short-term"]


def test_a_unit_that_stands_still_is_dead():
    layer = nn.RNN(1, 2, nonlinearity="relu")
    with torch.no_grad():
        layer.bias_ih_l0.copy_(torch.tensor([-50.0, 1.0]))
    assert kinds(layer)[0] == "dead"


def test_half_life_is_the_first_lag_after_the_peak_at_half_of_it():
    rms = np.array([[1.0, 4.0, 3.0, 2.0, 1.0], [1.0, 1.0, 0.9, 0.8, 0.7], [8.0, np.nan, np.nan, 1.0, 1.0]])
    np.testing.assert_array_equal(half_life(np.log10(rms)), [3.0, np.nan, 3.0])


@pytest.mark.parametrize("steps_at_once", [1, 3, 100])
def test_units_are_read_some_steps_at_a_time(steps_at_once, monkeypatch):
    """Sequences of 7, 4 and 2 steps: padding counts for nothing, however few steps are read at once."""
    torch.manual_seed(0)
    lengths, x = [7, 4, 2], torch.randn(7, 3, 2, dtype=torch.float64)
    layer = nn.GRU(2, 4).double()
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor(lengths))
    with tt.record(layer) as rec:
        layer(packed)[1].sum().backward()
    lin = Linearization(rec.traces()[0])
    monkeypatch.setattr(trace, "PORTION", steps_at_once * 12)
    got = units.told(lin, torch.arange(7)[:, None] < torch.tensor(lengths))

    runs = [layer(x[:length, place : place + 1])[0][:, 0] for place, length in enumerate(lengths)]
    states = torch.cat(runs).detach()
    wanted = torch.stack((torch.full((4,), 13.0).double(), states.mean(0), 13 * states.var(0, correction=0)))
    torch.testing.assert_close(got["moments"], wanted)
    before = torch.cat([torch.cat((run.new_zeros(1, 4), run[:-1])) for run in runs]).detach()
    seen = torch.cat([x[:length, place] for place, length in enumerate(lengths)])
    pre = seen @ layer.weight_ih_l0.T + layer.bias_ih_l0 + before @ layer.weight_hh_l0.T + layer.bias_hh_l0
    torch.testing.assert_close(got["log_keep"], pre[:, 4:8].sigmoid().log().sum(0).detach())
    torch.testing.assert_close(got["cut"], (pre[:, :4].sigmoid() < units.RESET).sum(0).double())
