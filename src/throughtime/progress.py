"""A progress bar on stderr for whatever takes longer than a second."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Tell = Callable[[int, int, str], None]
"""Called with (done, of, what is running)."""
PATIENCE = 1.0  # seconds without a word


def quiet(done: int, of: int, what: str) -> None:
    """Says nothing."""


@contextmanager
def bar(shown: bool = True) -> Iterator[Tell]:
    """A rich progress bar, shown once the work has lasted a second; where stderr is no terminal, one line a stage."""
    if not shown:
        yield quiet
        return
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    begun, started = time.monotonic(), False
    task = progress.add_task("")

    def tell(done: int, of: int, what: str) -> None:
        nonlocal started
        progress.update(task, completed=done, total=of, description=what)
        if not started and time.monotonic() - begun > PATIENCE:
            progress.start()
            started = True

    try:
        yield tell
    finally:
        if started:
            progress.stop()


def _lines() -> Tell:
    begun, told = time.monotonic(), ""

    def tell(done: int, of: int, what: str) -> None:
        nonlocal told
        if what != told and time.monotonic() - begun > PATIENCE:
            print(f"throughtime: {what} …", file=sys.stderr, flush=True)
            told = what

    return tell
