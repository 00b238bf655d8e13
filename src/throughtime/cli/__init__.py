"""The command line. Nothing heavy is imported before a command runs, so that --help answers at once.

commands/ has one file a command, called like it: whatever stands there is a command. What several share: options.py, given.py
(what the options name, loaded), output.py and errors.py.
"""

from __future__ import annotations

from typing import Any

import click

from throughtime.cli import commands
from throughtime.cli.errors import told_in_one_line
from throughtime.registry import modules

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class _Group(click.Group):
    """Errors of every command are told in one way."""

    def invoke(self, ctx: click.Context) -> Any:
        with told_in_one_line():
            return super().invoke(ctx)


@click.group(cls=_Group, context_settings=SETTINGS)
def main() -> None:
    """How far back a recurrent network learns, how far back its loss needs it to, why not, and what helps.

    Exit codes: 0 clean, 1 findings at or above --fail-on, 2 usage or load error.
    """


for _name, _module in modules(commands.__name__):
    main.add_command(getattr(_module, _name))
