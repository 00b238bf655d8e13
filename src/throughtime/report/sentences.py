"""Light markup in sentences: `code` in backticks, links, and the lines that a reader can paste."""

from __future__ import annotations

import re
from collections.abc import Iterable

from markupsafe import Markup, escape

_CODE = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"https?://[^\s<>\"']+[^\s<>\"'.,;:)]")
_CALL = re.compile(r"\b(?:tt|throughtime)\.[\w.]+\([^()\n]*\)")


def marked(sentence: str) -> Markup:
    """Escaped text with its `code` set as code."""
    parts = _CODE.split(sentence.replace(" %", "\u00a0%"))  # a percent sign stays with its number
    return Markup("").join(Markup("<code>{}</code>").format(part) if i % 2 else part for i, part in enumerate(parts))


def linked(reference: str) -> Markup:
    """Escaped text with web addresses as links, which open only when clicked."""
    out, done = Markup(""), 0
    for match in _LINK.finditer(reference):
        out += escape(reference[done : match.start()])
        out += Markup('<a href="{0}" rel="noopener noreferrer">{0}</a>').format(match[0])
        done = match.end()
    return out + escape(reference[done:])


def lines_to_paste(texts: Iterable[str]) -> str:
    """Every call of this library that the texts name, each once, with the import they need; empty without any."""
    calls = list(dict.fromkeys(call for text in texts for call in _CALL.findall(text)))
    if not calls:
        return ""
    start = "import throughtime as tt" if any(call.startswith("tt.") for call in calls) else "import throughtime"
    return "\n".join([start, *calls])


def spoken(name: str) -> str:
    """A rule's name as words: gradient-vanishes → Gradient vanishes."""
    words = name.replace("-", " ").replace("_", " ").strip()
    return words[:1].upper() + words[1:]
