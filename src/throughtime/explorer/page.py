"""The page, assembled from its parts into one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from throughtime import __version__
from throughtime.errors import InputError
from throughtime.report.palette import variables

HERE = Path(__file__).parent
MATHS = ("linear", "cells", "sweep", "reading", "drawn")
VIEW = ("notation", "state", "frame", "sentences", "charts", "app")


def maths() -> str:
    """The page's arithmetic, as one classic script without any DOM: what the tests run against the library."""
    return _joined("maths", MATHS)


@cache
def presets() -> list[dict[str, Any]]:
    """The examples: id, title, one sentence, and the state that shows it."""
    return json.loads((HERE / "presets.json").read_text(encoding="utf-8"))


def render(flow: dict[str, Any] | None = None, preset: str | None = None) -> str:
    """The page. flow: a document that `flowfile.read` let through. preset: the example that it opens with.

    Raises InputError: a preset that does not exist, or one beside a flow.
    """
    known = [each["id"] for each in presets()]
    if preset is not None and preset not in known:
        raise InputError(
            f"the preset {preset!r}", f"one of {', '.join(known)}", "leave it out to choose one on the page"
        )
    if preset is not None and flow is not None:
        raise InputError(
            f"the preset {preset!r} beside a FLOW.json",
            "one of them: an example is a drawn network of its own and would hide yours",
            "leave one out; the page of a FLOW.json has the examples in its menu",
        )
    from throughtime.explorer.tasks import TASKS, described, digit_rows

    data = {
        "presets": presets(),
        "tasks": [described(task) for task in TASKS],
        "digits": digit_rows(),
        "flow": flow,
        "start": f"#preset={preset}" if preset else "",
    }
    script = f'"use strict";\n(() => {{\n{maths()}\n{_joined("view", VIEW)}\n}})();'
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("page.html.j2").render(
        title="throughtime: what the gates do to the gradient",
        version=__version__,
        colours=Markup(variables(":root")),
        style=Markup((HERE / "explorer.css").read_text(encoding="utf-8")),
        data=Markup(embedded(data)),
        script=Markup(script),
        trusted=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
    )


def save(path: Path, flow: Path | None = None, preset: str | None = None) -> None:
    """Write the page to `path`, whole or not at all; flow: a FLOW.json.

    Raises InputError: the output is the FLOW.json itself, or cannot be written; see also `flowfile.read` and `render`.
    """
    from throughtime.explorer.flowfile import read
    from throughtime.report.files import write_whole

    if flow is not None and os.path.realpath(path) == os.path.realpath(flow):
        raise InputError(
            f"{path} as FLOW.json and as output", "two different files", "give the page another name with -o"
        )
    write_whole(path, render(None if flow is None else read(flow), preset))


def embedded(data: Any) -> str:
    """JSON that cannot end the script element it stands in, nor open a comment, whatever names and texts it holds."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))  # in ASCII: a name may hold half a surrogate pair
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _joined(folder: str, names: tuple[str, ...]) -> str:
    return "\n".join((HERE / folder / f"{name}.js").read_text(encoding="utf-8") for name in names)
