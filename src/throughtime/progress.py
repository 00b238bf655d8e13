"""A progress bar on stderr for whatever takes longer than a second."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

Tell = Callable[[int, int, str], None]
"""Called with (done, of, what is running); of is 0 where it is not known."""
PATIENCE = 1.0  # seconds without a word


def quiet(done: int, of: int, what: str) -> None:
    """Says nothing."""


class _View(Protocol):
    """Where progress is shown: `start` is called once, when the work has lasted for a while."""

    def start(self) -> None: ...
    def tell(self, done: int, of: int, what: str) -> None: ...
    def stop(self) -> None: ...


@contextmanager
def bar() -> Iterator[Tell]:
    """A rich progress bar, shown once the work has lasted a second; where stderr is no terminal, one line a stage."""
    view: _View = _Bar() if sys.stderr.isatty() else _Lines()
    timer = threading.Timer(PATIENCE, view.start)  # also where one stage alone takes long
    timer.daemon = True
    timer.start()
    try:
        yield view.tell
    finally:
        timer.cancel()
        timer.join()
        view.stop()


class _Bar:
    def __init__(self) -> None:
        self.waiting = (0, 1, "")
        self.progress = None
        self.task = None

    def start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        # stdout belongs to the report: it is not drawn above the bar.
        progress = Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)
        self.task = progress.add_task("")
        self.progress = progress
        self.tell(*self.waiting)
        progress.start()

    def tell(self, done: int, of: int, what: str) -> None:
        self.waiting = (done, of, what)
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, completed=done, total=of or None, description=what)

    def stop(self) -> None:
        if self.progress is not None:
            self.progress.stop()


class _Lines:
    def __init__(self) -> None:
        self.what, self.told, self.started = "", "", False
        self.lock = threading.Lock()

    def start(self) -> None:
        self.started = True
        self.tell(0, 1, self.what)

    def tell(self, done: int, of: int, what: str) -> None:
        with self.lock:
            self.what = what
            if self.started and what != self.told:
                print(f"throughtime: {what} …", file=sys.stderr, flush=True)
                self.told = what

    def stop(self) -> None:
        """Lines stay."""
