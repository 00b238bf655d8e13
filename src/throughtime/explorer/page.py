"""The page, assembled from its parts."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent
MATHS = ("linear", "cells", "sweep", "reading")


def maths() -> str:
    """The page's arithmetic, as one classic script without any DOM: what the tests run against the library."""
    return "\n".join((HERE / "maths" / f"{name}.js").read_text(encoding="utf-8") for name in MATHS)
