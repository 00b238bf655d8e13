"""No dependence: nothing is needed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from calibration.case import Case, case_of, network_of
from calibration.tasks import Task
from calibration.training import measured
from throughtime.tasks.synthetic import autoregressive


def independent(cell: str, rho: float, seed: int) -> list[Case]:
    """A target that has nothing to do with the inputs: nothing is needed, so nothing is at fault."""

    def draw(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return autoregressive(60, batch, generator, rho=rho), torch.randn(batch, 1, generator=generator)

    task = Task(1, 1, 0, draw, lambda output, y: nn.functional.mse_loss(output[-1], y), 1.0)
    layer = measured(network_of(task, cell, "default", seed), task, seed)
    truth: dict[str, bool] = dict.fromkeys(("TT101", "TT102", "TT103", "TT190"), False)
    return [case_of("no dependence", f"{cell}, inputs AR({rho:g})", seed, "before", layer, task, None, truth)]
