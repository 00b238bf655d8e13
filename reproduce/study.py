"""What a study is: a function that computes, and hands back what stands on its page."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from throughtime.progress import Tell

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"(<!-- (?P<name>[\w-]+): made by [^>]*-->)(?P<text>.*?)(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class Made:
    """What a study made.

    blocks: Markdown by the name of its place on the page, `<!-- name: made by … -->…<!-- end -->`, which may stand in a line.
    figures: SVG by path below docs/.
    """

    blocks: Mapping[str, str]
    figures: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """page: its page below docs/. make: computes everything, from nothing."""

    page: str
    make: Callable[[Tell], Made]


def write(study: Study, made: Made) -> None:
    """Put what was made in its places.

    Raises KeyError: a block that the page has no place for, or a place that was not filled.
    """
    page = DOCS / study.page
    text = page.read_text(encoding="utf-8")
    places = {found["name"] for found in BLOCK.finditer(text)}
    if places != set(made.blocks):
        raise KeyError(f"{study.page}: places and blocks differ in {sorted(places ^ set(made.blocks))}")
    filled = BLOCK.sub(lambda found: found[1] + made.blocks[found["name"]] + found[4], text)
    page.write_text(filled, encoding="utf-8")
    for path, svg in made.figures.items():
        (DOCS / path).parent.mkdir(parents=True, exist_ok=True)
        (DOCS / path).write_text(svg, encoding="utf-8")
