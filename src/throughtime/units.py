"""Each unit's gate timescale, measured half-life and class. Read from the trace, without a sweep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from throughtime.cells.cell import Cell
from throughtime.flow import Unit
from throughtime.linearize import Linearization

LONG = 10.0  # steps (e-folding): from here on a unit is called long-term; a gate at ½ remembers 1.4 steps
RESET = 0.1  # a gate under this value cuts its unit off (Cho et al. 2014: units of short-term dependencies reset often)
OFTEN = 0.5  # fraction of steps from which a unit is called resetting
STILL = 1e-6  # standard deviation of a state over steps and sequences under which a unit is called dead


def half_life(log10_rms: np.ndarray) -> np.ndarray:
    """(H, T) log10 RMS|λ_j| by lag to (H,): the first lag after the peak at half the peak or less; NaN if never."""
    filled = np.where(np.isnan(log10_rms), -np.inf, log10_rms)
    peak = filled.argmax(1)
    top = np.take_along_axis(filled, peak[:, None], 1)
    lags = np.arange(filled.shape[1])
    # A lag that was not told apart is no evidence of a half.
    under = (log10_rms <= top - np.log10(2)) & (lags > peak[:, None])
    return np.where(under.any(1) & np.isfinite(top[:, 0]), under.argmax(1), np.nan)


def lives(log10_rms: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """`half_life` of each unit, and whether no gradient reaches it: (H,), from (units, T) some units at a time."""
    made = [(half_life(part), ~np.isfinite(part).any(1)) for part in log10_rms]
    halves, silent = zip(*made, strict=True)
    return np.concatenate(halves), np.concatenate(silent)


def told(linearization: Linearization, inside: Tensor | None) -> dict[str, Tensor]:
    """What adds up over batches, by unit.

    log_keep: (H,) the sum of ln of the gate on the carry. cut: (H,) how often the cutting gate was under `RESET`. moments:
    (3, H), see `together`. inside: (T, B) bool, without padding.
    """
    out: dict[str, Tensor] = {}
    for at in linearization.trace.portions():
        for name, value in _told(linearization, at, None if inside is None else inside[at]).items():
            add = together if name == "moments" else torch.add
            out[name] = add(out[name], value) if name in out else value
    return out


def _told(linearization: Linearization, at: slice, inside: Tensor | None) -> dict[str, Tensor]:
    """`told` of some steps; nothing where all of them are padding."""
    trace = linearization.trace
    if inside is not None and not inside.any():
        return {}

    def rows(value: Tensor) -> Tensor:
        """(steps and sequences, H)."""
        return value.flatten(0, 1) if inside is None else value[inside.to(value.device)]

    out, logits = {}, linearization.logits_at(at)
    log_keep = trace.cell.log_keep(trace.weights, linearization.inputs[at], logits)
    if log_keep is not None:
        out["log_keep"] = rows(log_keep).sum(0, dtype=torch.float64).cpu()
    cutting = cutting_gate(trace.cell)
    if cutting is not None:
        out["cut"] = rows(trace.cell.opened(logits[cutting]) < RESET).sum(0).double().cpu()
    carries = trace.carries[1:][at]
    states = trace.cell.output(carries)
    if states.shape[-1] != trace.hidden_size:  # the output is a projection: the units are those of the last state
        last = trace.cell.split(carries)[-1]
        states = last if last.shape[-1] == trace.hidden_size else carries
    states = rows(states)
    mean = states.mean(0, dtype=torch.float64)
    spread = (states - mean.to(states.dtype)).square().sum(0, dtype=torch.float64)
    out["moments"] = torch.stack((torch.full_like(mean, len(states)), mean, spread)).cpu()
    return out


def together(one: Tensor, other: Tensor) -> Tensor:
    """Count, mean and sum of squared deviations (3, H) of two sets (Chan, Golub & LeVeque 1983)."""
    count = one[0] + other[0]
    apart = other[1] - one[1]
    mean = (one[0] * one[1] + other[0] * other[1]) / count
    return torch.stack((count, mean, one[2] + other[2] + apart.square() * one[0] * other[0] / count))


def cutting_gate(cell: Cell) -> str | None:
    """The logit of the gate that cuts a unit off: the reset gate, or else the one that keeps the carry."""
    return cell.reset or (cell.keep[0] if cell.keep else None)


def units(sums: Mapping[str, Tensor], lived: tuple[np.ndarray, np.ndarray], cutting: str | None) -> tuple[Unit, ...]:
    """One `Unit` each, from `told` and, of the sweep, from `lives`."""
    (lives, silent), (counts, _, spread) = lived, sums["moments"].numpy()
    count, size = counts[0], len(counts)
    scales, cut = np.full(size, np.nan), np.zeros(size)
    if "log_keep" in sums:
        with np.errstate(divide="ignore"):
            scales = 1 / np.abs(sums["log_keep"].numpy() / count)  # a hard gate can be 1 exactly
    if "cut" in sums:
        cut = sums["cut"].numpy() / count
    # one state alone cannot be seen to stand still
    still = (np.sqrt(spread / count) < STILL) & (count > 1)
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
