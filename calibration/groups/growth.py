"""Large recurrent gains, by gradient descent without and with clipping."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from calibration.case import LAST, Case, network_of
from calibration.tasks import TASKS, Task
from calibration.training import Training, measured, train
from throughtime.diagnosis.report import Needed

DESCENT = 150


def growth(cell: str, way: str, nonlinearity: str, rate: float, seed: int) -> list[Case]:
    """Exploding: without clipping something is thrown off that is not when the same run is clipped at its median norm.

    Thrown off: a loss that is not finite or leaps beyond three times chance, or weights that one step moves by half of their
    length; or a skill under half of what the clipped run has. Unclear: the clipped run is thrown off too.
    """
    task = TASKS["cue 40"]()
    options = {"nonlinearity": nonlinearity} if nonlinearity else {}
    first = network_of(task, cell, way, seed, hidden=32, **options)
    before = measured(first, task, seed, demand=False)

    def descend(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, rate)

    free = train(first, task, seed, DESCENT, optimizer=descend, clip=None, keep_burst=True)
    usual = float(np.median([norm for norm in free.norms if np.isfinite(norm)] or [1.0]))
    again = network_of(task, cell, way, seed, hidden=32, **options)
    held = train(again, task, seed, DESCENT, optimizer=descend, clip=min(usual, 1.0))
    lost, saved = (1 - run.late(LAST) / task.chance for run in (free, held))
    thrown = _thrown(free, task) or (saved > 0.2 and lost < saved / 2)
    clear = not (thrown and _thrown(held, task))
    family = "unclear" if not clear else "exploding" if thrown else "not exploding"
    truth = {"TT102": thrown} if clear else {}
    name = f"{cell} {nonlinearity} {way}, rate {rate:g}".replace("  ", " ")
    unknown = Needed(before.name, (), "unknown")
    history = free.history(DESCENT)
    cases = [
        Case(family, name, seed, "before", before, unknown, None, truth),
        Case(family, name, seed, "before, norms known", before, unknown, history, truth),
    ]
    if free.burst is not None:
        at_burst = measured(free.burst, task, seed, demand=False)
        cases.append(Case(family, name, seed, "at the largest norm", at_burst, unknown, history, truth))
    return cases


def _thrown(run: Training, task: Task) -> bool:
    return not np.isfinite(run.losses).all() or max(run.losses) > 3 * task.chance or run.leap > 0.5
