"""`throughtime check`: a gate for CI."""

from __future__ import annotations

from typing import Any

import click

from throughtime.cli.given import diagnosed
from throughtime.cli.options import diagnosis_options, fail_option
from throughtime.cli.output import FailOn, leave


@click.command()
@diagnosis_options
@click.option("--min-horizon", type=click.IntRange(min=0), help="The least gradient horizon, in steps, that passes.")
@click.option(
    "--level", type=click.Choice(["0.1", "0.01", "0.001"]), default="0.01", show_default=True, help="The horizon's ε."
)
@fail_option
def check(min_horizon: int | None, level: str, fail_on: FailOn, **said: Any) -> None:
    """Check MODEL in CI: one line a layer and an exit code.

    Where the total lag of a whole is told (a stack, modules in series), its horizon is judged and not those of its parts.
    """
    from throughtime.report.headline import interval

    report = diagnosed(**said)
    short = False
    for name, layer in report.flow.layers.items():
        whole = report.flow.whole_of(name)
        judged = min_horizon is not None and whole is None
        if not layer.horizon_told:
            why = next(each.reason for each in layer.missing if each.field == "horizon")
            fails = judged and not layer.reverse  # the other side's flow tells the window of both
            short |= fails
            told = f"not told ({why}), residual {layer.residual:.1e}{': FAILED' if fails else ''}"
            click.echo(f"{name}: gradient horizon({level}) {told}")
            continue
        horizon = layer.horizon[float(level)]
        # Without one the bias stays above ε as far as lags are told apart: the horizon lies beyond them.
        beyond = layer.steps if layer.tail is None else layer.tail.first_lag - 1
        reached = beyond if horizon is None else horizon
        fails = judged and min_horizon is not None and reached < min_horizon
        short |= fails
        told = f"more than {reached}" if horizon is None else str(horizon)
        wanted = f", at least {min_horizon} wanted: {'FAILED' if fails else 'passed'}" if judged else ""
        wanted += f" (within the layer; judged is '{whole}')" if min_horizon is not None and whole is not None else ""
        wanted += " as far as lags were told apart: raise --max-lag" if fails and horizon is None else ""
        wanted += interval(layer, float(level)) if layer.intervals is not None else ""
        click.echo(f"{name}: gradient horizon({level}) {told} steps, residual {layer.residual:.1e}{wanted}")
    for finding in report.findings:
        weight = "note" if finding.preview else finding.severity
        click.echo(f"{finding.layer}: {finding.code} {finding.name} [{weight}] {finding.message}")
    if short:
        raise SystemExit(1)
    leave(report, fail_on)
