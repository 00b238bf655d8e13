"""`throughtime inspect`: what a file of weights holds."""

from __future__ import annotations

from typing import Any

import click

from throughtime.cli.options import file_options, format_option


@click.command()
@click.argument("file")
@file_options
@format_option
def inspect(file: str, trust: bool, form: str, **said: Any) -> None:
    """The recurrent layers that FILE holds: cell, shapes, convention, and what the weights alone tell.

    FILE: a state dict, .pt2, safetensors, ONNX, Keras or .npz. A stack has a line of its own, then its parts.
    """
    import json

    from throughtime.inspection import inspect as run

    told = run(file, trust, **{name: word for name, word in said.items() if word is not None})
    if form == "json":
        click.echo(json.dumps([each.to_dict() for each in told], indent=1))
        return
    for each in told:
        direction = " (reads from the end)" if each.reverse else ""
        direction += f" (part of {each.stack})" if each.stack else ""
        direction += f" (the whole of {', '.join(each.parts)})" if each.parts else ""
        if each.convention is None:
            click.echo(f"{each.name}{direction}: {each.lacks}")
            continue
        words = ", ".join(f"{name} {word}" for name, word in each.convention.told().items() if name != "cell" and word)
        begins = "; begins at a state of the file" if each.initial_state else ""
        click.echo(
            f"{each.name}{direction}: {each.convention.cell}, {each.inputs} inputs, {each.units} units; {words}{begins}"
        )
        for finding in each.findings:
            click.echo(f"  {finding.code} {finding.name} [{finding.severity}] {finding.message}")
