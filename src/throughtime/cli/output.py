"""Where reports go, and the exit code that they make."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from throughtime.diagnosis.report import Report


FailOn = Literal["info", "warning", "error", "never"]


def check_writable(output: Path | None) -> None:
    """Before the work, not after it: a file is made in the output's folder, and taken away again."""
    from throughtime.errors import InputError

    if output is None:
        return
    reason, trial = "", output.parent / f".{output.name}.{os.getpid()}.part"
    try:
        if not output.name or output.is_dir():
            reason = "it is a folder"
        elif output.exists() and not os.access(output, os.W_OK):
            reason = "it is read-only"
        else:
            trial.touch(exist_ok=False)
            trial.unlink()
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise InputError(
            f"an output path that cannot be written: {output} ({reason})",
            "a file name in a folder that exists and is writable",
            "create the folder, or give another path",
        )


def to_terminal(shown: Any) -> None:
    """Print what rich can render to stdout, as wide as the terminal."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 110).print(shown)


def show(report: Report, output: Path | None, form: str, network: bool = False) -> None:
    """The report as the options ask for it: a file, and text or JSON on stdout."""
    if output is not None:
        report.save_html(output)
    if form == "json":
        click.echo(report.to_json(indent=None if network else 1, network=network))
    else:
        from throughtime.report.text import render_report

        to_terminal(render_report(report))
    if output is not None:
        click.echo(f"throughtime: the report is in {output.resolve()}", err=True)


def leave(report: Report, fail_on: FailOn) -> None:
    """Exit code 1 where a finding is as severe as --fail-on says."""
    if fail_on != "never" and not report.passed(fail_on):
        raise SystemExit(1)
