"""The explorer in a real browser: what it says is true of its numbers, its network is the library's, and the page behaves."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import throughtime as tt
from throughtime.cells import REGISTRY, Weights
from throughtime.explorer.page import presets, render, save
from throughtime.flow import LayerFlow
from throughtime.recurrent import Recurrent
from throughtime.report.palette import DARK, LIGHT

pytestmark = pytest.mark.browser

HOSTILE = "</script><script>window.hacked=1</script><!--<img src=x onerror='window.hacked=1'>"
TOLD = """() => {
  const f = throughtime.frame(), list = (values) => values && Array.from(values, (v) =>
    Number.isNaN(v) ? "nan" : v === Infinity ? "inf" : v === -Infinity ? "-inf" : v);
  const {network, g, gc} = f.given;
  const weights = Object.fromEntries(["x", "initial", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "drive"].map(
    (name) => [name, list(network[name])]));
  return {cell: f.state.cell, T: network.T, D: network.D, H: network.H, ...weights, g: list(g), gc: list(gc),
    arriving: list(f.arriving), log10_norm: list(f.term.log10_norm), share: list(f.term.share), rows: list(f.term.rows),
    paths: Object.fromEntries(Object.entries(f.swept.paths).map(([name, values]) => [name, list(values)])),
    sizes: Object.fromEntries(f.paths.map(({port, size}) => [port, size])), whole: f.whole,
    scales: list(f.scales), halves: list(f.halves), needed: f.needed, growth: f.growth, lag: f.lag, cut: f.cut,
    transport: list(f.transport), values: Object.fromEntries(Object.entries(f.trace.values).map(([n, v]) => [n, list(v)]))};
}"""


@dataclass
class Seen:
    """An open page, and what it did that it should not."""

    page: Any
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def change(self, **values: Any) -> dict[str, Any]:
        """Move controls, and read everything of the new frame."""
        self.page.evaluate("(values) => throughtime.change(values)", values)
        return self.told()

    def told(self) -> dict[str, Any]:
        return self.page.evaluate(TOLD)

    def state(self) -> dict[str, Any]:
        return self.page.evaluate("throughtime.state()")

    def until(self, condition: str, seconds: float = 10) -> None:
        end = time.monotonic() + seconds
        while not self.page.evaluate(condition):
            assert time.monotonic() < end, f"not reached within {seconds} s: {condition}"
            self.page.wait_for_timeout(20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("explorer")
    (where / "explorer.html").write_text(render(), encoding="utf-8")
    return where


@pytest.fixture(scope="module")
def browsing(chromium: Any) -> Iterator[Any]:
    """Open a page; everything but the file itself is refused and noted."""
    contexts = []

    def opened(path: Path, fragment: str = "", width: int = 1440, **options: Any) -> Seen:
        context = chromium.new_context(viewport={"width": width, "height": 1000}, **options)
        contexts.append(context)
        seen, url = Seen(context.new_page()), path.as_uri()

        def decide(route: Any) -> None:
            if route.request.url.split("#")[0] == url:
                route.continue_()
            else:
                seen.requests.append(route.request.url)
                route.abort()

        context.route("**/*", decide)
        seen.page.on("console", lambda message: seen.errors.append(message.text))
        seen.page.on("pageerror", lambda error: seen.errors.append(str(error)))
        seen.page.goto(url + fragment)
        return seen

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture
def show(browsing: Any, folder: Path) -> Any:
    return lambda fragment="", **options: browsing(folder / "explorer.html", fragment, **options)


@pytest.fixture(scope="module")
def shared(browsing: Any, folder: Path) -> Seen:
    """One page for the tests that only move controls and read numbers."""
    return browsing(folder / "explorer.html")


def array(values: list) -> np.ndarray:
    return np.array([float(value) for value in values])


# --- the network on the page is the library's ------------------------------------------------------------------------


def measured(told: dict[str, Any]) -> LayerFlow:
    """The library's flow of the network that the page shows, its drive as one more input that is 1 at the step of the reset."""
    cell, T, D, H = REGISTRY[told["cell"]], told["T"], told["D"], told["H"]
    x, weight_ih = array(told["x"]).reshape(T, D), array(told["weight_ih"]).reshape(-1, D)
    if told["drive"] is not None:
        drive = array(told["drive"]).reshape(T, -1)
        step = int(np.abs(drive).sum(1).argmax())
        x = np.concatenate([x, np.eye(T)[:, step : step + 1]], axis=1)
        weight_ih = np.concatenate([weight_ih, drive[step][:, None]], axis=1)

    def as_tensor(values: Any, *shape: int) -> Tensor:
        return torch.tensor(np.asarray(values, dtype=np.float64)).reshape(*shape)

    weights = Weights(
        torch.tensor(weight_ih), as_tensor(told["weight_hh"], -1, H),
        as_tensor(told["bias_ih"], -1), as_tensor(told["bias_hh"], -1),
    )  # fmt: skip
    layer = Recurrent(cell, weights).double()
    initial = as_tensor(told["initial"], len(cell.states), 1, H)
    g = as_tensor(told["g"], T, 1, H)
    with tt.record(layer) as record:
        output, last = layer(torch.tensor(x)[:, None], tuple(initial) if len(initial) > 1 else initial[0])
        loss = (output * g).sum()
        if told["gc"] is not None:
            loss = loss + (last[-1].flatten() * as_tensor(told["gc"], -1)).sum()
        loss.backward()
    return record.flow(demand=False, hops=False, tolerance=0.0).layers["rnn"]


def check_against_library(told: dict[str, Any], parameter: str, gate: str) -> None:
    layer = measured(told)
    terms = layer.parameters[f"rnn.{parameter}_l0"].gates[gate]
    for got, expected in (
        (told["arriving"], layer.adjoint.log10_arriving_total),
        (told["log10_norm"], terms.log10_norm),
    ):
        got, at = array(got), np.isfinite(expected)
        np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
        np.testing.assert_allclose(got[at], expected[at], rtol=1e-13, atol=1e-9 / math.log(10))
    np.testing.assert_allclose(array(told["share"]), terms.share, rtol=1e-9, atol=1e-12)
    for port, share in layer.paths.items():
        np.testing.assert_allclose(array(told["paths"][port]), share, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(array(told["halves"]), [unit.half_life for unit in layer.units])
    np.testing.assert_allclose(array(told["scales"]), [unit.timescale for unit in layer.units], rtol=1e-9)


GRU_STATE = {"view": "full", "T": 60, "H": 12, "cut": 0, "chrono": 0, "gain": 1, "input": 1, "parameter": "weight_hh"}
STATES = [
    {"cell": "gru-reset-before", "z": 1.5, "r": -1, "loss": "last", "seed": 1, "gate": "n"},
    {"cell": "gru-reset-before", "z": -8, "r": 8, "loss": "every", "seed": 2, "gate": "z"},
    {"cell": "gru", "z": 2, "r": 1, "loss": "one", "at": 41, "seed": 3, "gate": "r", "task": "digits"},
    {"cell": "gru", "chrono": 50, "z": 0, "r": 0, "loss": "last", "seed": 4, "gate": "z", "parameter": "weight_ih"},
    {"cell": "lstm", "f": 3, "i": -1, "o": 1, "loss": "every", "seed": 5, "gate": "o", "task": "adding"},
    {"cell": "lstm", "f": -2, "i": 2, "o": 0, "loss": "last", "seed": 6, "gate": "f"},
    {"cell": "rnn-tanh", "gain": 1.4, "loss": "last", "seed": 7, "gate": "a"},
]


@pytest.mark.parametrize("state", STATES, ids=[f"{s['cell']}-{s['loss']}-{s['seed']}" for s in STATES])
def test_the_network_that_the_controls_make_is_measured_alike(shared: Seen, state: dict[str, Any]) -> None:
    told = shared.change(**{**GRU_STATE, "task": "delayed", **state})
    check_against_library(told, {**GRU_STATE, **state}["parameter"], state["gate"])


def test_the_reset_of_some_units_is_measured_alike(shared: Seen) -> None:
    told = shared.change(
        **GRU_STATE | {"cell": "gru-reset-before", "loss": "last", "task": "none", "gate": "n", "parameter": "bias_ih",
                       "z": 3, "r": 1, "cut": 40, "cutUnits": 5}
    )  # fmt: skip
    check_against_library(told, "bias_ih", "n")
    z, r = (np.reshape(told["values"][gate], (60, 12)) for gate in "zr")
    assert z[39, :5].max() < 1e-5
    assert r[39, :5].max() < 1e-5
    assert z[38, :5].min() > 0.1
    assert z[39, 5:].min() > 0.1


def test_sliders_at_the_defaults_draw_weights_as_torch_does(shared: Seen) -> None:
    told = shared.change(**GRU_STATE | {"cell": "gru", "gain": 3**-0.5, "input": 3**-0.5, "H": 32, "T": 20}, z=0, r=0)
    bound = 32**-0.5
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        values = array(told[name])
        assert np.abs(values).max() <= bound
        assert np.abs(values).max() > 0.9 * bound
    assert abs(array(told["weight_hh"]).std() / (bound / 3**0.5) - 1) < 0.05


# --- each example's sentence, by number --------------------------------------------------------------------------------


def norms(told: dict[str, Any]) -> np.ndarray:
    return 10.0 ** array(told["log10_norm"])


def claim_cv556070(seen: Seen) -> None:
    told = seen.change(z=12, r=12)
    assert told["sizes"]["carry"] == pytest.approx(1, abs=1e-4)
    assert told["whole"] == pytest.approx(1, abs=1e-3)
    assert told["arriving"][-1] == pytest.approx(0, abs=0.01)
    told = seen.change(z=-12, r=12)
    H, step = told["H"], told["T"] - 1 - told["lag"]
    state = array(told["values"]["n"]).reshape(-1, H)[step]
    elman = (1 - state**2)[:, None] * array(told["weight_hh"]).reshape(3, H, H)[2]  # diag(1 − h²) W_h
    assert told["whole"] == pytest.approx(np.linalg.norm(elman) / H**0.5, rel=1e-3)
    assert told["sizes"]["candidate"] == pytest.approx(told["whole"], rel=1e-3)
    for gate in "zn":
        told = seen.change(z=-12, r=-12, gate=gate)
        assert told["whole"] < 1e-4
        assert norms(told)[0] / norms(told).sum() > 0.99
        assert norms(told)[0] > 0


def claim_keep_gate_is_the_timescale(seen: Seen) -> None:
    told = seen.told()
    expected = math.log(2) * array(told["scales"])
    assert expected.max() / expected.min() > 10
    # within 5 %, and a half-life is a whole number of steps: it may be up to one longer
    excess = array(told["halves"]) - expected
    assert (excess > -0.05 * expected).all()
    assert (excess < 1 + 0.05 * expected).all()
    z = np.reshape(told["values"]["z"], (told["T"], told["H"]))
    np.testing.assert_allclose(told["scales"], -1 / np.log(z).mean(0), rtol=1e-9)


def claim_reset_cuts(seen: Seen) -> None:
    told = seen.told()
    rows = 10.0 ** np.reshape(array(told["rows"]), (told["T"], told["H"]))
    before = rows[told["T"] - told["cut"] + 1 :]  # lags of the steps before the reset
    part = before.sum(0) / rows.sum(0)
    assert before[:, :12].sum() / rows[:, :12].sum() < 0.01
    assert before[:, 12:].sum() / rows[:, 12:].sum() > 0.5
    assert part[:12].max() < part[12:].min()
    seen.until("document.querySelector('#terms figcaption').textContent.includes('from before step 40: 0.')")
    assert "from before step 40: 0." in seen.page.inner_text("#terms figcaption")


def claim_the_k_equals_t_term(seen: Seen) -> None:
    first = []
    for steps in (20, 100, 200):
        size = norms(seen.change(T=steps))
        assert size[0] / size.sum() > 0.99
        first.append(size[0])
    np.testing.assert_allclose(first, first[0], rtol=1e-3)


def claim_saturation(seen: Seen) -> None:
    at = {}
    for logit in (-8, -16):
        for gate in "zn":
            at[logit, gate] = norms(seen.change(z=logit, r=logit, gate=gate))[0]
    slope = {logit: math.exp(logit) / (1 + math.exp(logit)) ** 2 for logit in (-8, -16)}
    assert at[-16, "z"] / at[-8, "z"] == pytest.approx(slope[-16] / slope[-8], rel=0.01)
    assert at[-16, "n"] == pytest.approx(at[-8, "n"], rel=0.01)


def claim_long_memory_untrainable_gate(seen: Seen) -> None:
    size = {}
    for logit in (8, 10):
        told = seen.change(z=logit)
        assert 10 ** told["arriving"][99] > 0.9
        size[logit] = float(seen.page.evaluate("throughtime.frame().term.norm"))
    assert size[10] / size[8] == pytest.approx((1 + math.exp(8)) / (1 + math.exp(10)), rel=0.05)


def claim_elman_vanishes(seen: Seen) -> None:
    told = seen.told()
    arriving = array(told["arriving"])
    assert told["sizes"]["candidate"] == pytest.approx(told["whole"], rel=1e-3)
    assert arriving[99] < -6
    assert np.corrcoef(np.arange(100), arriving)[0, 1] < -0.99  # a straight line on the logarithmic axis


def claim_elman_explodes(seen: Seen) -> None:
    told = seen.told()
    assert told["growth"]["nats"] > 0.05
    assert array(told["arriving"])[99] > 2


def claim_lstm_forget_carries(seen: Seen) -> None:
    told = seen.told()
    assert (10 ** array(told["arriving"])).min() > 0.75  # told on d, as the headline is
    assert told["growth"]["arriving"] == told["arriving"][99]
    assert array(told["paths"]["carry"])[1:].min() > 0.95
    assert np.median(told["values"]["f"]) > 0.98
    seen.page.evaluate("throughtime.render()")
    assert "on the cell's gradient d" in seen.page.inner_text("#supply figcaption")
    seen.until("document.querySelector('#main-sentence').textContent.includes('gradient d by 0.998')")


def claim_torch_default(seen: Seen) -> None:
    told = seen.told()
    assert told["growth"]["halfLife"] == pytest.approx(1.5, abs=0.3)
    assert abs(np.mean(told["values"]["z"]) - 0.5) < 0.05


def claim_chrono(seen: Seen) -> None:
    told = seen.told()
    assert 10 ** told["arriving"][40] > 0.1
    assert told["needed"] == [40]


def claim_far_demand_short_supply(seen: Seen) -> None:
    told = seen.told()
    assert told["needed"] == list(range(92, 100))
    assert array(told["arriving"])[92:].max() < -15


@pytest.mark.parametrize("preset", presets(), ids=lambda preset: preset["id"])
def test_the_sentence_of_each_example_is_true(shared: Seen, preset: dict[str, Any]) -> None:
    seen, shared.errors[:] = shared, []
    seen.page.evaluate(f"location.hash = '#preset={preset['id']}'")
    seen.until(f"throughtime.state().preset === '{preset['id']}'")
    seen.until(f"document.querySelector('#claim').textContent.includes({json.dumps(preset['title'])})")
    assert preset["sentence"] in seen.page.inner_text("#claim")
    globals()[f"claim_{preset['id'].replace('-', '_')}"](seen)
    assert seen.errors == []


def test_a_sentence_that_no_longer_holds_is_taken_back(show: Any) -> None:
    seen = show("#preset=lstm-forget-carries")
    seen.page.locator("#control-f").focus()
    seen.page.keyboard.press("ArrowLeft")
    seen.until("document.querySelector('#claim').textContent.includes('Moved from the example')")
    seen.page.get_by_role("button", name="Reset").click()
    seen.until("document.querySelector('#claim').textContent.includes('nearly all of it by the carry path')")


def test_a_sentence_stands_only_while_it_is_true_of_what_is_picked(shared: Seen) -> None:
    """Another parameter or gate takes it back, unless the example leaves that free: then its numbers hold there too."""
    pick = """([start, parameter, gate]) => {
      throughtime.change({...start, parameter, gate});
      throughtime.render();
      return document.querySelector("#claim").textContent; }"""
    for preset in presets():
        shared.page.evaluate(f"location.hash = '#preset={preset['id']}'")
        shared.until(f"throughtime.state().preset === '{preset['id']}'")
        start, free = shared.state(), preset.get("free", [])
        gates = REGISTRY[start["cell"]].gates
        for i, parameter in enumerate(("weight_ih", "weight_hh", "bias_ih", "bias_hh")):
            for j, gate in enumerate(gates):
                own = [parameter == start["parameter"] or "parameter" in free, gate == start["gate"] or "gate" in free]
                stands = preset["sentence"] in shared.page.evaluate(pick, [start, parameter, gate])
                assert stands == all(own), (preset["id"], parameter, gate)
                if stands and j == i % len(
                    gates
                ):  # each parameter and each gate once, which is enough for the time it takes
                    globals()[f"claim_{preset['id'].replace('-', '_')}"](shared)


def test_a_loss_at_the_first_step_and_numbers_that_are_not_finite(show: Any, browsing: Any, tmp_path: Path) -> None:
    seen = show("#loss=one&at=1")
    seen.until("document.querySelector('#main-sentence').textContent.includes('no step to go back')")
    assert "only one step" not in seen.page.inner_text("#main-sentence")
    document = json.loads(recorded("GRU").to_json(network=True))
    weights = document["layers"][0]["network"]["weights"]
    for name in ("weight_ih", "weight_hh"):
        weights[name] = [[1e308 for _ in row] for row in weights[name]]
    (tmp_path / "flow.json").write_text(json.dumps(document), encoding="utf-8")
    save(tmp_path / "page.html", tmp_path / "flow.json")
    seen = browsing(tmp_path / "page.html")
    seen.until("document.querySelector('#main-sentence').textContent.includes('not finite here')")
    for name in ("supply", "terms", "units"):
        assert "not finite here" in seen.page.inner_text(f"#{name} figcaption")


def test_the_keyboard_stays_where_it_was(show: Any, browsing: Any, tmp_path: Path) -> None:
    focused = "document.activeElement.id"
    painted = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))"
    seen = show()
    for name in ("cell", "task", "loss"):
        seen.page.locator(f"#control-{name}").focus()
        for _ in range(2):
            assert seen.page.evaluate(painted)  # a new list takes keys once it is on the screen
            before = seen.state()[name]
            seen.page.keyboard.press("ArrowDown")
            seen.until(f"throughtime.state().{name} !== '{before}'")
            assert seen.page.evaluate(focused) == f"control-{name}"
    seen = show("#preset=cv556070")
    seen.page.locator("#all").focus()
    seen.page.keyboard.press("Enter")
    seen.page.locator("#gates").wait_for(state="visible")
    assert seen.page.evaluate(focused) == "preset"
    (tmp_path / "flow.json").write_text(recorded("GRU").to_json(network=True), encoding="utf-8")
    save(tmp_path / "page.html", tmp_path / "flow.json")
    seen = browsing(tmp_path / "page.html")
    seen.page.locator("#control-source").focus()
    seen.page.keyboard.press("ArrowUp")
    seen.until("throughtime.state().source === 'drawn'")
    assert seen.page.evaluate(focused) == "control-source"


def test_the_stripped_view_shows_the_three_cases_and_nothing_else(show: Any) -> None:
    seen = show("#preset=cv556070")
    page = seen.page
    shown = [figure.get_attribute("id") for figure in page.locator("figure").all() if figure.is_visible()]
    assert sorted(shown) == ["jacobian", "other", "supply", "terms"]
    assert page.locator("#jacobian canvas").count() == 5
    assert page.locator(".cases button").all_inner_texts() == ["z → 1", "z → 0\nr → 1", "z → 0\nr → 0"]
    assert page.locator(".controls input:visible").count() == 1
    assert page.locator("select:visible").count() == 1  # the menu of examples
    page.get_by_role("button", name="z → 1").click()
    seen.until("document.querySelector('.cases button').ariaPressed === 'true'")
    seen.until("document.querySelector('#main-sentence').textContent.includes('hands the gradient on nearly whole')")
    page.get_by_role("button", name="Whole explorer").click()
    page.locator("#gates").wait_for(state="visible")


# --- the page ----------------------------------------------------------------------------------------------------------


def test_address_holds_the_state(show: Any) -> None:
    seen = show()
    seen.change(cell="lstm", f=2.5, i=-1, T=77, loss="every", seed=12, gate="g", task="adding", lag=33, gain=0.83)
    seen.until("location.hash.includes('gain=0.83')")
    again = show(seen.page.evaluate("location.hash"))
    assert again.state() == seen.state()
    assert again.told()["arriving"] == seen.told()["arriving"]
    assert len(seen.page.evaluate("location.hash")) < 120


@pytest.mark.parametrize(
    "fragment",
    [
        "#T=abc&H=-5&cell=evil&loss=%3Cscript%3E",
        "#preset=nothing&z=1e999",
        "#source=flow&layer=7",
        "#T=&gate=%22%3E&lag=1e9",
        "#constructor=1&toString=1&__proto__=1&hasOwnProperty=1",
        "#cell=constructor&gate=constructor&shown=__proto__&task=toString&preset=__proto__",
    ],
)
def test_a_mistyped_address_is_no_broken_page(show: Any, fragment: str) -> None:
    seen = show(fragment)
    assert seen.errors == []
    state = seen.state()
    assert 20 <= state["T"] <= 200
    assert state["cell"] == "gru-reset-before"
    assert "gradient" in seen.page.inner_text("#supply figcaption")


def test_address_typed_into_an_open_page_is_followed(show: Any) -> None:
    seen = show()
    seen.page.evaluate("location.hash = '#preset=chrono'")
    seen.until("throughtime.state().chrono === 100 && document.querySelector('#preset').value === 'chrono'")


def test_copies_a_link(show: Any) -> None:
    seen = show("#z=3", permissions=["clipboard-read", "clipboard-write"])
    seen.page.get_by_role("button", name="Copy link").click()
    seen.page.get_by_role("button", name="Copied").wait_for()
    assert seen.page.evaluate("navigator.clipboard.readText()").endswith("explorer.html#z=3")


def test_keyboard_moves_every_control(show: Any) -> None:
    seen = show()
    page, reached = seen.page, set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none" or page.evaluate("document.activeElement === document.body")
    ids = set(page.locator(".controls input, .controls select").evaluate_all("(all) => all.map((each) => each.id)"))
    assert ids <= reached
    for key in ("z", "r", "gain", "T", "lag", "seed", "between"):
        control = page.locator(f"#control-{key}")
        control.focus()
        before = (control.input_value(), page.inner_text("#main-sentence"), page.inner_text("#supply figcaption"))
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(150)
        after = (control.input_value(), page.inner_text("#main-sentence"), page.inner_text("#supply figcaption"))
        assert after[0] != before[0], key
        assert after[1:] != before[1:], key
        assert control.get_attribute("aria-valuetext")
    assert page.locator("#main-sentence").get_attribute("aria-live") == "polite"
    unlabelled = "[...document.querySelectorAll('input,select')].filter((e) => !e.labels.length && !e.ariaLabel).length"
    assert page.evaluate(unlabelled) == 0


def test_dragging_in_a_chart_reads_a_lag(show: Any) -> None:
    seen = show()
    box = seen.page.locator("#supply .plot").bounding_box()
    seen.page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 80)
    seen.page.mouse.down()
    seen.page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + 80)
    seen.page.mouse.up()
    assert 70 < seen.state()["lag"] < 85
    seen.until(f"document.querySelector('#supply figcaption').textContent.includes('lag {seen.state()['lag']}')")


def test_a_finger_reads_a_lag(show: Any) -> None:
    seen = show("", width=390, has_touch=True, is_mobile=True)
    plot = seen.page.locator("#supply .plot")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    seen.page.touchscreen.tap(box["x"] + box["width"] * 0.6, box["y"] + 60)
    assert 40 < seen.state()["lag"] < 65
    low = "Math.min(...[...document.querySelectorAll('button,select')].filter((e) => e.offsetWidth).map((e) => e.offsetHeight))"
    assert seen.page.evaluate(low) >= 40


@pytest.mark.parametrize("fragment", ["", "#preset=cv556070", "#preset=lstm-forget-carries&loss=every"])
def test_no_sideways_scrolling_and_no_clipped_text(show: Any, fragment: str) -> None:
    seen = show(fragment, width=390)
    for width in (390, 620, 899, 1024, 1240, 1440, 1920):
        seen.page.set_viewport_size({"width": width, "height": 900})
        seen.until(f"document.documentElement.scrollWidth <= {width}", 5)
        seen.page.wait_for_timeout(60)
        clipped = seen.page.evaluate(
            """[...document.querySelectorAll("h1,h2,figcaption,p,label,output,button,legend,.name,li")].filter((e) =>
                 e.offsetWidth && e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== "inline")
               .map((e) => e.outerHTML.slice(0, 80))"""
        )
        assert clipped == []
        outside = seen.page.evaluate(
            """[...document.querySelectorAll("svg text")].filter((e) => {
                 const a = e.getBoundingClientRect(), b = e.closest("svg").getBoundingClientRect();
                 return a.width && (a.left < b.left - 1 || a.right > b.right + 1); }).map((e) => e.textContent)"""
        )
        assert outside == []


def test_first_screen_of_a_projector(show: Any) -> None:
    """At 1440 × 1000 all six charts begin on the first screen, the three main ones whole."""
    page = show().page
    for name in ("supply", "terms", "jacobian"):
        box = page.locator(f"#{name}").bounding_box()
        assert box["y"] + box["height"] <= 1000
    for name in ("gates", "paths", "units"):
        assert page.locator(f"#{name}").bounding_box()["y"] <= 700


def test_follows_dark_mode_and_stays_quiet(show: Any) -> None:
    seen = show("", color_scheme="light", reduced_motion="reduce")
    ground = "getComputedStyle(document.body).backgroundColor"
    pixel = "document.querySelector('#gates canvas').toDataURL()"
    light = [seen.page.evaluate(ground), seen.page.evaluate(pixel)]
    assert light[0] == rgb(LIGHT["paper"])
    seen.page.emulate_media(color_scheme="dark")
    seen.until(f"{pixel} !== '{light[1]}'")
    assert seen.page.evaluate(ground) == rgb(DARK["paper"])
    assert seen.page.evaluate("getComputedStyle(document.querySelector('button')).transitionDuration") == "0s"
    assert seen.errors == []
    assert seen.requests == []


def rgb(colour: str) -> str:
    return f"rgb({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))})"


def test_demand_is_told_beside_supply_and_never_made_up(show: Any) -> None:
    seen = show("#task=delayed")
    assert "lag 40 asked for" in seen.page.inner_text("#supply .note")
    assert seen.page.locator("#supply .asked").count() == 1
    assert "The loss asks for lag 40" in seen.page.inner_text("#main-sentence")
    assert seen.change(task="last-three")["needed"] == [0, 1, 2]
    assert seen.change(task="none")["needed"] == []
    seen.page.wait_for_timeout(150)
    assert "not “not needed”" in seen.page.inner_text("#supply .note")
    assert "asks for" not in seen.page.inner_text("#main-sentence")
    assert seen.change(task="digits", T=80)["needed"] == []  # measured with 100 steps only
    seen.page.wait_for_timeout(150)
    assert "with 100 steps only" in seen.page.inner_text("#supply .note")
    assert seen.change(task="delayed", loss="every", T=100)["needed"] == []
    assert seen.change(task="delayed", loss="last", T=30)["needed"] == []


# --- the user's own network -----------------------------------------------------------------------------------------------


class Reader(nn.Module):
    """A recurrent layer and a reading of its last output; every step counts where `every`."""

    def __init__(self, kind: str, every: bool = False) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(3, 9).double()
        self.head = nn.Linear(9, 1).double()
        self.every = every

    def forward(self, x: Tensor) -> Tensor:
        output = self.rnn(x)[0]
        return self.head(output if self.every else output[-1])


def recorded(kind: str, every: bool = False, batch: int = 4, steps: int = 50, uneven: bool = False) -> Any:
    """uneven: a loss that weighs a thousand times as much at the first steps, and nothing at every third."""
    torch.manual_seed(3)
    model, x = Reader(kind, every), torch.randn(steps, batch, 3, dtype=torch.float64)
    place = torch.arange(steps, dtype=torch.float64)[:, None, None]
    weight = (place % 3 != 1) * 1000 ** (1 - place / steps) if uneven else torch.ones_like(place)
    with tt.record(model) as record:
        ((model(x) - x[10, :, :1]).square() * (weight if every else 1)).mean().backward()
    return record.flow(tolerance=0.0)


@pytest.mark.parametrize(
    ("kind", "every", "batch", "uneven"),
    [
        ("GRU", False, 1, False),
        ("LSTM", True, 1, False),
        ("RNN", False, 1, False),
        ("GRU", True, 4, False),
        ("GRU", True, 3, True),
        ("LSTM", True, 3, True),
    ],
)
def test_a_recorded_network_at_rest_shows_what_was_measured(
    browsing: Any, tmp_path: Path, kind: str, every: bool, batch: int, uneven: bool
) -> None:
    flow = recorded(kind, every, batch, uneven=uneven)
    layer = flow.layers["rnn"]
    (tmp_path / "flow.json").write_text(flow.to_json(network=True), encoding="utf-8")
    save(tmp_path / "page.html", tmp_path / "flow.json")
    seen = browsing(tmp_path / "page.html")
    assert "all sliders are at rest" in seen.page.inner_text("#source")
    told, gate = seen.told(), seen.state()["gate"]
    got = seen.page.evaluate("(() => { const f = throughtime.frame(); return Array.from(f.swept.pairs, (n, lag) => "
                             "0.5 * (Math.log10(f.swept.square.mantissa[lag]) + f.swept.square.exponent[lag] * Math.log10(2) "
                             "- Math.log10(n))); })()")  # fmt: skip
    np.testing.assert_allclose(got, layer.adjoint.by_sequence[:, 0], rtol=1e-12, atol=1e-9)
    line = seen.page.evaluate("throughtime.frame().measured")
    np.testing.assert_allclose(array(told["arriving"]), line, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(line, layer.adjoint.arriving_by_sequence[:, 0], rtol=1e-12, atol=1e-12)
    if uneven:  # over lag 0 it would be another line
        of = layer.adjoint.by_sequence[:, 0]
        assert np.nanmax(np.abs(array(line) - (of - of[0]))) > 0.1
    if batch == 1:
        np.testing.assert_allclose(array(told["arriving"]), layer.adjoint.log10_arriving_total, rtol=1e-12, atol=1e-9)
        terms = layer.parameters["rnn.weight_ih_l0"].gates.get(gate, layer.parameters["rnn.weight_ih_l0"])
        np.testing.assert_allclose(array(told["share"]), terms.share, rtol=1e-9, atol=1e-12)
        expected = np.asarray(terms.log10_norm)
        at = np.isfinite(expected)
        np.testing.assert_allclose(array(told["log10_norm"])[at], expected[at], rtol=1e-12, atol=1e-9)
        for port, share in layer.paths.items():
            np.testing.assert_allclose(array(told["paths"][port]), share, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(array(told["scales"]), [unit.timescale for unit in layer.units], rtol=1e-9)
    moved = seen.change(gain=1.3, **{gate: 1.0} if kind != "RNN" else {})
    assert moved["arriving"] != told["arriving"]
    np.testing.assert_allclose(array(moved["weight_hh"]), 1.3 * array(told["weight_hh"]))
    seen.page.wait_for_timeout(100)
    assert "moved by the sliders" in seen.page.inner_text("#source")
    assert seen.errors == []


def test_a_flow_without_weights_is_shown_beside_a_stand_in(browsing: Any, tmp_path: Path) -> None:
    flow = recorded("GRU")
    (tmp_path / "flow.json").write_text(flow.to_json(), encoding="utf-8")
    save(tmp_path / "page.html", tmp_path / "flow.json")
    seen = browsing(tmp_path / "page.html")
    assert "stand-in" in seen.page.inner_text("#source")
    assert "measured" in seen.page.inner_text("#supply .legend")
    figures = ("supply", "terms", "gates", "paths", "units", "jacobian")
    assert all(seen.page.inner_text(f"#{name} figcaption").startswith("Stand-in: ") for name in figures)
    assert "Measured logits over the 4 sequences: median" in seen.page.inner_text("#gates figcaption")
    measured = flow.layers["rnn"].log10_arriving
    seen.until("document.querySelector('#main-sentence').textContent.startsWith('Measured: ')")
    headline, growth = seen.page.inner_text("#main-sentence"), seen.told()["growth"]
    assert growth["factor"] == pytest.approx(10 ** (measured[49] / 49))
    assert f"multiplies the gradient by {10 ** (measured[49] / 49):.3g}" in headline
    seen.change(seed=99, z=4)  # the stand-in moves, what was measured does not
    seen.page.wait_for_timeout(150)
    assert seen.page.inner_text("#main-sentence") == headline
    assert "Measured timescales" in seen.page.inner_text("#units figcaption")
    assert "measured" in seen.page.inner_text("#paths .legend")
    assert "measured over the 4 sequences." in seen.page.inner_text("#terms figcaption")
    low, middle, high = flow.layers["rnn"].gates["z"].logit_quantiles[[1, 3, 5]]
    seen.change(gain=0, input=0, z=0)
    logits = np.sort(seen.page.evaluate("Array.from(throughtime.frame().trace.logits.z.slice(0, 9))"))
    assert abs(np.median(logits) - middle) < (high - low) / 3
    assert logits[0] > flow.layers["rnn"].gates["z"].logit_quantiles[0] - 1e-9
    assert seen.errors == []


def test_a_large_network_says_that_it_computes_before_it_does(chromium: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.GRU(1, 64)
    with tt.record(layer) as record:
        layer(torch.randn(230, 1, 1))[0].square().sum().backward()
    (tmp_path / "flow.json").write_text(record.flow(demand=False, hops=False).to_json(network=True), encoding="utf-8")
    save(tmp_path / "page.html", tmp_path / "flow.json")
    page = chromium.new_page()
    page.add_init_script(
        "window.told = []; new MutationObserver((all) => all.forEach(({target, addedNodes}) => "
        "target.id === 'main-sentence' && told.push(addedNodes[0].textContent)))"
        ".observe(document, {childList: true, subtree: true})"
    )
    page.goto((tmp_path / "page.html").as_uri())
    page.locator("#main-sentence", has_text="Each step back").wait_for()
    told = page.evaluate("told")
    page.close()
    assert told[0] == "Computing…"
    assert told[-1].startswith("Each step back")


def test_names_in_a_flow_cannot_become_script(browsing: Any, tmp_path: Path) -> None:
    document = json.loads(recorded("GRU").to_json(network=True))
    document["layers"][0]["name"] = HOSTILE
    for row in document["layers"][0]["parameters"]:
        row["name"] = HOSTILE
    (tmp_path / "flow.json").write_text(json.dumps(document), encoding="utf-8")
    save(tmp_path / "page.html", tmp_path / "flow.json")
    seen = browsing(tmp_path / "page.html")
    seen.until("document.querySelector('#source').textContent !== ''")
    assert HOSTILE in seen.page.inner_text("#source")
    assert seen.page.evaluate("window.hacked") is None
    assert seen.page.locator("img").count() == 0
    assert seen.errors == []
    assert seen.requests == []
