"""The HTML report in a real browser: it fetches nothing, paints, sorts, fits and follows dark mode.

Skipped where Debian's chromium is missing, unless THROUGHTIME_REQUIRE_BROWSER=1.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import fixtures_report as fixtures
from throughtime.report.html import notebook_html, save_html

pytestmark = pytest.mark.browser

PAINTED = "[...document.querySelectorAll('.plot')].every(plot => plot.querySelector('.main-svg'))"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The reports that the tests look at."""
    folder = tmp_path_factory.mktemp("reports")
    reports = {
        "cured": fixtures.cured(),
        "several": fixtures.build(
            fixtures.layer("a"),
            fixtures.layer("b", cell="lstm", every_step=True, asked=(2, 3)),
            fixtures.layer("c", cell="rnn_tanh", rate=-0.5, asked=None),
        ),
        "neutral": fixtures.build(fixtures.layer(asked=()), findings=()),
        "hostile": fixtures.build(fixtures.layer(fixtures.HOSTILE), title=fixtures.HOSTILE),
        "large": fixtures.build(
            fixtures.layer(cell="lstm", steps=512, units=512, every_step=True, rate=-0.05, asked=(3, 40))
        ),
    }
    return {name: save_html(report, folder / f"{name}.html") for name, report in reports.items()}


@dataclass
class Seen:
    """An open page, and what it did that it should not."""

    page: Any
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def paint_all(self) -> None:
        """Scroll every chart into view and wait until all are drawn."""
        self.page.evaluate("document.querySelectorAll('.plot').forEach(plot => plot.scrollIntoView())")
        for plot in self.page.locator(".plot").all():
            plot.scroll_into_view_if_needed()
        self.until(PAINTED)

    def until(self, condition: str, seconds: float = 20) -> None:
        """Wait for a condition; playwright's own waiting needs eval, which the page's security policy forbids."""
        end = time.monotonic() + seconds
        while not self.page.evaluate(condition):
            assert time.monotonic() < end, f"not reached within {seconds} s: {condition}"
            self.page.wait_for_timeout(20)


@pytest.fixture
def show(chromium: Any, files: dict[str, Path]) -> Iterator[Any]:
    """Open a report; everything but the file itself is refused and noted."""
    contexts = []

    def opened(name: str, width: int = 1280, **options: Any) -> Seen:
        context = chromium.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        seen = Seen(context.new_page())
        url = files[name].as_uri()

        def decide(route: Any) -> None:
            if route.request.url == url:
                route.continue_()
            else:
                seen.requests.append(route.request.url)
                route.abort()

        context.route("**/*", decide)
        seen.page.on(
            "console", lambda message: message.type in ("error", "warning") and seen.errors.append(message.text)
        )
        seen.page.on("pageerror", lambda error: seen.errors.append(str(error)))
        seen.page.goto(url)
        return seen

    yield opened
    for context in contexts:
        context.close()


@pytest.mark.parametrize("name", ["cured", "several", "neutral", "large"])
def test_charts_paint_and_nothing_is_fetched(show: Any, name: str) -> None:
    seen = show(name)
    seen.paint_all()
    inked = seen.page.evaluate(
        """[...document.querySelectorAll('.plot')].filter(plot => !plot.querySelector(
             '.trace path, .scatterlayer path, .barlayer path, .heatmaplayer image')).map(plot => plot.dataset.chart)"""
    )
    assert inked == []
    assert seen.page.locator("img").count() == 0
    assert seen.page.locator(".modebar-btn:visible").count() == 0
    assert seen.errors == []
    assert [url for url in seen.requests if not url.startswith("data:")] == []


def test_charts_wait_until_they_are_near(show: Any) -> None:
    seen = show("several")
    seen.until("typeof Plotly === 'object'")
    seen.page.wait_for_timeout(300)
    assert not seen.page.evaluate(PAINTED)


def test_first_screen_fits_a_screen(show: Any) -> None:
    seen = show("cured")
    for part in (".row:last-child dd", ".main .only-wide svg"):
        box = seen.page.locator(part).first.bounding_box()
        assert box["y"] + box["height"] <= 900
    assert seen.page.locator(".main .only-narrow").first.is_hidden()


def test_table_sorts_by_click_and_keyboard(show: Any) -> None:
    page = show("cured").page
    table = page.locator("table").first
    head = table.locator("th", has_text="half-life")

    def column() -> list[str]:
        return table.locator("tbody tr td:nth-child(5)").all_inner_texts()

    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    known = [float(value) for value in column() if value != "never"]
    assert known == sorted(known)
    assert column()[len(known) :] == ["never"] * (48 - len(known))

    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    known = [float(value) for value in column() if value != "never"]
    assert known == sorted(known, reverse=True)
    assert column()[-1] == "never"

    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Space")
    assert head.get_attribute("aria-sort") is None
    assert table.locator("th[aria-sort=ascending]").inner_text().startswith("ln 2")

    table.locator("th", has_text="class").locator("button").click()
    kinds = table.locator("tbody tr td:nth-child(2)").all_inner_texts()
    assert kinds == sorted(kinds)


@pytest.mark.parametrize("name", ["cured", "hostile"])
def test_no_sideways_scrolling(show: Any, name: str) -> None:
    seen = show(name, 360)
    seen.paint_all()
    for width in (360, 768, 1100, 1920):
        seen.page.set_viewport_size({"width": width, "height": 900})
        seen.until(f"document.documentElement.scrollWidth <= {width}", 5)


def test_follows_dark_mode(show: Any) -> None:
    seen = show("cured", color_scheme="light")
    seen.paint_all()
    ground = "getComputedStyle(document.body).backgroundColor"
    words = "getComputedStyle(document.querySelector('.plot .xtick text')).fill"
    light = seen.page.evaluate(f"[{ground}, {words}]")
    seen.page.emulate_media(color_scheme="dark")
    seen.until(f"{words} !== '{light[1]}'")
    dark = seen.page.evaluate(f"[{ground}, {words}]")
    assert light[0] != dark[0]
    assert light[1] != dark[1]


def test_prints_light_and_whole(show: Any) -> None:
    seen = show("cured", color_scheme="dark")
    seen.until("typeof Plotly === 'object'")
    seen.page.wait_for_timeout(300)
    seen.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    seen.until(PAINTED)
    paper = "getComputedStyle(document.body).backgroundColor"
    assert seen.page.evaluate(paper) == "rgb(253, 253, 251)"
    seen.page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert seen.page.evaluate(paper) != "rgb(253, 253, 251)"
    assert seen.errors == []


def test_without_script_pictures_and_tables_stand(show: Any) -> None:
    page = show("cured", java_script_enabled=False).page
    assert page.locator(".main .only-wide svg").first.is_visible()
    assert page.locator(".dots svg").first.is_visible()
    assert page.locator("table").first.is_visible()
    assert "JavaScript is off" in page.locator("noscript .hint").first.text_content()
    assert page.locator("noscript .hint").first.is_visible()
    assert page.locator(".plot").first.is_hidden()
    assert page.locator("button").count() == 0


def test_views_switch(show: Any) -> None:
    seen = show("cured")
    figure = seen.page.locator("#layer-0-parameters")
    figure.scroll_into_view_if_needed()
    button = figure.get_by_role("button", name="norm")
    button.focus()
    seen.page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    assert figure.get_by_role("button", name="share").get_attribute("aria-pressed") == "false"
    figure.locator(".cbtitle", has_text="G(τ)").wait_for()


def test_keyboard_reaches_the_page(show: Any) -> None:
    page = show("cured").page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the details"
    assert page.locator(".skip").bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#depth"


def test_copies_the_lines(show: Any) -> None:
    seen = show("cured", permissions=["clipboard-read", "clipboard-write"])
    seen.page.get_by_role("button", name="Copy").click()
    seen.page.get_by_role("button", name="Copied").wait_for()
    copied = seen.page.evaluate("navigator.clipboard.readText()")
    assert copied == "import throughtime as tt\ntt.init.chrono_(model.rnn, max_lag=100)"


def test_notebook_fragment_keeps_to_itself(chromium: Any) -> None:
    page = chromium.new_page(viewport={"width": 700, "height": 900})
    page.set_content(f"<p id=outside>text</p>{notebook_html(fixtures.cured())}")
    assert page.evaluate("getComputedStyle(document.querySelector('#outside')).backgroundColor") == "rgba(0, 0, 0, 0)"
    assert page.locator(".tt-nb svg").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 700
    page.close()
