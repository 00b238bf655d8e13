"""`throughtime explore`: the page to play with."""

from __future__ import annotations

from pathlib import Path

import click

from throughtime.cli.output import check_writable


@click.command()
@click.argument("flow", required=False, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("explorer.html"),
    show_default=True,
    help="Write the page there, as one HTML file.",
)
@click.option("--preset", help="Open with this example; `throughtime explore --list` lists them.")
@click.option("--list", "list_presets", is_flag=True, help="List the examples and write nothing.")
def explore(flow: Path | None, output: Path, preset: str | None, list_presets: bool) -> None:
    """A page to move gates, weights and loss, and to see at once what becomes of the gradient.

    FLOW: a file written by `throughtime diagnose --format json` or flow.to_json(): the page opens on that network, and
    with --network (network=True) it can be moved too.
    """
    from throughtime.explorer.page import presets, save

    if list_presets:
        for each in presets():
            click.echo(f"{each['id']}  {each['title']}")
        return
    check_writable(output)
    save(output, flow, preset)
    click.echo(f"throughtime: the explorer is in {output.resolve()}", err=True)
