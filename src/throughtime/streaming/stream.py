"""Data sets of any size: batch after batch into sums, until the loader ends or the gradient horizon is known well enough.

Every batch finds the model as it was given, its buffers too, and random numbers of its own, so that it gives the same sums in
whatever process and order it is worked on, and after a break.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from throughtime import __version__
from throughtime.asked import Asked
from throughtime.collect import CONTRACT, LOW_PRECISION
from throughtime.errors import InputError
from throughtime.flow import Missing, Stream
from throughtime.progress import Tell, quiet
from throughtime.streaming.accumulate import accumulate, borders, horizon_of, terms_of
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
    """The sums of some batches. names, reached, notes: see `Read`. beside: what else a task gathers, which adds up; no file
    keeps it."""

    layers: dict[str, LayerSums]
    names: list[str]
    reached: list[str]
    notes: dict[str, Mapping[str, str]]
    beside: Any = None

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
            None if self.beside is None or other.beside is None else self.beside + other.beside,
        )


@dataclass(frozen=True)
class Task:
    """What is done with a batch. The job's `told`: layer → lags told apart, and whether by hand; see `border`."""

    reader: Reader
    asked: Asked

    def read(self, model: nn.Module, job: Job, seeded: bool = False) -> Read:
        """Forward and backward, with random numbers of the batch's own; the first has those that were found, if not seeded."""
        with untouched(model):
            if job.number or seeded:
                torch.manual_seed((job.seed + job.number) % 2**63)
            with in_batch(job.number):
                return self.reader(model, job.number, job.batch)

    def __call__(self, model: nn.Module, job: Job) -> tuple[int, Measured]:
        return job.number, self.added_up(model, self.read(model, job), job)

    def added_up(self, model: nn.Module, read: Read, job: Job) -> Measured:
        """The sums of the traces of a batch."""
        layers = {}
        with in_batch(job.number):
            unseen = [trace for trace in read.traces if trace.name not in job.told]
            told = {**job.told, **borders(unseen, self.asked, look=False)}
            takes = {trace.name: terms_of(trace, told[trace.name][0]) for trace in read.traces}
            for trace in read.traces:
                lags, by_hand = told[trace.name]
                copies, others = read.copies.get(trace.name, 1), sum(takes.values()) - takes[trace.name]
                layers[trace.name] = accumulate(trace, job.number, self.asked, lags, by_hand, copies, others)
        return Measured(layers, read.names, read.reached, dict(read.notes))


@contextmanager
def in_batch(number: int) -> Iterator[None]:
    """Errors say which batch it was."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{error.got}, in batch {number}", error.expected, error.do) from error
    except Exception as error:
        error.add_note(f"This was batch {number}, the first being 0.")
        raise


@dataclass
class State:
    """What a run knows, and its file keeps. of: see `_run`. rng: random state at the beginning, so that a loader shuffles
    again as it did. first: of the first batch, see `fingerprint`; empty where it differs from run to run."""

    asked: Asked
    of: dict[str, str]
    seed: int
    rng: torch.Tensor
    told: dict[str, tuple[int, bool]] = field(default_factory=dict)
    digests: dict[int, str] = field(default_factory=dict)
    measured: Measured | None = None
    first: dict[str, list[float]] = field(default_factory=dict)

    @property
    def done(self) -> int:
        return len(self.digests)

    def add(self, number: int, measured: Measured, told: str) -> None:
        self.measured = measured if self.measured is None else self.measured + measured
        self.digests[number] = told

    def to_dict(self) -> dict[str, Any]:
        kept = {name: list(value) for name, value in self.told.items()}
        assert self.measured is not None
        return {
            "asked": self.asked.questions(),
            "of": self.of,
            "seed": self.seed,
            "rng": self.rng,
            "told": kept,
            "digests": self.digests,
            "first": self.first,
            **{name: getattr(self.measured, name) for name in MEASURED},
        }


MEASURED: dict[str, Any] = {
    "layers": dict[str, LayerSums],
    "names": list[str],
    "reached": list[str],
    "notes": dict[str, dict[str, str]],
}
KINDS: dict[str, Any] = MEASURED | {
    "asked": dict[str, Any],
    "of": dict[str, str],
    "seed": int,
    "rng": torch.Tensor,
    "told": dict[str, list[int | bool]],
    "digests": dict[int, str],
    "first": dict[str, list[float]],
}
"""Of what a file keeps, by name."""


def check_kept(kept: dict[str, Any]) -> None:
    """Raise ValueError where the parts of a file do not fit together, RuntimeError and TypeError where numbers are none."""
    torch.Generator().set_state(kept["rng"])
    layers: dict[str, LayerSums] = kept["layers"]
    batches = {number for sums in layers.values() for number in sums.batches}
    if not batches or batches != kept["digests"].keys():
        raise ValueError("other batches are counted than added up")
    if any(len(each) != 2 for each in kept["told"].values()) or any(len(each) != 16 for each in kept["first"].values()):
        raise ValueError("lists of another length")
    if any(sums.steps != sums.scaled("entering.squares").exponent.shape[-1] for sums in layers.values()):
        raise ValueError("another number of steps")


def state_of(model: nn.Module, task: Task, file: Path | None, rng: torch.Tensor, processes: int = 1) -> State:
    """The state in the file where there is one, of a run of the same model and options; else that of a new run."""
    found, asked = None if file is None else load(file, KINDS, check_kept), task.asked
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
    if found["asked"] != asked.questions():
        differ = ", ".join(name for name, value in asked.questions().items() if found["asked"].get(name) != value)
        raise InputError(
            f"{file}, the state of a run with other options: {differ}", "the options of that run", "name another file"
        )
    told = {name: (int(border[0]), bool(border[1])) for name, border in found["told"].items()}
    measured = Measured(**{name: found[name] for name in MEASURED})
    return State(asked, of, found["seed"], found["rng"], told, found["digests"], measured, found["first"])


def _run(model: nn.Module, reader: Reader, processes: int) -> dict[str, str]:
    """What has to be the same for a run to go on, by name."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    modes = [(name, module.training) for name, module in model.named_modules()]
    return {
        "model": digest([tensors, modes]),
        "kind of loss": type(reader).__name__,
        "choice of layers": repr(getattr(reader, "layers", None)),
        "number of processes": str(processes),  # by which batches are numbered
        "number of directions to probe": str(getattr(reader, "batches", None)),
        "version of throughtime": __version__,
    }


def fingerprint(read: Read) -> dict[str, list[float]]:
    """By layer, what its sums are made of, in numbers that two runs can compare: of input, states and entering gradient the
    norm and four random projections, whose differences tell how far one is from another (Johnson & Lindenstrauss 1984); before
    them, what rounding may make of it.
    """
    out = {}
    for trace in read.traces:
        found = [CONTRACT.get(trace.dtype, LOW_PRECISION)]
        for value in (trace.x, trace.carries, trace.gradient):
            flat = value.detach().double().cpu().flatten()
            generator = torch.Generator().manual_seed(len(flat))
            ways = (torch.randn(flat.shape, generator=generator, dtype=flat.dtype) for _ in range(4))
            found += [float(flat.norm()), *(float(flat @ way) for way in ways)]
        out[trace.name] = found
    return out


def like(one: Mapping[str, list[float]], other: Mapping[str, list[float]]) -> bool:
    """Whether two fingerprints are those of one and the same computation, to its rounding."""
    if one.keys() != other.keys():
        return False
    for name, told in one.items():
        a, b = (torch.tensor(each[1:], dtype=torch.float64).reshape(3, -1) for each in (told, other[name]))
        apart = (a[:, 1:] - b[:, 1:]).square().mean(1).sqrt()
        if not bool((apart <= told[0] * torch.maximum(a[:, 0], b[:, 0])).all()):
            return False
    return True


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
                    same_again(state, task, model, Job(0, batch, state.seed, state.told), file)
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
            stopped, partial = interrupted(state.done), True
    if state.measured is None:
        raise InputError("no batch: the loader is empty", "at least one", "check the data set and drop_last")
    assert stopped is not None
    return state.measured, Stream(state.done, stopped, partial)


def interrupted(batches: int) -> str:
    """Why a run ended that a Ctrl-C did."""
    return f"interrupted after {batches} batch{'es' * (batches > 1)}"


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
        job = Job(number, batch, state.seed, state.told)
        if number in state.digests:
            same_again(state, task, model, job, file)
            continue
        if not state.told:
            read = first_read(state, task, model, job, file)
            state.told = borders(read.traces, task.asked)
            measured = task.added_up(model, read, replace(job, told=state.told))
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


def first_read(state: State, task: Task, model: nn.Module, job: Job, file: Path | None) -> Read:
    """The first batch, read; where there is a file, its fingerprint is kept for the runs to come, if it is one that returns."""
    if file is not None:
        told, again = (fingerprint(task.read(model, job, seeded=True)) for _ in range(2))
        state.first = told if like(told, again) else {}
    return task.read(model, job)


def same_again(state: State, task: Task, model: nn.Module, job: Job, file: Path | None) -> None:
    """Raise InputError where a batch that was counted is another one now, or the first gives another gradient."""
    if digest(job.batch) != state.digests[job.number]:
        raise InputError(
            f"batch {job.number} that differs from the one that {file} counts",
            "the same batches, of the same size, in the same order",
            "seed the loader's shuffling and what it draws, or begin anew with another file",
        )
    if job.number > min(state.digests) or not state.first:
        return
    if not like(state.first, fingerprint(task.read(model, job, seeded=True))):
        raise InputError(
            f"batch {job.number} that gives the layers other inputs, states or gradients than when {file} was begun",
            "the same loss and the same forward pass, in the same precision",
            "begin anew with another file: one for each loss",
        )


def count_done(
    state: State, number: int, measured: Measured, told: str, file: Path | None, total: int | None, progress: Tell
) -> None:
    """Add a batch to the state, and write its file: all of it, or nothing, whenever a Ctrl-C comes."""
    with uninterrupted():
        state.add(number, measured, told)
        if file is not None:
            save(file, state.to_dict())
    progress(state.done, total or 0, WHAT)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """A Ctrl-C waits until the end of the block."""
    if threading.current_thread() is not threading.main_thread():  # which alone is interrupted
        yield
        return
    came: list[tuple[int, Any]] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came and callable(before):
        before(*came[0])


def _enough(state: State, stop_when: float | None) -> str | None:
    """Why no more batches are needed, where that is so: the widest interval of the horizon is narrow enough."""
    if stop_when is None or state.measured is None or state.done not in LOOKS:
        return None
    widths = []
    for sums in state.measured.layers.values():
        if not sums.about.inner and sums.origins:
            told, sure, horizon = horizon_of(sums)
            width = narrow(told, horizon, LEVEL, stop_when)
            if width is None or narrow(sure, horizon, LEVEL, stop_when) is None:
                return None
            widths.append(width)
    if not widths:
        return None
    return f"the gradient horizon is known to ±{max(widths):.0%} (asked: {stop_when:.0%}, or half a step)"
