"""The rows of the table, group by group: each a ratio with its interval, the aim it is held to, and peak memory.

A full run takes the sizes below; `check` those of them that are soon done, `quick` small ones, to see that it runs.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from benchmarks.compiled import compiling
from benchmarks.memory import megabytes
from benchmarks.pairs import Timing, compared, timing, turns
from benchmarks.scene import WORKS, Scene
from benchmarks.works import check_jacobians, check_scaling, check_terms

QUICK, CHECK, FULL = ("quick", "check", "full")
JOB_B = Scene(128, 200, every=True)


@dataclass(frozen=True)
class Row:
    """One line: what `work` takes relative to `base`, median and interval; aim: "≤ 1", "≥ 5", "≤ 4096 MB" (of peak
    memory), "" without one.

    Where the aim is to be faster than a rival, the ratio is the rival's time over ours. better: "lower" or "higher", "" of a
    row that says nothing about ours. seconds: of `work`. megabytes: at its peak, NaN where they were not measured.
    """

    group: str
    work: str
    base: str
    hidden: int
    steps: int
    batch: int
    seconds: float
    ratio: float
    low: float
    high: float
    aim: str
    megabytes: float
    base_megabytes: float
    better: str = "lower"
    date: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the aim; None without one."""
        if not self.aim:
            return None
        sign, value, *unit = self.aim.split()
        reached = self.megabytes if unit else self.ratio
        if math.isnan(reached):
            return None
        return reached <= float(value) if sign == "≤" else reached >= float(value)

    @property
    def key(self) -> tuple[object, ...]:
        """What tells it from other rows."""
        return self.group, self.work, self.base, self.hidden, self.steps, self.batch


@dataclass(frozen=True)
class _Bench:
    """How rows are measured. memory: whether peaks are, which takes a process each."""

    group: str
    mode: str
    device: str
    memory: bool

    def take(self, full: Mapping[Scene, int], checked: tuple[Scene, ...], quick: Scene) -> Iterator[tuple[Scene, int]]:
        """Scenes and rounds of this mode. checked: those of the full run that `check` takes."""
        if self.mode == QUICK:
            chosen = {quick: 2}
        else:
            chosen = {scene: rounds for scene, rounds in full.items() if self.mode == FULL or scene in checked}
        for scene, rounds in chosen.items():
            here = replace(scene, device=self.device)
            losses = "a loss at every step" if here.every else "one loss"
            print(
                f"  {self.group}: H={here.hidden} T={here.steps} B={here.batch}, {losses} …",
                file=sys.stderr,
                flush=True,
            )
            yield here, rounds

    def against(
        self, scene: Scene, base: str, aims: Mapping[str, str], rounds: int, better: Mapping[str, str] | None = None
    ) -> Iterator[Row]:
        """Works against a base. better: of a work, where it is not that lower is."""
        times = compared(self.turns(scene, (base, *aims), rounds))
        for name, aim in aims.items():
            yield self.row(name, base, scene, times[name].seconds, times[name], aim, (better or {}).get(name, "lower"))

    def faster(self, scene: Scene, ours: str, rivals: tuple[str, ...], aim: str, rounds: int) -> Iterator[Row]:
        """How many times faster ours is."""
        times = compared(self.turns(scene, (ours, *rivals), rounds))
        for name in rivals:
            yield self.row(ours, name, scene, times[ours].seconds, times[name], aim, "higher")

    def turns(self, scene: Scene, names: tuple[str, ...], rounds: int, warm: bool = True) -> dict[str, list[float]]:
        """See `pairs.turns`; what is measured was recorded before."""
        if any(WORKS[name].recorded for name in names):
            assert scene.traces
        return turns({name: lambda name=name: WORKS[name].run(scene) for name in names}, rounds, self.device, warm)

    def peak(self, name: str, scene: Scene) -> float:
        """MB of a work, NaN where they are not measured."""
        return megabytes(name, scene) if self.memory and name in WORKS and WORKS[name].peak else math.nan

    def row(self, work: str, base: str, scene: Scene, seconds: float, ratio: Timing, aim: str, better: str) -> Row:
        peaks = [self.peak(name, scene) for name in (work, base)]
        size = (scene.hidden, scene.steps, scene.batch)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return Row(self.group, work, base, *size, seconds, ratio.ratio, ratio.low, ratio.high, aim, *peaks, better, now)


def one_loss(bench: _Bench) -> Iterator[Row]:
    """The decomposition of a last-step loss, and recording, against the training step itself."""
    full = {Scene(hidden, steps): _rounds(hidden * steps) for hidden in (32, 128, 512) for steps in (100, 1000)}
    aims = {
        "recorded": "",
        "ledger": "≤ 1.0",
        "every_k": "≤ 1.5",
        "single_products": "",
        "bytes_moved": "",
        "unroll_adjoints": "",
    }
    told = dict.fromkeys(("single_products", "bytes_moved", "unroll_adjoints"), "")
    for scene, rounds in bench.take(full, (Scene(32, 1000), Scene(128, 100), Scene(128, 1000)), Scene(32, 50)):
        yield from bench.against(scene, "plain", aims, rounds, told)


def _rounds(size: int) -> int:
    return 15 if size <= 32_000 else 7 if size <= 128_000 else 3


def loss_at_every_step(bench: _Bench) -> Iterator[Row]:
    """The same with a loss at every step, and the products without which no G(τ) is formed."""
    # The largest take a minute each for a few rounds; H=512 at B=16 would take ten.
    sizes = {
        (32, 1000, 16): 3,
        (64, 1000, 4): 5,
        (64, 4000, 4): 3,
        (128, 200, 16): 5,
        (128, 1000, 16): 3,
        (512, 1000, 4): 2,
    }
    full = {Scene(*size, every=True): rounds for size, rounds in sizes.items()}
    checked = (Scene(64, 1000, 4, every=True), JOB_B)
    for scene, rounds in bench.take(full, checked, Scene(32, 50, 4, every=True)):
        aim = "≤ 2.0" if scene.steps >= 1000 else ""
        yield from bench.against(scene, "plain", {"ledger": aim, "products": ""}, rounds, {"products": ""})


def against_copies(bench: _Bench) -> Iterator[Row]:
    """Job B: every parameter's terms by lag, a loss at every step, rival's time over ours."""
    full = {JOB_B: 2, Scene(64, 200, 4, every=True): 3, Scene(64, 1000, 4, every=True): 1}
    for scene, rounds in bench.take(full, tuple(full)[1:2], Scene(16, 16, 4, every=True)):
        long = scene.steps >= 1000  # one round of the fastest rival: half a million steps back take it half a minute
        rivals = ("copies_vmapped",) if long else ("copies_by_origin", "copies_batched", "copies_vmapped")
        if not long:
            check_terms(scene)
        told = bench.turns(scene, ("terms_by_lag", "terms_of_all_lags", *rivals), rounds, warm=not long)
        for ours, aim in (("terms_by_lag", "≥ 50"), ("terms_of_all_lags", "")):
            times = compared({name: told[name] for name in (ours, *rivals)})
            for name in rivals:
                yield bench.row(ours, name, scene, times[ours].seconds, times[name], aim, "higher")


def product_rate(bench: _Bench) -> Iterator[Row]:
    """The sweep's rate of matrix products over the machine's best at the same shapes: their time alone over the sweep's."""
    full = {JOB_B: 5, Scene(64, 1000, 4, every=True): 3, Scene(512, 100, every=True): 3}
    for scene, rounds in bench.take(full, (JOB_B,), Scene(32, 50, 4, every=True)):
        yield from bench.faster(scene, "all_lags", ("products_of_all_lags",), "≥ 0.6", rounds)


def reducers(bench: _Bench) -> Iterator[Row]:
    """What shares, norms, bias and signal-to-noise cost above the adjoints of the same sweep."""
    aims = {"adjoint_norms": "", "shares": "≤ 1.5", "norm_and_bias": "≤ 2.5", "signal_to_noise": "≤ 3.5"}
    full = {JOB_B: 5, Scene(64, 1000, 4, every=True): 5}
    for scene, rounds in bench.take(full, tuple(full), Scene(32, 50, 4, every=True)):
        yield from bench.against(scene, "adjoints_alone", aims, rounds)


def growth(bench: _Bench) -> Iterator[Row]:
    """The exponent of time against T, a loss at every step: by least squares through the logarithms, round by round."""
    default = Scene(64, 4000, 4, every=True)
    chrono = Scene(32, 2000, 2, every=True, chrono=100)
    for scene, rounds in bench.take({default: 4, chrono: 2}, (default,), Scene(16, 120, 2, every=True)):
        lengths = [scene.steps // 2**power for power in range(4 if scene.chrono or bench.mode == QUICK else 5)][::-1]
        scenes = [replace(scene, steps=steps) for steps in lengths]
        assert all(each.traces for each in scenes)
        works = {str(each.steps): lambda each=each: WORKS["ledger"].run(each) for each in scenes}
        times = turns(works, rounds, bench.device)
        logs = [math.log(steps) for steps in lengths]
        slopes = [_slope(logs, [math.log(times[str(steps)][turn]) for steps in lengths]) for turn in range(rounds)]
        told = timing(times[str(lengths[-1])], slopes)
        aim, base = "" if scene.chrono else "≤ 1.15", f"T from {lengths[0]}, exponent"
        name = "ledger_chrono" if scene.chrono else "ledger"
        yield bench.row(name, base, scene, told.seconds, told, aim, "lower")


def _slope(xs: list[float], ys: list[float]) -> float:
    middle, height = sum(xs) / len(xs), sum(ys) / len(ys)
    rise = sum((x - middle) * (y - height) for x, y in zip(xs, ys, strict=True))
    return rise / sum((x - middle) ** 2 for x in xs)


def no_loss(bench: _Bench) -> Iterator[Row]:
    """Jacobians and norms, the rival's time over ours."""
    full = {Scene(128, 200): 5}
    for scene, rounds in bench.take(full, tuple(full), Scene(32, 50)):
        check_jacobians(scene)
        yield from bench.faster(scene, "one_step_jacobians", ("vmap_jacobians",), "≥ 5.0", rounds)
        yield from bench.faster(scene, "state_norms", ("batched_grad_norms",), "≥ 2.0", rounds)


def scaling(bench: _Bench) -> Iterator[Row]:
    """The price of powers of two, where a chrono layer's adjoints stay within floats without them."""
    full = {
        Scene(64, 1000, chrono=1000): 15,
        Scene(128, 1000, chrono=1000): 9,
        Scene(64, 200, every=True, chrono=200): 9,
        Scene(128, 200, every=True, chrono=200): 7,
    }
    for scene, rounds in bench.take(full, tuple(full)[::3], Scene(32, 50, chrono=50)):
        check_scaling(scene)
        yield from bench.against(scene, "unscaled_sweep", {"scaled_sweep": "≤ 1.1"}, rounds)


def long_sequence(bench: _Bench) -> Iterator[Row]:
    """Memory of one loss after many steps; and within a budget, with its price in time, there and at every step."""
    for scene, rounds in bench.take({Scene(64, 100_000, 1): 1}, (), Scene(32, 300, 1)):
        yield from bench.against(scene, "plain", {"ledger": "≤ 4096 MB"}, rounds)
        yield from bench.against(scene, "ledger", {"within_250": "≤ 250 MB"}, rounds)
    every = Scene(128, 1000, 16, every=True)
    for scene, rounds in bench.take({every: 2}, (), Scene(32, 50, 4, every=True)):
        yield from bench.against(scene, "ledger", {"within_100": "≤ 100 MB"}, rounds)


def chunks_compiled(bench: _Bench) -> Iterator[Row]:
    """What compiled chunks of steps save, and after how many decompositions of one shape they have paid for the compiling."""
    full = {
        Scene(64, 10_000, 1): 3,
        Scene(128, 1000): 5,
        Scene(64, 1000, 4, every=True): 3,
    }
    for scene, rounds in bench.take(full, (), Scene(32, 300)):
        times = bench.turns(scene, ("ledger", "ledger_compiled"), rounds)
        told = compared(times)["ledger_compiled"]
        base = "decomposition, a loss at every step" if scene.every else "ledger"
        yield bench.row("ledger_compiled", base, scene, told.seconds, told, "", "lower")
        saved = statistics.median(a - b for a, b in zip(*times.values(), strict=True))
        for name, seconds in compiling(scene).items() if saved > 0 else ():
            yield bench.row(name, "saved each time", scene, seconds, timing([seconds], [seconds / saved]), "", "")


GROUPS: dict[str, Callable[[_Bench], Iterator[Row]]] = {
    "one-loss": one_loss,
    "every-step": loss_at_every_step,
    "job-b": against_copies,
    "rate": product_rate,
    "reducers": reducers,
    "growth": growth,
    "jacobians": no_loss,
    "scaling": scaling,
    "long": long_sequence,
    "compiled": chunks_compiled,
}


def rows(group: str, mode: str, device: str = "cpu") -> Iterator[Row]:
    """Measure one group. Peaks of memory are left out but in a full run."""
    yield from GROUPS[group](_Bench(group, mode, device, memory=mode == FULL))
