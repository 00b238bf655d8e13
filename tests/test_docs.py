"""The code of every page runs, prints what the page says, and makes the page's figures.

Every Markdown file is read, without a list. `pytest tests/test_docs.py --update-docs` writes outputs and figures anew.

A page's ```python blocks run in order, in one namespace and in an empty folder. A page whose code speaks of the reader's own
model begins with `<!-- given: NAMES -->`, of those in `given`. `throughtime …` in other blocks is parsed by the command line
itself. A figure that the code of howto/gru.md saves as NAME.svg is shown there as images/howto-gru-NAME.svg.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn

import pages
from throughtime import cli
from throughtime.tasks.digits import one_thread

matplotlib.use("Agg")

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w-]*)[^\n]*\n(?P<body>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL
)
ID = re.compile(r"\b[mp][0-9a-f]{10}\b")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")


class Network(nn.Module):
    """A reader's own model."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 12), nn.Linear(12, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0][-1])


class LayerNormGRU(nn.Module):
    """A reader's own cell."""


def given(names: list[str]) -> dict[str, Any]:
    """What stands for a reader's own things."""
    torch.manual_seed(0)
    x = torch.randn(110, 32, 3)
    everything = {"model": Network(), "x": x, "y": x[-3, :, :1], "criterion": nn.MSELoss()}
    everything |= {"LayerNormGRU": LayerNormGRU, "torch": torch}
    everything["batches"] = [(x, everything["y"])]
    return {name: everything[name] for name in names}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.filterwarnings("ignore:.*(num_workers|log_every_n_steps|treespec|val_dataloader).*")  # Lightning's
@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in page.read_text()], ids=name_of)
def test_the_code_of_a_page_runs_and_prints_what_the_page_says(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    update = pytestconfig.getoption("update_docs")
    text = page.read_text(encoding="utf-8")
    names = re.match(r"<!-- given: ([\w ,]+) -->", text)
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(), one_thread(), matplotlib.rc_context({"svg.hashsalt": "tt", "svg.fonttype": "none"}):
        torch.manual_seed(0)
        now = pages.run(page, {"__name__": "page"} | (given(names[1].split(", ")) if names else {}))
        plt.close("all")
    if update:
        page.write_text(now, encoding="utf-8")
    assert now.splitlines() == page.read_text(encoding="utf-8").splitlines()
    compare_figures(page, tmp_path, update)


def compare_figures(page: Path, folder: Path, update: bool) -> None:
    """Each figure that the page's code saved against the one that the page shows: the same, numbers within a unit."""
    prefix = "-".join(page.relative_to(DOCS).with_suffix("").parts) if page.is_relative_to(DOCS) else page.stem
    for made in folder.glob("*.svg"):
        kept = DOCS / "images" / f"{prefix}-{made.name}"
        assert f"images/{kept.name})" in page.read_text(encoding="utf-8"), f"{made.name} is saved, but not shown"
        new = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", made.read_text(), flags=re.DOTALL)
        if update:
            kept.write_text(new, encoding="utf-8")
        old = kept.read_text(encoding="utf-8")
        assert _shape(new) == _shape(old), f"{kept.name} is not what the page's code makes"
        new, old = (ID.sub("", svg) for svg in (new, old))
        np.testing.assert_allclose(*([float(n) for n in NUMBER.findall(svg)] for svg in (new, old)), atol=1, rtol=0)


def _shape(svg: str) -> str:
    """The drawing without its numbers, and without the ids that are made of them."""
    return NUMBER.sub("#", ID.sub("", svg))


def shell_lines() -> Iterator[tuple[str, list[str]]]:
    """Every `throughtime …` of a block that is not Python, with where it stands; output is no command."""
    for page in PAGES:
        for block in FENCE.finditer(page.read_text(encoding="utf-8")):
            for line in block["body"].replace("\\\n", " ").splitlines():
                words = shlex.split(line.strip().removeprefix("$ "), comments=True) if "throughtime " in line else []
                if block["language"] != "python" and words[:1] == ["throughtime"]:
                    redirected = next((place for place, word in enumerate(words) if word in (">", "|")), len(words))
                    yield name_of(page), words[1:redirected]


@pytest.mark.parametrize(("page", "words"), [pytest.param(*each, id=" ".join(each[1])) for each in shell_lines()])
def test_the_commands_of_a_page_are_the_command_lines_own(page: str, words: list[str]) -> None:
    command = cli.main.commands[words[0]]
    whole = click.Context(cli.main, info_name="throughtime", **cli.main.context_settings)
    with contextlib.suppress(click.exceptions.Exit):  # --help
        command.make_context(words[0], words[1:], parent=whole)


CODE = """Text.

```python
x = 2
for i in range(2):
    print(i * x)
{}print(
    "a\\nb"
)
{}```

```python
print(x)
{}```
"""


def test_code_that_does_not_print_what_its_page_says_is_seen(tmp_path: Path) -> None:
    page, right = tmp_path / "page.md", CODE.format("#> 0\n#> 2\n", "#> a\n#> b\n", "#> 2\n")
    for told in (right, CODE.format("#> 1\n", "", "#> 3\n#> 4\n")):
        page.write_text(told)
        assert pages.run(page, {}) == right


def test_a_failure_names_the_page_and_its_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Text.\n\n```python\nx = 1\nx / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as told:
        pages.run(page, {})
    assert (Path(told.traceback[-1].path).name, told.traceback[-1].lineno + 1) == ("page.md", 5)


GUIDES = [page for page in sorted((DOCS / "howto").glob("*.md")) if page.stem != "index"]


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_a_guide_begins_with_the_readers_words_and_says_its_limits(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert re.match(r'# .+\n\n> \*"[^*]+\*\n\n', text)
    assert text.index("```python") < text.index("**How to read it.**") < text.index("## Limits")
    assert text.index("## Limits") < text.index("## The same question") < text.index("](https://github.com/")
    assert f"({page.name})" in (DOCS / "howto" / "index.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_number_in_a_sentence_does_not_begin_its_line(page: Path) -> None:
    """A line that begins with a comment is a block of its own to Markdown, and breaks the sentence apart."""
    torn = re.findall(
        r"^ *<!-- [\w-]+: made by [^>]*-->.+<!-- end -->.*", page.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert torn == []
