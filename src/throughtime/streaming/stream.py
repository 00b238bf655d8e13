"""Data sets of any size: batch after batch into sums, until the loader ends or the gradient horizon is known well enough.

Every batch finds the model as it was given, its buffers too, and random numbers of its own, so that it gives the same sums in
whatever process and order it is worked on, and after a break.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from throughtime.errors import InputError
from throughtime.flow import Stream
from throughtime.progress import Tell, quiet
from throughtime.streaming.accumulate import borders, horizon_of
from throughtime.streaming.engines import DISTRIBUTED, ENGINES, NAMES, Calls, Job
from throughtime.streaming.intervals import LEAST, narrow
from throughtime.streaming.state import State, fingerprint, like, state_of
from throughtime.streaming.statefile import digest, save
from throughtime.streaming.task import Measured, Read, Task
from throughtime.training_step import untouched

LEVEL = 0.01  # of the gradient horizon whose interval may end a run
LOOKS = frozenset(LEAST * size // 2 for power in range(24) for size in (2 * 2**power, 3 * 2**power))
"""Batches after which the interval is looked at: 8, 12, 16, 24, 32, …"""
WHAT = "batches"
AHEAD = 4  # batches a worker that are read before their results are waited for


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
