"""A labelled case, and what the groups of cases share.

A case is one measured layer with what a user would know, and for each rule that it is to judge whether the fault is there. A
label comes from how the network was built, or from what training then did; never from a rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from calibration.networks import Network, begin
from calibration.tasks import Task
from calibration.training import Training
from throughtime.diagnosis.diagnose import needs
from throughtime.diagnosis.report import Needed
from throughtime.diagnosis.rule import History
from throughtime.flow import LayerFlow

STEPS = 200
"""Of a training of the memory runs; at half of them its user looks at what goes wrong."""
LAST = 20
"""Losses that make the outcome."""


@dataclass(frozen=True)
class Case:
    """One judgement: truth says for each rule code whether its fault is there. moment: when the layer was measured."""

    family: str
    name: str
    seed: int
    moment: str
    layer: LayerFlow
    needed: Needed
    history: History | None
    truth: Mapping[str, bool]


def case_of(
    family: str,
    name: str,
    seed: int,
    moment: str,
    layer: LayerFlow,
    task: Task,
    history: History | None,
    truth: Mapping[str, bool],
) -> Case:
    """A case whose needed lag is the task's, where its user knows it."""
    return Case(family, name, seed, moment, layer, needs(layer, task.lag if task.told else None), history, truth)


def network_of(task: Task, cell: str, way: str, seed: int, hidden: int = 24, **options: str) -> Network:
    """A network for the task, begun in this way under a seed. options: of torch's layer."""
    torch.manual_seed(seed)
    network = Network(cell, task.inputs, task.outputs, hidden, **options)
    begin(network.rnn, way, task.lag + 1)
    return network


def stalled(run: Training, task: Task) -> bool | None:
    """Whether training from the snapshot to its end gained nothing: under 3 % of chance. None where it is not clear.

    Nor is it clear of a task that is solved, to a tenth of chance: its loss has nowhere to fall.
    """
    late = run.late(LAST)
    if not late > 0.1 * task.chance or not np.isfinite(late):
        return None
    gain = (np.mean(run.losses[run.kept_at - LAST : run.kept_at]) - late) / task.chance
    return True if gain < 0.03 else False if gain > 0.1 else None
