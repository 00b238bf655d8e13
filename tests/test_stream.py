"""Loaders of any size: what is told, where it ends, and that it goes on where it was broken off."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from contextlib import suppress
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
from throughtime.explain import explain
from throughtime.report.json import schema
from throughtime.streaming import state as kept_state
from throughtime.streaming import stream as module
from throughtime.streaming.statefile import FORMAT, digest
from throughtime.streaming.sums import plain
from throughtime.trace import joined


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


def told(flow, name="rnn"):
    """The layer, without the row that says why it has no intervals: of one batch there is none."""
    layer = flow.layers[name]
    return replace(layer, missing=tuple(each for each in layer.missing if each.field != "intervals"))


def layer(*args, **options):
    return told(tt.diagnose(*args, **{"stop_when": None} | options).flow)


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


@pytest.mark.parametrize("done", [1, 2, 5])
def test_ctrl_c_keeps_what_was_done(done):
    model = net()
    before = state(model)
    flow = tt.diagnose(model, interrupting(done), error).flow
    assert flow.stream.partial
    assert flow.stream.batches == done
    assert flow.stream.stopped == f"interrupted after {done} batch{'es' * (done > 1)}"
    same(told(flow), layer(net(), data(9)[:done], error))
    assert alike(before["parameters"], state(model)["parameters"])


def test_ctrl_c_before_the_first_batch_is_a_ctrl_c():
    model = net()
    before = state(model)
    with pytest.raises(KeyboardInterrupt):
        tt.diagnose(model, interrupting(0), error)
    assert alike(before, state(model))


class Impatient:
    """A loss that is interrupted while it works on the batch of this number, the first being 0."""

    def __init__(self, at):
        self.at, self.count = at, -1

    def __call__(self, model, batch):
        self.count += 1
        if self.count == self.at:
            raise KeyboardInterrupt
        return error(model, batch)


@pytest.mark.parametrize("at", [1, 2, 4])
@pytest.mark.parametrize("resume", [False, True])
def test_ctrl_c_while_a_batch_is_worked_on_keeps_those_before_it(at, resume, tmp_path):
    more = {"resume": tmp_path / "state.pt"} if resume else {}
    at += 2 if resume else 0  # the first batch is worked on three times
    flow = tt.diagnose(net(), data(9), Impatient(at), **more).flow
    done = at - (2 if resume else 0)
    assert flow.stream.batches == done
    same(told(flow), layer(net(), data(9)[:done], error))
    if resume:
        same(layer(net(), data(9), error, **more), layer(net(), data(9), error), rtol=0)


def test_ctrl_c_while_the_first_batch_is_worked_on_is_a_ctrl_c(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        tt.diagnose(net(), data(9), Impatient(0))
    for at in range(3):
        with pytest.raises(KeyboardInterrupt):
            tt.diagnose(net(), data(9), Impatient(at), resume=tmp_path / "state.pt")
    assert not os.listdir(tmp_path)


@pytest.fixture
def ctrl_c():
    """Python's own handler: a program that a shell starts in the background begins with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_a_ctrl_c_waits_until_a_batch_is_counted(tmp_path, monkeypatch):
    """It comes while the file is written: the file and the report tell of the same batches."""
    save, saved = module.save, []

    def interrupted(path, kept):
        saved.append(1)
        if len(saved) == 3:
            signal.raise_signal(signal.SIGINT)
        save(path, kept)

    monkeypatch.setattr(module, "save", interrupted)
    handler = signal.getsignal(signal.SIGINT)
    flow = tt.diagnose(net(), data(9), error, resume=tmp_path / "state.pt").flow
    assert flow.stream.stopped == "interrupted after 3 batches"
    assert len(lasting(tmp_path / "state.pt")["digests"]) == 3
    assert signal.getsignal(signal.SIGINT) is handler


class InSeries(nn.Module):
    """Two modules, the first of two layers that read in both directions."""

    def __init__(self):
        super().__init__()
        self.below, self.above, self.head = nn.GRU(2, 3, 2, bidirectional=True), nn.GRU(6, 3), nn.Linear(3, 1)

    def forward(self, x):
        return self.head(self.above(self.below(x)[0])[0][-1])


def test_ctrl_c_keeps_batches_that_are_worked_on_together():
    """Read, and while they are worked on: the total lag through several modules is that of those that were done."""
    torch.manual_seed(0)
    model = InSeries().double()
    wanted = tt.diagnose(model, data(3), error, demand=False).flow
    for given, loss in ((interrupting(3), error), (data(6), Impatient(3))):
        flow = tt.diagnose(model, given, loss, demand=False).flow
        assert (flow.stream.batches, flow.stream.partial) == (3, True)
        assert flow.layers.keys() == wanted.layers.keys()
        for name, each in wanted.layers.items():
            got = flow.layers[name]
            assert "intervals" in {row.field for row in got.missing}
            same(replace(got, missing=each.missing), each)
    with pytest.raises(KeyboardInterrupt):
        tt.diagnose(model, data(6), Impatient(0))


@pytest.mark.parametrize(("count", "words"), [(7, "need 8: 7 here"), (8, None)])
def test_where_there_are_no_intervals_a_row_says_so(count, words):
    report = tt.diagnose(net().eval(), data(count), error, stop_when=None)
    [layer] = report.to_dict()["layers"]
    rows = {row["field"]: row["reason"] for row in layer["missing"]}
    assert ("intervals" in layer) == (words is None) == ("intervals" not in rows)
    assert words is None or words in rows["intervals"]


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
    assert len(worked) == 9 - broken + 1  # the first is looked at again
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
    kept = lasting(file)["digests"]
    assert list(kept) == list(range(len(kept)))
    assert len(kept) >= begun - 1  # one is being read, one was being worked on
    worked = []

    def counted(model, batch):
        worked.append(batch)
        return error(model, batch)

    got = layer(net(), data(60), counted, resume=file, limit=12)
    assert len(worked) == 12 - len(kept) + 1  # the first is looked at again
    same(got, layer(net(), data(12), error), rtol=1e-12)
    assert os.listdir(tmp_path) == ["state.pt"]


def changed_weights(file):
    model = net()
    with torch.no_grad():
        model.rnn.weight_hh_l0 += 0.1
    layer(model, data(5), error, resume=file)


def changed_loss(file):
    """Half of the loss in one batch of data: neither model nor data tell it."""
    layer(net(), data(5), lambda model, batch: 0.5 * error(model, batch), resume=file)


def slightly_changed_loss(file):
    """Of the first batch, one sequence in five counts by 1 % more."""
    weights = torch.tensor([[1.0], [1.0], [1.01], [1.0], [1.0]], dtype=torch.float64)
    loss = lambda model, batch: (weights * (model(batch[0]) - batch[1]).square()).sum()  # noqa: E731
    layer(net(), data(3), loss, resume=file)


class Leaky(Net):
    """The same weights, and another way through them."""

    def forward(self, x):
        return super().forward(1.001 * x)


def changed_forward(file):
    torch.manual_seed(0)
    layer(Leaky().double(), data(3), error, resume=file)


def other_batch_size(file):
    x, y = (torch.cat(parts, dim=axis) for parts, axis in zip(zip(*data(6), strict=True), (1, 0), strict=True))
    layer(net(), list(zip(x.split(6, 1), y.split(6), strict=True)), error, resume=file)


def changed_head(file):
    """Nothing is left to do, and the recurrent layer is the same: the old numbers would come out as this model's."""
    model = net()
    with torch.no_grad():
        model.head.weight *= 2
    layer(model, data(3), error, resume=file)


def damaged(file):
    kept = torch.load(file, weights_only=True)
    kept["state"]["layers"]["rnn"]["sums"]["given"][0] += 1
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
        (changed_loss, "batch 0 that gives the layers other inputs, states or gradients"),
        (slightly_changed_loss, "batch 0 that gives the layers other"),
        (changed_forward, "batch 0 that gives the layers other"),
        (other_batch_size, "batch 0 that differs"),
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
        "loss",
        "slightly",
        "forward",
        "batch-size",
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


# --- files that were not written by us, and disks that take none --------------------------------------------------------


def lasting(file):
    """What a file holds, that is known to be whole."""
    return kept_state.load(file, kept_state.KINDS, kept_state.check_kept)


def test_no_bit_of_a_file_matters_unnoticed(tmp_path):
    """Cut, changed and grown at many places: refused, or the very same numbers."""
    file = tmp_path / "state.pt"
    layer(net(), data(2, steps=4), error, resume=file)
    whole, wanted = file.read_bytes(), digest(plain(lasting(file)))
    places = np.random.default_rng(0).integers(len(whole), size=60).tolist()
    for number, place in enumerate(places):
        changed = bytearray(whole)
        if number % 3 == 0:
            del changed[place:]
        elif number % 3 == 1:
            changed[place] ^= 1 << number % 8
        else:
            changed[place : place + 50] = bytes(min(50, len(whole) - place))
        file.write_bytes(changed)
        with suppress(InputError):
            assert digest(plain(lasting(file))) == wanted
            assert number % 3  # a part of a file is no file


def told_as(value):
    return {"format": FORMAT, "state": value, "digest": digest(value)}


def of_itself():
    lists = []
    lists.append(lists)
    return {"format": FORMAT, "state": lists, "digest": "0"}


def many_times():
    lists = ["a"] * 10
    for _ in range(12):
        lists = [lists] * 10
    return {"format": FORMAT, "state": lists, "digest": "0"}


class Runs:
    """Makes a folder when it is unpickled by anything that runs code."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: {"format": FORMAT, "state": torch.zeros(1).expand(10**12), "digest": "0"},
        lambda folder: {"format": FORMAT, "state": torch.eye(3).to_sparse(), "digest": "0"},
        lambda folder: of_itself(),
        lambda folder: many_times(),
        lambda folder: {"format": FORMAT, "state": Runs(folder), "digest": "0"},
        lambda folder: Runs(folder),
        lambda folder: net().state_dict(),
        lambda folder: net(),
        lambda folder: [1, 2],
        lambda folder: told_as({"kind": "os"}),
        lambda folder: told_as({"kind": "Row"}),
        lambda folder: told_as({name: {} for name in kept_state.KINDS}),
    ],
)
def test_files_of_strangers(tmp_path, monkeypatch, make):
    monkeypatch.setattr("throughtime.streaming.statefile.NODES", 10**5)
    file, folder = tmp_path / "state.pt", tmp_path / "ran"
    torch.save(make(str(folder)), file)
    with pytest.raises(InputError, match="no state of a run"):
        layer(net(), data(3), error, resume=file)
    assert not folder.exists()


def test_packed_files_are_refused(tmp_path):
    file = tmp_path / "state.pt"
    layer(net(), data(2), error, resume=file)
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(InputError, match="no state of a run"):
        layer(net(), data(2), error, resume=file)


@pytest.mark.parametrize(
    "change",
    [
        lambda kept: kept.update(rng=torch.zeros(3)),
        lambda kept: kept.update(rng=kept["rng"][:-1]),
        lambda kept: kept.update(digests={}),
        lambda kept: kept.update(digests={"a": "b"}),
        lambda kept: kept["digests"].update({7: "b"}),
        lambda kept: kept.update(told={"rnn": ["a", "b"]}),
        lambda kept: kept.update(told={"rnn": [3]}),
        lambda kept: kept.update(layers={}),
        lambda kept: kept.update(layers=[]),
        lambda kept: kept.update(first={"rnn": [1.0]}),
        lambda kept: kept["layers"]["rnn"].update(about=None),
        lambda kept: kept["layers"]["rnn"].update(steps=10**9),
        lambda kept: kept["layers"]["rnn"].update(origins=["a"]),
        lambda kept: kept["layers"]["rnn"].update(more=1),
    ],
)
def test_a_true_digest_over_wrong_parts(tmp_path, change):
    file = tmp_path / "state.pt"
    layer(net(), data(2), error, resume=file)
    kept = torch.load(file, weights_only=True)
    change(kept["state"])
    torch.save(told_as(kept["state"]), file)
    with pytest.raises(InputError, match="no state of a run"):
        layer(net(), data(3), error, resume=file)


@pytest.mark.parametrize("room", [10, 1000, 40_000])
def test_a_full_disk_leaves_what_was_there(tmp_path, room):
    """No file may grow beyond so many bytes, as where the disk is full."""
    file = tmp_path / "state.pt"
    layer(net(), data(3), error, resume=file)
    assert file.stat().st_size > room
    limits, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        with pytest.raises(InputError, match=r"cannot be written \(File too large\)"):
            layer(net(), data(5), error, resume=file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert os.listdir(tmp_path) == ["state.pt"]
    assert len(lasting(file)["digests"]) == 3
    same(layer(net(), data(5), error, resume=file), layer(net(), data(5), error), rtol=0)


@pytest.mark.parametrize("path", ["/sys/kernel/state.pt", "/dev/null", "."])
def test_paths_that_hold_no_file(path):
    with pytest.raises(InputError, match=r"cannot be written|no state of a run"):
        layer(net(), data(2), error, resume=path)


def test_behind_a_link_stands_the_file(tmp_path):
    file, link = tmp_path / "there" / "state.pt", tmp_path / "here.pt"
    file.parent.mkdir()
    link.symlink_to(file)
    for count in (2, 4):
        layer(net(), data(count), error, resume=link)
        assert link.is_symlink()
        assert len(lasting(file)["digests"]) == count


# --- batches of every kind ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "error_type", "words"),
    [
        (lambda x, y: (x[:, :0], y[:0]), InputError, "an empty batch .*, in batch 3"),
        (lambda x, y: (x * torch.nan, y), InputError, "nan in the input of layer 'rnn'.*, in batch 3"),
        (lambda x, y: (x, y * torch.inf), InputError, "nan in the gradient.*, in batch 3"),
        (lambda x, y: (x[..., :1], y), RuntimeError, "This was batch 3"),
        (lambda x, y: None, TypeError, "This was batch 3"),
    ],
    ids=["empty", "nan", "inf", "width", "none"],
)
@pytest.mark.parametrize("resume", [False, True])
def test_a_batch_that_will_not_do_is_named(tmp_path, batch, error_type, words, resume):
    file = tmp_path / "state.pt"
    batches = [*data(3), batch(*data(1)[0]), *data(2)]
    with pytest.raises(error_type) as found:
        layer(net(), batches, error, **({"resume": file} if resume else {}))
    assert re.search(words, " ".join([str(found.value), *getattr(found.value, "__notes__", [])]))
    if resume:  # and those before it are kept
        assert list(lasting(file)["digests"]) == [0, 1, 2]


def test_batches_of_any_size_and_length(tmp_path):
    """Of one sequence, of other lengths, through a generator of unknown length, broken off and gone on: the joined batches."""
    batches = [*data(2, size=1), *data(2, steps=5), *data(2, steps=20, size=2), *data(3, size=1, steps=4)]
    got = layer(net().eval(), (batch for batch in batches), error)
    wanted = explain([joined([traced(batch) for batch in batches])], tolerance=0).layers["rnn"]
    same(replace(got, missing=()), replace(wanted, missing=()))
    file = tmp_path / "state.pt"
    for limit in (1, 5, None):
        again = layer(net().eval(), (batch for batch in batches), error, resume=file, limit=limit)
    same(again, got, rtol=0)


def traced(batch):
    """One batch, recorded by the user's own step."""
    model = net().eval()
    with tt.record(model) as record:
        error(model, batch).backward()
    return record.traces()[0]


def test_a_loss_that_is_drawn_anew_is_not_compared(tmp_path):
    """By numbers that nobody seeds: then it says nothing, but it goes on."""
    draw = np.random.default_rng(0)
    loss = lambda model, batch: error(model, batch) * draw.uniform(0.5, 2)  # noqa: E731
    layer(net(), data(3), loss, resume=tmp_path / "state.pt")
    assert layer(net(), data(5), loss, resume=tmp_path / "state.pt").batches == 5


def test_what_rounding_makes_is_no_other_loss(tmp_path):
    """The same sum in another order, in float32."""
    batches = [(x.float(), y.float()) for x, y in data(5)]
    backwards = lambda model, batch: (model(batch[0]) - batch[1]).flip(0).square().cumsum(0)[-1].sum()  # noqa: E731
    layer(net().float(), batches[:3], error, resume=tmp_path / "state.pt")
    assert layer(net().float(), batches, backwards, resume=tmp_path / "state.pt").batches == 5


def test_digests_tell_batches_apart():
    x = torch.arange(6.0)
    assert digest((x, 1)) == digest([x.clone(), 1])
    assert len({digest(each) for each in ((x, 1), (x, 2), (x.flip(0), 1), {"x": x}, {"y": x}, x.numpy()[:5])}) == 6
    assert digest([1, 23]) != digest([12, 3]) != digest([[1], 23])
    assert len({digest(each) for each in (b"a", "a", {"a"}, {"b"}, 1j, np.int64(1), np.int64(2), 1)}) == 8
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


def test_every_total_that_is_not_told_of_many_batches_has_a_row():
    torch.manual_seed(0)
    model, options = InSeries().double(), {"stop_when": None, "demand": False}
    few, many = (tt.diagnose(model, data(count, steps=4, size=2), error, **options).flow for count in (8, 9))
    lacking = {name.removesuffix("_reverse") for name in few.layers.keys() - many.layers.keys()}
    told = {each.field.removeprefix("layers."): each.reason for each in many.missing}
    assert lacking == {"series", "below"} == told.keys()
    assert "up to 8 batches" in told["series"]
    assert "both directions is told of up to 8 batches" in told["below"]
    assert not few.missing


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
        told(tt.diagnose(model, given, lambda model, batch: model(batch)).flow, "cell")
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
        same(told(got, name), each)


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
