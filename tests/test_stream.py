"""Loaders of any size: what is told, where it ends, and that it goes on where it was broken off."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import throughtime as tt
from test_accumulate import same
from test_diagnose import same as alike
from test_diagnose import state
from throughtime import cli
from throughtime.errors import InputError
from throughtime.report.json import schema
from throughtime.streaming import stream as module
from throughtime.streaming.statefile import digest


class Net(nn.Module):
    """A GRU with dropout before its head: random numbers matter."""

    def __init__(self, inputs=2, units=6):
        super().__init__()
        self.rnn = nn.GRU(inputs, units)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(units, 1)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        return self.head(self.drop(self.rnn(x)[0][-1]))


def net(seed=0):
    torch.manual_seed(seed)
    return Net().double()


def data(count, steps=12, size=5, seed=0):
    """Batches whose target is an input of some steps ago, and noise."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    drawn = ((draw(steps, size, 2), 0.3 * draw(size, 1)) for _ in range(count))
    return [(x, x[-4, :, :1] + noise) for x, noise in drawn]


def error(model, batch):
    return nn.functional.mse_loss(model(batch[0]), batch[1], reduction="sum")


def layer(*args, **options):
    return tt.diagnose(*args, **{"stop_when": None} | options).flow.layers["rnn"]


# --- what is told ---------------------------------------------------------------------------------------------------


def test_a_loader_tells_what_one_batch_of_it_all_tells():
    batches = data(7)
    whole = torch.cat([x for x, _ in batches], dim=1), torch.cat([y for _, y in batches])
    got, wanted = layer(net().eval(), iter(batches), error), layer(net().eval(), whole, error)
    same(got, wanted)
    assert (got.batches, wanted.batches) == (7, 1)


def test_probes_stream_too():
    batches = [x for x, _ in data(3, size=2)]
    got, wanted = layer(net().eval(), iter(batches)), layer(net().eval(), torch.cat(batches, dim=1))
    np.testing.assert_allclose(got.adjoint.log10_norm, wanted.adjoint.log10_norm, rtol=1e-10)
    np.testing.assert_allclose(got.adjoint.by_sequence, wanted.adjoint.by_sequence, rtol=1e-10)
    assert got.batch == wanted.batch == 6
    assert "no loss was given" in {each.field: each.reason for each in got.missing}["demand"]


def test_memory_does_not_grow_with_the_data(monkeypatch):
    """All that is kept after 32 batches is as large as after 16."""
    monkeypatch.setattr("throughtime.gates.ROOM", 1000)
    monkeypatch.setattr("throughtime.streaming.sums.SEQUENCES", 20)
    monkeypatch.setattr("throughtime.streaming.accumulate.SEQUENCES", 20)

    def kept(count):
        from throughtime.asked import Asked
        from throughtime.diagnosis.measure import StepReader
        from throughtime.streaming.sums import plain

        task = module.Task(StepReader(error), Asked(max_lag=11))
        measured, _ = module.stream(net(), data(count), task, module.Streaming(None), torch.get_rng_state())
        return numbers(plain(measured.layers["rnn"]))

    def numbers(value):
        if isinstance(value, torch.Tensor):
            return value.numel()
        if isinstance(value, dict | list):
            return sum(map(numbers, value.values() if isinstance(value, dict) else value))
        return 0

    assert kept(32) == kept(16) > kept(3) / 4


def test_everything_is_as_it_was():
    model, loader = net(), torch.utils.data.DataLoader(data(20), batch_size=None, shuffle=True)
    before = state(model)
    tt.diagnose(model, loader, error)
    assert alike(before, state(model))


# --- where it ends --------------------------------------------------------------------------------------------------


def test_a_limit_ends_it():
    flow = tt.diagnose(net(), data(9), error, limit=4, stop_when=None).flow
    assert (flow.stream.batches, flow.batch, flow.stream.stopped) == (4, 20, "all batches were read")


def test_a_horizon_that_is_known_ends_it():
    drawn = []

    def endless():
        for seed in range(1000):
            drawn.append(seed)
            yield from data(1, seed=seed, size=50)

    flow = tt.diagnose(net().eval(), endless(), error, stop_when=0.5).flow
    low, high = flow.layers["rnn"].intervals.horizon[0.01]
    assert flow.stream.batches == flow.layers["rnn"].batches == len(drawn)
    assert flow.stream.batches in module.LOOKS
    assert (high - low) / 2 <= max(0.5 * flow.layers["rnn"].horizon[0.01], 0.5)
    assert "known to ±" in flow.stream.stopped
    assert not flow.stream.partial


def interrupting(at):
    for number, batch in enumerate(data(9)):
        if number == at:
            raise KeyboardInterrupt
        yield batch


def test_ctrl_c_keeps_what_was_done():
    model = net()
    before = state(model)
    flow = tt.diagnose(model, interrupting(5), error).flow
    assert flow.stream.partial
    assert flow.stream.stopped == "interrupted after 5 batches"
    same(flow.layers["rnn"], layer(net(), data(9)[:5], error))
    assert alike(before["parameters"], state(model)["parameters"])
    with pytest.raises(KeyboardInterrupt):
        tt.diagnose(model, interrupting(0), error)


# --- going on -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", [1, 4, 9])
def test_a_run_goes_on_where_it_was_broken_off(tmp_path, broken):
    file = tmp_path / "state.pt"
    wanted = layer(net(), data(9), error)

    def failing():
        for number, batch in enumerate(data(9)):
            if number == broken:
                raise OSError("the disk is gone")
            yield batch

    if broken < 9:
        with pytest.raises(OSError, match="disk"):
            layer(net(), failing(), error, resume=file)
    else:
        layer(net(), failing(), error, resume=file)
    worked = []

    def counted(model, batch):
        worked.append(batch)
        return error(model, batch)

    got = layer(net(), data(9), counted, resume=file)
    assert len(worked) == 9 - broken
    same(got, wanted, rtol=0)
    assert os.listdir(tmp_path) == ["state.pt"]


def test_a_shuffled_loader_goes_on_in_its_order(tmp_path):
    file = tmp_path / "state.pt"

    def loader():
        return torch.utils.data.DataLoader(data(9), batch_size=None, shuffle=True)

    torch.manual_seed(3)
    wanted = layer(net(), loader(), error)
    model = net()
    torch.manual_seed(3)
    wanted = layer(model, loader(), error)
    torch.manual_seed(3)
    layer(model, loader(), error, resume=file, limit=4)
    torch.manual_seed(4)
    same(layer(model, loader(), error, resume=file), wanted, rtol=0)


RUN = """
    import sys, time
    sys.path.insert(0, {tests!r})
    import throughtime as tt
    from test_stream import data, error, net

    def slow():
        for number, batch in enumerate(data(60)):
            print(number, flush=True)
            time.sleep(0.05)
            yield batch

    tt.diagnose(net(), slow(), error, resume={file!r}, stop_when=None)
"""


def test_a_killed_run_loses_at_most_one_batch(tmp_path):
    file, tests = tmp_path / "state.pt", os.path.dirname(__file__)
    script = textwrap.dedent(RUN.format(tests=tests, file=str(file)))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if int(line) == 6:
                break
        time.sleep(0.03)
        process.send_signal(signal.SIGKILL)
        rest = [int(line) for line in process.stdout]
    begun = max([6, *rest])
    (tmp_path / ".state.pt.part").write_bytes(b"half of it")  # where the kill came while it wrote
    kept = module.load(file)["digests"]
    assert list(kept) == list(range(len(kept)))
    assert len(kept) >= begun - 1  # one is being read, one was being worked on
    worked = []

    def counted(model, batch):
        worked.append(batch)
        return error(model, batch)

    got = layer(net(), data(60), counted, resume=file, limit=12)
    assert len(worked) == 12 - len(kept)
    same(got, layer(net(), data(12), error), rtol=1e-12)
    assert os.listdir(tmp_path) == ["state.pt"]


def changed_weights(file):
    model = net()
    with torch.no_grad():
        model.rnn.weight_hh_l0 += 0.1
    layer(model, data(5), error, resume=file)


def changed_head(file):
    """Nothing is left to do, and the recurrent layer is the same: the old numbers would come out as this model's."""
    model = net()
    with torch.no_grad():
        model.head.weight *= 2
    layer(model, data(3), error, resume=file)


def damaged(file):
    kept = torch.load(file, weights_only=True)
    kept["state"]["measured"]["layers"]["rnn"]["sums"]["given"][0] += 1
    torch.save(kept, file)
    layer(net(), data(3), error, resume=file)


def without_options(file):
    kept = torch.load(file, weights_only=True)
    del kept["state"]["asked"]
    torch.save(kept, file)
    layer(net(), data(3), error, resume=file)


def no_state(file):
    file.write_bytes(b"nothing of the kind")
    layer(net(), data(5), error, resume=file)


def a_pickle(file):
    torch.save(print, file)
    layer(net(), data(5), error, resume=file)


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda file: layer(net(), data(5, seed=9), error, resume=file), "batch 0 that differs"),
        (lambda file: layer(net(), data(5), error, resume=file, max_lag=3), "other options: max_lag"),
        (lambda file: layer(net(), data(2), error, resume=file), "2 batches, fewer than the 3"),
        (lambda file: layer(net(), data(5), error, resume=file, layers=["rnn"]), "another choice of layers"),
        (lambda file: layer(net(), [x for x, _ in data(5)], resume=file, signal_to_noise=True), "another kind of loss"),
        (lambda file: layer(net().eval(), data(5), error, resume=file), "another model"),
        (changed_weights, "another model"),
        (changed_head, "another model"),
        (damaged, "no state of a run"),
        (without_options, "no state of a run"),
        (no_state, "no state of a run"),
        (a_pickle, "no state of a run"),
    ],
    ids=[
        "data",
        "options",
        "fewer",
        "layers",
        "probe",
        "mode",
        "weights",
        "head",
        "damaged",
        "lacking",
        "file",
        "code",
    ],
)
def test_states_that_do_not_fit(tmp_path, use, words):
    file = tmp_path / "state.pt"
    layer(net(), data(3), error, resume=file)
    with pytest.raises(InputError, match=words):
        use(file)


def test_digests_tell_batches_apart():
    x = torch.arange(6.0)
    assert digest((x, 1)) == digest([x.clone(), 1])
    assert len({digest(each) for each in ((x, 1), (x, 2), (x.flip(0), 1), {"x": x}, {"y": x}, x.numpy()[:5])}) == 6
    assert digest(torch.zeros(0)) != digest(x)
    assert digest(torch.zeros(2, 3)) != digest(torch.zeros(3, 2))


class Item:
    """A batch of its own kind, as some loaders yield."""

    def __init__(self, x):
        self.x, self.itself = x, self


@pytest.mark.parametrize(
    "kind",
    [
        lambda x: x[0],  # no axis
        lambda x: x[None].T,
        lambda x: x.to_sparse(),
        lambda x: torch.complex(x, x).conj(),
        lambda x: np.array([{}, float(x[0])], dtype=object),
        lambda x: np.array(["a", str(float(x[0]))]),
        Item,
    ],
)
def test_batches_of_every_kind_have_digests(kind):
    x = torch.arange(1.0, 6)
    assert digest(kind(x)) == digest(kind(x.clone())) != digest(kind(x + 1))


def test_other_data_are_told_where_nothing_is_left_to_do(tmp_path):
    """The interval ended the run: the file alone would answer for whatever data are given."""
    file = tmp_path / "state.pt"
    first = tt.diagnose(net().eval(), data(40, size=50), error, stop_when=0.5, resume=file).flow.stream
    assert first.batches < 40
    assert tt.diagnose(net().eval(), data(40, size=50), error, stop_when=0.5, resume=file).flow.stream == first
    with pytest.raises(InputError, match="batch 0 that differs"):
        tt.diagnose(net().eval(), data(40, size=50, seed=1), error, stop_when=0.5, resume=file)


@pytest.mark.parametrize("limit", [0, -1, 2.5])
def test_a_limit_is_a_number_of_batches(limit):
    with pytest.raises(InputError, match=f"limit={limit}"):
        layer(net(), data(3), error, limit=limit)


@pytest.mark.parametrize("power", [-900, -300, 300, 700])
def test_a_gradient_whose_square_is_no_number_has_its_horizon_and_intervals(power):
    got, wanted = (layer(net(), data(9), lambda model, batch, k=k: error(model, batch) * 2.0**k) for k in (power, 0))
    np.testing.assert_allclose(got.bias, wanted.bias, rtol=1e-10)
    assert got.horizon == wanted.horizon
    assert got.intervals.horizon == wanted.intervals.horizon
    for name in ("bias", "share", "log10_arriving"):
        np.testing.assert_allclose(
            getattr(got.intervals, name), getattr(wanted.intervals, name), rtol=1e-8, err_msg=name
        )


class BothWays(nn.Module):
    """Two layers that read in both directions."""

    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.GRU(2, 3, 2, bidirectional=True), nn.Linear(6, 1)

    def forward(self, x):
        return self.head(self.rnn(x)[0][-1])


@pytest.mark.parametrize(("count", "resume"), [(8, False), (9, False), (2, True)])
def test_a_total_through_both_directions_is_told_or_missing(count, resume, tmp_path):
    options = {"resume": tmp_path / "state.pt"} if resume else {}
    flow = tt.diagnose(BothWays().double(), data(count, steps=5), error, stop_when=None, **options).flow
    told = {each.field: each.reason for each in flow.missing}
    assert ("rnn" in flow.layers) == (count == 8) == ("layers.rnn" not in told)
    if count != 8:
        assert "through both directions" in told["layers.rnn"]


@pytest.mark.parametrize(
    ("options", "words"),
    [({"engine": "spark"}, "engine='spark'"), ({"stop_when": 0.0}, "stop_when=0"), ({"workers": 0}, "workers=0")],
)
def test_options_out_of_range(options, words):
    with pytest.raises(InputError, match=words):
        tt.diagnose(net(), data(2), error, **options)


def test_a_layer_that_only_some_batches_use():
    """Its sums are of those batches; where none uses it, that is said."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.low, self.other, self.never = nn.GRU(2, 3), nn.LSTM(2, 3), nn.RNN(2, 3)

        def forward(self, x):
            self.never(x)
            return (self.other if x[0, 0, 0] > 0 else self.low)(x)[0][-1].sum() ** 2

    torch.manual_seed(0)
    model, batches = Two().double(), [x for x, _ in data(6)]
    flow = tt.diagnose(model, iter(batches), lambda model, batch: model(batch), demand=False, total=False).flow
    up = [x for x in batches if x[0, 0, 0] > 0]
    assert 0 < len(up) < 6
    assert (flow.layers["other"].batches, flow.layers["low"].batches) == (len(up), 6 - len(up))
    alone = tt.diagnose(model, iter(up), lambda model, batch: model(batch), demand=False, total=False).flow.layers[
        "other"
    ]
    same(flow.layers["other"], replace(alone, sequence=flow.layers["other"].sequence), rtol=1e-10)
    assert [each.field for each in flow.missing] == ["layers.never"]


class Fed(nn.Module):
    """A cell that is fed its own output: a part of the gradient comes round outside it."""

    def __init__(self):
        super().__init__()
        self.cell, self.back = nn.GRUCell(3, 4), nn.Linear(4, 1)

    def forward(self, x):
        h = x.new_zeros(x.shape[1], 4)
        fed = self.back(h)
        for now in x:
            h = self.cell(torch.cat((now, fed), dim=1), h)
            fed = self.back(h)
        return h.square().sum()


def test_what_comes_round_outside_is_added_up():
    torch.manual_seed(0)
    model, batches = Fed().double(), [x for x, _ in data(3)]
    got, wanted = (
        tt.diagnose(model, given, lambda model, batch: model(batch)).flow.layers["cell"]
        for given in (iter(batches), torch.cat(batches, dim=1))
    )
    assert abs(wanted.external) > 1e-3
    assert np.nansum(wanted.external_by_lag) == pytest.approx(wanted.external)
    same(got, wanted)


def test_bidirectional_batches_are_judged_by_their_own_input():
    torch.manual_seed(0)
    model = nn.GRU(2, 3, num_layers=2, bidirectional=True).double()
    batches = [x for x, _ in data(6)]
    loss = lambda model, batch: model(batch)[0][-1].square().sum()  # noqa: E731
    got = tt.diagnose(model, iter(batches), loss, total=False).flow
    wanted = tt.diagnose(model, torch.cat(batches, dim=1), loss, total=False).flow
    for name, each in wanted.layers.items():
        same(got.layers[name], each)


# --- what is shown --------------------------------------------------------------------------------------------------


def test_the_report_tells_batches_and_intervals():
    report = tt.diagnose(net().eval(), data(16, size=60), error, stop_when=None)
    document = report.to_dict()
    jsonschema.validate(document, schema())
    told = document["layers"][0]["intervals"]
    assert document["stream"] == {"batches": 16, "stopped": "all batches were read", "partial": False}
    assert (document["layers"][0]["batches"], told["blocks"], told["batches"]) == (16, 8, 2)
    low, high = told["horizon"]["0.01"]
    assert low <= document["layers"][0]["horizon"]["0.01"] <= high
    reached = dict(report.headline())["reached"]
    assert f"(95 % {low}–{high}, 16 batches)" in reached or f"(95 % {low}, 16 batches)" in reached
    for name in ("bias", "share"):
        points = np.array(document["layers"][0][name], dtype=float)
        lower, upper = np.array(told[name], dtype=float)
        assert (lower <= points).all()
        assert (points <= upper).all()


def test_one_batch_tells_nothing_of_batches():
    document = tt.diagnose(net().eval(), data(1), error).to_dict()
    assert "stream" not in document
    assert not {"batches", "intervals"} & set(document["layers"][0])


def test_a_part_of_the_data_is_called_so():
    report = tt.diagnose(net(), interrupting(5), error)
    assert dict(report.headline())["partial"] == "This is a part of the data: interrupted after 5 batches."
    jsonschema.validate(report.to_dict(), schema())


def test_the_command_line_streams(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    given = ["diagnose", "test_stream:Float", "--data", "test_stream:float_data", "--loss", "test_stream:error"]
    given += ["--format", "json", "--fail-on", "never", "--resume", "state.pt", "--all-batches"]
    first = CliRunner().invoke(cli.main, [*given, "--limit", "3"])
    whole = CliRunner().invoke(cli.main, given)
    assert (first.exit_code, whole.exit_code) == (0, 0), whole.output
    assert [json.loads(each.stdout)["stream"]["batches"] for each in (first, whole)] == [3, 10]
    refused = CliRunner().invoke(cli.main, [*given[:-3], "--resume", "nowhere/state.pt"])
    assert refused.exit_code == 2
    assert "nowhere" in refused.stderr


class Float(Net):
    """As the command line makes it: of float32."""


def float_data():
    return [(x.float(), y.float()) for x, y in data(10)]
