"""`throughtime version`: what a bug report names."""

from __future__ import annotations

import sys

import click


@click.command()
def version() -> None:
    """The versions of throughtime, torch and Python."""
    from importlib.metadata import version as of

    click.echo(f"throughtime {of('throughtime')}, torch {of('torch')}, Python {sys.version.split()[0]}")
