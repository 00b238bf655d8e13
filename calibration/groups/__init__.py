"""The labelled runs, group by group: each function makes the cases of one from a seed.

Groups whose label is unclear (nothing learned the task, or half of it was learned) judge nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

from calibration.case import Case
from calibration.groups.broken import broken
from calibration.groups.cut import CUTS, cut, short_window
from calibration.groups.growth import growth
from calibration.groups.independent import independent
from calibration.groups.memory import memory
from calibration.groups.set_up import SET_UPS, set_up
from calibration.tasks import TASKS

Group = Callable[[], list[Case]]
SEEDS = (0, 1)
"""Even seeds set the thresholds, odd ones are judged."""
REPEATED = ("cue 20", "near and far 30", "digits 17")
"""Tasks whose labels are seldom unclear: run with four seeds."""
BROKEN = (("cue 20", "GRU"), ("cue 20", "LSTM"), ("digits 17", "GRU"), ("digits 17", "LSTM"))


def groups() -> list[tuple[str, Group]]:
    """(name, function that makes the cases) of every group, the slow ones first."""
    found: list[tuple[str, Group]] = []

    def add(what: Callable[..., list[Case]], *arguments: Any) -> None:
        found.append((f"{what.__name__}: {', '.join(map(str, arguments))}", partial(what, *arguments)))

    for task, cell in itertools.product(TASKS, ("GRU", "LSTM", "RNN")):
        for seed in range(4) if task in REPEATED else SEEDS:
            add(memory, task, cell, seed)
    gains = [("RNN", f"gain {g}", "tanh", 0.1) for g in (1, 1.5, 2, 3)]
    gains += [("RNN", f"identity {g}", "relu", 0.1) for g in (0.95, 1, 1.03, 1.06)]
    gains += [("RNN", f"orthogonal {g}", "tanh", 0.1) for g in (1, 1.2)]
    gains += [(cell, f"gain {g}", "", 0.1) for cell in ("GRU", "LSTM") for g in (1, 4, 8)]
    gains += [("RNN", "orthogonal 1.2", "tanh", 0.003), ("RNN", "identity 1.03", "relu", 0.003)]
    gains += [(cell, "gain 4", "", 0.003) for cell in ("GRU", "LSTM")]
    for (cell, way, kind, rate), seed in itertools.product(gains, SEEDS):
        add(growth, cell, way, kind, rate, seed)
    causes = ("nothing", "shuffled labels", "tiny rate", "one unit", "huge rate")
    for cause, (task, cell), seed in itertools.product(causes, BROKEN, SEEDS):
        add(broken, cause, task, cell, seed)
    for kind, seed in itertools.product(CUTS, SEEDS):
        add(cut, kind, seed)
    for (task, short), cell, seed in itertools.product(
        (("cue 20", 15), ("cue 20", 21), ("digits 17", 16)), ("GRU", "LSTM", "RNN"), SEEDS
    ):
        add(short_window, task, cell, short, seed)
    for cell, rho, seed in itertools.product(("GRU", "LSTM", "RNN"), (0.0, 0.9), range(6)):
        add(independent, cell, rho, seed)
    for kind, cell, seed in itertools.product(SET_UPS, ("GRU", "LSTM", "RNN"), SEEDS):
        add(set_up, kind, cell, seed)
    return found


def made(place: int) -> list[Case]:
    """The cases of one group, in a process of its own."""
    return groups()[place][1]()
