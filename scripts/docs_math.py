"""A hook of mkdocs: formulas as MathML, which browsers typeset without a script or a font, in every colour scheme."""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert

# What pymdownx.arithmatex leaves of $…$ and $$…$$: \(…\) in a span, \[…\] in a div.
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: object) -> str:
    """Every formula of a page typeset."""
    return FORMULA.sub(_typeset, content)


def _typeset(found: re.Match[str]) -> str:
    place, latex = found.groups()
    return convert(html.unescape(latex).strip(), display="block" if place == "div" else "inline")
