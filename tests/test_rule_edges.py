"""What single rules do at their edges."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from torch import nn

import throughtime
from throughtime.diagnosis import supply
from throughtime.diagnosis.diagnose import judge, needs
from throughtime.diagnosis.example import measured
from throughtime.diagnosis.finding import Finding
from throughtime.diagnosis.report import Needed
from throughtime.diagnosis.rule import History, registry
from throughtime.diagnosis.rules import gradient_explodes
from throughtime.diagnosis.rules.gradient_vanishes_before_needed_lag import ENOUGH
from throughtime.diagnosis.rules.not_a_gradient_problem import stalled
from throughtime.flow import Flow, LayerFlow
from throughtime.recording.recorder import record

UNKNOWN = Needed("rnn", (), "unknown")


def user(*lags: int) -> Needed:
    return Needed("rnn", lags, "user")


def demand(*lags: int) -> Needed:
    return Needed("rnn", lags, "demand")


def check(code: str, layer: LayerFlow, needed: Needed = UNKNOWN, history: History | None = None) -> Finding | None:
    return registry()[code].check(layer, needed, history)


def codes(layer: LayerFlow, needed: Needed = UNKNOWN, history: History | None = None) -> set[str]:
    return {code for code in registry() if check(code, layer, needed, history)}


# --- nothing known of the need: never a warning about lags -------------------------------------------------------------


@pytest.mark.parametrize("kind", ["GRU", "LSTM", "RNN"])
def test_without_a_need_a_short_horizon_is_no_finding(kind):
    layer = measured(kind, steps=120, lag=100)
    assert supply.arrival(layer, 100).fraction < 1e-12
    assert codes(layer) == set()
    report = judge(Flow({"rnn": dataclasses.replace(layer, demand=None)}, "", ""))
    assert report.findings == ()
    assert report.passed("info")


# --- TT101 -----------------------------------------------------------------------------------------------------------


def test_vanishing_is_told_at_the_farthest_lag_with_its_fraction_and_a_line_to_paste():
    layer = measured("GRU", steps=60, lag=50)
    finding = check("TT101", layer, user(50))
    assert finding.value == pytest.approx(layer.arriving[50])
    assert finding.value < finding.threshold == ENOUGH
    assert "at lag 50" in finding.message
    line = re.search(r"`(.*)`", finding.remedy)[1]
    assert line == "tt.init.chrono_(model, max_lag=51)"


def test_the_line_to_paste_clears_the_finding():
    def cured(layer):
        import throughtime as tt

        exec(
            "tt.init.chrono_(model, max_lag=51)",
            {"tt": tt, "model": layer},
        )

    assert check("TT101", measured("GRU", steps=60, lag=50), user(50))
    assert not check("TT101", measured("GRU", cured, steps=60, lag=50), user(50))


def test_a_lag_in_the_tail_got_less_than_what_came_before_it():
    layer = measured("RNN", steps=90, lag=80, loss_steps=9)
    assert layer.tail is not None
    assert layer.tail.first_lag < 80
    assert np.isnan(layer.adjoint.log10_norm[80])
    assert re.search(r"less than .*10⁻¹² arrives at lag 80", check("TT101", layer, user(80)).message)


def test_a_tail_made_by_max_lag_is_not_taken_for_a_vanished_gradient():
    layer = _recorded(nn.RNN(1, 16), steps=40, max_lag=2)
    assert layer.tail.first_lag == 3
    assert supply.arrival(layer, 30) is None
    assert check("TT101", layer, user(30)) is None


def test_needed_lags_that_follow_each_other_closely_are_within_reach():
    layer = measured("GRU", steps=60, lag=50)
    assert check("TT101", layer, demand(*range(51))) is None
    assert check("TT101", layer, demand(0, 1, 2, 50))
    said = check("TT101", layer, Needed("rnn", tuple(range(51)), "user", 50))
    assert "at lag 50, where it was said" in said.message
    message = check("TT101", layer, demand(0, 1, *range(40, 48))).message
    assert "at lags 40–47 of 10 needed lags" in message
    assert "at lag 47," in message


def test_a_cell_without_gates_is_told_to_take_another():
    finding = check("TT101", measured("RNN", lag=30), user(30))
    assert "no gate" in finding.remedy
    assert "chrono_" not in finding.remedy


def test_lag_zero_always_arrives():
    assert check("TT101", measured("GRU", steps=1, lag=0), user(0)) is None


# --- TT103 -----------------------------------------------------------------------------------------------------------


def test_a_window_shorter_than_the_need_is_a_cut_and_not_a_vanished_gradient():
    layer = measured("GRU", steps=20, lag=10)
    finding = check("TT103", layer, user(20))
    assert (finding.value, finding.threshold, finding.severity) == (19, 20, "error")
    assert "at least 21 steps" in finding.remedy
    assert check("TT101", layer, user(20)) is None
    assert check("TT103", layer, user(19)) is None
    assert check("TT101", layer, user(19))


def test_diagnose_takes_a_needed_lag_beyond_the_window():
    layer = measured("GRU", steps=20, lag=10)
    assert needs(layer, 500).farthest == 500
    report = judge(Flow({"rnn": layer}, "", ""), needed_lag=500)
    assert [finding.code for finding in report.findings if not finding.preview] == ["TT103"]
    assert not report.passed("error")


def test_steps_after_the_last_loss_do_not_lengthen_the_window():
    x = torch.randn(40, 32, 1)
    layer = nn.GRU(1, 8)
    with record(layer) as recorded:
        layer(x)[0][9].square().sum().backward()
    flow = recorded.flow()
    finding = check("TT103", flow.layers["rnn"], user(15))
    assert finding.value == 9
    assert "10 steps before the last loss" in finding.message


@pytest.mark.parametrize("loss_steps", [1, 40])
def test_an_exact_zero_inside_the_window_is_a_cut(loss_steps):
    def off(layer):
        layer.bias_ih_l0.fill_(-20.0)

    layer = measured("RNN", off, loss_steps=loss_steps, nonlinearity="relu")
    assert supply.cut_after(layer) == 0
    finding = check("TT103", layer, user(30))
    assert finding.value == 0
    assert "exactly zero" in finding.message
    assert check("TT101", layer, user(30)) is None
    assert check("TT190", layer, user(30)) is None


@pytest.mark.parametrize("loss_steps", [1, 40])
def test_a_tiny_gradient_is_no_cut(loss_steps):
    def weak(layer):
        layer.weight_hh_l0.mul_(1e-6)

    layer = measured("RNN", weak, loss_steps=loss_steps)
    assert supply.cut_after(layer) is None
    assert check("TT103", layer, user(39)) is None
    finding = check("TT101", layer, user(39))
    assert finding.value < 1e-100 or "less than" in finding.message


# --- TT102 -----------------------------------------------------------------------------------------------------------


def test_growth_alone_is_healthy():
    layer = measured("RNN", _growing, hidden=16)
    assert supply.growth(layer).low > 0
    even = History(np.ones(100), np.linspace(3, 1, 100))
    assert check("TT102", layer, UNKNOWN, even) is None
    assert check("TT102", layer) is None


def test_bursts_alone_are_no_explosion():
    assert check("TT102", measured("GRU"), UNKNOWN, History(np.ones(60), gradient_explodes._bursts(60))) is None


def test_falling_norms_are_no_burst():
    falling = History(np.ones(200), 10.0 ** np.linspace(2, -4, 200))
    assert gradient_explodes.by_step(falling).ratio < 3


@pytest.mark.parametrize("history", [History(np.array([1.0, np.nan])), History(np.ones(3), np.array([1, 50, np.inf]))])
def test_a_loss_or_norm_that_is_not_finite_is_a_burst_whatever_the_length(history):
    finding = check("TT102", measured("RNN", _growing, hidden=16), UNKNOWN, history)
    assert finding is not None
    assert np.isfinite(finding.value)


def test_without_norms_by_step_an_explosion_is_only_an_info():
    layer = measured("GRU", lambda layer: layer.weight_hh_l0.normal_(0, 8 / layer.hidden_size**0.5), hidden=32)
    assert supply.growth(layer).low > 0
    assert check("TT102", layer).severity == "info"
    assert check("TT102", layer, UNKNOWN, History(np.ones(60), gradient_explodes._bursts(60))).severity == "warning"


def test_the_clip_is_a_quantile_of_the_measured_norms():
    norms = np.concatenate([np.linspace(1, 2, 99), [500.0]])
    finding = check("TT102", measured("RNN", _growing, hidden=16), UNKNOWN, History(np.ones(100), norms))
    assert f"at {np.quantile(norms, 0.9):.3g}, the 0.9 quantile" in finding.remedy


def test_growth_has_an_interval_with_one_sequence_too_and_none_with_few_lags():
    assert supply.growth(measured("RNN", _growing, batch=1)).over == "eighths of the lags"
    assert supply.growth(measured("GRU", steps=1, lag=0)) is None
    assert supply.growth(measured("GRU", steps=5, lag=2)) is None


def _growing(layer):
    torch.nn.init.orthogonal_(layer.weight_hh_l0, gain=1.3)
    layer.weight_ih_l0.mul_(0.05)


# --- TT190 -----------------------------------------------------------------------------------------------------------


def test_a_stall_with_a_gradient_that_reaches_is_no_gradient_problem():
    layer = measured("GRU", lag=3)
    flat = History(np.full(80, 2.3))
    assert "stopped falling" in check("TT190", layer, user(3), flat).message
    assert "cannot be judged" in check("TT190", layer, user(3)).message
    assert check("TT190", layer, user(3), History(np.linspace(2, 0.1, 80))) is None
    assert check("TT190", layer, UNKNOWN, flat) is None
    assert check("TT190", layer, user(35), flat) is None


@pytest.mark.parametrize(("code", "lag"), [("TT101", 50), ("TT103", 80)])
def test_one_layer_of_several_is_no_warning(code, lag):
    layer = measured("GRU", steps=60, lag=50)
    alone = check(code, layer, user(lag))
    among = check(code, dataclasses.replace(layer, lag="within-layer"), user(lag))
    assert alone.severity in ("warning", "error")
    assert among.severity == "info"
    assert "Within this layer alone" in among.message
    assert "Within" not in alone.message


def test_a_loss_that_has_gone_to_nothing_is_learned_and_not_stalled():
    assert not stalled(np.r_[1.0, np.full(99, 1e-8)])
    assert stalled(np.r_[1.0, np.full(99, 0.1)])


def test_demand_alone_does_not_rule_out_what_it_cannot_see():
    layer, flat = measured("GRU", lag=3), History(np.ones(100))
    assert "not excluded" in check("TT190", layer, demand(3), flat).remedy
    assert check("TT190", layer, user(3), flat).remedy.startswith("This is not a gradient problem.")


def test_a_loss_that_is_not_finite_is_no_stall():
    assert not stalled(np.full(50, np.nan))
    assert stalled(np.full(50, 1.0))
    assert stalled(-np.full(50, 1.0))
    assert not stalled(-np.linspace(1, 3, 50))


# --- TT401, TT402 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "gain"), [("GRU", 1.0), ("LSTM", 2**0.5)])
def test_a_stack_is_found_at_any_gain(kind, gain):
    def stacked(layer):
        nn.init.orthogonal_(layer.weight_hh_l0, gain)

    finding = check("TT401", measured(kind, stacked))
    gates = {"GRU": 3, "LSTM": 4}[kind]
    size = re.search(r"root mean square (0\.\d+)", finding.message)[1]
    assert float(size) == pytest.approx(gain / gates**0.5, abs=0.01)


def test_one_matrix_orthogonal_or_not_is_no_stack():
    def orthogonal(layer):
        nn.init.orthogonal_(layer.weight_hh_l0)

    assert check("TT401", measured("RNN", orthogonal)) is None
    assert check("TT401", measured("GRU", hidden=1)) is None
    assert check("TT401", measured("LSTM", lambda layer: layer.weight_hh_l0.zero_())) is None


def test_forget_biases_are_those_of_a_forget_gate():
    def all_ones(layer):
        layer.bias_ih_l0.fill_(1)
        layer.bias_hh_l0.fill_(1)

    assert check("TT402", measured("LSTM", all_ones)).value == 2
    assert check("TT402", measured("GRU", all_ones)) is None
    assert check("TT402", measured("LSTM", bias=False)) is None


# --- several layers -----------------------------------------------------------------------------------------------------


def test_each_layer_is_judged_by_its_own_need():
    near, far = measured("GRU", lag=3), dataclasses.replace(measured("LSTM", lag=30), name="top")
    layers = {
        "rnn": dataclasses.replace(near, demand=dataclasses.replace(near.demand, lags=(3,))),
        "top": dataclasses.replace(far, demand=dataclasses.replace(far.demand, lags=(30,))),
    }
    report = judge(Flow(layers, "", ""), history=np.linspace(2, 0.1, 80))
    assert [(finding.code, finding.layer) for finding in report.findings if not finding.preview] == [("TT101", "top")]


def _recorded(layer: nn.RNNBase, steps: int, **options) -> LayerFlow:
    x = torch.randn(steps, 32, 1, generator=torch.Generator().manual_seed(0))
    with record(layer) as recorded:
        layer(x)[0].square().mean().backward()
    return next(iter(recorded.flow(**options).layers.values()))


# --- wholes of several layers ------------------------------------------------------------------------------------------


class Convolved(nn.Module):
    """Two layers, and between them a convolution that looks one step ahead."""

    def __init__(self, kind: str = "GRU") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.low, self.between = getattr(nn, kind)(3, 6), nn.Conv1d(6, 6, 3, padding=1)
        self.high = getattr(nn, kind)(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.high(self.between(self.low(x)[0].permute(1, 2, 0)).permute(2, 0, 1))[0]


def whole_of(model: nn.Module, name: str) -> LayerFlow:
    x = torch.randn(40, 4, 3, generator=torch.Generator().manual_seed(0))
    with record(model) as recorded:
        out = model(x)
        (out[0] if isinstance(out, tuple) else out).square().sum().backward(retain_graph=True)
    return recorded.flow(demand=False).layers[name]


@pytest.mark.parametrize("kind", ["GRU", "LSTM", "RNN"])
@pytest.mark.parametrize("shape", ["stack", "both directions", "series"])
def test_the_cure_of_a_whole_is_that_of_its_cells(kind, shape):
    torch.manual_seed(0)
    options = {"num_layers": 2, "bidirectional": shape == "both directions"}
    model = Convolved(kind) if shape == "series" else getattr(nn, kind)(3, 6, **options)
    finding = check("TT101", whole_of(model, "series" if shape == "series" else "rnn"), user(39))
    assert finding is not None
    if kind == "RNN":
        assert "has no gate" in finding.remedy
        return
    line = re.search("`(tt.init.chrono_.*)`", finding.remedy)
    assert line is not None
    before = {name: value.clone() for name, value in model.named_parameters()}
    eval(line[1], {"tt": throughtime, "model": model})
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if ".bias_" in f".{name}" and "between" not in name}


def test_a_whole_that_looks_ahead_a_step_is_not_cut():
    """What is needed farther ahead is told, and is no error; a lag that the user says is meant of the past."""
    layer = whole_of(Convolved(), "series_reverse")
    finding = check("TT103", layer, Needed("series_reverse", (9,), "demand"))
    assert finding is not None
    assert (finding.severity, finding.value) == ("info", 1)
    assert "9 steps ahead" in finding.message
    assert check("TT103", layer, Needed("series_reverse", (1,), "demand")) is None
    assert check("TT103", layer, Needed("series_reverse", (9,), "user", 9)) is None
