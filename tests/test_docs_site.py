"""The documentation site: built without a warning, whole, every link and anchor leads somewhere, nothing is fetched."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag

import click
import pytest

import throughtime
from throughtime.cli import main as command_line
from throughtime.diagnosis.rule import SECTIONS
from throughtime.diagnosis.rule import registry as rules
from throughtime.remedies import registered

ROOT = Path(__file__).parent.parent
LOADED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
}
WORDS = re.compile(r"\w+")


@dataclass
class PageRead(HTMLParser):
    """What a page holds: ids, links, what it loads, and its text."""

    html: str
    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "link" and given.get("rel") not in ("canonical", "prev", "next"):
            self.loaded.append(given["href"])
        if given.get(LOADED.get(tag, "")):
            self.loaded.append(given[LOADED[tag]])

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-W", "default", "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )
    told = done.stdout + done.stderr
    assert done.returncode == 0, told
    assert not [line for line in told.splitlines() if not line.startswith("INFO")], told
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, PageRead]:
    """Every page of the site."""
    return {path: PageRead(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def test_every_internal_link_and_anchor_leads_somewhere(site: Path, pages: dict[Path, PageRead]) -> None:
    count, broken = 0, []
    for path, page in pages.items():
        for link in [*page.links, *page.loaded]:
            target, anchor = urldefrag(link)
            if re.match(r"[a-z]+:", target) or path.name == "404.html":
                continue
            count += 1
            file = (path.parent / unquote(target)).resolve() if target else path
            file = file / "index.html" if file.is_dir() else file
            state = "=" in anchor  # of the explorer, which keeps it there
            if not file.exists() or (anchor and not state and unquote(anchor) not in pages[file].ids):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert not broken, broken
    assert count > 1000


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, PageRead]) -> None:
    foreign = [f"{path.name}: {link}" for path, page in pages.items() for link in page.loaded if "//" in link]
    for sheet in site.rglob("*.css"):
        foreign += [
            f"{sheet.name}: {url}" for url in re.findall(r"url\([\"']?(?:https?:)?//[^)]*\)|@import", sheet.read_text())
        ]
    assert not foreign


@pytest.mark.parametrize("code", rules())
def test_every_rule_has_its_page_and_its_place(code: str, site: Path, pages: dict[Path, PageRead]) -> None:
    rule, page = rules()[code], pages[site / "rules" / f"{code}.html"]
    assert {section.lower() for section in SECTIONS} <= page.ids
    assert set(WORDS.findall(rule.text())) - {"docs"} <= set(WORDS.findall(page.text))
    assert f"rules/{code}.html" in pages[site / "rules.html"].links
    assert rule.summary() in pages[site / "rules.html"].text


@pytest.mark.parametrize("name", registered())
def test_every_remedy_has_its_page_and_its_place(name: str, site: Path, pages: dict[Path, PageRead]) -> None:
    page = pages[site / "remedies" / f"{name}.html"]
    assert set(WORDS.findall(type(registered()[name]).__doc__ or "")) <= set(WORDS.findall(page.text))
    assert f"remedies/{name}.html" in pages[site / "remedies.html"].links
    for code in registered()[name].treats:
        assert f"../remedies/{name}.html" in pages[site / "rules" / f"{code}.html"].links


@pytest.mark.parametrize("name", [name for name in throughtime.__all__ if not name.startswith("__")])
def test_every_public_name_has_its_reference(name: str, site: Path, pages: dict[Path, PageRead]) -> None:
    value = getattr(throughtime, name)
    path = value.__name__ if not hasattr(value, "__module__") else f"{value.__module__}.{value.__qualname__}"
    module = path if not hasattr(value, "__module__") else value.__module__
    page = site / "reference" / f"{module.removeprefix('throughtime.')}.html"
    assert page in pages
    assert f"reference/{page.name}" in pages[site / "python.html"].links
    if module != path:
        assert path in pages[page].ids
        assert set(WORDS.findall(value.__doc__)) <= set(WORDS.findall(pages[page].text))
    else:
        assert any(each.startswith(f"{path}.") for each in pages[page].ids)
        public = [each for each in getattr(importlib.import_module(path), "__all__", ()) if each.isidentifier()]
        assert all(each in pages[page].text for each in public)


def test_every_name_that_a_page_imports_has_its_reference(site: Path, pages: dict[Path, PageRead]) -> None:
    ids = {each for path, page in pages.items() if path.parent.name == "reference" for each in page.ids}
    shown = re.compile(r"^from (throughtime\.[\w.]+) import ([\w, ]+)$", re.MULTILINE)
    for page in (ROOT / "docs").rglob("*.md"):
        for module, names in shown.findall(page.read_text(encoding="utf-8")):
            for value in (getattr(importlib.import_module(module), name) for name in names.split(", ")):
                assert not callable(value) or f"{value.__module__}.{value.__qualname__}" in ids, f"{page}: {value}"


def test_the_command_lines_page_is_its_own_help(site: Path, pages: dict[Path, PageRead]) -> None:
    text = pages[site / "command-line.html"].text
    settings = command_line.context_settings | {"terminal_width": 78}
    context = click.Context(command_line, info_name="throughtime", **settings)
    assert command_line.get_help(context) in text
    for name, command in command_line.commands.items():
        assert command.get_help(click.Context(command, parent=context, info_name=name, **settings)) in text


def test_every_python_block_of_the_pages_is_on_the_site(site: Path, pages: dict[Path, PageRead]) -> None:
    """A fence that Markdown does not see as one would show as prose."""
    for source in (ROOT / "docs").rglob("*.md"):
        text = source.read_text(encoding="utf-8")
        path = site / source.relative_to(ROOT / "docs").with_suffix(".html")
        assert path.read_text(encoding="utf-8").count('class="highlight"') >= text.count("```python")
        assert "$$" not in pages[path].text
        assert pages[path].text.count("```") == 0


@pytest.mark.browser
def test_the_site_works_from_a_folder_and_fetches_nothing(site: Path, chromium: Any) -> None:
    """Search included: its index lies beside the pages, and its worker runs from file://."""
    page = chromium.new_page()
    asked: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((site / "explanation" / "ledger.html").as_uri())
    assert page.locator("math").count() > 10
    page.locator(".md-search__input").fill("chrono")
    page.locator(".md-search-result__link[href*='remedies/chrono.html']").first.wait_for()
    page.set_viewport_size({"width": 390, "height": 800})
    for each in [site / "index.html", *site.glob("howto/*.html"), *site.glob("explanation/*.html")]:
        page.goto(each.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, each
    page.close()
    assert not errors
    assert all(url.startswith(("file:", "data:", "blob:", "about:")) for url in asked), asked
