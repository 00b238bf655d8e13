"""The figures of the page, drawn from results; each function returns SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reproduce.drawing import drawn
from reproduce.rehmer_kroll import scalar
from reproduce.rehmer_kroll.arms import FAILED, Arm
from reproduce.rehmer_kroll.vector import Sweep

COLOURS = {"elman": "#d55e00", "gru": "#0072b2", "gru-before": "#56b4e9", "lstm": "#009e73"}
TITLES = {"elman": "Elman", "gru": "GRU", "gru-before": "GRU, reset before", "lstm": "LSTM"}
WIDE = 7.6  # inches


def panels(columns: int, height: float = 3.3, **options) -> tuple[Figure, list[Axes]]:
    """A row of axes."""
    figure, axes = plt.subplots(1, columns, figsize=(WIDE, height), layout="constrained", squeeze=False, **options)
    return figure, list(axes[0])


@drawn
def scalar_peaks(steps: int, gates: Sequence[float], slope: float) -> Figure:
    """|dx_N/dw| over w of both signs, constant gates; and one whose value depends on the state."""
    figure, (right, left) = panels(2)
    shades = plt.get_cmap("viridis")(np.linspace(0, 0.8, len(gates)))
    w = np.linspace(0.5, 2, 3001)
    for z, shade in zip(gates, shades, strict=True):
        name = "z = 0 (Elman)" if z == 0 else f"z = {z:g}"
        right.plot(w, np.abs(scalar.run(w, steps, scalar.Gate.of(z)).by_weight), color=shade, label=name)
        away = -np.geomspace(0.5, 40, 4001)
        left.plot(-away, np.abs(scalar.run(away, steps, scalar.Gate.of(z)).by_weight), color=shade, label=name)
        if z > 0:
            left.axvline(-scalar.flip(z), color=shade, ls=":", lw=1)
    away = -np.geomspace(0.5, 40, 801)
    told = np.abs(scalar.run(away, steps, scalar.Gate(0.0, slope)).by_weight)
    left.plot(-away, told, color="#d55e00", lw=0.8, label=f"z = σ({slope:g} x)")
    right.axvline(1, color="#888888", ls=":", lw=1)
    right.set(xlabel="w", ylabel=f"|dx_N/dw|, N = {steps}", title="w > 0")
    left.set(xlabel="−w", title="w < 0", xscale="log", yscale="log", ylim=(1e-4, None))
    right.legend()
    left.legend(fontsize=8, loc="upper right")
    return figure


@drawn
def clock(heights: Mapping[tuple[int, float], float]) -> Figure:
    """Heights of the peak over N(1 − z), by (N, z)."""
    figure, (ax,) = panels(1)
    gates = sorted({z for _, z in heights})
    shades = plt.get_cmap("viridis")(np.linspace(0, 0.8, len(gates)))
    for z, shade in zip(gates, shades, strict=True):
        lengths = sorted(N for N, other in heights if other == z)
        time = [N * (1 - z) for N in lengths]
        ax.loglog(time, [heights[N, z] for N in lengths], "o-", ms=4, color=shade, label=f"z = {z:g}")
    ax.set(xlabel="N (1 − z)", ylabel="height of the peak of |dx_N/dw|")
    ax.legend()
    return figure


@drawn
def gains(sweeps: Mapping[str, Mapping[str, Sweep]]) -> Figure:
    """Local gradients of random cells over the gain: one panel a title, in it a kind a line."""
    figure, axes = panels(len(sweeps), sharey=True)
    for ax, (title, by_kind) in zip(axes, sweeps.items(), strict=True):
        for name, sweep in by_kind.items():
            low, middle, high = np.quantile(sweep.gradient, [0.1, 0.5, 0.9], axis=1)
            ax.loglog(sweep.gains, middle, color=COLOURS[name], label=TITLES[name])
            ax.fill_between(sweep.gains, low, high, color=COLOURS[name], alpha=0.12, lw=0)
        ax.axvline(1, color="#888888", ls=":", lw=1)
        ax.set(xlabel="gain, in units of the critical one", title=title)
        ax.set_xticks([0.25, 0.5, 1, 2, 4, 8], ["¼", "½", "1", "2", "4", "8"])
        ax.minorticks_off()
    axes[0].set(ylabel="‖∂(c·h_T)/∂θ‖")
    axes[0].legend(loc="upper left")
    return figure


@drawn
def along_training(arms: Sequence[Arm]) -> Figure:
    """Local gradient norms at every training step: median, 10–90 % of seeds, largest."""
    figure, axes = panels(len(arms), sharey=True, height=2.9)
    for ax, arm in zip(axes, arms, strict=True):
        colour = COLOURS[arm.job.kind]
        low, middle, high, top = np.nanquantile(arm.norms, [0.1, 0.5, 0.9, 1.0], axis=1)
        steps = np.arange(len(middle))
        ax.fill_between(steps, low, high, color=colour, alpha=0.25, lw=0)
        ax.semilogy(steps, middle, color=colour, lw=1)
        ax.semilogy(steps, top, color="#222222", lw=0.5)
        ax.set(xlabel="training step", title=label(arm))
    axes[0].set(ylabel="‖∂L/∂θ‖")
    return figure


@drawn
def fits(by_task: Mapping[str, Sequence[Arm]]) -> Figure:
    """Best-fit rate of every run, one row an arm."""
    rows = max(len(arms) for arms in by_task.values())
    figure, axes = panels(len(by_task), height=0.9 + 0.3 * rows)
    jitter = np.random.default_rng(0)
    for ax, (title, arms) in zip(axes, by_task.items(), strict=True):
        for place, arm in enumerate(arms):
            y = place + jitter.uniform(-0.22, 0.22, len(arm.bfr))
            ax.plot(np.maximum(arm.bfr, -50), y, "o", ms=3, alpha=0.6, mew=0, color=COLOURS[arm.job.kind])
            ax.plot([np.median(np.maximum(arm.bfr, -50))] * 2, [place - 0.38, place + 0.38], color="#222222", lw=1.4)
        ax.axvline(FAILED, color="#888888", ls=":", lw=1)
        ax.set(
            yticks=range(len(arms)), yticklabels=[label(arm) for arm in arms], xlabel="best-fit rate (%)", title=title
        )
        ax.set(ylim=(len(arms) - 0.4, -0.6), xlim=(-52, 102))
    return figure


@drawn
def example(volts, angle, guesses: Mapping[str, np.ndarray], seconds: float) -> Figure:
    """One test record: voltage, angle, and what the median network of each kind says."""
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(WIDE, 4), layout="constrained", sharex=True, height_ratios=(1, 2)
    )
    time = seconds * np.arange(1, len(volts) + 1)
    top.plot(time, volts, color="#444444", lw=1.2)
    top.set(ylabel="voltage (V)")
    bottom.plot(time, np.degrees(angle), color="#222222", lw=2.4, label="throttle")
    for name, guess in guesses.items():
        bottom.plot(time, np.degrees(guess), color=COLOURS[name], label=TITLES[name], lw=1.3)
    bottom.set(xlabel="time (s)", ylabel="angle (°)")
    bottom.legend(ncols=4, fontsize=8)
    return figure


def label(arm: Arm) -> str:
    """The arm in words."""
    words = TITLES[arm.job.kind]
    if arm.job.identity:
        words += ", U₀ = 1"
    if arm.job.cut is not None:
        words += f", cut at {arm.job.cut}"
    if np.isfinite(arm.clip):
        words += ", clipped"
    return words
