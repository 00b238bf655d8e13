"""The arms of the trials: who is trained how, at the learning rate that was best on other seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from reproduce.rehmer_kroll.identification import Task, bfr
from reproduce.rehmer_kroll.replicas import ELMAN, GRU, LSTM, Kind, Parameters, chosen, draw, simulated
from reproduce.rehmer_kroll.training import Recipe, train

Array = NDArray[np.float64]

RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1)
CLIPS = (math.inf, 0.5)
UNITS = {"elman": 24, "gru": 13, "lstm": 11}
"""673, 638 and 628 parameters with one input and one output."""
KINDS = {kind.name: kind for kind in (ELMAN, GRU, LSTM)}
FAILED = 50.0
"""A run whose best-fit rate stays below is counted as failed: our own line; the figures show all runs."""


@dataclass(frozen=True)
class Scale:
    """How much is trained: seeds of the trial, other seeds on which learning rates are chosen, steps, moments kept."""

    seeds: tuple[int, ...] = tuple(range(20))
    choosing: tuple[int, ...] = tuple(range(100, 103))
    steps: int = 500
    kept: tuple[int, ...] = (0, 500)
    rates: tuple[float, ...] = RATES


@dataclass(frozen=True)
class Job:
    """One kind of network on one task; both ways of clipping are trained side by side.

    identity: the recurrent matrix starts as the identity and the layer's biases at 0, an integrator, which is at the
    bifurcation; else torch's default. cut: no gradient goes farther back than the last multiple of so many steps.
    """

    task: str
    kind: str
    identity: bool = False
    cut: int | None = None
    clips: tuple[float, ...] = CLIPS


@dataclass(frozen=True)
class Arm:
    """One kind and one way of clipping, all seeds.

    rate: learning rate. bfr: (seeds,) on the test records. norms, losses: (steps, seeds), see `training.Trained`.
    kept: parameters by step. shown: (T,) what the run of median best-fit rate says of the first test record. chosen_by:
    median best-fit rate on the validation records by learning rate.
    """

    job: Job
    clip: float
    rate: float
    bfr: Array
    norms: Array
    losses: Array
    kept: dict[int, Parameters] = field(repr=False)
    shown: Array = field(repr=False)
    chosen_by: dict[float, float]


def start(job: Job, seeds: tuple[int, ...]) -> Parameters:
    """The parameters before training, one replica a seed."""
    p = draw(KINDS[job.kind], 1, UNITS[job.kind], 1, seeds)
    if job.identity:
        p["w_hh"] = torch.eye(UNITS[job.kind]).repeat(len(seeds), 1, 1)
        p["b_ih"], p["b_hh"] = torch.zeros_like(p["b_ih"]), torch.zeros_like(p["b_hh"])
    return p


def repeated(p: Parameters, times: int) -> Parameters:
    """All replicas `times` times over."""
    replicas = len(p["w_hh"])
    return chosen(p, [replica for _ in range(times) for replica in range(replicas)])


def run(job: Job, scale: Scale, task: Task) -> list[Arm]:
    """Choose the learning rate of each way of clipping, then train all seeds at it."""
    torch.set_num_threads(1)
    kind = KINDS[job.kind]
    settings = [(clip, rate) for clip in job.clips for rate in scale.rates]
    medians = _medians(task, kind, job, scale, settings)
    by_clip = {clip: {rate: medians[clip, rate] for rate in scale.rates} for clip in job.clips}
    best = [max(by_clip[clip], key=lambda rate, clip=clip: by_clip[clip][rate]) for clip in job.clips]
    seeds, many = len(scale.seeds), len(job.clips)
    recipe = Recipe(
        scale.steps,
        torch.tensor(best).repeat_interleave(seeds),
        torch.tensor(job.clips).repeat_interleave(seeds),
        cut=job.cut,
    )
    done = train(kind, repeated(start(job, scale.seeds), many), task.batch, recipe, task.first, scale.kept)
    rates = bfr(task, kind, done.parameters, task.test)
    with torch.no_grad():
        guesses = simulated(kind, done.parameters, task.test[0][:, :1])[:, :, 0, 0].double().numpy()
    arms = []
    for place, clip in enumerate(job.clips):
        own = slice(place * seeds, (place + 1) * seeds)
        kept = {step: {name: value[own] for name, value in p.items()} for step, p in done.kept.items()}
        middle = int(np.argsort(rates[own])[seeds // 2])
        norms, losses = done.norms[:, own].double().numpy(), done.losses[:, own].double().numpy()
        arms.append(
            Arm(job, clip, best[place], rates[own], norms, losses, kept, guesses[:, own][:, middle], by_clip[clip])
        )
    return arms


def _medians(task: Task, kind: Kind, job: Job, scale: Scale, settings: list[tuple[float, float]]):
    """Median best-fit rate on the validation records by (clip, learning rate), on the seeds kept for choosing."""
    seeds = len(scale.choosing)
    recipe = Recipe(
        scale.steps,
        torch.tensor([rate for _, rate in settings]).repeat_interleave(seeds),
        torch.tensor([clip for clip, _ in settings]).repeat_interleave(seeds),
        cut=job.cut,
    )
    p = repeated(start(job, scale.choosing), len(settings))
    trained = train(kind, p, task.batch, recipe, task.first)
    rates = bfr(task, kind, trained.parameters, task.validation).reshape(len(settings), seeds)
    return dict(zip(settings, np.median(rates, axis=1), strict=True))
