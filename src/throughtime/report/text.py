"""The terminal's view: the first screen, then a table by lag."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from throughtime.report.headline import headline
from throughtime.report.outside import outside

if TYPE_CHECKING:
    from throughtime.diagnosis.report import Report
    from throughtime.flow import Flow, LayerFlow

STYLES = {"needed": "bold cyan", "reached": "bold blue", "finding": "bold", "try": "bold", "after": "bold"}


def report_text(report: Report, width: int = 100) -> str:
    """The report as plain text."""
    return _plain(render_report(report), width)


def flow_text(flow: Flow, width: int = 100) -> str:
    """The flow as plain text."""
    return _plain(Group(*_layers(flow)), width)


def render_report(report: Report) -> RenderableType:
    """The first screen, notes of preview rules, and a table for each layer, for a rich console."""
    screen = Table.grid(padding=(0, 2))
    screen.add_column(justify="right", no_wrap=True)
    screen.add_column()
    previous, layers, inner = "", iter(report.needed), False
    for label, sentence in headline(report):
        if label == "needed":
            inner = report.flow.layers[next(layers).layer].inner
        if inner and label in ("needed", "reached"):  # told for the whole stack; the layer's own table follows
            continue
        screen.add_row(Text("" if label == previous else label, STYLES[label]), Text(sentence))
        previous = label
    parts: list[RenderableType] = [screen]
    notes = [finding for finding in report.findings if finding.preview]
    if notes:
        parts.append(Text("\nnotes (rules in preview, without effect on the exit code)", "dim"))
        parts += [
            Padding(Text(f"{note.code} {note.name} [{note.layer}]: {note.message}", "dim"), (0, 0, 0, 2))
            for note in notes
        ]
    for part in _layers(report.flow):
        parts += [Text(""), part]
    return Group(*parts)


def _layers(flow: Flow) -> list[RenderableType]:
    """A table for each layer, and a line for those of which nothing can be told."""
    ended = [] if flow.stream is None else [Text(f"{flow.stream.batches} batches: {flow.stream.stopped}")]
    lines = [
        *ended,
        *(Text(f"{each.field.removeprefix('layers.')}: nothing to tell, {each.reason}") for each in flow.missing),
    ]
    return [*(render_layer(layer) for layer in flow.layers.values()), *lines]


def render_layer(layer: LayerFlow) -> RenderableType:
    """One layer: what it is, the ledger's residual, and supply against demand at some lags."""
    told = ", ".join(f"{name} {value}" for name, value in layer.convention.items())
    kind = layer.cell.upper() + (f" ({told})" if told else "")
    where = "every step" if len(layer.loss_steps) == layer.steps else f"{len(layer.loss_steps)} of {layer.steps} steps"
    # Above another layer stands the loss; what enters below one may be that layer's gradient.
    enters = f"{'loss' if layer.lag == 'total' else 'gradient enters'} at {where}"
    table = Table(
        title=f"{layer.name}: {kind}, {layer.hidden_size} units, {layer.steps} steps × "
        f"{layer.batch} sequences, {layer.dtype}, {enters}; residual {_short(layer.residual)}",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("lag", justify="right")
    table.add_column("arrives", justify="right")
    table.add_column("share", justify="right")
    if layer.horizon_told:
        table.add_column("bias beyond", justify="right")
    paths = layer_paths(layer)
    for port in paths:
        table.add_column(port, justify="right")
    if layer.demand is not None and not layer.demand.missing:
        table.add_column("demand z", justify="right")
    for lag in _lags(layer):
        row = [str(lag), _short(layer.arriving[lag]), _percent(layer.share[lag])]
        row += [_percent(layer.bias[lag])] if layer.horizon_told else []
        row += [_percent(values[lag]) for values in paths.values()]
        style = None
        if layer.demand is not None and not layer.demand.missing:
            asked = lag in layer.demand.lags
            row.append(f"{_short(layer.demand.z[lag])}{' *' if asked else ''}")
            style = "bold" if asked else None
        table.add_row(*row, style=style)
    table.caption = "arrives: what is left of the gradient at this lag; share: of the gradient of all weights"
    if layer.horizon_told:
        sides = " to both sides" if layer.opposite else ""
        table.caption += f"; bias beyond: what cutting after this lag{sides} changes"
    if paths:
        table.caption += "; then the paths by which it came here from the lag before"
    if layer.opposite and layer.reverse:
        table.caption = (
            f"what comes from ahead: a lag counts steps ahead; lag 0 stands in {layer.opposite}; {table.caption}"
        )
    elif layer.opposite:
        table.caption = f"what comes from the past; what comes from ahead stands in {layer.opposite}; {table.caption}"
    elif layer.reverse:
        table.caption = "this direction runs back in time: a lag counts steps ahead; " + table.caption
    if layer.external is not None:
        table.caption += f"; {outside(layer)}"
    table.caption_justify = "left"
    if layer.tail is not None:
        tail = layer.tail
        table.caption += (
            f"; beyond lag {tail.first_lag - 1}, not told apart: share {tail.share:.1e}, at most {tail.bound:.1e}"
        )
    return table


def layer_paths(layer: LayerFlow) -> dict[str, np.ndarray]:
    """The shares of the paths; of a stack's added up by layer, for each layer tells its own."""
    out: dict[str, np.ndarray] = {}
    for port, share in layer.paths.items():
        stacked, _, _ = port.rpartition(".")
        name = stacked or port
        out[name] = out[name] + share if name in out else share
    return out


def _lags(layer: LayerFlow) -> list[int]:
    """Lags worth a row: 0, 1, 2, 5, 10 … and the ends of what the loss asks for."""
    last = layer.steps - 1
    lags = {0, last} | {lag for power in range(6) for lag in (10**power, 2 * 10**power, 5 * 10**power) if lag < last}
    if layer.demand is not None and layer.demand.lags:
        lags |= {layer.demand.lags[0], layer.demand.lags[-1]}
    if layer.reverse and layer.opposite:
        lags -= {0}
    return sorted(lags)


def _short(value: float) -> str:
    if np.isnan(value):
        return "–"
    return f"{value:.2g}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.1e}"


def _percent(value: float) -> str:
    if np.isnan(value):
        return "–"
    return f"{100 * value:.1f} %" if abs(value) >= 5e-4 or value == 0 else f"{100 * value:.0e} %"


def _plain(what: RenderableType, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False)
    console.print(what)
    file = console.file
    assert isinstance(file, io.StringIO)
    return "\n".join(line.rstrip() for line in file.getvalue().rstrip("\n").split("\n"))
