"""The command line: exit codes, what stands on stdout and on stderr, and one clear line for everything that goes wrong."""

import json
import os
import re
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path

import click
import jsonschema
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from throughtime import cli
from throughtime.cli.commands import diagnose as diagnose_command
from throughtime.diagnosis.rule import registry
from throughtime.report.json import schema
from throughtime.tasks import demos

MINE = """
import os, sys
import torch
from torch import nn

print("printed by the user's module")

class Net(nn.Module):
    def __init__(self, hidden=8):
        super().__init__()
        self.rnn = nn.GRU(3, hidden)
        self.head = nn.Linear(hidden, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0][-1])

class Two(Net):
    def __init__(self):
        super().__init__()
        self.top = nn.LSTM(8, 8)

    def forward(self, x):
        return self.head(self.top(self.rnn(x)[0])[0][-1])

def batches(count=2, steps=20, size=12):
    g = torch.Generator().manual_seed(0)
    return [(torch.randn(steps, size, 3, generator=g), torch.randint(0, 2, (size,), generator=g)) for _ in range(count)]

criterion = nn.CrossEntropyLoss()
def at_every_step(model, batch): return model.rnn(batch[0])[0].square().sum()

def loss(model, batch):
    print("printed by the user's loss")
    return criterion(model(batch[0]), batch[1])

one = batches(1)[0]
long = batches(1, 120)
instance = Net()
number = 3
def stream():
    while True:
        yield batches(1)[0]
def empty(): return []
def no_sequences(): return torch.zeros(10, 0, 3), torch.zeros(0, dtype=torch.long)
def double(): return one[0].double(), one[1]
def meta(): return one[0].to("meta"), one[1].to("meta")
def one_step(): return batches(1, 1)
def one_sequence(): return batches(1, 20, 1)
def nan():
    x, y = batches(1)[0]
    x[3, 2, 1] = float("nan")
    return x, y
def nan_weight():
    net = Net()
    net.rnn.weight_hh_l0.data[2, 1] = float("inf")
    return net
def broken_factory(): raise KeyError("no config")
def broken_data():
    yield one
    raise OSError("the disk is gone")
def head_only(model, batch): return model.head(torch.ones(1, 8)).sum()
def constant(model, batch): return torch.tensor(1.0)
def broken(model, batch): raise ValueError("of two\\nlines")
def interrupted(model, batch): raise KeyboardInterrupt
def no_scalar(model, batch): return model(batch[0])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a module of the user's, files of arrays, and files that are none."""
    here = tmp_path_factory.mktemp("project")
    (here / "mine.py").write_text(MINE)
    (here / "raising.py").write_text("raise RuntimeError('at import')")
    (here / "leaving.py").write_text("import sys; sys.exit(0)")
    (here / "damaged.py").write_text("x = (")
    (here / "needing.py").write_text("import no_such_package_anywhere")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20, 12, 3)).astype(np.float32)
    np.save(here / "x.npy", x)
    np.savez(here / "xy.npz", x=x, y=rng.integers(0, 2, 12))
    np.savez(here / "double.npz", inputs=x.astype(np.float64))
    np.savez(here / "gru.npz", kernel=np.ones((6, 3), np.float32), recurrent_kernel=np.ones((6, 2), np.float32))
    np.savez(here / "odd.npz", a=x, b=x)
    np.save(here / "words.npy", np.array(["a", "b"]))
    np.save(here / "pickled.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    np.savez(here / "pickled.npz", x=np.array([object], dtype=object))
    whole = (here / "xy.npz").read_bytes()
    (here / "truncated.npz").write_bytes(whole[: len(whole) // 2])
    (here / "flipped.npz").write_bytes(whole[:200] + bytes(byte ^ 255 for byte in whole[200:300]) + whole[300:])
    (here / "short.npy").write_bytes((here / "x.npy").read_bytes()[:200])
    (here / "nothing.npz").write_bytes(b"")
    (here / "text.npz").write_text("no arrays")
    (here / "model.pt").write_bytes(b"PK")
    (here / "folder.npz").mkdir()
    header = np.lib.format.magic(1, 0)
    claim = "{'descr': '<f4', 'fortran_order': False, 'shape': (4000000000, 4000000000), }".ljust(117) + "\n"
    (here / "absurd.npy").write_bytes(header + len(claim).to_bytes(2, "little") + claim.encode())
    np.savez_compressed(here / "bomb.npz", x=np.zeros((100, 100, 100)))
    return here


@pytest.fixture
def throughtime(folder, monkeypatch):
    """Run the command in that folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("THROUGHTIME_TRACEBACK", raising=False)
    path = list(sys.path)

    def run(*arguments):
        done = CliRunner().invoke(cli.main, [str(each) for each in arguments])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.stdout, done.stderr

    yield run
    sys.path[:] = path
    for name in ("mine", "raising", "leaving", "damaged", "needing"):
        sys.modules.pop(name, None)


GIVEN = ["mine:Net", "--data", "mine:batches", "--loss", "mine:loss"]


# --- what it says of itself ---------------------------------------------------------------------------------------


def python(code: str, **options) -> subprocess.CompletedProcess:
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=one_thread, **options
    )


@pytest.mark.parametrize(
    "arguments", [["--help"], ["diagnose", "--help"], ["window", "--help"], ["demo", "-h"], ["version"]]
)
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys\nfrom throughtime.cli import main\n"
        f"try: main({arguments})\nexcept SystemExit as end: assert not end.code\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & "
        "{'torch', 'numpy', 'rich', 'jinja2', 'pandas', 'xarray', 'matplotlib'}))"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_file_of_a_command_is_one():
    """And says in its help what it does and what each of its options does."""
    files = {path.stem for path in Path(cli.commands.__file__).parent.glob("*.py")} - {"__init__"}
    assert set(cli.main.commands) == files
    for name, command in cli.main.commands.items():
        assert command.name == name
        assert command.help, name
        lacking = [each.name for each in command.params if isinstance(each, click.Option) and not each.help]
        assert not lacking, name


def test_help_names_the_commands_and_exit_codes(throughtime):
    code, out, _ = throughtime("--help")
    assert code == 0
    for word in ("demo", "diagnose", "check", "window", "explain", "version", "0 clean", "1 findings", "2 usage"):
        assert word in out


def test_version(throughtime):
    code, out, _ = throughtime("version")
    assert code == 0
    assert re.fullmatch(r"throughtime \d+\.\d+\.\d+, torch [\d.]+\S*, Python 3\.\d+\.\d+\n", out)


def test_the_package_runs_as_the_command(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["throughtime", "version"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("throughtime", run_name="__main__")
    assert (end.value.code, capsys.readouterr().out.split()[0]) == (0, "throughtime")


def test_explain(throughtime):
    code, out, _ = throughtime("explain")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == list(registry())
    code, out, _ = throughtime("explain", "tt101")
    assert code == 0
    assert out.startswith("TT101 ")
    for section in ("What", "Why", "Example", "Remedy", "References"):
        assert f"## {section}" in out
    code, out, err = throughtime("explain", "TT999")
    assert (code, out) == (2, "")
    assert "one of TT101" in err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["diagnose"],
        ["diagnose", "mine:Net"],
        ["window", "mine:Net", "--data", "mine:one"],
        ["diagnose", *GIVEN, "--format", "xml"],
        ["diagnose", *GIVEN, "--needed-lag", "-1"],
        ["diagnose", *GIVEN, "--limit", "0"],
        ["demo", "mnist"],
        ["nonsense"],
    ],
)
def test_wrong_usage_is_exit_code_2(throughtime, arguments):
    code, out, err = throughtime(*arguments)
    assert code == 2
    assert "Usage" in out + err


# --- diagnose and check -------------------------------------------------------------------------------------------


def test_diagnose_tells_the_first_screen_and_a_table(throughtime):
    code, out, err = throughtime("diagnose", *GIVEN)
    assert code == 0
    for word in ("needed", "reached", "finding", "rnn: GRU", "24 sequences", "residual"):
        assert word in out
    assert "printed by" not in out
    assert "printed by the user's module" in err
    assert "printed by the user's loss" in err


@pytest.mark.parametrize(
    "given",
    [
        ["mine:Net", "--data", "mine:batches", "--loss", "mine:criterion"],
        ["mine:Net", "--data", "mine:one", "--loss", "mine:criterion"],
        ["mine:instance", "--data", "mine:stream", "--loss", "mine:loss", "--limit", "3"],
        ["mine:Net", "--data", "xy.npz", "--loss", "mine:criterion"],
        ["torch.nn:Identity", "--data", "x.npy"],
    ],
    ids=["criterion", "one batch", "stream", "npz", "no layer"],
)
def test_json_alone_stands_on_stdout(throughtime, given):
    code, out, err = throughtime("diagnose", *given, "--format", "json")
    if "Identity" in given[0]:
        assert (code, out) == (2, "")
        assert "without nn.GRU" in err
        return
    document = json.loads(out, parse_constant=lambda word: pytest.fail(f"a bare {word}"))
    jsonschema.validate(document, schema())
    assert code == 0
    assert document["batch"] == {"mine:batches": 24, "mine:stream": 36}.get(given[2], 12)
    assert document["layers"][0]["demand"]["sequences"] == document["batch"]


def test_the_same_seed_gives_the_same_document(throughtime):
    one, same, other = (throughtime("diagnose", *GIVEN, "--format", "json", "--seed", seed)[1] for seed in (3, 3, 4))
    assert one == same
    assert one != other


def test_without_a_loss_the_state_is_probed(throughtime):
    code, out, _ = throughtime("diagnose", "mine:Net", "--data", "x.npy", "--format", "json")
    document = json.loads(out)
    jsonschema.validate(document, schema())
    (layer,) = document["layers"]
    assert code == 0
    assert layer["demand"] is None
    assert next(row for row in layer["missing"] if row["field"] == "demand")["reason"].startswith("no loss was given")
    assert document["needed"] == [{"layer": "rnn", "lags": [], "source": "unknown"}]
    _, told, _ = throughtime("diagnose", "mine:Net", "--data", "x.npy")
    assert "vanish" not in told.lower()
    assert "warning" not in told.lower()
    assert "--needed-lag" in told


LONG = ["mine:Net", "--data", "mine:long", "--loss", "mine:loss", "--needed-lag", "110"]


@pytest.mark.parametrize(("fail_on", "code"), [("warning", 1), ("info", 1), ("error", 0), ("never", 0)])
def test_findings_decide_the_exit_code(throughtime, fail_on, code):
    got, out, _ = throughtime("diagnose", *LONG, "--format", "json", "--fail-on", fail_on)
    document = json.loads(out)
    assert got == code
    assert [each["severity"] for each in document["findings"] if each["code"] == "TT101"] == ["warning"]
    assert document["needed"] == [{"layer": "rnn", "lags": [110], "source": "user"}]
    assert throughtime("check", *LONG, "--fail-on", fail_on)[0] == code


@pytest.mark.parametrize("kind", ["npy", "npz", "json", "losses.json"])
def test_a_history_is_read_from_a_file(throughtime, tmp_path, kind):
    losses, path = [1.0] * 60, tmp_path / f"history.{kind}"
    if kind == "npy":
        np.save(path, losses)
    elif kind == "npz":
        np.savez(path, loss=losses, gradient_norm=losses)
    else:
        path.write_text(json.dumps(losses if kind == "losses.json" else {"loss": losses}))
    given = ["mine:Net", "--data", "mine:batches", "--loss", "mine:loss", "--needed-lag", "1", "--format", "json"]
    _, out, err = throughtime("diagnose", *given, "--history", path)
    assert [each["code"] for each in json.loads(out)["findings"] if not each["preview"]] == ["TT190"], err


@pytest.mark.parametrize("content", ['{"steps": [1]}', "[", '["a"]', None])
def test_a_history_that_is_none_is_told(throughtime, tmp_path, content):
    path = tmp_path / "history.json"
    if content is not None:
        path.write_text(content)
    code, out, err = throughtime("diagnose", *GIVEN, "--history", path)
    assert (code, out) == (2, "")
    assert "user's loss" not in err, "it is told before the work"
    assert re.search("error: got .*; expected .*; do this: ", err)


def test_the_test_of_demand_is_chosen(throughtime):
    _, out, _ = throughtime("diagnose", *GIVEN, "--demand", "distance", "--format", "json")
    assert json.loads(out)["layers"][0]["demand"]["method"] == "distance"


def test_a_budget_of_memory(throughtime):
    """The answer is the same to rounding; what is no size is told before the work, what is too little after the first batch."""
    free, within = (
        json.loads(throughtime("diagnose", *GIVEN, "--format", "json", *memory)[1])["layers"][0]
        for memory in ((), ("--memory", "200 MB"))
    )
    np.testing.assert_allclose(within["bias"], free["bias"], atol=1e-5)
    code, out, err = throughtime("check", *GIVEN, "--memory", "much")
    assert (code, out) == (2, "")
    assert "user's loss" not in err
    assert re.search("error: got memory='much'; expected .*; do this: ", err)
    code, out, err = throughtime("check", *GIVEN, "--memory", "3MB")
    assert (code, out) == (2, "")
    assert re.search("error: got memory='3 MB' for layer 'rnn'.*; expected at least .* MB.*; do this: ", err)


def test_layers_are_chosen_by_name(throughtime):
    given = ["mine:Two", "--data", "mine:one", "--loss", "mine:loss", "--format", "json"]
    assert [each["name"] for each in json.loads(throughtime("diagnose", *given)[1])["layers"]] == [
        "series",
        "rnn",
        "top",
    ]
    assert [each["name"] for each in json.loads(throughtime("diagnose", *given, "--layer", "top")[1])["layers"]] == [
        "top"
    ]
    code, out, err = throughtime("diagnose", *given, "--layer", "lstm")
    assert (code, out) == (2, "")
    assert "expected a list of some of ['rnn', 'top']" in err


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--min-horizon", "2"], 0, "at least 2 wanted: passed"),
        (["--min-horizon", "19"], 1, "at least 19 wanted: FAILED"),
        (["--min-horizon", "19", "--level", "0.001"], 1, r"gradient horizon\(0.001\) \d+ steps"),
        (["--min-horizon", "3", "--max-lag", "2"], 1, "more than 2 steps, .*raise --max-lag"),
        (["--min-horizon", "1", "--max-lag", "2"], 0, "more than 2 steps, .*passed"),
        ([], 0, r"^rnn: gradient horizon\(0.01\) \d+ steps, residual \S+e-\d+$"),
    ],
)
def test_check_has_one_line_a_layer(throughtime, options, code, words):
    got, out, _ = throughtime("check", *GIVEN, *options)
    assert re.search(words, out, re.MULTILINE)
    assert got == code


def test_check_judges_the_whole_and_not_its_parts(throughtime):
    """The horizon within a part is shorter than that of the whole, and is no fault."""
    given = ["check", "mine:Two", "--data", "mine:one", "--loss", "mine:loss", "--fail-on", "never"]
    told = dict(re.findall(r"^(\w+): gradient horizon\(0.01\) (\d+) steps", throughtime(*given)[1], re.MULTILINE))
    horizons = {name: int(steps) for name, steps in told.items()}
    assert set(horizons) == {"series", "rnn", "top"}
    assert min(horizons["rnn"], horizons["top"]) < horizons["series"]
    code, out, _ = throughtime(*given, "--min-horizon", horizons["series"])
    assert code == 0, out
    assert out.count("(within the layer; judged is 'series')") == 2
    code, out, _ = throughtime(*given, "--min-horizon", horizons["series"] + 1)
    assert (code, out.count("FAILED")) == (1, 1)


def test_the_report_is_written_beside_the_output(throughtime, tmp_path):
    code, out, err = throughtime("diagnose", *GIVEN, "-o", tmp_path / "report.html", "--format", "json")
    assert code == 0
    json.loads(out)
    assert str(tmp_path / "report.html") in err
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert os.listdir(tmp_path) == ["report.html"]


def test_verify_trains_pairs(throughtime):
    given = ["--verify", "--verify-steps", "2", "--verify-seeds", "2", "--format", "json"]
    code, out, _ = throughtime("diagnose", *LONG, *given)
    done = json.loads(out)["verification"]
    assert code == 1
    assert (done["remedy"], done["steps"], done["seeds"]) == ("chrono", 2, [0, 1])
    code, out, err = throughtime("diagnose", *GIVEN, "--needed-lag", "1", *given)
    assert json.loads(out)["verification"] is None
    assert "nothing to verify" in err


# --- window -------------------------------------------------------------------------------------------------------


EVERY = ["mine:Net", "--data", "mine:one", "--loss", "mine:at_every_step"]


def test_window_tells_the_advice_and_a_table(throughtime):
    code, out, err = throughtime("window", *EVERY, "--needed-lag", "4", "--window", "7", "--window", "3,9")
    assert code == 0
    for word in ("window", "4 steps back, as you said", "Chunks of", "3,9", "reach lag 4", "memory", "time", "4 *"):
        assert word in out
    assert re.search(r"│ +7 │", out)
    assert "printed by" not in out
    assert "printed by the user's module" in err


@pytest.mark.parametrize("spelling", [["--json"], ["--format", "json"]])
def test_window_as_json(throughtime, spelling):
    code, out, _ = throughtime("window", *EVERY, "--needed-lag", "4", "--no-cost", "--level", "0.3", *spelling)
    document = json.loads(out, parse_constant=lambda word: pytest.fail(f"a bare {word}"))
    assert code == 0
    assert (document["schema"], document["farthest"], document["level"]) == ("throughtime/window/1", 4, 0.3)
    assert document["recommended"]["k2"] >= 5
    assert {"field": "cost", "reason": "not asked for"} in document["missing"]


def test_window_without_demand_recommends_none(throughtime):
    code, out, _ = throughtime("window", *GIVEN, "--no-cost", "--json")
    document = json.loads(out)
    assert (code, document["recommended"], document["farthest"]) == (0, None, None)
    assert document["chunks"]


@pytest.mark.parametrize(("limit", "words"), [("8", "8 batches"), ("10", "10 batches: all batches were read")])
def test_window_takes_as_many_batches_as_are_asked_for(throughtime, limit, words):
    given = ["mine:Net", "--data", "mine:stream", "--loss", "mine:loss", "--no-cost", "--all-batches", "--limit", limit]
    code, out, _ = throughtime("window", *given)
    assert code == 0
    assert words in out
    assert f"20 steps × {12 * int(limit)} sequences" in out


def test_window_stops_when_it_is_told_to(throughtime):
    """Of ten batches: eight, after which the interval is looked at for the first time."""
    given = ["mine:Net", "--data", "mine:stream", "--loss", "mine:loss", "--no-cost", "--limit", "10"]
    code, out, _ = throughtime("window", *given, "--stop-when", "50")
    assert code == 0
    assert "asked: 5000%" in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--window", "a"], "got the window 'a'; expected a number of steps K, or a pair K1,K2"),
        (["--window", "9,3"], "1 ≤ K1 ≤ K2"),
        (["--level", "1"], "level"),
    ],
)
def test_window_given_what_is_none(throughtime, options, words):
    code, out, err = throughtime("window", *EVERY, *options)
    assert (code, out) == (2, "")
    assert words in err


def test_an_interrupted_window_is_no_traceback(throughtime):
    code, out, err = throughtime("window", "mine:Net", "--data", "mine:one", "--loss", "mine:interrupted")
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == "throughtime: interrupted"


# --- bare weights -------------------------------------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def forward(step, x, size, states=1):
    """States h_1 … h_T (T, B, H) of an update `step(x_t, h, …) -> (h, …)`, in numpy."""
    state, out = (np.zeros((x.shape[1], size)),) * states, []
    for x_t in x:
        state = step(x_t, *state)
        out.append(state[0])
    return np.stack(out)


def columns(rng, names, inputs, size):
    """A kernel, a recurrent kernel and a bias for each gate, by name: x @ W + h @ U + b."""
    return {
        name: (rng.standard_normal((inputs, size)), rng.standard_normal((size, size)) / 2, rng.standard_normal(size))
        for name in names
    }


def stacked(gates, order, right=True):
    kernels, recurrents, biases = (np.concatenate([gates[name][i] for name in order], -1) for i in range(3))
    return (kernels, recurrents, biases) if right else (kernels.T, recurrents.T, biases)


def affine(gates, name, x, h):
    W, U, b = gates[name]
    return x @ W + h @ U + b


def gru_before(gates, keeps):
    def step(x, h):
        z, r = sigmoid(affine(gates, "z", x, h)), sigmoid(affine(gates, "r", x, h))
        n = np.tanh(affine(gates, "h", x, r * h))
        return (z * h + (1 - z) * n if keeps else z * n + (1 - z) * h,)

    return step


def gru_after(gates, bias, keeps=True):
    def step(x, h):
        z, r = sigmoid(affine(gates, "z", x, h) + bias["z"]), sigmoid(affine(gates, "r", x, h) + bias["r"])
        W, U, b = gates["h"]
        n = np.tanh(x @ W + b + r * (h @ U + bias["h"]))
        return (z * h + (1 - z) * n if keeps else z * n + (1 - z) * h,)

    return step


def lstm(gates):
    def step(x, h, c):
        i, f, o = (sigmoid(affine(gates, name, x, h)) for name in "ifo")
        c = f * c + i * np.tanh(affine(gates, "c", x, h))
        return o * np.tanh(c), c

    return step


D, H, X = 3, 5, np.random.default_rng(7).standard_normal((11, 4, 3))


def keras_gru_before():
    gates = columns(np.random.default_rng(1), "zrh", D, H)
    kernel, recurrent, bias = stacked(gates, "zrh")
    arrays = {"kernel": kernel, "recurrent_kernel": recurrent, "bias": bias}
    return arrays, "--cell gru --gates zrh --layout x@W --reset before", forward(gru_before(gates, True), X, H)


def cho_gru():
    gates = columns(np.random.default_rng(2), "rzh", D, H)
    kernel, recurrent, bias = stacked(gates, "rzh", right=False)
    arrays = {"enc.weight_ih_l0": kernel, "enc.weight_hh_l0": recurrent, "enc.bias_ih_l0": bias}
    return arrays, "--cell gru --gates r,z,n --reset before --z takes", forward(gru_before(gates, False), X, H)


def keras_gru_after():
    rng = np.random.default_rng(3)
    gates, bias = columns(rng, "zrh", D, H), {name: rng.standard_normal(H) for name in "zrh"}
    kernel, recurrent, first = stacked(gates, "zrh")
    both = np.stack([first, np.concatenate([bias[name] for name in "zrh"])])
    arrays = {"gru/kernel": kernel, "gru/recurrent_kernel": recurrent, "gru/bias": both}
    return arrays, "--cell gru --gates zrh --layout x@W", forward(gru_after(gates, bias), X, H)


def torch_gru():
    torch.manual_seed(0)
    layer = torch.nn.GRU(D, H, dtype=torch.float64)
    arrays = {f"net.rnn.{name}": value.detach().numpy() for name, value in layer.named_parameters()}
    w = {name: np.split(value.detach().numpy(), 3) for name, value in layer.named_parameters()}
    gates = {name: (w["weight_ih_l0"][i].T, w["weight_hh_l0"][i].T, w["bias_ih_l0"][i]) for i, name in enumerate("rzh")}
    bias = dict(zip("rzh", w["bias_hh_l0"], strict=True))
    expected = forward(gru_after(gates, bias), X, H)
    np.testing.assert_allclose(layer(torch.from_numpy(X))[0].detach(), expected, atol=1e-12)
    return arrays, "--cell gru", expected


def keras_lstm():
    gates = columns(np.random.default_rng(4), "ifco", D, H)
    kernel, recurrent, bias = stacked(gates, "ifco")
    arrays = {"kernel": kernel, "recurrent_kernel": recurrent, "bias": bias}
    return arrays, "--cell lstm --gates ifco --layout x@W", forward(lstm(gates), X, H, 2)


def other_lstm():
    gates = columns(np.random.default_rng(5), "ifco", D, H)
    kernel, recurrent, bias = stacked(gates, "cofi", right=False)
    return {"w_ih": kernel, "w_hh": recurrent, "b_hh": bias}, "--cell lstm --gates gofi", forward(lstm(gates), X, H, 2)


def elman(cell, function):
    gates = columns(np.random.default_rng(6), "a", D, H)
    kernel, recurrent, bias = stacked(gates, "a")
    arrays = {"kernel": kernel, "recurrent_kernel": recurrent, "bias": bias}
    return arrays, f"--cell {cell} --layout x@W", forward(lambda x, h: (function(affine(gates, "a", x, h)),), X, H)


CONVENTIONS = {
    "torch gru": torch_gru,
    "keras gru, reset after": keras_gru_after,
    "keras gru, reset before": keras_gru_before,
    "cho gru, z takes": cho_gru,
    "keras lstm": keras_lstm,
    "other lstm": other_lstm,
    "rnn tanh": lambda: elman("rnn-tanh", np.tanh),
    "rnn relu": lambda: elman("rnn-relu", lambda a: np.maximum(a, 0) * 1.0),
}


@pytest.mark.parametrize("name", CONVENTIONS)
def test_bare_weights_run_as_their_convention_says(throughtime, tmp_path, name):
    from throughtime import sources

    arrays, options, expected = CONVENTIONS[name]()
    words = dict(zip(options.split()[::2], options.split()[1::2], strict=True))
    np.savez(tmp_path / "weights.npz", **arrays)
    np.save(tmp_path / "x.npy", X)
    convention = {key.removeprefix("--"): value for key, value in words.items()}
    layer, factory = sources.model(str(tmp_path / "weights.npz"), convention)
    assert factory is None
    np.testing.assert_allclose(layer(torch.from_numpy(X))[0].detach(), expected, atol=1e-12)

    given = ["diagnose", tmp_path / "weights.npz", "--data", tmp_path / "x.npy", *options.split(), "--format", "json"]
    code, out, err = throughtime(*given)
    assert code == 0, err
    document = json.loads(out)
    jsonschema.validate(document, schema())
    (read,) = document["layers"]
    assert (read["hidden_size"], read["input_size"], document["dtype"]) == (H, D, "float64")
    assert read["residual"] < 1e-10


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({}, "", "without --cell"),
        ({}, "--cell gru --gates zrx", "gate order 'zrx'"),
        ({}, "--cell lstm", "4 gate.* stacked in rows"),
        ({}, "--cell gru --layout x@W", "stacked in columns|belong together|equally many"),
        ({"kernel": None}, "--cell gru", "kernel and recurrent_kernel"),
        ({"kernel": np.zeros((15, 3), int)}, "--cell gru", "kernel of int64"),
        ({"kernel": np.zeros(15)}, "--cell gru", r"weight_ih of shape \(15,\)"),
        ({"kernel": np.zeros((15, 3), np.float32)}, "--cell gru", "one dtype"),
        ({"bias": np.zeros(12)}, "--cell gru", "equally many rows"),
        ({"kernel": np.zeros((15, 0))}, "--cell gru", r"shape \(15, 0\)"),
        ({"recurrent_kernel": np.full((15, 5), np.nan)}, "--cell gru", r"nan in rnn.weight_hh_l0 .*\(0, 0\)"),
    ],
)
def test_weights_that_do_not_fit_their_convention(throughtime, tmp_path, change, options, words):
    arrays = {"kernel": np.ones((15, 3)), "recurrent_kernel": np.ones((15, 5)), "bias": np.ones(15)} | change
    np.savez(tmp_path / "w.npz", **{name: value for name, value in arrays.items() if value is not None})
    np.save(tmp_path / "x.npy", X)
    code, out, err = throughtime("diagnose", tmp_path / "w.npz", "--data", tmp_path / "x.npy", *options.split())
    assert (code, out) == (2, "")
    assert re.search(words, err)


# --- bad input ----------------------------------------------------------------------------------------------------

BAD = {
    "empty": (["mine:Net", "--data", "mine:empty", "--loss", "mine:loss"], "the loader is empty"),
    "no sequences": (["mine:Net", "--data", "mine:no_sequences", "--loss", "mine:loss"], "empty batch"),
    "nan": (["mine:Net", "--data", "mine:nan", "--loss", "mine:loss"], r"nan in the input .*\(3, 2, 1\)"),
    "nan, probe": (["mine:Net", "--data", "mine:nan"], r"nan in the input .*\(3, 2, 1\)"),
    "inf weight": (
        ["mine:nan_weight", "--data", "mine:one", "--loss", "mine:loss"],
        r"inf in rnn.weight_hh_l0 .*\(2, 1\)",
    ),
    "independent": (["mine:Net", "--data", "mine:one", "--loss", "mine:head_only"], "does not depend on the recurrent"),
    "constant": (["mine:Net", "--data", "mine:one", "--loss", "mine:constant"], "does not depend on the model"),
    "no scalar": (["mine:Net", "--data", "mine:one", "--loss", "mine:no_scalar"], r"shape \(12, 2\)"),
    "double": (
        ["mine:Net", "--data", "mine:double", "--loss", "mine:loss"],
        r"ValueError: .*float64.*mine.py, line \d+",
    ),
    "double file": (["gru.npz", "--cell", "gru", "--data", "double.npz"], "float64 for weights of dtype float32"),
    "meta": (["mine:Net", "--data", "mine:meta", "--loss", "mine:loss"], "meta"),
    "loss raises": (
        ["mine:Net", "--data", "mine:one", "--loss", "mine:broken"],
        r"ValueError: of two lines.*, in broken",
    ),
    "factory raises": (["mine:broken_factory", "--data", "mine:one"], "KeyError: 'no config', raised in .*mine.py"),
    "data raises": (["mine:Net", "--data", "mine:broken_data", "--loss", "mine:loss"], "OSError: the disk is gone"),
    "import raises": (["raising:Net", "--data", "mine:one"], "RuntimeError: at import, raised in .*raising.py, line 1"),
    "import leaves": (["leaving:Net", "--data", "mine:one"], r"sys.exit\(0\)"),
    "syntax": (["damaged:Net", "--data", "mine:one"], "SyntaxError.*damaged.py, line 1"),
    "missing import": (["needing:Net", "--data", "mine:one"], "no_such_package_anywhere"),
    "no module": (["nowhere:Net", "--data", "mine:one"], "No module named 'nowhere'"),
    "no name": (["mine:Nothing", "--data", "mine:one"], "no attribute 'Nothing'"),
    "no colon": (["mine", "--data", "mine:one"], "expected package.module:name, or a file"),
    "no model": (["mine:number", "--data", "mine:one"], "gave a int"),
    "no loss": (["mine:Net", "--data", "mine:one", "--loss", "mine:number"], "a loss of type int"),
    "no data": (["mine:Net", "--data", "mine:number", "--loss", "mine:loss"], "batches of type int"),
    "model file": (["model.pt", "--data", "mine:one"], "the file model.pt, of none of the formats"),
    "no such file": (["gone.npz", "--data", "x.npy", "--cell", "gru"], "no file gone.npz"),
    "array as model": (["x.npy", "--data", "x.npy", "--cell", "gru"], "kernel and recurrent_kernel"),
    "cell of a module": (["mine:Net", "--data", "x.npy", "--cell", "gru"], "--cell with the model"),
    "no such data": (["mine:Net", "--data", "gone.npy"], "no file gone.npy"),
    "odd names": (["mine:Net", "--data", "odd.npz"], r"arrays \['a', 'b'\]"),
    "verify a probe": (["mine:Net", "--data", "x.npy", "--verify"], "verify without a loss"),
} | {
    name: (["mine:Net", "--data", name], words)
    for name, words in {
        "truncated.npz": "cannot be read",
        "flipped.npz": "cannot be read",
        "short.npy": "cannot be read",
        "nothing.npz": "cannot be read",
        "text.npz": "cannot be read",
        "folder.npz": "the folder folder.npz",
        "pickled.npy": "cannot be read.*allow_pickle",
        "pickled.npz": "cannot be read.*allow_pickle",
        "absurd.npy": "cannot be read",
        "bomb.npz": r"8,000,\d+ bytes.*at most 5,000,000",
        "words.npy": "of dtype <U1",
    }.items()
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_2(throughtime, tmp_path, monkeypatch, name):
    given, words = BAD[name]
    monkeypatch.setattr("throughtime.importers.importer.LARGEST", 5_000_000)
    code, out, err = throughtime("diagnose", *given, "--format", "json", "-o", tmp_path / "report.html")
    assert (code, out) == (2, "")
    (line,) = [line for line in err.splitlines() if line.startswith("throughtime: error: ")]
    assert re.search(words, line), line
    assert "got " in line
    assert "Traceback" not in err
    assert "a fault of throughtime" not in err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["one_step", "one_sequence"])
def test_one_step_and_one_sequence_are_told(throughtime, name):
    code, out, _ = throughtime(
        "diagnose", "mine:Net", "--data", f"mine:{name}", "--loss", "mine:loss", "--format", "json"
    )
    document = json.loads(out)
    jsonschema.validate(document, schema())
    assert code == 0
    if name == "one_sequence":
        layer = document["layers"][0]
        assert layer["demand"] is None
        assert {"demand", "signal_to_noise"} <= {row["field"] for row in layer["missing"]}


def test_the_traceback_is_shown_where_it_is_asked_for(throughtime, monkeypatch):
    monkeypatch.setenv("THROUGHTIME_TRACEBACK", "1")
    code, _, err = throughtime("diagnose", "mine:Net", "--data", "mine:one", "--loss", "mine:broken")
    assert code == 2
    assert "Traceback (most recent call last)" in err
    assert err.splitlines()[-1].startswith("throughtime: error: got ValueError: of two lines")


def test_a_fault_of_our_own_is_owned(throughtime, monkeypatch):
    monkeypatch.setattr("throughtime.diagnosis.diagnose.judge", None)
    code, _, err = throughtime("diagnose", *GIVEN)
    assert code == 2
    assert re.search(r"TypeError: .* \(diagnose.py, line \d+\): a fault of throughtime; do this: report it", err)


def test_an_interruption_is_no_traceback(throughtime):
    code, out, err = throughtime("diagnose", "mine:Net", "--data", "mine:one", "--loss", "mine:interrupted")
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == "throughtime: interrupted"


@pytest.mark.parametrize("command", [["diagnose", *GIVEN], ["demo"], ["demo", "opus"]])
@pytest.mark.parametrize("target", ["nowhere/report.html", ".", "x.npy/report.html", "a" * 300, ""])
def test_an_output_that_cannot_be_written_is_told_before_the_work(throughtime, folder, monkeypatch, command, target):
    def work(*_, **__):
        pytest.fail("the work was done first")

    monkeypatch.setattr(diagnose_command, "diagnosed", work)
    monkeypatch.setattr(demos, "digits_report", work)
    monkeypatch.setattr(demos, "opus_report", work)
    before = sorted(os.listdir(folder))
    code, out, err = throughtime(*command, "-o", target)
    assert (code, out) == (2, "")
    assert "an output path that cannot be written" in err
    assert sorted(os.listdir(folder)) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_file_or_folder_is_told(throughtime, tmp_path):
    (tmp_path / "r.html").touch(0o400)
    closed = tmp_path / "closed"
    closed.mkdir(0o500)
    for target in (tmp_path / "r.html", closed / "r.html"):
        assert throughtime("diagnose", *GIVEN, "-o", target)[0] == 2


def test_a_read_only_file_is_not_replaced(throughtime, tmp_path, monkeypatch):
    (tmp_path / "r.html").write_text("before")
    monkeypatch.setattr(os, "access", lambda _, mode: mode != os.W_OK)  # which holds for root as well
    code, _, err = throughtime("diagnose", *GIVEN, "-o", tmp_path / "r.html")
    assert code == 2
    assert "it is read-only" in err
    assert (tmp_path / "r.html").read_text() == "before"


def test_a_file_that_was_there_stays_when_the_work_fails(throughtime, tmp_path):
    (tmp_path / "r.html").write_text("before")
    given = ["mine:Net", "--data", "mine:one", "--loss", "mine:broken"]
    assert throughtime("diagnose", *given, "-o", tmp_path / "r.html")[0] == 2
    assert (tmp_path / "r.html").read_text() == "before"
    assert os.listdir(tmp_path) == ["r.html"]


# --- as a program -------------------------------------------------------------------------------------------------

SLOW = "import time, throughtime.progress as p; p.PATIENCE = .05\n"


def program(folder: Path, code: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    """The command in an own process, after a few lines of Python."""
    return python(f"{code}from throughtime.cli import main\nmain({list(arguments)!r})", cwd=folder, **options)


def test_a_module_of_the_current_folder_is_found_and_stdout_is_the_document(folder):
    done = program(folder, SLOW, "diagnose", *GIVEN, "--format", "json")
    assert done.returncode == 0, done.stderr
    jsonschema.validate(json.loads(done.stdout), schema())
    assert "throughtime: loading …" in done.stderr
    assert "throughtime: batches …" in done.stderr
    assert "Warning" not in done.stderr


def test_no_word_of_progress_within_a_second(folder):
    code = "import throughtime.progress as p; p.PATIENCE = 1000\n"
    done = program(folder, code, "diagnose", "mine:Net", "--data", "x.npy")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "printed by the user's module\n"


def test_a_terminal_sees_a_bar():
    pty = pytest.importorskip("pty")
    outer, inner = pty.openpty()
    code = textwrap.dedent(f"""
        {SLOW.strip()}
        from throughtime.progress import bar
        with bar() as tell:
            for done in range(5):
                tell(done, 5, "sweep of rnn")
                time.sleep(.1)
        print("the document")
    """)
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=inner, text=True, timeout=60)
    os.close(inner)
    seen = b""
    try:
        while part := os.read(outer, 4096):
            seen += part
    except OSError:  # the other end is closed
        pass
    os.close(outer)
    assert done.returncode == 0
    assert done.stdout == "the document\n"
    assert "sweep of rnn" in seen.decode()
    assert "%" in seen.decode()


# --- demos --------------------------------------------------------------------------------------------------------


def test_the_demo_of_the_codec(throughtime, tmp_path):
    code, out, err = throughtime("demo", "opus", "--format", "json", "-o", tmp_path / "opus.html")
    assert code == 0, err
    document = json.loads(out)
    jsonschema.validate(document, schema())
    (layer,) = document["layers"]
    assert (document["steps"], layer["hidden_size"], len(layer["loss_steps"])) == (1236, 24, 1236)
    assert layer["convention"] == {"reset": "before", "z": "keeps"}
    assert layer["residual"] < 1e-4
    assert layer["demand"] is None
    assert "1 sequence" in next(row["reason"] for row in layer["missing"] if row["field"] == "demand")
    assert os.listdir(tmp_path) == ["opus.html"]


@pytest.mark.parametrize("form", ["json", "text"])
def test_the_demo_of_the_digits_in_small(throughtime, monkeypatch, form):
    small = demos.digits_report
    monkeypatch.setattr(demos, "digits_report", lambda tell: small(tell, noise_steps=12, seeds=range(2), steps=3))
    code, out, err = throughtime("demo", "--format", form)
    assert code == 0, err
    if form == "text":
        assert "needed" in out
        assert "after" in out
        return
    document = json.loads(out)
    jsonschema.validate(document, schema())
    assert document["steps"] == 20
    assert document["layers"][0]["demand"]["sequences"] == 256
    assert set(document["needed"][0]["lags"]) >= {14, 15, 16, 17}
    assert (document["verification"]["metric"], document["verification"]["steps"]) == ("test accuracy", 3)


@pytest.mark.slow
def test_the_demo_of_the_digits(throughtime):
    code, out, err = throughtime("demo", "--format", "json")
    assert code == 0, err
    document = json.loads(out)
    jsonschema.validate(document, schema())
    assert set(document["needed"][0]["lags"]) & set(range(92, 100))
    assert [each["code"] for each in document["findings"] if not each["preview"]] == ["TT101"]
    assert document["verification"]["verdict"] == "helps"
