"""Each unit's gate timescale, measured half-life and class; each gate's histogram. Read from the trace, without a sweep."""

from __future__ import annotations

import numpy as np
import torch

from throughtime.flow import QUANTILES, Array, Gate, Unit
from throughtime.linearize import log_keep
from throughtime.trace import Trace

LONG = 10.0  # steps (e-folding): from here on a unit is called long-term; a gate at ½ remembers 1.4 steps
RESET = 0.1  # a gate under this value cuts its unit off (Cho et al. 2014: units of short-term dependencies reset often)
OFTEN = 0.5  # fraction of steps from which a unit is called resetting
STILL = 1e-6  # standard deviation of a state over steps and sequences under which a unit is called dead
SATURATED = 6.0  # |logit|; there z(1 − z) < .0025


def gates(trace: Trace) -> dict[str, Gate]:
    """Statistics of each sigmoid gate over steps, sequences and units, taken on the logits."""
    out = {}
    logits = trace.cell.pre_activations(trace.weights, trace.x, trace.carries[:-1])
    for name in trace.cell.sigmoids:
        logit = logits[name].flatten()
        value = torch.sigmoid(logit)
        out[name] = Gate(
            mean=float(value.mean()),
            below=float((value < 0.1).float().mean()),
            above=float((value > 0.9).float().mean()),
            saturated=float((logit.abs() > SATURATED).float().mean()),
            logit_quantiles=np.quantile(logit.cpu().numpy(), QUANTILES).astype(np.float64),
            histogram=torch.histc(value.float().cpu(), bins=20, min=0, max=1).long().numpy(),
        )
    return out


def half_life(log10_rms: np.ndarray) -> np.ndarray:
    """(H, T) log10 RMS|λ_j| by lag to (H,): the first lag after the peak at half the peak or less; NaN if never."""
    filled = np.where(np.isnan(log10_rms), -np.inf, log10_rms)
    peak = filled.argmax(1)
    top = np.take_along_axis(filled, peak[:, None], 1)
    lags = np.arange(filled.shape[1])
    # A lag that was not told apart is no evidence of a half.
    under = (log10_rms <= top - np.log10(2)) & (lags > peak[:, None])
    return np.where(under.any(1) & np.isfinite(top[:, 0]), under.argmax(1), np.nan)


def units(trace: Trace, log10_rms: np.ndarray) -> tuple[Unit, ...]:
    """One `Unit` each; log10_rms (H, T) comes from the sweep."""
    lives = half_life(log10_rms)
    keep = log_keep(trace)
    size = trace.hidden_size
    scales = np.full(size, np.nan)
    if keep is not None:
        mean = keep.double().mean((0, 1)).cpu().numpy()
        with np.errstate(divide="ignore"):
            scales = -1 / mean
    cut = np.zeros(size)
    cutting = trace.cell.reset or (trace.cell.keep[0] if trace.cell.keep else None)
    if cutting is not None:
        logits = trace.cell.pre_activations(trace.weights, trace.x, trace.carries[:-1])[cutting]
        cut = (torch.sigmoid(logits) < RESET).double().mean((0, 1)).cpu().numpy()
    states = trace.cell.output(trace.carries[1:])
    moves: Array = states.double().flatten(0, 1).std(0, correction=0).cpu().numpy()
    still: np.ndarray = (moves < STILL) & (
        trace.steps * trace.batch > 1
    )  # one state alone cannot be seen to stand still
    silent = ~np.isfinite(log10_rms).any(1)
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
