"""The explorer without a browser: untrusted FLOW files, what the page is made of, the command."""

from __future__ import annotations

import copy
import html
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import fixtures_report as fixtures
import throughtime as tt
from throughtime.cli import main
from throughtime.errors import InputError
from throughtime.explorer import flowfile
from throughtime.explorer.flowfile import read
from throughtime.explorer.page import embedded, maths, presets, render, save
from throughtime.explorer.tasks import TASKS, described
from throughtime.report.json import schema

DOCS = Path(__file__).parent.parent / "docs"
STEPS, BATCH, INPUTS, UNITS = 12, 3, 2, 4


def recorded(kind: str = "GRU", **options: Any) -> tt.Flow:
    torch.manual_seed(0)
    layer = getattr(nn, kind)(INPUTS, UNITS, **options)
    x = torch.randn(STEPS, BATCH, INPUTS)
    with tt.record(layer) as record:
        output, last = layer(x)
        (output[-1].square().sum() + (last[1].sum() if kind == "LSTM" else 0)).backward()
    return record.flow()


@pytest.mark.parametrize(
    ("kind", "options"), [("GRU", {}), ("LSTM", {}), ("RNN", {"bias": False}), ("GRU", {"bias": False})]
)
def test_json_with_the_network_fits_the_schema_and_is_what_was_recorded(kind: str, options: dict) -> None:
    flow = recorded(kind, **options)
    plain, document = json.loads(flow.to_json()), json.loads(flow.to_json(network=True))
    assert "network" not in plain["layers"][0]
    network = document["layers"][0].pop("network")
    assert plain == document
    document["layers"][0]["network"] = network
    jsonschema.validate(document, schema())
    layer, sequence = flow.layers["rnn"], network["sequence"]
    for name, value in network["weights"].items():
        np.testing.assert_array_equal(np.asarray(value, np.float32), layer.weights[f"rnn.{name}_l0"])
    assert set(network["weights"]) == {name.removeprefix("rnn.").removesuffix("_l0") for name in layer.weights}
    torch.manual_seed(0)
    again = getattr(nn, kind)(INPUTS, UNITS, **options)
    x = torch.randn(STEPS, BATCH, INPUTS)
    assert sequence["index"] == 0
    np.testing.assert_array_equal(np.asarray(sequence["inputs"], np.float32), x[:, 0])
    gradient = np.zeros((STEPS, UNITS))
    gradient[-1] = 2 * again(x)[0][-1, 0].detach()
    np.testing.assert_allclose(sequence["gradient"], gradient, rtol=1e-6)
    assert (sequence["cell_gradient"] is not None) == (kind == "LSTM")
    assert len(json.dumps(network)) < 20_000


def test_the_sequence_kept_is_the_first_with_a_loss() -> None:
    torch.manual_seed(0)
    layer, x = nn.GRU(INPUTS, UNITS), torch.randn(STEPS, BATCH, INPUTS)
    with tt.record(layer) as record:
        layer(x)[0][-1, 1].sum().backward()
    kept = record.flow().layers["rnn"].sequence
    assert kept is not None
    assert kept.index == 1
    np.testing.assert_array_equal(kept.inputs, x[:, 1].double())


# --- untrusted files -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return json.loads(recorded().to_json(network=True))


def put(*path: Any, value: Any) -> Callable[[dict], None]:
    def change(document: dict) -> None:
        at: Any = document
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value

    return change


def drop(*path: Any) -> Callable[[dict], None]:
    def change(document: dict) -> None:
        at: Any = document
        for key in path[:-1]:
            at = at[key]
        del at[path[-1]]

    return change


LAYER = ("layers", 0)
NETWORK = (*LAYER, "network")
FAULTS: dict[str, Callable[[dict], Any]] = {
    "another schema": put("schema", value="throughtime/9"),
    "no layers": put("layers", value=[]),
    "layers a text": put("layers", value="none"),
    "a key too many": put("evil", value=1),
    "a key too few": drop(*LAYER, "paths"),
    "a text for a number": put(*LAYER, "adjoint", "log10_norm", 3, value="<b>"),
    "true for a number": put(*LAYER, "steps", value=True),
    "a huge number": put(*LAYER, "adjoint", "log10_norm", 3, value=10**400),
    "a negative size": put(*LAYER, "hidden_size", value=-4),
    "an unknown cell": put(*LAYER, "cell", value="transformer"),
    "an unknown convention": put(*LAYER, "convention", value={"reset": "sideways", "z": "keeps"}),
    "hard gates": put(*LAYER, "convention", value={"reset": "after", "z": "keeps", "gate": "hard-sigmoid"}),
    "a list too short": put(*LAYER, "adjoint", "log10_norm", value=[0.0]),
    "a share too short": put(*LAYER, "parameters", 1, "share", value=[0.0]),
    "units that do not fit": put(*LAYER, "units", value=[]),
    "no loss": put(*LAYER, "loss_steps", value=[]),
    "other steps": put(*LAYER, "steps", value=STEPS + 1),
    "quantiles that do not fit": put(*LAYER, "gates", "z", "levels", value=[0.5]),
    "other levels": lambda document: document["layers"][0]["gates"]["z"].update(levels=[0.5], logit_quantiles=[1.0]),
    "a loss beyond the end": put(*LAYER, "loss_steps", value=[10**18]),
    "an arriving too short": put(*LAYER, "adjoint", "log10_arriving_total", value=[0.0]),
    "a state too short": put(*LAYER, "adjoint", "by_state", value={"d": [0.0]}),
    "ragged weights": put(*NETWORK, "weights", "weight_hh", 2, value=[1.0]),
    "weights of another cell": put(*LAYER, "cell", value="lstm"),
    "null weights": put(*NETWORK, "weights", "weight_ih", 0, 0, value=None),
    "lacking weights": drop(*NETWORK, "weights", "weight_hh"),
    "an unknown weight": put(*NETWORK, "weights", "weight_xx", value=[]),
    "too few inputs": put(*NETWORK, "sequence", "inputs", value=[[1.0, 2.0]]),
    "no gradient": put(*NETWORK, "sequence", "gradient", value=[[0.0] * UNITS] * STEPS),
    "an initial state too long": put(*NETWORK, "sequence", "initial", value=[0.0] * 9),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_malformed_flow_is_the_librarys_error(document: dict, tmp_path: Path, fault: str) -> None:
    broken = copy.deepcopy(document)
    FAULTS[fault](broken)
    path = tmp_path / "flow.json"
    path.write_text(json.dumps(broken), encoding="utf-8")
    with pytest.raises(InputError, match=r"(?s)got .*; expected .*; do this: "):
        read(path)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "3", '{"schema": NaN}', '{"a": Infinity}', "[" * 100_000, "\x00", "<html>", "\ud800"],
)
def test_what_is_no_document_is_the_librarys_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "flow.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError, match=r"(?s)got .*; expected .*; do this: "):
        read(path)


def test_an_error_shows_numbers_as_numbers(document: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "flow.json"
    for value, shown in ((-4, "-4"), (True, "true"), ("x", "'x'")):
        broken = copy.deepcopy(document)
        broken["layers"][0]["hidden_size"] = value
        path.write_text(json.dumps(broken), encoding="utf-8")
        with pytest.raises(InputError, match=rf"hidden_size = {shown} in "):
            read(path)


def test_a_file_that_is_not_there_is_the_librarys_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read .*; do this: "):
        read(tmp_path / "none.json")
    with pytest.raises(InputError, match=r"cannot be read .*; do this: "):
        read(tmp_path)
    loop = tmp_path / "loop.json"
    loop.symlink_to(loop)
    with pytest.raises(InputError, match=r"cannot be read .*; do this: "):
        save(tmp_path / "page.html", loop)


def test_every_part_of_the_schema_is_read(tmp_path: Path) -> None:
    """A report with findings and a verification uses all of it."""
    path = tmp_path / "report.json"
    gru = fixtures.layer(hops=None, convention={"reset": "after", "z": "keeps"})
    lstm = fixtures.layer(cell="lstm", hops=None, every_step=True, tail=20)
    for report in (fixtures.build(gru, verification=fixtures.verification()), fixtures.build(lstm)):
        path.write_text(report.to_json(), encoding="utf-8")
        assert read(path)["layers"][0]["steps"] == 100
    broken = json.loads(path.read_text(encoding="utf-8"))
    broken["findings"][0]["code"] = "no code"
    path.write_text(json.dumps(broken), encoding="utf-8")
    with pytest.raises(InputError, match=r"findings\[0\]\.code"):
        read(path)


@pytest.mark.parametrize("kind", ["GRU", "LSTM", "RNN"])
def test_a_good_flow_is_let_through(tmp_path: Path, kind: str) -> None:
    path, flow = tmp_path / "flow.json", recorded(kind)
    for text in (flow.to_json(), flow.to_json(network=True), flow.diagnose().to_json(network=True)):
        path.write_text(text, encoding="utf-8")
        (layer,) = read(path)["layers"]
        assert layer["hidden_size"] == UNITS


def test_embedded_data_cannot_leave_its_element() -> None:
    texts = ["</script>", "<!--<script>", "]]>", "&lt;", "\u2028", "é", '"\\']
    text = embedded({"names": texts})
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == {"names": texts}


# --- the parts of the page --------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_from_elsewhere() -> None:
    page = render()
    assert "default-src 'none'" in page
    assert not re.findall(r"(?:src|href)\s*=\s*[\"']?(?!data:)\w", page)
    assert not re.findall(r"https?://", page)
    for call in ("fetch(", "XMLHttpRequest", "import(", "WebSocket", "eval(", "localStorage", "document.cookie"):
        assert call not in page


def test_the_arithmetic_knows_no_page() -> None:
    code = maths()
    for name in ("document", "window", "location", "performance", "Math.random", "Date"):
        assert not re.search(rf"\b{name}\b(?! )", code.split("\n", 1)[1]), name


def test_examples_are_listed_in_the_docs_as_they_are() -> None:
    page = (DOCS / "explore.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([\w-]+)` \| (.+?) \| (.+?) \|$", page, re.MULTILINE)
    expected = [(each["id"], each["title"], each["sentence"]) for each in presets()]
    assert [tuple(html.unescape(cell) for cell in row) for row in listed] == expected


def test_every_example_that_a_page_links_to_is_there() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in DOCS.rglob("*.md"))
    linked = set(re.findall(r"explorer\.html#preset=([\w-]+)\)", pages))
    assert linked
    assert linked <= {each["id"] for each in presets()}


def test_demand_on_the_page_is_the_librarys_for_the_tasks() -> None:
    found = {task.id: described(task)["demand"]["lags"] for task in TASKS}
    assert found == {
        "none": [],
        "delayed": [40],
        "last-three": [0, 1, 2],
        "digits": list(range(92, 100)),
        "adding": found["adding"],
    }
    again = described.__wrapped__(TASKS[1])
    assert again == described(TASKS[1])  # not of the global generator
    state = torch.get_rng_state()
    described.__wrapped__(TASKS[1])
    assert torch.equal(state, torch.get_rng_state())


# --- the command --------------------------------------------------------------------------------------------------------


def test_command_writes_a_page(tmp_path: Path) -> None:
    flow = tmp_path / "flow.json"
    flow.write_text(recorded().to_json(network=True), encoding="utf-8")
    out = tmp_path / "page.html"
    done = CliRunner().invoke(main, ["explore", str(flow), "-o", str(out)])
    assert done.exit_code == 0, done.output
    assert str(out.resolve()) in done.stderr
    assert done.stdout == ""
    assert '"network":{' in out.read_text(encoding="utf-8")
    done = CliRunner().invoke(main, ["explore", "-o", str(out), "--preset", "chrono"])
    assert done.exit_code == 0, done.output
    assert '"start":"#preset=chrono"' in out.read_text(encoding="utf-8")


def test_command_does_not_write_over_its_input_nor_hide_it(tmp_path: Path) -> None:
    flow, link = tmp_path / "flow.json", tmp_path / "link.json"
    flow.write_text(recorded().to_json(), encoding="utf-8")
    link.symlink_to(flow)
    before = flow.read_bytes()
    for arguments in (["-o", str(flow)], ["-o", str(link)], ["-o", str(tmp_path / "page.html"), "--preset", "chrono"]):
        done = CliRunner().invoke(main, ["explore", str(flow), *arguments])
        assert done.exit_code == 2
        assert re.search(r"error: got .*; expected .*; do this: ", done.stderr), done.stderr
    assert flow.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flow.json", "link.json"]


def test_half_a_surrogate_pair_in_a_name_is_no_fault(tmp_path: Path) -> None:
    document = json.loads(recorded().to_json())
    document["layers"][0]["name"] = "\ud800"
    flow, out = tmp_path / "flow.json", tmp_path / "page.html"
    flow.write_text(json.dumps(document), encoding="utf-8")
    assert CliRunner().invoke(main, ["explore", str(flow), "-o", str(out)]).exit_code == 0
    assert r"\ud800" in out.read_text(encoding="utf-8")


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_file_is_read_in_any_unicode(tmp_path: Path, coding: str) -> None:
    path = tmp_path / "flow.json"
    path.write_text(recorded().to_json(), encoding=coding)
    assert read(path)["layers"][0]["steps"] == STEPS


def test_sizes_that_a_page_cannot_show_are_the_librarys_error(tmp_path: Path) -> None:
    path, cells = tmp_path / "flow.json", json.loads(recorded().to_json(network=True))
    layer = cells["layers"][0]
    gradient = [[1.0] * UNITS] * STEPS
    layer["network"]["sequence"]["gradient"] = gradient
    path.write_text(json.dumps(cells), encoding="utf-8")
    read(path)
    for change in ({"steps": 10**6}, {"hidden_size": 300_000}):
        path.write_text(json.dumps({**cells, "layers": [layer | change]}), encoding="utf-8")
        with pytest.raises(InputError, match=r"= \d+ in .*; expected at most \d+, which a page can show"):
            read(path)


def test_a_loss_at_too_many_steps_for_a_page_is_the_librarys_error(
    document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "flow.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    monkeypatch.setattr(flowfile, "ROWS", STEPS * UNITS * 4)  # one loss, at the last step
    read(path)
    monkeypatch.setattr(flowfile, "ROWS", STEPS * UNITS * 4 - 1)
    with pytest.raises(InputError, match=r"loss at so many steps"):
        read(path)


def test_from_diagnose_to_explore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_to_explore.py").write_text(
        "import torch\n"
        "model = lambda: torch.nn.GRU(2, 4)\n"
        "data = lambda: torch.randn(9, 25, 2)\n"
        "def loss(model, x):\n    return model(x)[0][-1].square().sum()\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    names = [f"mine_to_explore:{name}" for name in ("model", "data", "loss")]
    arguments = ["diagnose", names[0], "--data", names[1], "--loss", names[2], "--format", "json", "--fail-on", "never"]
    done = CliRunner().invoke(main, [*arguments, "--network"])
    assert done.exit_code == 0, done.stderr
    jsonschema.validate(json.loads(done.stdout), schema())
    flow = tmp_path / "flow.json"
    flow.write_text(done.stdout, encoding="utf-8")
    done = CliRunner().invoke(main, ["explore", str(flow), "-o", str(tmp_path / "page.html")])
    assert done.exit_code == 0, done.stderr
    assert '"network":{' in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_command_errors(tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text("{}", encoding="utf-8")
    out = tmp_path / "page.html"
    for arguments in ([str(bad)], ["--preset", "none"], [str(tmp_path / "lacking.json")]):
        done = CliRunner().invoke(main, ["explore", *arguments, "-o", str(out)])
        assert done.exit_code == 2
        assert re.search(r"error: got .*; expected .*; do this: ", done.stderr), done.stderr
        assert not out.exists()


def test_command_lists_examples_without_torch() -> None:
    code = (
        "import sys\nfrom throughtime.cli import main\n"
        "try:\n    main(['explore', '--help'])\nexcept SystemExit:\n    pass\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "FLOW" in done.stdout
    done = CliRunner().invoke(main, ["explore", "--list"])
    assert done.stdout.splitlines()[0] == "cv556070  The question's three cases"


def test_network_option_needs_json() -> None:
    done = CliRunner().invoke(main, ["diagnose", "m", "--data", "d", "--network"])
    assert done.exit_code == 2
    assert "add --format json" in done.stderr
