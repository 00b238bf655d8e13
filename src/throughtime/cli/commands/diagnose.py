"""`throughtime diagnose`: the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from throughtime.cli.given import diagnosed
from throughtime.cli.options import diagnosis_options, fail_option, output_options
from throughtime.cli.output import FailOn, check_writable, leave, show


@click.command()
@diagnosis_options
@click.option(
    "--verify", is_flag=True, help="Try the remedy out: short paired trainings of untreated and treated copies."
)
@click.option(
    "--verify-steps", type=click.IntRange(min=1), default=200, show_default=True, help="Steps of each training."
)
@click.option("--verify-seeds", type=click.IntRange(min=2), default=5, show_default=True, help="Pairs.")
@click.option(
    "--network", is_flag=True, help="With --format json: weights and one sequence too, for `throughtime explore`."
)
@output_options
@fail_option
def diagnose(output: Path | None, form: str, fail_on: FailOn, network: bool, **said: Any) -> None:
    """Diagnose MODEL: package.module:factory, or a file of weights (state dict, .pt2, safetensors, ONNX, Keras, .npz)."""
    if network and form != "json":
        raise click.UsageError("--network: got --format text; expected --format json; do this: add --format json")
    check_writable(output)
    report = diagnosed(**said)
    if said["verify"] and report.verification is None:
        click.echo("throughtime: nothing to verify: no finding here has a remedy that can be applied", err=True)
    show(report, output, form, network)
    leave(report, fail_on)
