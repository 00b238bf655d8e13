"""`throughtime demo`: real networks on real data."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path

import click

from throughtime.cli.options import output_options
from throughtime.cli.output import check_writable, show


@click.command()
@click.argument("which", type=click.Choice(["digits", "opus"]), default="digits")
@output_options
def demo(which: str, output: Path | None, form: str) -> None:
    """Real networks on real data: digits to be remembered through noise (and the cure), or the Opus codec's GRU."""
    check_writable(output)
    from throughtime.progress import bar
    from throughtime.tasks import demos

    with bar() as tell, redirect_stdout(sys.stderr):
        report = (demos.digits_report if which == "digits" else demos.opus_report)(tell)
    show(report, output, form)
