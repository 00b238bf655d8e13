"""Memory is in order, something else is not."""

from __future__ import annotations

import torch
from torch import Tensor

from calibration.case import STEPS, Case, network_of, stalled
from calibration.tasks import TASKS
from calibration.training import measured, train
from throughtime.diagnosis.report import Needed


def broken(cause: str, task_name: str, cell: str, seed: int) -> list[Case]:
    """Begun with chrono, the lag told; what is wrong is the labels, the learning rate, the size, or nothing."""
    task = TASKS[task_name]()
    network = network_of(task, cell, "chrono", seed, hidden=1 if cause == "one unit" else 24)
    rate = {"tiny rate": 1e-6, "huge rate": 3.0}.get(cause, 1e-2)
    shuffled = cause == "shuffled labels"

    def loss(output: Tensor, y: Tensor) -> Tensor:
        return task.loss(output, y.roll(1, 0) if shuffled else y)

    run = train(
        network,
        task,
        seed,
        STEPS,
        optimizer=lambda parameters: torch.optim.Adam(parameters, rate),
        snapshot=STEPS // 2,
        loss=loss,
    )
    assert run.network is not None
    layer = measured(run.network, task, seed, demand=False)
    plateau = stalled(run, task)
    truth = {"TT103": False, "TT102": False}
    if plateau is not None and cause != "huge rate":
        truth["TT190"] = plateau
    family = "healthy" if cause == "nothing" else "not a gradient problem"
    needed = Needed(layer.name, (task.lag,), "user")
    return [
        Case(family, f"{cause}: {task_name}, {cell}", seed, "during", layer, needed, run.history(run.kept_at), truth)
    ]
