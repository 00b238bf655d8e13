"""How far the gradient reaches in the networks that were trained, read by the library itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from reproduce.rehmer_kroll.arms import KINDS, Arm
from reproduce.rehmer_kroll.identification import Task
from reproduce.rehmer_kroll.replicas import Network
from throughtime.diagnosis.diagnose import judge, measure
from throughtime.training_step import as_step

RECORDS = 8
CODES = ("TT101", "TT102")
"""The gradient vanishes before the needed lag; the gradient explodes."""


@dataclass(frozen=True)
class Reading:
    """One moment of one arm, over seeds. horizon: (seeds,) gradient horizon(1 %) in steps, NaN where there is none.

    log10_arriving: (seeds,) of the fraction of the gradient that arrives at the needed lag, NaN where it is below all
    that is told apart. fired: how many of the networks each rule spoke up for.
    """

    horizon: np.ndarray
    log10_arriving: np.ndarray
    fired: dict[str, int]


def error(task: Task):
    """The training loss of the task as the library takes it: fn(model, batch)."""

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return (model(x)[task.first :] - y[task.first :]).square().mean()

    return loss


def demand(task: Task, kind: str = "gru") -> int | None:
    """The farthest lag that demand finds in the validation records, with an untrained network."""
    from reproduce.rehmer_kroll.arms import Job, start

    model = Network(KINDS[kind], start(Job(task.name, kind), (0,)), 0)
    return judge(measure(model, [task.validation], as_step(error(task)))).needed[0].farthest


def read(arm: Arm, task: Task, step: int, needed_lag: int, seeds: int) -> Reading:
    """The first `seeds` networks of an arm as they were before training step `step`."""
    x, y = task.validation
    batch = (x[:, :RECORDS], y[:, :RECORDS])
    horizons, arriving = [], []
    fired: dict[str, int] = dict.fromkeys(CODES, 0)
    for replica in range(min(seeds, arm.norms.shape[1])):
        model = Network(KINDS[arm.job.kind], arm.kept[step], replica)
        flow = measure(model, [batch], as_step(error(task)), demand=False)
        layer = flow.layers["rnn"]
        horizon = layer.horizon[0.01]
        horizons.append(np.nan if horizon is None else horizon)
        arriving.append(layer.log10_arriving[needed_lag])
        codes = {finding.code for finding in judge(flow, needed_lag).findings}
        for code in CODES:
            fired[code] += code in codes
    return Reading(np.array(horizons, float), np.array(arriving, float), fired)


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0; ties, which do not occur among floats here, in order."""
    return np.argsort(np.argsort(values)).astype(float)


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation over the runs in which both are finite."""
    sound = np.isfinite(a) & np.isfinite(b)
    return float(np.corrcoef(ranks(a[sound]), ranks(b[sound]))[0, 1])
