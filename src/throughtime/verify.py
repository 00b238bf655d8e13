"""Does the remedy help? Paired short trainings of the untreated and the treated network, judged by an interval."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from throughtime.errors import InputError
from throughtime.flow import Array
from throughtime.remedies.remedy import Remedy
from throughtime.student_t import t_quantile
from throughtime.training_run import Batch, Loss, Plan, Run, check_other, fresh, mean_loss, trained
from throughtime.training_step import as_batches

Progress = Callable[[int, int, str], None]
"""Called with (steps done, steps in all, what is running)."""

LEVEL = 0.95
"""Of the interval that decides the verdict."""
HELD_OUT = 5
"""One batch in so many is held out when the metric is the loss."""


@dataclass(frozen=True)
class Verification:
    """Paired result of `remedy` against no remedy, one pair a seed.

    metric: what was measured after training, e.g. "test accuracy" or "held-out loss"; higher_is_better: its sense.
    before, after: (seeds,) the metric untreated and treated; difference: mean of after − before; low, high: its 95 %
    t-interval; verdict: "helps" or "harms" when the interval excludes 0 on that side, else "no help". It speaks of the
    sign of the difference after `steps` steps, not of its worth.
    curves: training loss by step, "untreated" and "treated", each (seeds, steps), NaN after a run that ended early.
    notes: what a reader must know besides: runs that diverged, an interruption, nothing held out.
    """

    remedy: str
    metric: str
    higher_is_better: bool
    steps: int
    seeds: tuple[int, ...]
    before: Array
    after: Array
    difference: float
    low: float
    high: float
    verdict: str
    curves: dict[str, Array]
    notes: tuple[str, ...] = ()


def verify(
    model: nn.Module | Callable[[], nn.Module],
    batches: Batch | Iterable[Batch],
    loss: Loss,
    remedy: Remedy | Callable[[nn.Module], Any],
    layer: str = "rnn",
    *,
    seeds: Sequence[int] = range(5),
    steps: int = 200,
    metric: Callable[[nn.Module], float] | None = None,
    metric_name: str | None = None,
    higher_is_better: bool = False,
    lr: float = 5e-3,
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
    clip: float | None = 1.0,
    progress: Progress | None = None,
    **evidence: Any,
) -> Verification:
    """Train pairs of an untreated and a treated network for a few steps and compare them.

    For each seed both networks of the pair begin with the same fresh parameters, the treated one is then given the
    remedy, and both see the same batches in the same order under the same random numbers (dropout). What is judged is
    the mean difference of the metric over the pairs, by its 95 % Student interval.

    Args:
        model: a factory without arguments, called under each seed; or a model, of which copies are made whose modules
            draw their parameters anew by their own `reset_parameters`. Parameters that no such method covers keep their
            value (a note says which): give a factory when the model's own initialisation matters.
        batches: one batch (a tensor, a dict, a tuple, a list of tensors) or an iterable of batches. At most as many are
            taken as the steps need; they are drawn once, before training, and repeated in their order.
        loss: `loss(model, batch)`, a scalar tensor. It must call the model that it is given.
        remedy: a registered remedy, applied to `layer` with `evidence` (e.g. needed_lag=99); or a function that is
            given a copy of the model to change in place, or that returns another model.
        layer: the recurrent layer's name in `model.named_modules()`; "rnn" when the model is the layer itself.
        seeds: one pair for each, at least two.
        steps: optimiser steps of each run.
        metric: `metric(model)`, a number, called after training in evaluation mode without gradients. Default: the mean
            loss over held-out batches, the last fifth of them (at least one); with a single batch, the training loss.
        metric_name: what the metric is called; default the function's name.
        higher_is_better: the sense of `metric`; of no effect on the default.
        lr: of the default optimiser, torch.optim.Adam.
        optimizer: from a list of parameters to an optimiser.
        clip: largest norm of the whole gradient, or None.
        progress: called after each step.

    Returns:
        A `Verification`. A run that meets a loss or a metric that is not finite ends there and counts as the worst: as
        the worst value of any other run, or as its own network before training, whichever is worse. An interruption
        (Ctrl-C) after two whole pairs returns what these show; before, it goes on to the caller.

    Raises:
        InputError: fewer than two seeds, no steps, no batches, a loss that is no scalar or does not reach the model's
            parameters, nothing to reinitialise, a remedy that cannot be applied.

    The model given, its gradients and modes, and torch's random state are left as they were. Numbers that the loss or
    the batches draw from numpy or `random` are theirs.
    """
    seeds = tuple(seeds)
    if len(seeds) < 2:
        raise InputError(f"{len(seeds)} seeds", "two at least: an interval needs a spread", "pass seeds=range(5)")
    if steps < 1:
        raise InputError(f"steps={steps}", "one step at least", "pass steps=200")
    notes: list[str] = []
    with _untouched_randomness(), torch.enable_grad():
        train, held_out = _split(batches, steps, hold_out=metric is None)
        if metric is None:
            higher_is_better = False
            measured = held_out or train
            metric_name = metric_name or ("held-out loss" if held_out else "training loss")
            if not held_out:
                notes.append("only one batch was given: nothing could be held out, the metric is the training loss")
        else:
            measured = []
        plan = Plan(
            train,
            loss,
            metric or (lambda network: mean_loss(network, loss, measured)),
            steps,
            optimizer or (lambda parameters: torch.optim.Adam(parameters, lr)),
            clip,
        )
        runs: list[tuple[Run, Run]] = []
        starts: list[list[Tensor]] = []
        total = 2 * len(seeds) * steps
        try:
            for pair, seed in enumerate(seeds):
                untreated = fresh(model, seed, notes)
                start = [parameter.detach().clone() for parameter in untreated.parameters()]
                check_other(start, starts)
                starts.append(start)
                treated = _treat(untreated, remedy, layer, evidence)
                first, second = (
                    trained(network, plan, seed, _tick(progress, (2 * pair + i) * steps, total, f"seed {seed}, {name}"))
                    for i, (name, network) in enumerate([("untreated", untreated), ("treated", treated)])
                )
                runs.append((first, second))
        except KeyboardInterrupt:
            if len(runs) < 2:
                raise
            notes.append(f"interrupted: {len(runs)} of {len(seeds)} pairs were finished")
            seeds = seeds[: len(runs)]
    before, after = _values(runs, seeds, higher_is_better, notes)
    return judge(
        before,
        after,
        remedy=remedy.name if isinstance(remedy, Remedy) else getattr(remedy, "__name__", type(remedy).__name__),
        metric=metric_name or getattr(metric, "__name__", "metric"),
        higher_is_better=higher_is_better,
        steps=steps,
        seeds=seeds,
        curves={
            "untreated": np.stack([first.curve for first, _ in runs]),
            "treated": np.stack([second.curve for _, second in runs]),
        },
        notes=tuple(notes),
    )


def judge(
    before: Array,
    after: Array,
    *,
    remedy: str,
    metric: str,
    higher_is_better: bool,
    steps: int,
    seeds: tuple[int, ...],
    curves: dict[str, Array],
    notes: tuple[str, ...] = (),
) -> Verification:
    """The verdict on (seeds,) metrics of pairs: mean difference ± t · s / √n, n − 1 degrees of freedom."""
    differences = after - before
    mean = float(differences.mean())
    margin = t_quantile(0.5 + LEVEL / 2, len(differences) - 1) * float(differences.std(ddof=1)) / math.sqrt(len(seeds))
    low, high = mean - margin, mean + margin
    verdict = "no help"
    if low > 0 or high < 0:
        verdict = "helps" if (mean > 0) == higher_is_better else "harms"
    return Verification(
        remedy, metric, higher_is_better, steps, seeds, before, after, mean, low, high, verdict, curves, notes
    )


@contextmanager
def _untouched_randomness() -> Iterator[None]:
    # Named devices: fork_rng warns when it has to choose among several by itself.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield


def _split(batches: Batch | Iterable[Batch], steps: int, hold_out: bool) -> tuple[list[Batch], list[Batch]]:
    """Batches to train on and to measure on. An endless stream is read as far as the steps and the measure ask."""
    most = steps + (math.ceil(steps / (HELD_OUT - 1)) if hold_out else 0)
    taken = as_batches(batches, most)
    held = math.ceil(len(taken) / HELD_OUT) if hold_out and len(taken) > 1 else 0
    return taken[: len(taken) - held], taken[len(taken) - held :]


def _treat(
    untreated: nn.Module, remedy: Remedy | Callable[[nn.Module], Any], layer: str, evidence: dict[str, Any]
) -> nn.Module:
    if isinstance(remedy, Remedy):
        return remedy.apply(untreated, layer, **evidence)
    treated = copy.deepcopy(untreated)
    returned = remedy(treated)
    # `lambda m: chrono_(m.rnn, 100)` returns a part of the copy: the whole copy is meant.
    if isinstance(returned, nn.Module) and all(returned is not part for part in treated.modules()):
        return returned
    return treated


def _tick(progress: Progress | None, start: int, total: int, what: str) -> Callable[[int], None]:
    if progress is None:
        return lambda step: None
    return lambda step: progress(start + step, total, what)


def _values(
    runs: list[tuple[Run, Run]], seeds: tuple[int, ...], higher_is_better: bool, notes: list[str]
) -> tuple[Array, Array]:
    """Metrics untreated and treated, with a number in place of every run that diverged."""
    worse = min if higher_is_better else max
    finite = [run.value for pair in runs for run in pair if math.isfinite(run.value)]
    values = np.empty((2, len(runs)))
    for pair, seed in enumerate(seeds):
        for side, name in enumerate(("untreated", "treated")):
            run = runs[pair][side]
            values[side, pair] = run.value
            if math.isfinite(run.value):
                continue
            candidates = [v for v in (*finite, run.untrained) if math.isfinite(v)]
            if not candidates:
                raise InputError(
                    f"a metric that is not finite, before training as well as after ({name}, seed {seed})",
                    "a finite metric of the untrained network at least",
                    "check data, loss and metric for NaN and inf",
                )
            values[side, pair] = worse(candidates)
            at = np.flatnonzero(np.isnan(run.curve) | np.isinf(run.curve))
            where = f"the loss was not finite at step {at[0] + 1}" if len(at) else "the metric was not finite"
            notes.append(f"seed {seed}, {name}: {where}; counted as the worst value, {values[side, pair]:.4g}")
    return values[0], values[1]
