"""Situations in which a report once said something false: each is measured here and judged again."""

import pytest
import torch
from torch import nn

import throughtime as tt
from throughtime.init import chrono_
from throughtime.recording.recorder import record


def codes(report) -> dict[str, str]:
    return {f"{f.code}@{f.layer}": f.severity for f in report.findings if not f.preview}


def said(report) -> str:
    return " ".join(sentence for _, sentence in report.headline())


class Reader(nn.Module):
    def __init__(self, width: int = 1, units: int = 16) -> None:
        super().__init__()
        self.rnn = nn.GRU(width, units)
        self.head = nn.Linear(units, 1)

    def forward(self, x):
        return self.head(self.rnn(x)[0][-1])[:, 0]


def mean_square(output):
    return output.square().mean()


def test_a_limit_on_lags_is_neither_a_reached_nor_a_vanished_gradient():
    torch.manual_seed(0)
    model, x = Reader(), torch.randn(60, 64, 1)
    with record(model) as rec:
        mean_square(model(x)).backward()
    report = rec.flow(max_lag=5, demand=False).diagnose(needed_lag=40)
    assert codes(report) == {}
    assert "what arrives at lag 40 was not told apart" in said(report)
    assert dict(report.headline())["finding"].startswith("Cannot judge: lags were told apart up to 5 only")


def test_a_check_that_cannot_look_is_an_error():
    with pytest.raises(tt.ThroughtimeError, match="needed_lag=40 beyond max_lag=5"):
        tt.diagnose(Reader(), torch.randn(60, 64, 1), mean_square, needed_lag=40, max_lag=5)


def test_pairs_that_begin_alike_are_not_several():
    def factory():
        torch.manual_seed(0)
        return Reader()

    x = torch.randn(40, 32, 1)
    with pytest.raises(tt.ThroughtimeError, match="the same initial parameters under two seeds"):
        tt.diagnose(factory(), x, mean_square, needed_lag=38, verify=True, factory=factory, verify_steps=1)


def test_a_loss_that_was_misread_says_how():
    with pytest.raises(TypeError) as error:
        tt.diagnose(Reader(), (torch.randn(9, 4, 1), torch.randn(4)), lambda a, b: mean_square(a(b[0])))
    assert "read as a criterion fn(output, target)" in error.value.__notes__[0]


def test_a_layer_with_a_short_memory_after_one_with_a_long_memory_is_no_fault():
    class Series(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = chrono_(nn.GRU(1, 32), 45), nn.GRU(32, 16), nn.Linear(16, 1)

        def forward(self, x):
            return self.head(self.b(self.a(x)[0])[0][-1])[:, 0]

    torch.manual_seed(0)
    x = torch.randn(45, 256, 1)
    report = tt.diagnose(Series(), (x, x[-41, :, 0]), nn.functional.mse_loss, needed_lag=40)
    assert report.passed()
    assert codes(report)["TT101@b"] == "info"
    assert "this layer's input" in said(report) or "detected" in said(report)
    assert "b: TT101" in said(report)


def test_what_the_user_says_does_not_hide_what_demand_sees():
    torch.manual_seed(0)
    x = torch.randn(60, 256, 1)
    report = tt.diagnose(Reader(), (x, x[-41, :, 0]), nn.functional.mse_loss, needed_lag=5)
    assert 40 in report.needed[0].lags
    assert 5 in report.needed[0].lags
    assert codes(report) == {"TT101@rnn": "warning"}


@pytest.mark.parametrize("mean", [0.0, 1.0])
@pytest.mark.parametrize("at", ["every valid step", "the last valid step"])
def test_padding_is_not_read_as_demand(mean, at):
    """Targets independent of the inputs. At every step an untrained output itself shows at the nearest lags: docs/demand.md."""
    alarms = 0
    for seed in range(12):
        torch.manual_seed(seed)
        lengths, step = torch.randint(10, 41, (128,)), torch.arange(40)[:, None]
        valid = (step < lengths).float()
        weight = valid if at == "every valid step" else (step == lengths - 1).float()
        x, y = (torch.randn(40, 128, 1) + mean) * valid[..., None], torch.randn(40, 128) + 1
        head = nn.Linear(8, 1)

        def masked(model, batch, weight=weight, head=head):
            return ((head(model(batch[0])[0])[..., 0] - batch[1]).square() * weight).mean()

        report = tt.diagnose(nn.GRU(1, 8), (x, y), masked, hops=False, signal_to_noise=False, origin_step=False)
        alarms += any(lag > 1 for lag in report.needed[0].lags)
    assert alarms <= 2


def test_a_heavy_early_loss_does_not_make_the_later_ones_look_small():
    torch.manual_seed(0)
    layer = chrono_(nn.GRU(1, 32), 60)
    weight = torch.ones(60, 1, 1)
    weight[2] = 1e4

    def heavy(model, x):
        return (model(x)[0] * weight).square().sum()

    report = tt.diagnose(layer, torch.randn(60, 32, 1), heavy, needed_lag=30, demand=False)
    assert codes(report) == {"TT190@rnn": "info"}
    assert report.flow.layers["rnn"].arriving[30] > 0.1


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_the_line_to_paste_works_for_a_model_that_is_the_layer(kind):
    torch.manual_seed(0)
    model = kind(1, 16)
    report = tt.diagnose(model, torch.randn(40, 16, 1), lambda output: output[0][-1].square().sum(), needed_lag=38)
    (finding,) = [f for f in report.findings if f.code == "TT101"]
    line = finding.remedy.split("`")[1]
    exec(line, {"tt": tt, "model": model})


def test_a_part_of_the_sequence_that_got_no_gradient_is_named():
    torch.manual_seed(0)
    layer, x = nn.GRU(1, 8), torch.randn(40, 16, 1)
    with record(layer) as rec:
        _, state = layer(x[:20])
        layer(x[20:], state.detach())[0][-1].square().sum().backward()
    flow = rec.flow()
    assert flow.layers["rnn"].steps == 20
    assert "another call of it in this step got no gradient" in repr(flow)
    assert codes(flow.diagnose(needed_lag=34)) == {"TT103@rnn": "error"}


def test_a_gradient_of_zero_is_not_said_to_come_from_far_away():
    model = nn.RNN(1, 4, nonlinearity="relu")
    with torch.no_grad():
        model.bias_ih_l0.fill_(-100)
    report = tt.diagnose(model, torch.randn(20, 8, 1), lambda output: output[0].sum())
    assert "is zero" in said(report)
    assert "comes from beyond" not in said(report)


def test_the_nonlinear_test_is_not_called_first_order():
    torch.manual_seed(0)
    x = torch.randn(20, 64, 1)
    report = tt.diagnose(Reader(), (x, x[-3, :, 0]), nn.functional.mse_loss, demand_method="distance")
    assert "first-order" not in said(report)
