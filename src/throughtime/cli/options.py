"""Options that several commands share, each written once.

An option whose name is a keyword of the analyses (`throughtime.diagnose`, and so on) is handed on to them by that name, see
`throughtime.cli.given`: it stands here and nowhere else in the command line.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def together(*options: Callable) -> Callable:
    """Options as one decorator, told by --help in their order."""

    def decorate(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


format_option = click.option(
    "--format", "form", type=click.Choice(["text", "json"]), default="text", help="What goes to stdout."
)
output_options = together(
    click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the report there, as one HTML file."),
    format_option,
)
fail_option = click.option(
    "--fail-on",
    type=click.Choice(["info", "warning", "error", "never"]),
    default="warning",
    show_default=True,
    help="The least severity of a finding that makes the exit code 1. Rules in preview never do.",
)


def _by_array(_: Any, option: Any, values: tuple[str, ...]) -> str | dict[str, str] | None:
    """A number, or numbers by the arrays' names: NUMBER or NAME=NUMBER, each at most once."""
    said: dict[str, str] = {}
    for value in values:
        name, _, number = value.rpartition("=")
        if name in said:
            raise click.BadParameter(f"{value} beside {said[name]}: one number for each array", param=option)
        said[name] = number
    return (said[""] if list(said) == [""] else said) or None


file_options = together(
    click.option(
        "--trust", is_flag=True, help="A file of weights may run code: pickles of whole modules, TorchScript."
    ),
    click.option(
        "--cell", type=click.Choice(["gru", "lstm", "rnn-tanh", "rnn-relu"]), help="A file of weights: the cell."
    ),
    click.option(
        "--gates", help="A file of weights: the order of the gates, such as zrh; default the cell's in torch."
    ),
    click.option(
        "--layout",
        type=click.Choice(["W@x", "x@W", "cudnn"]),
        help="A file of weights: gates in rows (W@x, the default), in columns, or as Keras's CuDNN layers have them.",
    ),
    click.option(
        "--reset",
        type=click.Choice(["before", "after"]),
        help="A file of GRU weights: before or after (default) the product.",
    ),
    click.option(
        "--z", type=click.Choice(["keeps", "takes"]), help="A file of GRU weights: what z multiplies; default keeps."
    ),
    click.option(
        "--scale",
        multiple=True,
        callback=_by_array,
        metavar="[NAME=]NUMBER",
        help="A file of weights: what integers are multiplied by, such as 1/128, or those of one array. May be repeated.",
    ),
    click.option(
        "--zero-point",
        multiple=True,
        callback=_by_array,
        metavar="[NAME=]NUMBER",
        help="A file of weights: what is taken from integers before they are multiplied; default 0. May be repeated.",
    ),
    click.option("--forget-bias", help="A file of LSTM weights: what the runtime adds to the forget gate's logit."),
    click.option("--initial-h", help="A file of weights: the array that holds the state at the begin, or zero."),
    click.option("--initial-c", help="A file of LSTM weights: likewise of the cell."),
    click.option("--peephole", help="A file of LSTM weights: the array of the peepholes i, f, o, or three: a,b,c."),
)
model_options = together(
    click.argument("model"),
    click.option(
        "--data",
        required=True,
        help="package.module:batches, or a file .npy, .npz, .pt (x, and y for targets), time first for bare weights.",
    ),
    click.option(
        "--run-graph",
        is_flag=True,
        help="An ONNX file may run, up to the layer: --data are arrays by the names of the graph's inputs.",
    ),
    click.option("--needed-lag", type=click.IntRange(min=0), help="How many steps back the task is known to need."),
    click.option(
        "--demand",
        "demand_method",
        type=click.Choice(["covariance", "distance"]),
        default="covariance",
        show_default=True,
        help="The test of demand: first-order, or the nonlinear one.",
    ),
    click.option(
        "--layer",
        "layers",
        multiple=True,
        help="A recurrent layer by its name; all by default, one of a file. May be repeated.",
    ),
    click.option(
        "--limit",
        type=click.IntRange(min=1),
        help="Batches to read of a loader at most.",
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Of torch, before the model is made."),
    file_options,
)
stopping_options = together(
    click.option(
        "--stop-when",
        type=click.FloatRange(min=0, min_open=True),
        default=0.1,
        show_default=True,
        help="Stop reading when the gradient horizon's 95 % interval is ± this part of it, or half a step.",
    ),
    click.option("--all-batches", is_flag=True, help="Read on, however well the horizon is known."),
)
diagnosis_options = together(
    model_options,
    click.option(
        "--loss",
        help="package.module:fn, either fn(model, batch) or fn(output, target). Without one the state is probed.",
    ),
    click.option(
        "--history",
        help="Of the training so far: losses by step, .npy or .json; or .npz or .json with loss and gradient_norm.",
    ),
    click.option("--max-lag", type=click.IntRange(min=0), help="Tell no lag beyond this one apart."),
    click.option("--memory", help="What the decomposition may add, such as 500MB: it computes again what has no room."),
    stopping_options,
    click.option(
        "--resume",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Keep what was added up in this file, after every batch, and go on from it where it exists.",
    ),
    click.option(
        "--engine",
        type=click.Choice(["serial", "joblib", "ray"]),
        default="serial",
        show_default=True,
        help="Who works on the batches of a loader.",
    ),
    click.option("--workers", type=click.IntRange(min=1), help="Of joblib or ray; every core without it."),
    click.option(
        "--total/--no-total",
        default=None,
        help="Tell the total lag through both directions or several modules; by default where that is quick.",
    ),
    click.option(
        "--compile", is_flag=True, help="Compile chunks of steps: for long sequences of which very many are read."
    ),
)
