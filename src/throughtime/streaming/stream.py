"""Data sets of any size: batch after batch into sums, until the loader ends or the gradient horizon is known well enough.

Every batch finds the model as it was given, its buffers too, and random numbers of its own, so that it gives the same sums in
whatever process and order it is worked on, and after a break.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from throughtime.asked import Asked
from throughtime.errors import InputError
from throughtime.flow import Missing, Stream
from throughtime.progress import Tell, quiet
from throughtime.streaming.accumulate import accumulate, border, horizon_of
from throughtime.streaming.engines import DISTRIBUTED, ENGINES, NAMES, Calls, Job
from throughtime.streaming.intervals import LEAST, narrow
from throughtime.streaming.statefile import digest, load, save
from throughtime.streaming.sums import LayerSums, merge
from throughtime.trace import Trace
from throughtime.training_step import untouched
from throughtime.whole.series import Series

LEVEL = 0.01  # of the gradient horizon whose interval may end a run
LOOKS = frozenset(LEAST * size // 2 for power in range(24) for size in (2 * 2**power, 3 * 2**power))
"""Batches after which the interval is looked at: 8, 12, 16, 24, 32, …"""
WHAT = "batches"
AHEAD = 4  # batches a worker that are read before their results are waited for


@dataclass(frozen=True)
class Read:
    """What a batch gives: its traces, and how many copies of each sequence they hold.

    names: of all layers that were recorded, reached: of those that the loss depends on. notes: field →
    why it is missing, by layer. series, apart: the total lag by signed offset, and why none, where the whole is wanted.
    """

    traces: list[Trace]
    names: list[str]
    reached: list[str]
    copies: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    series: list[Series] = field(default_factory=list)
    apart: tuple[Missing, ...] = ()


class Reader(Protocol):
    """From a batch to its traces. It is sent to other processes, and leaves the model as it was."""

    def __call__(self, model: nn.Module, number: int, batch: Any, whole: bool = False) -> Read: ...


@dataclass(frozen=True)
class Streaming:
    """How a data set is gone through. See `throughtime.diagnose`."""

    stop_when: float | None = 0.1
    resume: str | Path | None = None
    engine: str = "serial"
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.engine not in NAMES:
            raise InputError(f"engine={self.engine!r}", f"one of {', '.join(NAMES)}", "use engine='serial'")
        if self.stop_when is not None and not self.stop_when > 0:
            raise InputError(f"stop_when={self.stop_when}", "a number above 0, or None", "use stop_when=0.1")
        if self.resume is not None and not Path(self.resume).resolve().parent.is_dir():
            raise InputError(
                f"resume={str(self.resume)!r} in a folder that does not exist",
                "a file in a folder that does",
                "create the folder, or give another path",
            )
        if self.workers is not None and self.workers < 1:
            raise InputError(f"workers={self.workers}", "1 or more", "leave it out to use every core")


@dataclass(frozen=True)
class Measured:
    """The sums of some batches. names, reached, notes: see `Read`."""

    layers: dict[str, LayerSums]
    names: list[str]
    reached: list[str]
    notes: dict[str, Mapping[str, str]]

    def __add__(self, other: Measured) -> Measured:
        both = {
            name: merge(self.layers[name], other.layers[name])
            if name in self.layers and name in other.layers
            else self.layers.get(name) or other.layers[name]
            for name in dict.fromkeys((*self.layers, *other.layers))
        }
        return Measured(
            both,
            list(dict.fromkeys((*self.names, *other.names))),
            list(dict.fromkeys((*self.reached, *other.reached))),
            {**other.notes, **self.notes},
        )


@dataclass(frozen=True)
class Task:
    """What is done with a batch. The job's `told`: layer → lags told apart, and whether by hand; see `border`."""

    reader: Reader
    asked: Asked

    def read(self, model: nn.Module, job: Job) -> Read:
        """Forward and backward, with random numbers of the batch's own; the first has those that were found."""
        with untouched(model):
            if job.number:
                torch.manual_seed((job.seed + job.number) % 2**63)
            return self.reader(model, job.number, job.batch)

    def __call__(self, model: nn.Module, job: Job) -> tuple[int, Measured]:
        return job.number, self.added_up(self.read(model, job), job)

    def added_up(self, read: Read, job: Job) -> Measured:
        """The sums of the traces of a batch."""
        layers = {}
        for trace in read.traces:
            told, by_hand = job.told.get(trace.name) or border(trace, self.asked, look=False)
            copies = read.copies.get(trace.name, 1)
            layers[trace.name] = accumulate(trace, job.number, self.asked, told, by_hand, copies)
        return Measured(layers, read.names, read.reached, dict(read.notes))


@dataclass
class State:
    """What a run knows, and its file keeps. of: see `_run`. rng: random state at the beginning, so that a loader shuffles
    again as it did."""

    asked: Asked
    of: dict[str, str]
    seed: int
    rng: torch.Tensor
    told: dict[str, tuple[int, bool]] = field(default_factory=dict)
    digests: dict[int, str] = field(default_factory=dict)
    measured: Measured | None = None

    @property
    def done(self) -> int:
        return len(self.digests)

    def add(self, number: int, measured: Measured, told: str) -> None:
        # One assignment each: a Ctrl-C between two lines must not count a batch whose sums are lost.
        self.measured = measured if self.measured is None else self.measured + measured
        self.digests[number] = told

    def to_dict(self) -> dict[str, Any]:
        kept = {name: list(value) for name, value in self.told.items()}
        measured = {f: getattr(self.measured, f) for f in ("layers", "names", "reached", "notes")}
        return {
            "asked": asdict(self.asked),
            "of": self.of,
            "seed": self.seed,
            "rng": self.rng,
            "told": kept,
            "digests": self.digests,
            "measured": measured,
        }


def state_of(model: nn.Module, task: Task, file: Path | None, rng: torch.Tensor, processes: int = 1) -> State:
    """The state in the file where there is one, of a run of the same model and options; else that of a new run."""
    found, asked = None if file is None else load(file), task.asked
    of = {} if file is None else _run(model, task.reader, processes)
    if found is None:
        return State(asked, of, int(digest(rng), 16) >> 2, rng)
    for name, value in of.items():
        if found["of"].get(name) != value:
            raise InputError(
                f"{file}, the state of a run with another {name}",
                "the same model, layers, kind of loss and number of processes as in that run",
                "name another file: one for each model, checkpoint and question",
            )
    if found["asked"] != asdict(asked):
        differ = ", ".join(name for name, value in asdict(asked).items() if found["asked"].get(name) != value)
        raise InputError(
            f"{file}, the state of a run with other options: {differ}", "the options of that run", "name another file"
        )
    told = {name: (int(border[0]), bool(border[1])) for name, border in found["told"].items()}
    return State(asked, of, found["seed"], found["rng"], told, found["digests"], Measured(**found["measured"]))


def _run(model: nn.Module, reader: Reader, processes: int) -> dict[str, str]:
    """What has to be the same for a run to go on, by name."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    modes = [(name, module.training) for name, module in model.named_modules()]
    return {
        "model": digest([tensors, modes]),
        "kind of loss": type(reader).__name__,
        "choice of layers": repr(getattr(reader, "layers", None)),
        "number of processes": str(processes),  # by which batches are numbered
    }


def stream(
    model: nn.Module,
    batches: Iterable[Any],
    task: Task,
    how: Streaming,
    rng: torch.Tensor,
    total: int | None = None,
    progress: Tell = quiet,
) -> tuple[Measured, Stream]:
    """The sums of all batches, and why they ended. rng: random state before anything was read of them. total: how many
    batches there are, where that is known.

    Ctrl-C ends it with what was done; a run that is killed goes on from its `resume` file.
    """
    if how.engine == DISTRIBUTED:
        from throughtime.streaming import distributed

        return distributed.through(model, batches, task, how, rng, total, progress)
    file = None if how.resume is None else Path(how.resume)
    calls = Calls(model, task)
    with untouched(model):
        state = state_of(model, task, file, rng)
        if file is not None:
            torch.set_rng_state(state.rng)
        stopped, partial = _enough(state, how.stop_when), False
        try:
            if stopped is not None:  # nothing is left to do, but of these data?
                for batch in islice(iter(batches), 1 if 0 in state.digests else 0):
                    same_again(state, 0, batch, file)
                batches = ()
            with ENGINES[how.engine](calls, how.workers) as run:
                for jobs in _waves(batches, state, task, model, how, file, total, progress, stopped is not None):
                    given = {job.number: digest(job.batch) if file else "" for job in jobs}
                    for number, measured in run(jobs):
                        count_done(state, number, measured, given[number], file, total, progress)
                    if why := _enough(state, how.stop_when):
                        stopped = why
                        break
                else:
                    stopped = stopped or "all batches were read"
        except KeyboardInterrupt:
            if state.measured is None:
                raise
            stopped, partial = f"interrupted after {state.done} batches", True
    if state.measured is None:
        raise InputError("no batch: the loader is empty", "at least one", "check the data set and drop_last")
    assert stopped is not None
    return state.measured, Stream(state.done, stopped, partial)


def _waves(
    batches: Iterable[Any],
    state: State,
    task: Task,
    model: nn.Module,
    how: Streaming,
    file: Path | None,
    total: int | None,
    progress: Tell,
    stopped: bool,
) -> Iterator[list[Job]]:
    """The jobs that are left, some at a time: up to the next look at the interval, and as many as workers can take.

    The first batch is worked on here: where its tail begins, the terms of all end.
    """
    import os

    room = 1 if how.engine == "serial" else AHEAD * (how.workers or os.cpu_count() or 1)
    source, number, wave, counted = iter(batches), -1, [], max(state.digests, default=-1)
    progress(state.done, total or 0, WHAT)
    for number, batch in enumerate(source):
        if number in state.digests:
            same_again(state, number, batch, file)
            continue
        job = Job(number, batch, state.seed, state.told)
        if not state.told:
            read = task.read(model, job)
            state.told = {trace.name: border(trace, task.asked) for trace in read.traces}
            measured = task.added_up(read, replace(job, told=state.told))
            count_done(state, number, measured, digest(batch) if file else "", file, total, progress)
            continue
        wave.append(job)
        if len(wave) == room or state.done + len(wave) in LOOKS:
            yield wave
            wave = []
    if number < counted and not stopped:
        raise InputError(
            f"{number + 1} batches, fewer than the {state.done} that {file} counts",
            "the same batches in the same order",
            "raise the limit, or begin anew with another file",
        )
    if wave:
        yield wave


def same_again(state: State, number: int, batch: Any, file: Path | None) -> None:
    """Raise InputError where a batch that was counted is another one now."""
    if digest(batch) != state.digests[number]:
        raise InputError(
            f"batch {number} that differs from the one that {file} counts",
            "the same batches in the same order",
            "seed the loader's shuffling, or begin anew with another file",
        )


def count_done(
    state: State, number: int, measured: Measured, told: str, file: Path | None, total: int | None, progress: Tell
) -> None:
    """Add a batch to the state, and write its file."""
    state.add(number, measured, told)
    if file is not None:
        save(file, state.to_dict())
    progress(state.done, total or 0, WHAT)


def _enough(state: State, stop_when: float | None) -> str | None:
    """Why no more batches are needed, where that is so: the widest interval of the horizon is narrow enough."""
    if stop_when is None or state.measured is None or state.done not in LOOKS:
        return None
    widths = []
    for sums in state.measured.layers.values():
        if not sums.about.inner and sums.origins:
            width = narrow(*horizon_of(sums), LEVEL, stop_when)
            if width is None:
                return None
            widths.append(width)
    if not widths:
        return None
    return f"the gradient horizon is known to ±{max(widths):.0%} (asked: {stop_when:.0%}, or half a step)"
