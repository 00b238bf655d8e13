"""`throughtime window`: the window of truncated BPTT."""

from __future__ import annotations

from typing import Any

import click

from throughtime.cli.given import given
from throughtime.cli.options import format_option, model_options, stopping_options
from throughtime.cli.output import to_terminal


@click.command()
@model_options
@click.option("--loss", required=True, help="package.module:fn, either fn(model, batch) or fn(output, target).")
@click.option(
    "--window",
    "windows",
    multiple=True,
    help="One more window to tell: K, or K1,K2 for a pass every K1 steps over the last K2. May be repeated.",
)
@click.option(
    "--level",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.1,
    show_default=True,
    help="The truncation bias that a recommended window may have.",
)
@click.option("--no-cost", is_flag=True, help="Leave memory and time unmeasured.")
@stopping_options
@format_option
@click.option("--json", "form", flag_value="json", help="The same as --format json.")
def window(
    windows: tuple[str, ...],
    level: float,
    no_cost: bool,
    stop_when: float,
    all_batches: bool,
    form: str,
    **said: Any,
) -> None:
    """Which window of truncated BPTT to train MODEL with: what each loses, what it costs, and never one below the demand."""
    from throughtime.truncation.gradient import Window

    asked = [Window.of(each) for each in windows]
    with given(**said) as it:
        from throughtime.truncation.choose import window as run

        options = {**it.options, "windows": asked, "level": level, "cost": not no_cost}
        options["stop_when"] = None if all_batches else stop_when
        told = run(it.model, it.batches, it.loss, progress=it.tell, **options)
    if form == "json":
        click.echo(told.to_json(indent=1))
        return
    from throughtime.report.window import render_window

    to_terminal(render_window(told))
