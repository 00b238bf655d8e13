"""Each unit's gate timescale, measured half-life and class; each gate's histogram. Read from the trace, without a sweep."""

from __future__ import annotations

import math

import numpy as np
import torch

from throughtime.cells.activations import GATES
from throughtime.flow import QUANTILES, Gate, Unit
from throughtime.linearize import Linearization

LONG = 10.0  # steps (e-folding): from here on a unit is called long-term; a gate at ½ remembers 1.4 steps
RESET = 0.1  # a gate under this value cuts its unit off (Cho et al. 2014: units of short-term dependencies reset often)
OFTEN = 0.5  # fraction of steps from which a unit is called resetting
STILL = 1e-6  # standard deviation of a state over steps and sequences under which a unit is called dead
BINS = 20  # of the histogram of gate values


def gates(linearization: Linearization) -> dict[str, Gate]:
    """Statistics of each sigmoid gate over steps, sequences and units, taken on the logits."""
    out = {}
    for name, logits in linearization.logits.items():
        logit = np.sort(np.asarray(logits.cpu()), axis=None)  # sorting once is cheaper than selecting quantiles
        value = linearization.cell.opened(torch.from_numpy(logit))
        count = len(logit)

        def at(levels: list[float], value: torch.Tensor = value, side: str = "left") -> np.ndarray:
            return torch.searchsorted(value, torch.tensor(levels, dtype=value.dtype), side=side).numpy()

        far = logit.dtype.type(
            GATES[linearization.cell.gate].beyond
        )  # a plain float would make numpy convert the whole array
        cold, hot = np.searchsorted(logit, -far), np.searchsorted(logit, far, side="right")
        edges = at([place / BINS for place in range(1, BINS)])
        out[name] = Gate(
            mean=float(value.mean()),
            below=float(at([0.1])[0]) / count,
            above=1 - float(at([0.9], side="right")[0]) / count,
            saturated=float(count - hot + cold) / count,
            logit_quantiles=np.array([_quantile(logit, level) for level in QUANTILES]),
            histogram=np.diff(edges, prepend=0, append=count),
        )
    return out


def _quantile(ascending: np.ndarray, level: float) -> float:
    """Linear interpolation between the two nearest of sorted values."""
    place = level * (len(ascending) - 1)
    low, high = ascending[math.floor(place)], ascending[math.ceil(place)]
    return float(low) + (place - math.floor(place)) * (float(high) - float(low))


def half_life(log10_rms: np.ndarray) -> np.ndarray:
    """(H, T) log10 RMS|λ_j| by lag to (H,): the first lag after the peak at half the peak or less; NaN if never."""
    filled = np.where(np.isnan(log10_rms), -np.inf, log10_rms)
    peak = filled.argmax(1)
    top = np.take_along_axis(filled, peak[:, None], 1)
    lags = np.arange(filled.shape[1])
    # A lag that was not told apart is no evidence of a half.
    under = (log10_rms <= top - np.log10(2)) & (lags > peak[:, None])
    return np.where(under.any(1) & np.isfinite(top[:, 0]), under.argmax(1), np.nan)


def units(linearization: Linearization, log10_rms: np.ndarray) -> tuple[Unit, ...]:
    """One `Unit` each; log10_rms (H, T) comes from the sweep."""
    trace = linearization.trace
    lives, size = half_life(log10_rms), trace.hidden_size
    scales, cut = np.full(size, np.nan), np.zeros(size)
    log_keep = trace.cell.log_keep(trace.weights, linearization.inputs, linearization.logits)
    if log_keep is not None:
        with np.errstate(divide="ignore"):
            scales = 1 / np.abs(np.asarray(log_keep.mean(0).double().mean(0).cpu()))  # a hard gate can be 1 exactly
    cutting = trace.cell.reset or (trace.cell.keep[0] if trace.cell.keep else None)
    if cutting is not None:
        below = trace.cell.opened(linearization.logits[cutting]) < RESET
        cut = np.asarray(below.sum(0).sum(0).cpu()) / (trace.steps * trace.batch)
    states = trace.cell.output(trace.carries[1:])
    if states.shape[-1] != size:  # the output is a projection: the units are those of the last state
        last = trace.cell.split(trace.carries[1:])[-1]
        states = last if last.shape[-1] == size else trace.carries[1:]
    moves = np.asarray((states - states.mean((0, 1))).square_().mean((0, 1)).sqrt().cpu())
    several = trace.steps * trace.batch > 1  # one state alone cannot be seen to stand still
    still = [several and move < STILL for move in moves]
    silent = [not np.isfinite(row).any() for row in log10_rms]
    return tuple(
        Unit(
            j,
            float(scales[j]),
            float(lives[j]),
            *_kind(scales[j], lives[j], cut[j], bool(still[j]), bool(silent[j]), cutting),
        )
        for j in range(size)
    )


def _kind(scale: float, life: float, cut: float, still: bool, silent: bool, gate: str | None) -> tuple[str, str]:
    if still:
        return "dead", f"its state moves by less than {STILL:g}"
    if silent:
        return "dead", "no gradient reaches it"
    if cut >= OFTEN:
        return "resetting", f"{gate} < {RESET} on {cut:.0%} of steps (at least {OFTEN:.0%})"
    if not np.isnan(scale):
        sense, kind = ("≥", "long-term") if scale >= LONG else ("<", "short-term")
        return kind, f"gate timescale {scale:.3g} {sense} {LONG:g} steps"
    # Without a gate the measured half-life decides; e-folding is half-life / ln 2.
    if np.isnan(life) or life / np.log(2) >= LONG:
        return (
            "long-term",
            f"half-life {'not reached' if np.isnan(life) else f'{life:g} steps'} (no gate), at least {LONG * np.log(2):.1f}",
        )
    return "short-term", f"half-life {life:g} < {LONG * np.log(2):.1f} steps (no gate)"
