"""Errors, the library's and those of the user's own code, in one line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

TRACEBACK = "THROUGHTIME_TRACEBACK"
"""Environment variable: 1 shows the traceback of an error."""


@contextmanager
def told_in_one_line() -> Iterator[None]:
    """An error is one line and exit code 2, a Ctrl-C no traceback; click's own are left to click."""
    from throughtime.errors import ThroughtimeError

    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except KeyboardInterrupt:
        click.echo("throughtime: interrupted", err=True)
        raise SystemExit(130) from None
    except Exception as error:
        if os.environ.get(TRACEBACK) == "1":
            import traceback

            traceback.print_exc()
        told = str(error) if isinstance(error, ThroughtimeError) else _foreign(error)
        click.echo(f"throughtime: error: {told}", err=True)
        raise SystemExit(2) from None


def _foreign(error: Exception) -> str:
    """An exception that is not the library's: what it says, and the last line of the user's own code that it came by."""
    import sysconfig
    import traceback

    import numpy
    import torch

    ours, stdlib = str(Path(__file__).parent.parent), sysconfig.get_paths()["stdlib"]
    libraries = [os.path.dirname(package.__file__ or "") for package in (click, numpy, torch)]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    theirs = [
        frame
        for frame in frames
        if not frame.filename.startswith((ours, *libraries))
        and (not frame.filename.startswith(stdlib) or "site-packages" in frame.filename)
    ]
    words = " ".join([str(error), *getattr(error, "__notes__", [])]).split()
    said = f"{type(error).__name__}: {' '.join(words)}".rstrip(": ")
    if not theirs and frames[-1].filename.startswith(ours):
        place = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}"
        return f"got {said} ({place}): a fault of throughtime; do this: report it, with {TRACEBACK}=1 for the traceback"
    place = f"{theirs[-1].filename}, line {theirs[-1].lineno}, in {theirs[-1].name}" if theirs else "a library"
    return (
        f"got {said}, raised in {place}; expected a model, data and a loss that run together; "
        f"do this: run one step of it by hand, or set {TRACEBACK}=1 for the traceback"
    )
