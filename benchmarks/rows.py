"""The rows of the table: each a ratio with its interval, the aim it is held to, and peak memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.memory import megabytes
from benchmarks.pairs import Timing, measure
from benchmarks.works import Scene, check

PLAIN = "plain"
SIZES = [(hidden, steps) for hidden in (32, 128, 512) for steps in (100, 1000)]
QUICK = [(32, 100), (128, 100)]


@dataclass(frozen=True)
class Row:
    """One line: `seconds`, `low` … `high` of what `work` takes relative to `base`; aim: "≤ 1" or "≥ 5", "" without one.

    Where the aim is to be faster than a rival, the ratio is the rival's time over ours.
    """

    group: str
    work: str
    base: str
    hidden: int
    steps: int
    seconds: float
    ratio: float
    low: float
    high: float
    aim: str
    megabytes: float
    base_megabytes: float

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the aim; None without one."""
        if not self.aim:
            return None
        sign, value = self.aim.split()
        return self.ratio <= float(value) if sign == "≤" else self.ratio >= float(value)


def rows(quick: bool) -> Iterator[Row]:
    """Measure one group after another."""
    for hidden, steps in QUICK if quick else SIZES:
        yield from _against_plain(Scene(hidden, steps), 7 if quick else _rounds(hidden, steps))
    hidden, steps = (32, 50) if quick else (128, 200)
    scene = Scene(hidden, steps)
    _tell(f"the same answers, H={hidden} T={steps}")
    check(scene)
    yield from _against_rivals(scene, 3 if quick else 5)
    yield from _every_step(Scene(hidden, steps, every=True), 3)


def _rounds(hidden: int, steps: int) -> int:
    return 15 if hidden * steps <= 32_000 else 7 if hidden * steps <= 128_000 else 5


def _against_plain(scene: Scene, rounds: int) -> Iterator[Row]:
    """Row a: the decomposition of a last-step loss, and recording, against the training step itself."""
    aims = {"recorded": "", "ledger": "≤ 1.0", "every_k": "≤ 1.5", "unroll_adjoints": ""}
    _tell(f"one loss, H={scene.hidden} T={scene.steps}")
    times = measure({name: getattr(scene, name) for name in (PLAIN, *aims)}, rounds)
    memory = {name: megabytes(name, scene) for name in times}
    for name, aim in aims.items():
        yield _row("one loss", name, PLAIN, scene, times[name], times[name], aim, memory)


def _against_rivals(scene: Scene, rounds: int) -> Iterator[Row]:
    """Row e: Jacobians and norms, the rival's time over ours."""
    for ours, rival, aim in (
        ("one_step_jacobians", "vmap_jacobians", "≥ 5.0"),
        ("state_norms", "batched_grad_norms", "≥ 2.0"),
    ):
        _tell(f"{ours}, H={scene.hidden} T={scene.steps}")
        times = measure({ours: getattr(scene, ours), rival: getattr(scene, rival)}, rounds)
        memory = {name: megabytes(name, scene) for name in times}
        yield _row("no loss", ours, rival, scene, times[ours], times[rival], aim, memory)


def _every_step(scene: Scene, rounds: int) -> Iterator[Row]:
    _tell(f"a loss at every step, H={scene.hidden} T={scene.steps}")
    times = measure({name: getattr(scene, name) for name in (PLAIN, "ledger")}, rounds)
    memory = {name: megabytes(name, scene) for name in times}
    yield _row("loss at every step", "ledger", PLAIN, scene, times["ledger"], times["ledger"], "", memory)


def _row(
    group: str, work: str, base: str, scene: Scene, own: Timing, ratio: Timing, aim: str, memory: dict[str, float]
) -> Row:
    return Row(
        group,
        work,
        base,
        scene.hidden,
        scene.steps,
        own.seconds,
        ratio.ratio,
        ratio.low,
        ratio.high,
        aim,
        memory[work],
        memory[base],
    )


def _tell(what: str) -> None:
    print(f"  measuring {what} …", file=sys.stderr, flush=True)
