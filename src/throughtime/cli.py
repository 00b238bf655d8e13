"""The command line. Nothing heavy is imported before a command runs, so that --help answers at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from throughtime.diagnosis.report import Report
    from throughtime.progress import Tell

TRACEBACK = "THROUGHTIME_TRACEBACK"
"""Environment variable: 1 shows the traceback of an error."""
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(context_settings=SETTINGS)
def main() -> None:
    """How far back a recurrent network learns, how far back its loss needs it to, why not, and what helps.

    Exit codes: 0 clean, 1 findings at or above --fail-on, 2 usage or load error.
    """


def _together(*options: Callable) -> Callable:
    def decorate(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


output_options = _together(
    click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the report there, as one HTML file."),
    click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", help="What goes to stdout."),
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


file_options = (
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
model_options = _together(
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
    *file_options,
)
input_options = _together(
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
    click.option(
        "--stop-when",
        type=click.FloatRange(min=0, min_open=True),
        default=0.1,
        show_default=True,
        help="Stop reading when the gradient horizon's 95 % interval is ± this part of it, or half a step.",
    ),
    click.option("--all-batches", is_flag=True, help="Read on, however well the horizon is known."),
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
)


@contextmanager
def _errors() -> Iterator[None]:
    """Errors, the library's and those of the user's own code, in one line and exit code 2; a Ctrl-C is no traceback."""
    from throughtime.errors import ThroughtimeError

    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except KeyboardInterrupt:
        click.echo("throughtime: interrupted", err=True)
        raise SystemExit(130) from None
    except Exception as error:
        if os.environ.get(TRACEBACK) == "1":
            import traceback

            traceback.print_exc()
        told = str(error) if isinstance(error, ThroughtimeError) else _foreign(error)
        click.echo(f"throughtime: error: {told}", err=True)
        raise SystemExit(2) from None


def _foreign(error: Exception) -> str:
    """An exception that is not the library's: what it says, and the last line of the user's own code that it came by."""
    import sysconfig
    import traceback

    import numpy
    import torch

    ours, stdlib = str(Path(__file__).parent), sysconfig.get_paths()["stdlib"]
    libraries = [os.path.dirname(package.__file__ or "") for package in (click, numpy, torch)]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    theirs = [
        frame
        for frame in frames
        if not frame.filename.startswith((ours, *libraries))
        and (not frame.filename.startswith(stdlib) or "site-packages" in frame.filename)
    ]
    words = " ".join([str(error), *getattr(error, "__notes__", [])]).split()
    said = f"{type(error).__name__}: {' '.join(words)}".rstrip(": ")
    if not theirs and frames[-1].filename.startswith(ours):
        place = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}"
        return f"got {said} ({place}): a fault of throughtime; do this: report it, with {TRACEBACK}=1 for the traceback"
    place = f"{theirs[-1].filename}, line {theirs[-1].lineno}, in {theirs[-1].name}" if theirs else "a library"
    return (
        f"got {said}, raised in {place}; expected a model, data and a loss that run together; "
        f"do this: run one step of it by hand, or set {TRACEBACK}=1 for the traceback"
    )


def _guarded(command: Callable) -> Callable:
    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        with _errors():
            return command(*args, **kwargs)

    return run


@main.command()
@input_options
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
@_guarded
def diagnose(output: Path | None, form: str, fail_on: str, network: bool, **given: Any) -> None:
    """Diagnose MODEL: package.module:factory, or a file of weights (state dict, .pt2, safetensors, ONNX, Keras, .npz)."""
    if network and form != "json":
        raise click.UsageError("--network: got --format text; expected --format json; do this: add --format json")
    _check_writable(output)
    report = _diagnosed(**given)
    if given["verify"] and report.verification is None:
        click.echo("throughtime: nothing to verify: no finding here has a remedy that can be applied", err=True)
    _show(report, output, form, network)
    _leave(report, fail_on)


@main.command()
@input_options
@click.option("--min-horizon", type=click.IntRange(min=0), help="The least gradient horizon, in steps, that passes.")
@click.option(
    "--level", type=click.Choice(["0.1", "0.01", "0.001"]), default="0.01", show_default=True, help="The horizon's ε."
)
@fail_option
@_guarded
def check(min_horizon: int | None, level: str, fail_on: str, **given: Any) -> None:
    """Check MODEL in CI: one line a layer and an exit code.

    Where the total lag of a whole is told (a stack, modules in series), its horizon is judged and not those of its parts.
    """
    from throughtime.report.headline import interval

    report = _diagnosed(verify=False, verify_steps=1, verify_seeds=2, **given)
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
    _leave(report, fail_on)


@main.command()
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
@click.option("--all-batches", is_flag=True, help="Read a loader to its end, however well the horizon is known.")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", help="What goes to stdout.")
@click.option("--json", "form", flag_value="json", help="The same as --format json.")
@_guarded
def window(windows: tuple[str, ...], level: float, no_cost: bool, all_batches: bool, form: str, **given: Any) -> None:
    """Which window of truncated BPTT to train MODEL with: what each loses, what it costs, and never one below the demand."""
    from throughtime.truncation.gradient import Window

    asked = [Window.of(each) for each in windows]
    with _given(**given) as (network, _, batches, loss, tell, options):
        from throughtime.truncation.choose import window as run

        how = {"stop_when": None} if all_batches else {}
        options |= {"windows": asked, "level": level, "cost": not no_cost, "progress": tell, **how}
        told = run(network, batches, loss, **options)
    if form == "json":
        click.echo(told.to_json(indent=1))
        return
    from rich.console import Console

    from throughtime.report.window import render_window

    Console(width=None if sys.stdout.isatty() else 110).print(render_window(told))


@main.command()
@click.argument("which", type=click.Choice(["digits", "opus"]), default="digits")
@output_options
@_guarded
def demo(which: str, output: Path | None, form: str) -> None:
    """Real networks on real data: digits to be remembered through noise (and the cure), or the Opus codec's GRU."""
    _check_writable(output)
    from throughtime.progress import bar
    from throughtime.tasks import demos

    with bar() as tell, redirect_stdout(sys.stderr):
        report = (demos.digits_report if which == "digits" else demos.opus_report)(tell)
    _show(report, output, form)


@main.command()
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
@_guarded
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
    _check_writable(output)
    save(output, flow, preset)
    click.echo(f"throughtime: the explorer is in {output.resolve()}", err=True)


@main.command()
@click.argument("file")
@_together(*file_options)
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", help="What goes to stdout.")
@_guarded
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


@main.command()
@click.argument("code", required=False)
@_guarded
def explain(code: str | None) -> None:
    """What a rule means, why it matters and what helps. Without CODE: all rules."""
    from throughtime.diagnosis.rule import registry
    from throughtime.errors import InputError

    rules = registry()
    if code is None:
        for rule in rules.values():
            click.echo(f"{rule.code}  {rule.name}{'  (preview)' if rule.preview else ''}")
        return
    if code.upper() not in rules:
        raise InputError(f"the code {code!r}", f"one of {', '.join(rules)}", "throughtime explain lists them")
    rule = rules[code.upper()]
    click.echo(f"{rule.code} {rule.name}  [{'preview' if rule.preview else rule.severity}]\n\n{rule.text()}")


@main.command()
def version() -> None:
    """The versions of throughtime, torch and Python."""
    from importlib.metadata import version as of

    click.echo(f"throughtime {of('throughtime')}, torch {of('torch')}, Python {sys.version.split()[0]}")


def _diagnosed(
    history: str | None,
    max_lag: int | None,
    total: bool | None,
    stop_when: float,
    all_batches: bool,
    resume: Path | None,
    engine: str,
    workers: int | None,
    verify: bool,
    verify_steps: int,
    verify_seeds: int,
    **given: Any,
) -> Report:
    with _given(**given) as (network, factory, batches, loss, tell, options):
        from throughtime import sources
        from throughtime.diagnosis.diagnose import diagnose as run

        return run(
            network,
            batches,
            loss,
            history=None if history is None else sources.history(history),
            verify=verify,
            verify_steps=verify_steps,
            verify_seeds=verify_seeds,
            factory=factory,
            progress=tell,
            max_lag=max_lag,
            total=total,
            stop_when=None if all_batches else stop_when,
            resume=resume,
            engine=engine,
            workers=workers,
            **options,
        )


@contextmanager
def _given(
    model: str,
    data: str,
    run_graph: bool,
    loss: str | None,
    layers: tuple[str, ...],
    seed: int,
    trust: bool,
    needed_lag: int | None,
    demand_method: Literal["covariance", "distance"],
    limit: int | None,
    **said: Any,
) -> Iterator[tuple[Any, Any, Any, Any, Tell, dict[str, Any]]]:
    """What the options name, loaded: (model, its factory, batches, loss, progress, the options of every analysis).

    said: the convention of a file of weights.
    """
    from throughtime.errors import InputError
    from throughtime.progress import bar

    # What the user's own code prints must not stand in the report.
    with bar() as tell, redirect_stdout(sys.stderr):
        tell(0, 1, "loading")
        from throughtime import sources

        convention = {name: word for name, word in said.items() if word is not None}
        wanted: str | None = None
        if sources.is_file(model):
            wanted, layers = (_one(layers), ())
        try:
            network, factory = sources.model(model, convention, seed, wanted, trust)
            if run_graph:
                network, batches = sources.in_graph(network, model, wanted, data)
            else:
                batches = sources.data(data)
            fn = None if loss is None else sources.named(loss)
            options = {"needed_lag": needed_lag, "demand_method": demand_method, "limit": limit}
            yield network, factory, batches, fn, tell, options | {"layers": list(layers) or None}
        except SystemExit as error:
            raise InputError(
                f"a module of yours that ended the program, sys.exit({error.code!r})",
                "a module that can be imported",
                'put what it runs under `if __name__ == "__main__":`',
            ) from error


def _one(layers: tuple[str, ...]) -> str | None:
    """The layer of a file that is named, if one is."""
    from throughtime.errors import InputError

    if len(layers) > 1:
        raise InputError(f"--layer {' --layer '.join(layers)}", "one layer of a file", "name one at a time")
    return layers[0] if layers else None


def _check_writable(output: Path | None) -> None:
    """Before the work, not after it: a file is made in the output's folder, and taken away again."""
    from throughtime.errors import InputError

    if output is None:
        return
    reason, trial = "", output.parent / f".{output.name}.{os.getpid()}.part"
    try:
        if not output.name or output.is_dir():
            reason = "it is a folder"
        elif output.exists() and not os.access(output, os.W_OK):
            reason = "it is read-only"
        else:
            trial.touch(exist_ok=False)
            trial.unlink()
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise InputError(
            f"an output path that cannot be written: {output} ({reason})",
            "a file name in a folder that exists and is writable",
            "create the folder, or give another path",
        )


def _show(report: Report, output: Path | None, form: str, network: bool = False) -> None:
    if output is not None:
        report.save_html(output)
    if form == "json":
        click.echo(report.to_json(indent=None if network else 1, network=network))
    else:
        from rich.console import Console

        from throughtime.report.text import render_report

        Console(width=None if sys.stdout.isatty() else 110).print(render_report(report))
    if output is not None:
        click.echo(f"throughtime: the report is in {output.resolve()}", err=True)


def _leave(report: Report, fail_on: str) -> None:
    if fail_on != "never" and not report.passed(fail_on):
        raise SystemExit(1)
