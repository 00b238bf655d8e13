"""All trials, on as many processes as there are cores: what is computed does not depend on how many these are."""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace

from reproduce.rehmer_kroll import supply
from reproduce.rehmer_kroll.arms import Arm, Job, Scale, run
from reproduce.rehmer_kroll.identification import Task

CUT = 10
"""Steps after which the gradient is cut, in the trials without far gradients, .1 s on the throttle."""
LAGS = (5, 10, 20)

THROTTLE = (
    Job("throttle", "lstm"),  # the longest first
    Job("throttle", "gru"),
    Job("throttle", "gru", cut=CUT, clips=(math.inf,)),
    Job("throttle", "elman"),
    Job("throttle", "elman", identity=True),
    Job("throttle", "elman", cut=CUT, clips=(math.inf,)),
)
DELAYS = tuple(Job(f"delay {lag}", kind) for lag in LAGS for kind in ("elman", "gru", "lstm"))


@dataclass(frozen=True)
class Trial:
    """An arm, and what the library read of its networks, by training step."""

    arm: Arm
    readings: dict[int, supply.Reading]


def trial(job: Job, scale: Scale, needed_lag: int | None, read: int, task: Task) -> list[Trial]:
    """Train a job's arms, and read the first `read` networks of each at the moments kept, where a needed lag is given.

    Where the gradient was cut by hand, there is nothing to read.
    """
    trials = []
    for arm in run(job, scale, task):
        readings = {}
        if needed_lag is not None and job.cut is None:
            readings = {step: supply.read(arm, task, step, needed_lag, read) for step in sorted(arm.kept)}
        trials.append(Trial(replace(arm, kept={}), readings))
    return trials


def all_trials(
    jobs: Sequence[Job],
    scale: Scale,
    tasks: Mapping[str, Task],
    needed_lag: Mapping[str, int],
    read: int,
    tell: Callable[[str], None],
    workers: int | None = None,
) -> list[Trial]:
    """Every job's trials, in the order of the jobs. needed_lag: by task. workers: processes, one a core by default."""
    asked = [(job, scale, needed_lag.get(job.task), read, tasks[job.task]) for job in jobs]
    workers = min(len(asked), workers or os.cpu_count() or 1)
    done: dict[Job, list[Trial]] = {}
    if workers == 1:
        for given in asked:
            tell(said(given[0]))
            done[given[0]] = trial(*given)
    else:
        # Fresh processes: a fork of one that has run torch may hang.
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            running = {pool.submit(trial, *given): given[0] for given in asked}
            for future in as_completed(running):
                tell(said(running[future]))
                done[running[future]] = future.result()
    return [each for job in jobs for each in done[job]]


def said(job: Job) -> str:
    """What is running, in words."""
    return f"{job.task}: {job.kind}" + (", cut" if job.cut else "") + (", from the identity" if job.identity else "")
