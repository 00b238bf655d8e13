"""The HTML report without a browser: one file, escaped, small, whole or not written at all."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import json
import os
import re
import stat
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import fixtures_report as fixtures
from throughtime.diagnosis.report import Needed, Report
from throughtime.errors import InputError
from throughtime.flow import Adjoint
from throughtime.report.charts import layer_charts
from throughtime.report.dots import before_and_after
from throughtime.report.html import notebook_html, render, save_html
from throughtime.report.notation import arriving, from_log10, lag_words, number
from throughtime.report.picture import Curve, curve_of, supply_and_demand
from throughtime.report.sentences import lines_to_paste, linked, marked

LIMIT = 2_000_000


class Page(HTMLParser):
    """The tags and attributes of a page as a browser's parser would see them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def count(self, tag: str) -> int:
        return sum(1 for name, _ in self.tags if name == tag)


def charts_of(page: str) -> dict:
    """The chart data that a page carries."""
    packed = re.search(r'id="tt-charts">([^<]*)<', page)
    assert packed is not None
    return json.loads(gzip.decompress(base64.b64decode(packed[1])))


def undemanding() -> Report:
    return fixtures.build(fixtures.layer(asked=None), findings=())


def cut() -> Report:
    layer = fixtures.layer()
    norm = layer.adjoint.log10_norm.copy()
    norm[30:] = -np.inf
    return fixtures.build(dataclasses.replace(layer, adjoint=dataclasses.replace(layer.adjoint, log10_norm=norm)))


def unknown() -> Report:
    """Nothing but NaN: what a report must survive."""
    nothing = np.full(20, np.nan)
    layer = dataclasses.replace(
        fixtures.layer(steps=20, asked=()),
        adjoint=Adjoint(nothing, {"h": nothing}, np.full((20, 4), np.nan)),
        signal_to_noise=nothing,
        bias=nothing,
        cosine=nothing,
        horizon={0.1: None, 0.01: None, 0.001: None},
        units=(),
        hops=None,
        gates={},
        paths={},
        origin_step=None,
        initial_state={},
    )
    return fixtures.build(layer, findings=())


REPORTS = {
    "digits": fixtures.build,
    "cured": fixtures.cured,
    "no demand measured": undemanding,
    "no demand detected": lambda: fixtures.build(fixtures.layer(asked=()), findings=()),
    "given lag": lambda: fixtures.build(fixtures.layer(asked=None), needed=(Needed("rnn", (99,), "user"),)),
    "lag beyond the sequence": lambda: fixtures.build(fixtures.layer(), needed=(Needed("rnn", (500,), "user"),)),
    "lstm": lambda: fixtures.build(fixtures.layer(cell="lstm", every_step=True)),
    "elman": lambda: fixtures.build(fixtures.layer(cell="rnn_tanh")),
    "several layers": lambda: fixtures.build(fixtures.layer("a"), fixtures.layer("b", rate=-0.5), fixtures.layer("c")),
    "tail": lambda: fixtures.build(fixtures.layer(tail=35, every_step=True, asked=(2, 3))),
    "exactly zero": cut,
    "explodes": lambda: fixtures.build(fixtures.layer(rate=0.2)),
    "one step": lambda: fixtures.build(fixtures.layer(steps=1, asked=())),
    "nothing known": unknown,
    "hostile": lambda: fixtures.build(fixtures.layer(fixtures.HOSTILE)),
}


@pytest.mark.parametrize("name", REPORTS)
def test_renders_whole(name: str) -> None:
    page = render(REPORTS[name]())
    assert page.lstrip().startswith("<!doctype html>")
    assert page.rstrip().endswith("</html>")
    assert "NaN" not in json.dumps(charts_of(page))
    text = " ".join(Page(re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)).text)
    assert not re.search(r"\bnan\b|\bNone\b|\binf\b", text)


@pytest.mark.parametrize("name", REPORTS)
def test_nothing_can_be_fetched(name: str) -> None:
    page = Page(render(REPORTS[name]()))
    policy = next(attributes["content"] for tag, attributes in page.tags if "http-equiv" in attributes)
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy.split(";")[1]
    for tag, attributes in page.tags:
        for key in ("src", "href", "srcset", "action", "poster", "data", "xlink:href"):
            value = attributes.get(key) or ""
            allowed = value.startswith(("#", "data:,")) or tag == "a"
            assert not value or allowed, (tag, key, value)


def test_headline_stands_in_order() -> None:
    page = render(fixtures.cured())
    screen = page[page.index('class="story"') : page.index('id="depth"')]
    labels = re.findall(r"<dt>(\w+)</dt>", screen)
    assert labels == ["needed", "reached", "finding", "try", "after"]
    assert "1.2 × 10⁻¹⁹ arrives at lag 99" in screen
    assert "lags 92–99" in screen
    assert "import throughtime as tt\ntt.init.chrono_(model.rnn, max_lag=100)" in screen
    assert "helps" in screen


def test_several_layers_tell_one_story_and_list_the_others() -> None:
    page = render(REPORTS["several layers"]())
    screen = page[page.index('class="story"') : page.index('id="depth"')]
    assert re.findall(r"<dt>([\w ]+)</dt>", screen)[:3] == ["needed", "reached", "other layers"]
    assert all(f'id="layer-{index}"' in page and f'href="#layer-{index}"' in page for index in range(3))


def test_without_demand_nothing_is_judged() -> None:
    worst = fixtures.verification("harms")
    page = render(fixtures.build(fixtures.layer(asked=()), findings=(fixtures.vanishing(),), verification=worst))
    assert '<body class="neutral">' in page
    screen = page[page.index("<main>") : page.index('id="depth"')]
    drawn = re.sub(r"<style>.*?</style>", "", screen)
    assert not re.search(r'class="[^"]*\b(bad|good|tt-bad|tt-good)\b', drawn)
    assert '<body class="judged">' in render(fixtures.cured())


def test_hostile_names_are_only_text() -> None:
    name = fixtures.HOSTILE
    findings = (dataclasses.replace(fixtures.vanishing(name), message=name, remedy=f"`{name}`", references=(name,)),)
    page = render(fixtures.build(fixtures.layer(name), findings=findings, title=name))
    parsed = Page(page)
    assert parsed.count("img") == 0
    assert parsed.count("script") == 3
    assert not any(key.startswith("on") for _, attributes in parsed.tags for key in attributes)
    shown = json.dumps(charts_of(page), ensure_ascii=False)
    assert "<img" not in shown
    assert "<img" not in notebook_html(fixtures.build(fixtures.layer(name), findings=findings, title=name))


def test_references_link_only_to_the_web() -> None:
    assert linked("Hochreiter 1991, https://a.org/b.") == (
        'Hochreiter 1991, <a href="https://a.org/b" rel="noopener noreferrer">https://a.org/b</a>.'
    )
    assert "<a" not in linked("javascript:alert(1)")
    assert linked('https://a.org/"><img>').count("<img>") == 0


def test_code_and_paste_lines() -> None:
    assert marked("a `b<c` d & 1 %") == "a <code>b&lt;c</code> d &amp; 1\u00a0%"
    assert lines_to_paste(["do `tt.init.chrono_(m, max_lag=9)` now"]).splitlines() == [
        "import throughtime as tt",
        "tt.init.chrono_(m, max_lag=9)",
    ]
    assert lines_to_paste(["nothing"]) == ""


def test_small_even_when_large() -> None:
    layer = fixtures.layer(cell="lstm", steps=512, units=512, every_step=True, rate=-0.05, asked=(3, 40))
    assert len(render(fixtures.build(layer)).encode()) < LIMIT


def test_many_layers_share_the_file() -> None:
    layers = [fixtures.layer(f"l{i}", steps=512, units=64, every_step=True, rate=-0.05, asked=()) for i in range(4)]
    assert len(render(fixtures.build(*layers, findings=())).encode()) < LIMIT


def test_tables_are_readable_without_script() -> None:
    page = Page(render(fixtures.build()))
    assert page.count("table") == 2
    assert page.count("tr") >= 48 + 2
    assert page.count("button") == 0
    assert page.count("noscript") >= 2
    assert page.count("svg") == 2


def test_same_report_same_file() -> None:
    assert render(fixtures.cured()) == render(fixtures.cured())


def test_saves_atomically(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("before")
    assert save_html(fixtures.build(), path) == path
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert os.listdir(tmp_path) == ["report.html"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o444


def test_failed_writing_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("throughtime.report.files.os.replace", full)
    with pytest.raises(InputError, match="No space left"):
        save_html(fixtures.build(), path)
    assert os.listdir(tmp_path) == ["report.html"]
    assert path.read_text() == "before"


@pytest.mark.parametrize("place", ["missing/report.html", "folder", "file/report.html"])
def test_unwritable_path(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError) as raised:
        save_html(fixtures.build(), tmp_path / place)
    assert all((raised.value.got, raised.value.expected, raised.value.do))
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert not os.listdir(tmp_path / "folder")


@pytest.mark.parametrize("name", REPORTS)
def test_notebook_fragment(name: str) -> None:
    fragment = notebook_html(REPORTS[name]())
    assert "<svg" in fragment
    assert not re.search("<script|<html|<body", fragment)
    style = re.search(r"<style>(.*?)</style>", fragment, flags=re.DOTALL)
    assert style is not None
    rules = re.sub(r"@media[^{]*\{", "", style[1])
    selectors = [part for rule in re.findall(r"([^{}]+)\{", rules) for part in rule.split(",")]
    assert all(selector.strip().startswith(".tt-nb") for selector in selectors)


# --- the pictures ----------------------------------------------------------------------------------------------------


def test_picture_is_a_file_of_its_own() -> None:
    layer = fixtures.layer()
    needed = Needed("rnn", tuple(range(92, 100)), "demand")
    svg = supply_and_demand([curve_of(layer)], needed, layer.demand, standalone=True)
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "10⁻²⁰" in texts
    assert "the loss asks for lags 92–99" in texts
    assert "1.2 × 10⁻¹⁹ arrives" in texts
    assert "prefers-color-scheme:dark" in svg
    assert len(root.findall(".//*[@class='tt-band']")) == 1
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")


@pytest.mark.parametrize("width", [360, 720])
@pytest.mark.parametrize("name", REPORTS)
def test_words_stay_on_the_picture(name: str, width: int) -> None:
    report = REPORTS[name]()
    layer = next(iter(report.flow.layers.values()))
    svg = supply_and_demand([curve_of(layer, "a curve")], report.needed[0], layer.demand, width=width)
    for node in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):
        length = 6.0 * len("".join(node.itertext()))
        start = float(node.attrib["x"]) - {"start": 0, "middle": 0.5, "end": 1}[node.attrib["text-anchor"]] * length
        assert start >= -2, "".join(node.itertext())
        assert start + length <= width + 12, "".join(node.itertext())


def test_picture_breaks_at_gaps() -> None:
    values = -np.arange(30.0)
    values[10:15] = np.nan
    svg = supply_and_demand([Curve("a", values)], None, None)
    path = ElementTree.fromstring(svg).find(".//*[@class='tt-curve']")
    assert path is not None
    assert path.attrib["d"].count("M") == 2


def test_exact_zero_is_said() -> None:
    values = np.array([0.0, -1.0, -2.0, -np.inf, -np.inf])
    assert "exactly 0 from lag 3 on" in supply_and_demand([Curve("", values)], None, None)


def test_below_the_axis_is_said() -> None:
    assert "down to 10⁻²" not in supply_and_demand([Curve("", -np.arange(20.0))], None, None)
    assert "× 10⁻³⁰⁰ at lag 100" in supply_and_demand([Curve("", -3.0 * np.arange(101))], None, None)


def test_dots_show_every_seed_and_the_interval() -> None:
    svg = before_and_after(fixtures.verification())
    root = ElementTree.fromstring(svg)
    assert len(root.findall(".//*[@class='tt-hollow']")) == 5 + 1
    assert len(root.findall(".//*[@class='tt-supply']")) == 5 + 1
    assert len(root.findall(".//*[@class='tt-span']")) == 1
    assert "tt-good" in svg.split("</style>")[1]
    assert "tt-good" not in before_and_after(fixtures.verification(), judged=False).split("</style>")[1]


# --- charts by their drawing data ------------------------------------------------------------------------------------


def test_charts_of_a_layer() -> None:
    layer = fixtures.layer(every_step=True)
    charts = {chart.key: chart for chart in layer_charts(layer, (92, 93))}
    assert list(charts) == [
        "supply",
        "parameters",
        "origins",
        "paths",
        "hops",
        "truncation",
        "noise",
        "timescales",
        "gates",
    ]
    assert all(chart.caption.count(". ") == 0 and chart.caption.endswith(".") for chart in charts.values())
    assert list(charts["parameters"].views) == ["share", "norm"]
    assert len(charts["parameters"].views["norm"]["data"][0]["z"]) == 12 + 1
    supply = charts["supply"].views[""]["data"][-1]["y"]
    assert supply[0] == 0
    assert supply[99] == pytest.approx(layer.adjoint.log10_norm[99] - layer.adjoint.log10_norm[0], rel=1e-3)
    origins = charts["origins"].views[""]["data"][0]
    assert origins["type"] == "heatmap"
    assert origins["z"][0][1] is None
    assert charts["paths"].views[""]["data"][0]["y"][0] is None


def test_initial_state_starts_at_lag_one() -> None:
    layer = fixtures.layer()
    norm = layer_charts(layer, ())[1].views["norm"]["data"][0]["z"][-1]
    assert norm[0] is None
    assert norm[1] == pytest.approx(layer.initial_state["h0"].log10_norm[0], abs=1e-3)


def test_a_single_loss_is_a_line() -> None:
    origins = next(chart for chart in layer_charts(fixtures.layer(), ()) if chart.key == "origins")
    assert [trace["type"] for trace in origins.views[""]["data"]] == ["scatter"]


def test_maps_get_coarser_by_root_mean_square() -> None:
    layer = fixtures.layer(steps=64, every_step=True, asked=())
    chart = next(chart for chart in layer_charts(layer, (), side=32) if chart.key == "origins")
    z = chart.views[""]["data"][0]["z"]
    assert len(z) == len(z[0]) == 32
    full = layer.origin_step
    assert full is not None
    block = full.log10_norm[40:42, 10:12]
    assert z[20][5] == pytest.approx(0.5 * np.log10(np.mean(10 ** (2 * block))), abs=0.01)


# --- numbers in words ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (from_log10(-18.9), "1.3 × 10⁻¹⁹"),
        (from_log10(-400.0), "1 × 10⁻⁴⁰⁰"),
        (from_log10(-1.3), "0.05"),
        (from_log10(float("-inf")), "0"),
        (from_log10(-5.0005), "1 × 10⁻⁵"),
        (arriving(5.98), "grown 9.5 × 10⁵-fold"),
        (arriving(float("-inf")), "nothing arrives"),
        (number(0.001), "0.001"),
        (number(12345.6), "12\u202f346"),
        (number(-0.5), "−0.5"),
        (number(float("nan")), "–"),
        (number(44.0, fixed=True), "44.0"),
        (lag_words([40]), "lag 40"),
        (lag_words([3, 1, 2, 20]), "lags 1–3, 20"),
        (lag_words(range(0, 20, 2)), "10 lags, 0 to 18"),
    ],
)
def test_notation(written: str, expected: str) -> None:
    assert written == expected
