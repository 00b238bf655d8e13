"""The short way: what goes in, what comes out, and that the model stays as it was."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import throughtime as tt
from throughtime.diagnosis.diagnose import needs
from throughtime.diagnosis.finding import Finding
from throughtime.diagnosis.report import Needed, Report
from throughtime.diagnosis.rule import registry
from throughtime.errors import InputError, ThroughtimeError, UnsupportedError
from throughtime.training_step import as_batches, as_step

STEPS, BATCH = 14, 6


class Net(nn.Module):
    """A GRU and an LSTM above it, with everything a model may carry about."""

    def __init__(self):
        super().__init__()
        self.low = nn.GRU(3, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.3)
        self.high = nn.LSTM(8, 5)
        self.head = nn.Linear(5, 2)
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("nothing", None)

    def forward(self, x):
        self.seen = self.seen + 1
        out = self.norm(self.low(x)[0].flatten(0, 1)).unflatten(0, x.shape[:2])
        return self.head(self.high(self.drop(out))[0][-1])


class Short(nn.Module):
    """One GRU, no randomness."""

    def __init__(self, steps_first=True):
        super().__init__()
        self.rnn = nn.GRU(3, 8, batch_first=not steps_first)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[1][-1])


def made(kind=Short, seed=0):
    torch.manual_seed(seed)
    return kind()


def batch(size=BATCH, seed=1, steps=STEPS):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(steps, size, 3, generator=generator), torch.randint(0, 2, (size,), generator=generator)


def remembering(size=48, steps=STEPS):
    """The class is the sign of the first input: demand at the farthest lag."""
    x, _ = batch(size, steps=steps)
    return x, (x[0, :, 0] > 0).long()


def cross_entropy(model, given):
    return nn.functional.cross_entropy(model(given[0]), given[1])


# --- the model stays as it was -----------------------------------------------------------------------------------


def state(model):
    """Everything that could change, with the identity of what must be the same object."""
    return {
        "parameters": [(id(p), p.detach().clone(), p.requires_grad, p._version) for p in model.parameters()],
        "gradients": [(id(p.grad), None if p.grad is None else p.grad.clone()) for p in model.parameters()],
        "buffers": [(name, id(b), b.clone()) for name, b in model.named_buffers()],
        "modes": [module.training for module in model.modules()],
        "hooks": [
            len(getattr(module, kind))
            for module in model.modules()
            for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
        ],
        "parameter hooks": [len(p._backward_hooks or ()) for p in model.parameters()],
        "random": torch.get_rng_state(),
    }


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def raising(model, given):
    model(given[0])
    raise ZeroDivisionError("the user's own")


@pytest.mark.parametrize("mode", ["train", "eval", "mixed"])
@pytest.mark.parametrize(
    ("loss", "error"),
    [
        (cross_entropy, None),
        (None, None),
        (raising, ZeroDivisionError),
        (lambda model, given: model(given[0]), InputError),
        (lambda model, given: cross_entropy(model, given) * math.nan, InputError),
        (lambda model, given: model.eval()(given[0]).sum(), None),
    ],
    ids=["loss", "probe", "raises", "no scalar", "NaN", "changes the mode"],
)
def test_the_model_is_left_as_it_was(mode, loss, error):
    model = made(Net)
    model.train(mode != "eval")
    if mode == "mixed":
        model.norm.eval()
    model.low.weight_hh_l0.requires_grad_(False)
    cross_entropy(model, batch()).backward()
    before = state(model)
    if error is None:
        tt.diagnose(model, batch(), loss)
    else:
        with pytest.raises(error):
            tt.diagnose(model, batch(), loss)
    after = state(model)
    for what in before:
        assert same(before[what], after[what]), what


def test_a_frozen_model_can_be_diagnosed():
    model, thawed = made(), made()
    model.requires_grad_(False)
    frozen = tt.diagnose(model, batch(), cross_entropy).flow.layers["rnn"]
    assert not any(parameter.requires_grad for parameter in model.parameters())
    free = tt.diagnose(thawed, batch(), cross_entropy).flow.layers["rnn"]
    assert np.array_equal(frozen.share, free.share)
    assert frozen.residual == free.residual < 1e-4


def test_inside_no_grad_too():
    with torch.no_grad():
        assert tt.diagnose(made(), batch(), cross_entropy).flow.residual < 1e-4


# --- batches ------------------------------------------------------------------------------------------------------


def summed(model, given):
    return nn.functional.cross_entropy(model(given[0]), given[1], reduction="sum")


def parts(given, size):
    x, y = given
    return [(x[:, i : i + size], y[i : i + size]) for i in range(0, len(y), size)]


GIVEN = {
    "list": list,
    "generator": iter,
    "loader": lambda pairs: torch.utils.data.DataLoader(pairs, batch_size=None),
    "lists, as loaders yield them": lambda pairs: [list(pair) for pair in pairs],
    "arrays": lambda pairs: [tuple(part.numpy() for part in pair) for pair in pairs],
}


@pytest.mark.parametrize("form", GIVEN)
def test_batches_are_joined_as_if_they_were_one(form):
    whole = batch(12)
    one = tt.diagnose(made(), whole, summed).flow.layers["rnn"]
    joined = tt.diagnose(made(), GIVEN[form](parts(whole, 4)), summed).flow.layers["rnn"]
    assert joined.batch == one.batch == 12
    for name in ("share", "bias", "cosine", "signal_to_noise"):
        np.testing.assert_allclose(getattr(joined, name), getattr(one, name), rtol=2e-3, atol=1e-6)
    np.testing.assert_allclose(joined.adjoint.log10_norm, one.adjoint.log10_norm, atol=1e-5)
    np.testing.assert_allclose(joined.demand.z, one.demand.z, rtol=1e-3, atol=1e-4)
    assert joined.horizon == one.horizon


def test_batches_of_other_lengths_are_joined_from_their_starts():
    """Each sequence's lags end at its own start; sums over batches are those of the batches alone."""
    short, long = batch(steps=9), batch()
    both = tt.diagnose(made(), [short, long], summed).flow.layers["rnn"]
    alone = [tt.diagnose(made(), [each], summed).flow.layers["rnn"] for each in (short, long)]
    assert both.steps == alone[1].steps
    assert both.residual < 1e-4
    for place, layer in enumerate(alone):
        rows = both.adjoint.by_sequence[:, place * BATCH : (place + 1) * BATCH]
        np.testing.assert_allclose(rows[: layer.steps], layer.adjoint.by_sequence, atol=1e-5)
        assert np.isnan(rows[layer.steps :]).all()


def test_a_dict_is_a_batch():
    x, y = batch()
    report = tt.diagnose(
        made(), {"x": x, "y": y}, lambda model, batch: nn.functional.cross_entropy(model(batch["x"]), batch["y"])
    )
    assert report.flow.batch == BATCH


def test_a_loader_is_read_as_far_as_the_limit():
    drawn = []

    def endless():
        while True:
            drawn.append(1)
            yield batch(2)

    assert tt.diagnose(made(), endless(), cross_entropy, limit=3).flow.batch == 6
    assert len(drawn) == 3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "loader is empty"),
        (3, "batches of type int"),
        ((torch.zeros(STEPS, 0, 3), torch.zeros(0, dtype=torch.long)), "an empty batch"),
        ((torch.full((STEPS, 2, 3), math.inf), torch.zeros(2, dtype=torch.long)), r"inf in the input .*\(0, 0, 0\)"),
    ],
    ids=["none", "no batches", "no sequences", "infinite"],
)
def test_unusable_batches(given, words):
    with pytest.raises(InputError, match=words) as caught:
        tt.diagnose(made(), given, cross_entropy)
    assert caught.value.expected
    assert caught.value.do


def test_nan_in_the_weights_is_located():
    model = made()
    model.rnn.weight_hh_l0.data[2, 1] = math.nan
    with pytest.raises(InputError, match=r"nan in rnn.weight_hh_l0 .*\(2, 1\)"):
        tt.diagnose(model, batch(), cross_entropy)


@pytest.mark.parametrize(("size", "steps"), [(1, STEPS), (5, 1), (1, 1)])
def test_one_sequence_and_one_step(size, steps):
    layer = tt.diagnose(made(), batch(size, steps=steps), cross_entropy).flow.to_dict()["layers"][0]
    reasons = {row["field"]: row["reason"] for row in layer["missing"]}
    if size == 1:
        assert layer["demand"] is None
        assert "sequence" in reasons["demand"]
        assert set(layer["signal_to_noise"]) == {None}
        assert "sequence" in reasons["signal_to_noise"]
    assert layer["steps"] == steps
    assert layer["residual"] < 1e-4


# --- losses -------------------------------------------------------------------------------------------------------


class Criterion(nn.Module):
    def forward(self, output, target):
        return nn.functional.cross_entropy(output, target)


class Whole(nn.Module):
    def forward(self, model, batch):
        return cross_entropy(model, batch)


def with_default(output, target, reduction="mean"):
    return nn.functional.cross_entropy(output, target, reduction=reduction)


LOSSES = {
    "model, batch": cross_entropy,
    "net, batch": lambda net, batch: cross_entropy(net, batch),
    "model, x, y": lambda model, x, y: nn.functional.cross_entropy(model(x), y),
    "output, target": lambda output, target: nn.functional.cross_entropy(output, target),
    "function": nn.functional.cross_entropy,
    "default": with_default,
    "module": nn.CrossEntropyLoss(),
    "own module": Criterion(),
    "module of model and batch": Whole(),
    "keywords": lambda output, target, *, smooth=0.0: nn.functional.cross_entropy(
        output, target, label_smoothing=smooth
    ),
}


@pytest.mark.parametrize("form", LOSSES)
def test_a_loss_is_read_by_its_parameters(form):
    model, given = made(), batch()
    expected = cross_entropy(model, given)
    assert torch.equal(as_step(LOSSES[form])(model, given), expected)
    assert torch.equal(as_step(LOSSES[form])(model, list(given)), expected)


@pytest.mark.parametrize("given", [batch()[0], batch(), {"x": 1}][:2], ids=["x", "(x, y)"])
def test_a_loss_of_the_output_alone(given):
    model = made()
    assert torch.equal(as_step(lambda out: out.sum())(model, given), model(batch()[0]).sum())


@pytest.mark.parametrize(
    ("loss", "given", "words"),
    [
        (3, batch(), "a loss of type int"),
        (lambda output, target: output, batch(), r"shape \(6, 2\)"),
        (lambda output: 3.0, batch(), "returns a float"),
        (nn.MSELoss(), batch()[0], r"1 part\(s\) for a criterion"),
    ],
    ids=["number", "no scalar", "no tensor", "no target"],
)
def test_unusable_losses(loss, given, words):
    with pytest.raises(InputError, match=words):
        tt.diagnose(made(), given, loss)


@pytest.mark.parametrize(
    "loss",
    [
        lambda model, given: model.head(torch.ones(1, 8)).sum(),
        lambda model, given: torch.tensor(1.0),
        lambda model, given: cross_entropy(model, given).detach(),
        lambda model, given: model.head(model.rnn(given[0])[0].detach()).sum(),
        lambda model, given: cross_entropy(made(seed=3), given),
        lambda model, given: cross_entropy(model, given) * 0,
    ],
    ids=["head only", "constant", "detached", "detached within", "another model", "zero"],
)
def test_a_loss_that_does_not_depend_on_the_layer(loss):
    with pytest.raises(ThroughtimeError, match=r"does not depend|exactly zero") as caught:
        tt.diagnose(made(), batch(), loss)
    assert caught.value.do


# --- layers -------------------------------------------------------------------------------------------------------


def test_several_layers_and_some_of_them():
    assert list(tt.diagnose(made(Net), batch(), cross_entropy).flow.layers) == ["series", "low", "high"]
    report = tt.diagnose(made(Net), batch(), cross_entropy, layers=["high"], needed_lag=3)
    assert list(report.flow.layers) == ["high"]
    assert [(need.layer, need.source, need.said) for need in report.needed] == [("high", "user", 3)]
    with pytest.raises(InputError, match="expected a list of some of"):
        tt.diagnose(made(Net), batch(), cross_entropy, layers=["rnn"])


def test_a_layer_that_the_loss_does_not_use_is_named():
    class Two(Short):
        def __init__(self):
            super().__init__()
            self.other = nn.GRU(3, 2)

    flow = tt.diagnose(made(Two), batch(), cross_entropy).flow
    assert list(flow.layers) == ["rnn"]
    assert flow.to_dict()["missing"][0] == {"field": "layers.other", "reason": "the loss does not depend on it"}
    assert "other" in repr(flow)
    with pytest.raises(InputError, match=r"does not depend on the recurrent layer.* other"):
        tt.diagnose(made(Two), batch(), cross_entropy, layers=["other"])


@pytest.mark.parametrize("model", [nn.Linear(3, 2), nn.Conv1d(3, 2, 1)])
def test_models_that_cannot_be_told(model):
    with pytest.raises(UnsupportedError, match="expected"):
        tt.diagnose(model, batch()[0])


# --- without a loss -----------------------------------------------------------------------------------------------


def jacobian_norms(layer, x, lags):
    """Root mean square over sequences and directions of ‖(∂s_T/∂s_k)ᵀ v‖, by autograd.functional over the steps."""
    squares = np.zeros(lags)
    for sequence in x.unbind(1):
        for lag in range(lags):

            def last(start, lag=lag, sequence=sequence):
                rest = sequence[len(sequence) - lag :]
                parts = tuple(part[None] for part in start.chunk(2)) if isinstance(layer, nn.LSTM) else start[None]
                if not lag:
                    return start
                end = layer(rest, parts)[1]
                return torch.cat([part[0] for part in end]) if isinstance(end, tuple) else end[0]

            done = layer(sequence[: len(sequence) - lag])[1]
            start = torch.cat([part[0] for part in done]) if isinstance(done, tuple) else done[0]
            squares[lag] += float(torch.autograd.functional.jacobian(last, start.detach()).square().mean(0).sum())
    return np.sqrt(squares / x.shape[1])


@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN, nn.LSTM])
def test_a_small_probe_is_the_norm_of_the_jacobian_exactly(kind):
    torch.manual_seed(0)
    layer, x = kind(3, 4).double(), torch.randn(9, 5, 3, dtype=torch.float64)
    report = tt.diagnose(layer, x)
    told = report.flow.layers["rnn"]
    assert (told.batch, told.steps) == (5, 9)
    np.testing.assert_allclose(10**told.adjoint.log10_norm, jacobian_norms(layer, x, 9), rtol=1e-9)
    rms = np.sqrt(np.mean(10 ** (2 * told.adjoint.by_sequence), axis=1))
    np.testing.assert_allclose(rms, 10**told.adjoint.log10_norm, rtol=1e-9)


def test_a_large_probe_takes_random_directions():
    torch.manual_seed(0)
    layer, x = nn.GRU(3, 24).double(), torch.randn(9, 16, 3, dtype=torch.float64)
    told = tt.diagnose(layer, x).flow.layers["rnn"]
    assert told.batch == 16
    norms = 10 ** (told.adjoint.log10_norm - told.adjoint.log10_norm[0])
    np.testing.assert_allclose(norms, jacobian_norms(layer, x, 9), rtol=0.2)
    assert "4 random direction(s)" in {each.field: each.reason for each in told.missing}["demand"]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_a_probe_tells_supply_and_never_a_fault(kind, first):
    torch.manual_seed(0)
    x = torch.randn(60, 5, 3)
    report = tt.diagnose(kind(3, 6, batch_first=not first), x if first else x.transpose(0, 1))
    layer = report.flow.to_dict()["layers"][0]
    assert layer["demand"] is None
    assert next(row["reason"] for row in layer["missing"] if row["field"] == "demand").startswith("no loss was given")
    assert report.needed == (Needed("rnn", (), "unknown"),)
    assert layer["residual"] < 1e-4
    assert layer["steps"] == 60
    told = " ".join(sentence for _, sentence in report.headline()).lower()
    assert "vanish" not in told
    assert "warning" not in told


def test_every_layer_is_probed_alone():
    """An upper layer's state is no loss of the lower one: the lower one's probe is what it is without the upper."""
    torch.manual_seed(0)
    low, high = nn.GRU(3, 6), nn.LSTM(6, 4)

    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.low, self.high = low, high

        def forward(self, x):
            return self.high(self.low(x)[0])

    x = batch()[0]
    both, alone = tt.diagnose(Stack(), (x, None)).flow, tt.diagnose(low, x).flow
    assert list(both.layers) == ["low", "high"]
    np.testing.assert_allclose(
        both.layers["low"].adjoint.log10_norm, alone.layers["rnn"].adjoint.log10_norm, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    ("model", "given", "words"),
    [
        (nn.GRU(3, 4), torch.zeros(5, 2, 3, dtype=torch.float64), "dtype float64 for weights of dtype float32"),
        (nn.GRU(3, 4), torch.zeros(5, 2, 3, device="meta"), "device meta for weights of device cpu"),
        (nn.GRU(3, 4), {"x": 1}, "type dict for a bare layer"),
        (nn.ModuleDict({"rnn": nn.GRU(3, 4), "f": nn.Identity()})["f"], torch.zeros(5, 2, 3), "without nn.GRU"),
    ],
    ids=["dtype", "device", "dict", "no layer"],
)
def test_unusable_probes(model, given, words):
    with pytest.raises(ThroughtimeError, match=words):
        tt.diagnose(model, given)


def test_a_probe_cannot_be_verified():
    with pytest.raises(InputError, match="verify without a loss"):
        tt.diagnose(made(), batch(), verify=True)


# --- what is needed, and the words --------------------------------------------------------------------------------


def test_demand_and_the_user_say_what_is_needed():
    model, given = made(), remembering()
    measured = tt.diagnose(model, given, cross_entropy)
    assert STEPS - 1 in measured.needed[0].lags
    assert measured.needed[0].source == "demand"
    said = measured.flow.diagnose(needed_lag=4)
    assert said.needed == (Needed("rnn", tuple(sorted({4, *measured.needed[0].lags})), "user", 4),)
    told = dict(said.headline())["needed"]
    assert told.startswith("4 steps back, as you said. The loss responds to")
    with pytest.raises(InputError, match="needed_lag=-1"):
        needs(measured.flow.layers["rnn"], -1)


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
@pytest.mark.parametrize("size", [1, 40])
def test_without_demand_no_words_of_alarm(kind, size):
    """A loss on the last step of a long sequence whose gradient vanishes, and nothing known of what is needed."""
    torch.manual_seed(0)
    layer, generator = kind(3, 6), torch.Generator().manual_seed(2)
    x, y = torch.randn(150, size, 3, generator=generator), torch.randn(size, 6, generator=generator)
    report = tt.diagnose(layer, (x, y), lambda model, given: (model(given[0])[0][-1] * given[1]).sum())
    assert report.needed[0].source == "unknown", "choose another seed: demand has a false alarm of 5 %"
    told = " ".join(sentence for _, sentence in report.headline())
    for word in ("vanish", "warning"):
        assert word not in told.lower()
        assert word not in repr(report).lower()
    assert ("No demand was detected" in told) == (size > 2)
    assert "which is not “not needed”" in told or "Not measured" in told
    assert "needed_lag=" in told
    assert "depends on the task" in told
    assert not any(finding.code == "TT101" for finding in report.findings)


def test_a_vanished_gradient_is_told_where_the_lag_is_needed():
    report = tt.diagnose(made(), batch(steps=100), cross_entropy, needed_lag=95)
    labels = [label for label, _ in report.headline()]
    assert labels[:2] == ["needed", "reached"]
    assert labels[2:] == sorted(labels[2:], key=["finding", "try", "after"].index)
    assert "TT101" in [finding.code for finding in report.findings]
    assert "arrives at lag 95" in dict(report.headline())["reached"]
    assert not report.passed()


def test_a_needed_lag_beyond_the_sequence_is_told():
    report = tt.diagnose(made(), batch(), cross_entropy, needed_lag=500)
    assert "the sequence is shorter" in dict(report.headline())["reached"]


def test_passed_counts_stable_findings_from_a_severity_on():
    flow = tt.diagnose(made(), batch(), cross_entropy).flow

    def report(*findings):
        rules = list(registry().values())
        made = [Finding("TT101", rules[0].name, s, p, "rnn", 1.0, 2.0, "m.", "r", ()) for s, p in findings]
        return Report(flow, (), tuple(made))

    assert report().passed("info")
    assert report(("error", True)).passed("info")
    assert report(("info", False), ("error", True)).passed("warning")
    assert not report(("info", False)).passed("info")
    assert not report(("error", False)).passed("warning")
    assert report(("warning", False)).passed("error")
    with pytest.raises(InputError, match="fail_on='fatal'"):
        report().passed("fatal")


# --- the remedy, and the forms of a result ------------------------------------------------------------------------


def test_verify_tries_the_remedy_out():
    told = []
    model = made()
    before = copy.deepcopy(model.state_dict())
    report = tt.diagnose(
        model,
        [remembering(24, 80)] * 2,
        cross_entropy,
        needed_lag=79,
        verify=True,
        verify_steps=3,
        verify_seeds=2,
        progress=lambda done, of, what: told.append(what),
    )
    assert report.verification is not None
    assert (report.verification.remedy, report.verification.steps) == ("chrono", 3)
    assert report.verification.seeds == (0, 1)
    assert report.before is report.flow
    needed = report.after.layers["rnn"].arriving[79]
    assert needed > 100 * report.before.layers["rnn"].arriving[79]
    assert report.after.layers["rnn"].demand is None
    assert [label for label, _ in report.headline()][-1] == "after"
    assert {"batches", "seed 0, untreated", "seed 1, treated"} <= set(told)
    assert same(before, model.state_dict())


def test_nothing_is_verified_where_no_finding_has_a_remedy():
    report = tt.diagnose(made(), batch(), cross_entropy, needed_lag=1, verify=True)
    assert report.verification is None
    assert {"field": "verification", "reason": "no remedy was tried out"} in report.to_dict()["missing"]


def test_every_form_of_the_result(tmp_path):
    report = tt.diagnose(made(Net), remembering(), cross_entropy)
    flow = report.flow
    assert "high: LSTM" in repr(report)
    assert "low: GRU" in repr(flow)
    assert repr(flow) == repr(flow.diagnose().flow)
    for html in (report._repr_html_(), flow._repr_html_()):
        assert html.count("<div") == html.count("</div>") > 0
        assert "<script" not in html
    assert report.save_html(tmp_path / "r.html").read_text().startswith("<!doctype html>")
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


def test_a_data_frame_has_a_row_for_each_lag():
    pandas = pytest.importorskip("pandas")
    flow = tt.diagnose(made(Net), batch(), cross_entropy).flow
    frame = flow.to_dataframe()
    assert isinstance(frame, pandas.DataFrame)
    blocks = sum(1 + len(terms.gates) for layer in flow.layers.values() for terms in layer.parameters.values())
    assert len(frame) == blocks * STEPS
    assert list(frame.columns) == ["layer", "parameter", "gate", "lag", "share", "log10_norm"]
    mine = frame[(frame.layer == "high") & (frame.parameter == "high.weight_hh_l0") & (frame.gate == "f")]
    terms = flow.layers["high"].parameters["high.weight_hh_l0"].gates["f"]
    np.testing.assert_array_equal(mine.share, terms.share)


def test_data_sets_have_labelled_dimensions():
    xarray = pytest.importorskip("xarray")
    flow = tt.diagnose(made(Net), batch(), cross_entropy).flow
    sets = flow.to_xarray()
    assert list(sets) == ["series", "low", "high"]
    one = sets["high"]
    assert isinstance(one, xarray.Dataset)
    assert one.sizes["lag"] == STEPS
    assert one.sizes["unit"] == 5
    assert dict(one.gate_share.sizes) == {"parameter": 4, "gate": 4, "lag": STEPS}
    share = flow.layers["high"].parameters["high.weight_ih_l0"].share
    np.testing.assert_array_equal(one.share.sel(parameter="high.weight_ih_l0"), share)
    np.testing.assert_array_equal(one.demand_z, flow.layers["high"].demand.z)


def test_batches_are_read_as_documented():
    x, y = batch()
    for given in (x, (x, y), {"x": x}, [x, y]):
        assert len(as_batches(given, 8)) == 1
    assert len(as_batches([(x, y), (x, y)], 8)) == 2
    assert isinstance(as_batches(x.numpy(), 8)[0], torch.Tensor)
