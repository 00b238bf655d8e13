"""`python -m benchmarks.parts`: where the time of one loss's decomposition goes, in parts of the training step.

Timers around the functions that do each part, what others inside them take left out. They add some percent themselves.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from unittest.mock import patch

import torch

from benchmarks.ours import LEDGER, plain
from benchmarks.scene import Scene
from throughtime.explain import explain

SCENES = ((32, 100), (128, 100), (128, 1000), (512, 100), (512, 1000))
TURNS = 15
REST = "the rest"
PARTS = {
    "sweep, step by step": ("sweep.march",),
    "gates again, and their derivatives": ("linearize.Window._factors",),
    "shares (h Gᵀ)": ("reducers.shares.Shares._inner",),
    "residual and bias (p hᵀ)": ("reducers.remainder.Remainder.take_away", "reducers.ledger.Ledger._factors"),
    "norms of the terms": ("reducers.ledger.term_squares",),
    "adjoints and paths by lag": ("reducers.adjoints.Adjoints.update", "reducers.paths.Paths.update"),
    "statistics of gates and units": ("gates.told", "units.told"),
    "results: sums, logarithms and labels, comparison with G": (
        "explain.collect",
        "explain.finish",
        "explain.of_ledger",
    ),
    REST: ("explain._layer",),
}


@contextmanager
def timed(spent: dict[str, float]) -> Iterator[None]:
    """Add up the processor seconds of each part meanwhile."""
    inside = [0.0]  # of what was called, by depth

    def around(part: str, function: Callable) -> Callable:
        @wraps(function)
        def run(*given: object, **named: object) -> object:
            begin = time.process_time()
            inside.append(0.0)
            try:
                return function(*given, **named)
            finally:
                took = time.process_time() - begin
                spent[part] += took - inside.pop()
                inside[-1] += took

        return run

    with ExitStack() as stack:
        for part, functions in PARTS.items():
            for name in functions:
                target = patch(f"throughtime.{name}")
                function, _ = target.get_original()
                stack.enter_context(patch(f"throughtime.{name}", around(part, function)))
        yield


def measured(hidden: int, steps: int) -> dict[str, float]:
    """Part → its time over that of the training step, the median of interleaved turns."""
    scene, turns = Scene(hidden, steps), []
    for _ in range(TURNS):
        spent: dict[str, float] = defaultdict(float)
        with timed(spent):
            explain(scene.traces, **LEDGER)
        begin = time.process_time()
        plain(scene)
        step = time.process_time() - begin
        turns.append({part: spent[part] / step for part in PARTS})
    return {part: statistics.median(turn[part] for turn in turns[2:]) for part in PARTS}


def main() -> None:
    torch.set_num_threads(1)
    made = [measured(*scene) for scene in SCENES]
    print("| part | " + " | ".join(f"H={hidden}, T={steps}" for hidden, steps in SCENES) + " |")
    print("|---" * (1 + len(SCENES)) + "|")
    for part in PARTS:
        print(f"| {part} | " + " | ".join(f"{each[part]:.2f}".removeprefix("0") for each in made) + " |")


if __name__ == "__main__":
    main()
