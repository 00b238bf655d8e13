"""The code of a Markdown page, run where it stands: a traceback names the page and its line."""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"^( *)```python[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
SAID = "#> "
"""Begins each line of what the statement above it prints."""
WIDTH = 80
"""Longer lines of prose are broken, so that a page needs no scrolling."""


def run(page: Path, space: dict[str, Any]) -> str:
    """Run the page's ```python blocks in order, in one namespace; the page with what they print now.

    Raises whatever the code raises.
    """
    text, parts, done = page.read_text(encoding="utf-8"), [], 0
    for block in BLOCK.finditer(text):
        indent, source = block.groups()
        lines = [line.removeprefix(indent) for line in source.splitlines()]
        # An output is blanked out, so that every line keeps its number in the page.
        code = ["" if line.startswith(SAID.rstrip()) else line for line in lines]
        printed = _printed("\n".join(code), str(page), text.count("\n", 0, block.start(2)), space)
        parts.append(text[done : block.start(2)])
        for number, line in enumerate(lines, 1):
            shown = [] if line.startswith(SAID.rstrip()) else [line]
            shown += [f"{SAID}{said}" for said in printed.get(number, [])]
            parts += [f"{indent}{each}".rstrip() + "\n" for each in shown]
        done = block.end(2)
    return "".join([*parts, text[done:]])


def _printed(code: str, path: str, offset: int, space: dict[str, Any]) -> dict[int, list[str]]:
    """Lines printed, by the last line of the outermost statement that printed them; long ones broken."""
    statements = [(node.lineno, node.end_lineno or node.lineno) for node in ast.parse(code).body]
    printed: dict[int, list[str]] = {}

    def tell(*values: object, sep: str = " ") -> None:
        frame = sys._getframe(1)
        while frame.f_code.co_filename != path or frame.f_code.co_name != "<module>":
            assert frame.f_back is not None
            frame = frame.f_back
        place = frame.f_lineno - offset
        end = next(last for first, last in statements if first <= place <= last)
        for line in sep.join(map(str, values)).split("\n"):
            table = "  " in line.strip()  # whose columns stay where they are
            broken = [line] if table else textwrap.wrap(line, WIDTH, subsequent_indent="  ")
            printed.setdefault(end, []).extend(broken or [""])

    space["print"] = tell
    exec(compile("\n" * offset + code, path, "exec"), space)
    return printed
