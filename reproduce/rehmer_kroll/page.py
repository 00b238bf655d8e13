"""What stands on docs/rehmer-kroll.md: numbers, tables and figures, all computed here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from reproduce.rehmer_kroll import figures, intervals, scalar, supply, vector
from reproduce.rehmer_kroll.arms import FAILED, KINDS, UNITS, Arm, Scale
from reproduce.rehmer_kroll.identification import Task, delay_task, throttle_task
from reproduce.rehmer_kroll.replicas import GRU_BEFORE, count
from reproduce.rehmer_kroll.replicas import KINDS as VECTOR_KINDS
from reproduce.rehmer_kroll.trials import DELAYS, LAGS, THROTTLE, Trial, all_trials
from reproduce.study import Made, Study
from throughtime.progress import Tell
from throughtime.tasks.throttle import SAMPLING

IMAGES = "images/rehmer-kroll"
GATES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95)
LENGTHS = (50, 100, 200, 400, 800, 1600)
SLOPES = (-8.0, -2.0, -1.0, 0.0, 1.0, 2.0, 8.0)
LEAST_TIME = 20.0
LAST = 50
"""Training steps over which the final loss is taken."""
SPIKE = 10.0
"""A spike is a local gradient so many times the run's own median."""
MARKS = (1.0, 2.0, 4.0, 8.0)
"""Gains of the table, in units of the critical one."""


@dataclass(frozen=True)
class Size:
    """How much is computed; the defaults make the page."""

    trials: Scale = field(default_factory=Scale)
    lengths: tuple[int, ...] = LENGTHS
    gains: tuple[float, ...] = tuple(float(2**power) for power in np.arange(-2, 3.26, 0.25))
    vector_seeds: int = 100
    vector_steps: int = 50
    read: int = 5
    workers: int | None = None


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, as a block of its own."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n\n" + "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n\n"


def number(value: float) -> str:
    """Three digits, in scientific writing where it is very large or small."""
    if not np.isfinite(value):
        return "–"
    if value != 0 and (abs(value) >= 1e4 or abs(value) < 1e-3):
        power = int(np.floor(np.log10(abs(value))))
        return f"{value / 10.0**power:.1f} · 10<sup>{power}</sup>"
    return f"{value:.3g}" if abs(value) < 1000 else f"{float(f'{value:.3g}'):.0f}"


def interval(told: tuple[float, float, float], form: str = "{:.0f}") -> str:
    """A value and its interval."""
    value, low, high = (re.sub(r"^-(0(\.0*)?)$", r"\1", form.format(each)).replace("-", "−") for each in told)
    return f"{value} ({low} to {high})"


def failed(arm: Arm) -> int:
    """Runs below the line; a run that diverged is one."""
    return int((arm.bfr < FAILED).sum())


# The scalar unit.


def scalar_part(size: Size) -> tuple[dict[str, str], dict[str, str]]:
    """Blocks and figures of section 1."""
    heights = {(N, z): scalar.peak(N, scalar.Gate.of(z)).height for N in size.lengths for z in GATES}
    rows = []
    for z in GATES:
        cells = ["0 (Elman)" if z == 0 else f"{z:g}"]
        for N in (50, 200):
            found = scalar.peak(N, scalar.Gate.of(z))
            cells.append(f"{found.height:.3g} at {found.w:.3f}")
        other = scalar.peak(200, scalar.Gate.of(z), scalar.flip(z))
        rows.append([*cells, f"{scalar.flip(z):.3g}", f"{number(other.height)} at {other.w:.3f}"])
    head = ["z", "w > 0, N = 50", "w > 0, N = 200", "flip −(1+z)/(1−z)", "w < 0, N = 200"]
    fitted = scalar.scaling(size.lengths, GATES, LEAST_TIME)
    state = []
    for slope in SLOPES:
        gate = scalar.Gate(0.0, slope)
        right, left = scalar.peak(200, gate), scalar.peak(200, gate, scalar.flip(gate.at_rest))
        state.append(
            [
                f"{slope:g}",
                f"{right.height:.3g} at {right.w:.3f}",
                number(left.height),
                f"{np.log(left.height) / 200:.3f}",
            ]
        )
    blocks = {
        "scalar-peaks": table(head, rows),
        "scalar-scaling": f"N^({fitted.by_steps:.3f} ± {fitted.by_steps_error:.3f}) · "
        f"(1 − z)^({fitted.by_gate:.3f} ± {fitted.by_gate_error:.3f})",
        "scalar-worst": f"{100 * fitted.worst:.0f} %",
        "scalar-state": table(
            ["v in z = σ(v x)", "peak, w > 0", "largest, −9 ≤ w ≤ −1.5", "its logarithm a step (nats)"], state
        ),
    }
    drawn = {
        f"{IMAGES}/scalar.svg": figures.scalar_peaks(200, (0.0, 0.5, 0.9), 2.0),
        f"{IMAGES}/clock.svg": figures.clock(heights),
    }
    return blocks, drawn


# Random vector cells.


def vector_part(size: Size, tell) -> tuple[dict[str, str], dict[str, str]]:
    """Blocks and figures of section 2."""
    sweeps: dict[str, dict[str, vector.Sweep]] = {}
    seeds = range(size.vector_seeds)
    for title, drive in (("no input", 0.0), ("white input, variance 1", 1.0)):
        for kind in VECTOR_KINDS:
            tell(f"random cells, {title}")
            sweeps.setdefault(title, {})[kind.name] = vector.sweep(kind, size.gains, seeds, size.vector_steps, drive)
    rows = []
    for title, by_kind in sweeps.items():
        for name, sweep in by_kind.items():
            middle = np.median(sweep.gradient, axis=1)
            cells = [title, figures.TITLES[name], f"{vector.critical(KINDS.get(name, GRU_BEFORE)):g}"]
            for mark in MARKS:
                at = int(np.abs(sweep.gains - mark).argmin())
                logs = intervals.median(np.log10(sweep.gradient[at]))
                cells.append(interval(logs, "{:.1f}"))
            top = sweep.gains[middle.argmax()]
            rows.append([*cells, f"{top:.3g}" + (" (end)" if middle.argmax() == len(sweep.gains) - 1 else "")])
    head = ["input", "cell", "critical gain", *(f"at {mark:g} ×" for mark in MARKS), "largest median at"]
    return {"vector-table": table(head, rows)}, {f"{IMAGES}/gains.svg": figures.gains(sweeps)}


# Trained networks.


def norms_table(arms: Sequence[Arm]) -> str:
    """Local gradient norms along training."""
    rows = []
    for arm in arms:
        own = np.nanmedian(arm.norms, axis=0)
        spikes = intervals.median(100 * np.nanmean(arm.norms > SPIKE * own, axis=0))
        top = np.nanmax(arm.norms, axis=0)
        rows.append(
            [
                figures.label(arm), f"{arm.rate:g}", interval(intervals.median(own), "{:.2f}"),
                number(float(np.nanquantile(arm.norms, 0.99))), interval(intervals.median(top), "{:.0f}"),
                number(float(top.max())), interval(spikes, "{:.1f}"),
            ]
        )  # fmt: skip
    head = ["network", "learning rate", "median of a run", "99 % quantile of all", "largest of a run", "largest of all",
            f"steps over {SPIKE:g} × the run's median (%)"]  # fmt: skip
    return table(head, rows)


def spread_table(arms: Sequence[Arm]) -> str:
    """Sensitivity to the initial parameters: what differs between seeds and nothing else."""
    rows = []
    for arm in arms:
        final = arm.losses[-LAST:].mean(axis=0)
        low, middle, high = np.nanquantile(final, [0.1, 0.5, 0.9])
        tenth, nine = np.quantile(arm.bfr, [0.1, 0.9])
        share, least, most = (100 * each for each in intervals.share(failed(arm), len(arm.bfr)))
        rows.append(
            [
                figures.label(arm), f"{middle:.3f} ({low:.3f} to {high:.3f})", f"{high / low:.1f}",
                interval(intervals.median(arm.bfr)), f"{tenth:.0f} to {nine:.0f}".replace("-", "−"),
                f"{failed(arm)} of {len(arm.bfr)}: {interval((share, least, most))} %",
            ]
        )  # fmt: skip
    head = ["network", "final loss, median (10–90 % of seeds)", "ratio 90 % to 10 %", "BFR, median (95 % interval)",
            "BFR, 10–90 % of seeds", f"failed (BFR under {FAILED:g})"]  # fmt: skip
    return table(head, rows)


def supply_table(trials: Sequence[Trial], moments: Sequence[int]) -> str:
    """What the library reads of the networks before and after training."""
    rows = []
    for each in trials:
        for moment in moments:
            reading = each.readings[moment]
            horizon, arriving = reading.horizon[np.isfinite(reading.horizon)], reading.log10_arriving
            told = arriving[np.isfinite(arriving)]
            rows.append(
                [
                    figures.label(each.arm), str(moment),
                    f"{np.median(horizon):.0f} ({horizon.min():.0f}–{horizon.max():.0f})" if len(horizon) else "–",
                    number(10 ** float(np.median(told))) if len(told) else "–",
                    *(f"{reading.fired[code]} of {len(arriving)}" for code in supply.CODES),
                ]
            )  # fmt: skip
    return table(
        ["network", "training steps", "gradient horizon(1 %)", "arriving at the needed lag", *supply.CODES], rows
    )


def find(
    trials: Sequence[Trial], task: str, kind: str, *, clipped: bool, identity: bool = False, cut: bool = False
) -> Trial:
    """One trial."""
    for each in trials:
        job = each.arm.job
        same = (job.task, job.kind, job.identity, job.cut is not None) == (task, kind, identity, cut)
        if same and np.isfinite(each.arm.clip) == clipped:
            return each
    raise KeyError(f"no trial {task}, {kind}, clipped={clipped}, identity={identity}, cut={cut}")


def training_part(
    trials: Sequence[Trial], task: Task, scale: Scale, needed_lag: int
) -> tuple[dict[str, str], dict[str, str]]:
    """Blocks and figures of sections 3 and 4."""
    on_throttle = [each for each in trials if each.arm.job.task == "throttle"]
    plain = [find(on_throttle, "throttle", kind, clipped=False) for kind in KINDS]
    clipped = [find(on_throttle, "throttle", kind, clipped=True) for kind in KINDS]
    first = [each.arm for pair in zip(plain, clipped, strict=True) for each in pair]
    started = [find(on_throttle, "throttle", "elman", clipped=on, identity=True) for on in (False, True)]
    cuts = [find(on_throttle, "throttle", kind, clipped=False, cut=True) for kind in ("elman", "gru")]
    causal = [plain[0], clipped[0], *started, cuts[0], plain[1], clipped[1], cuts[1]]
    delays = {
        f"delay of {lag} steps": [
            find(trials, f"delay {lag}", kind, clipped=on).arm for kind in KINDS for on in (False, True)
        ]
        for lag in LAGS
    }
    blocks = {
        "parameters": ", ".join(f"{figures.TITLES[k.name]} {count(k, 1, UNITS[k.name], 1)}" for k in KINDS.values()),
        "seeds": str(len(scale.seeds)),
        "needed-lag": str(needed_lag),
        "norms-table": norms_table(first),
        "spread-table": spread_table(first),
        "causal-table": spread_table([each.arm for each in causal]),
        "causal-norms": norms_table([each.arm for each in causal]),
        "supply-table": supply_table([*plain, clipped[0], started[1]], (0, scale.steps)),
        "within-kind": "; ".join(
            f"{figures.label(each.arm)} {supply.spearman(np.nanmax(each.arm.norms, axis=0), each.arm.bfr):+.2f}"
            for each in (*plain, clipped[0], *started)
        ),
    }
    rows = []
    for title, arms in delays.items():
        for arm in arms:
            rows.append(
                [title, figures.label(arm), f"{arm.rate:g}", interval(intervals.median(arm.bfr)),
                 f"{failed(arm)} of {len(arm.bfr)}", number(float(np.nanquantile(arm.norms, 0.99)))]
            )  # fmt: skip
    head = ["task", "network", "learning rate", "BFR, median (95 % interval)", "failed", "99 % quantile of ‖∂L/∂θ‖"]
    blocks["delay-table"] = table(head, rows)
    for name, each, wanted in (
        ("elman", plain[0], "bfr failed norm tail"), ("elman-clipped", clipped[0], "bfr failed"),
        ("gru", plain[1], "bfr failed norm tail"), ("gru-clipped", clipped[1], "bfr failed"),
        ("lstm", plain[2], "bfr failed"), ("lstm-clipped", clipped[2], "bfr failed"),
        ("identity-clipped", started[1], "bfr failed norm tail"),
        ("elman-cut", cuts[0], "bfr"), ("gru-cut", cuts[1], "bfr"),
    ):  # fmt: skip
        told = {
            "bfr": interval(intervals.median(each.arm.bfr)),
            "failed": f"{failed(each.arm)} of {len(each.arm.bfr)}",
            "norm": number(float(np.nanmedian(each.arm.norms))),
            "tail": number(float(np.nanquantile(each.arm.norms, 0.99))),
        }
        blocks |= {f"{what}-{name}": told[what] for what in wanted.split()}
    (volts_mean, volts_spread), (mean, spread) = task.units
    x, y = (part[:, 0, 0].double().numpy() for part in task.test)
    shown = {each.arm.job.kind: mean + spread * each.arm.shown for each in (clipped[0], plain[1], clipped[2])}
    drawn = {
        f"{IMAGES}/throttle.svg": figures.example(volts_mean + volts_spread * x, mean + spread * y, shown, SAMPLING),
        f"{IMAGES}/training.svg": figures.along_training([each.arm for each in plain]),
        f"{IMAGES}/fits.svg": figures.fits({"throttle": [*first, *(each.arm for each in (*started, *cuts))]}),
    }
    return blocks, drawn


def make(tell: Tell, size: Size | None = None, task: Task | None = None) -> Made:
    """Everything on the page. task: the throttle in a smaller size, for tests."""
    size = size or Size()
    parts = len(VECTOR_KINDS) * 2 + len(THROTTLE + DELAYS) + 2
    done = iter(range(parts + 1))

    def said(what: str) -> None:
        tell(next(done), parts, what)

    said("the scalar unit")
    blocks, drawn = scalar_part(size)
    for more in (vector_part(size, said),):
        blocks |= more[0]
        drawn |= more[1]
    said("the throttle")
    throttle = task or throttle_task()
    lag = supply.demand(throttle)
    if lag is None:
        raise RuntimeError("got no demand on the throttle; expected some lags; its records are too few")
    tasks = {"throttle": throttle} | {f"delay {lag}": delay_task(lag) for lag in LAGS}
    trials = all_trials(THROTTLE + DELAYS, size.trials, tasks, {"throttle": lag}, size.read, said, size.workers)
    more = training_part(trials, throttle, size.trials, lag)
    return Made({**blocks, **more[0]}, {**drawn, **more[1]})


STUDY = Study("rehmer-kroll.md", make)
