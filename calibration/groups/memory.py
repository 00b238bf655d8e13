"""The same task, cell and seed, begun in ways that remember for different times."""

from __future__ import annotations

from calibration.case import LAST, STEPS, Case, case_of, network_of, stalled
from calibration.tasks import TASKS, Task
from calibration.training import Training, measured, train
from throughtime.flow import LayerFlow


def memory(task_name: str, cell: str, seed: int) -> list[Case]:
    """Vanishing: this one fails (under a quarter of the best skill), and another beginning of the same run learns."""
    task = TASKS[task_name]()
    gated = ("default", "keep 1", "keep 2", "chrono")
    ways = gated if cell != "RNN" else ("default", "orthogonal 0.8", "orthogonal 0.9", "orthogonal 1")
    runs = {way: _trained(task, cell, way, seed) for way in ways}
    skill = {way: 1 - run.late(LAST) / task.chance for way, (_, run) in runs.items()}
    best = max(skill.values())
    cases = []
    for way, (before, run) in runs.items():
        learned, failed = skill[way] > best / 2, skill[way] < best / 4
        clear = best > 0.2 and (learned or failed)
        fault = {"TT101": failed, "TT102": False, "TT103": False} if clear else {}
        name = f"{task_name}, {cell}, {way}"
        family = "unclear" if not clear else "vanishing" if failed else "healthy"
        cases.append(case_of(family, name, seed, "before", before, task, None, fault))
        assert run.network is not None
        during = measured(run.network, task, seed)
        plateau = stalled(run, task)
        still = {"TT190": plateau and not failed} if clear and plateau is not None else {}
        cases.append(case_of(family, name, seed, "during", during, task, run.history(run.kept_at), fault | still))
    return cases


def _trained(task: Task, cell: str, way: str, seed: int) -> tuple[LayerFlow, Training]:
    network = network_of(task, cell, way, seed)
    before = measured(network, task, seed)
    return before, train(network, task, seed, STEPS, snapshot=STEPS // 2)
