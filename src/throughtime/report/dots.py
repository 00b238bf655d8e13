"""The effect of a remedy as a picture: before and after for every seed, and the mean difference with its interval."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from throughtime.report.notation import number, signed
from throughtime.report.svg import document, element, line, text, width_of

if TYPE_CHECKING:
    from throughtime.verify import Verification

ROW = 18.0
GOOD = {"helps": "tt-good", "harms": "tt-bad"}


def before_and_after(
    verification: Verification, *, width: int = 720, judged: bool = True, standalone: bool = False
) -> str:
    """One row a seed: hollow dot untreated, full dot treated; below, the mean difference with its 95 % interval.

    judged: whether the verdict may be coloured (it may not where nothing is known to be needed).
    """
    left, right, top = 84.0, width - 18.0, 54.0
    values = np.concatenate([verification.before, verification.after])
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    reach = max(high - low, abs(high) * 0.02, 1e-9)
    low, high = low - 0.08 * reach, high + 0.08 * reach

    def x(value: float) -> float:
        return left + (right - left) * (value - low) / (high - low)

    parts = [*_key(verification, left, width)]
    for row, seed in enumerate(verification.seeds):
        y = top + ROW * row
        before, after = float(verification.before[row]), float(verification.after[row])
        parts.append(text(f"seed {seed}", left - 12, y + 4.5, anchor="end"))
        if np.isfinite(before) and np.isfinite(after):
            parts.append(line(x(before), y, x(after), y, "tt-link"))
        if np.isfinite(before):
            parts.append(element("circle", cx=x(before), cy=y, r=4.5, class_="tt-hollow"))
        if np.isfinite(after):
            parts.append(element("circle", cx=x(after), cy=y, r=5, class_="tt-supply"))
    bottom = top + ROW * len(verification.seeds)
    parts.append(_axis(left, right, bottom, low, high, x))
    parts.append(_interval(verification, left, right, bottom + 58, judged))
    words = f"{verification.metric} of {verification.remedy} against untreated"
    return document(parts, width, bottom + 98, words, describe(verification), standalone)


def describe(verification: Verification) -> str:
    """The result in one sentence."""
    return (
        f"Mean {verification.metric} went from {number(float(np.mean(verification.before)))} to "
        f"{number(float(np.mean(verification.after)))} over {len(verification.seeds)} paired seeds of "
        f"{verification.steps} steps: difference {signed(verification.difference)}, 95 % interval "
        f"{signed(verification.low)} to {signed(verification.high)}: {verification.verdict}."
    )


def _key(verification: Verification, left: float, width: int) -> list[str]:
    return [
        text(verification.metric, 8, 20, "tt-ink tt-strong"),
        element("circle", cx=width - 208.0, cy=15.5, r=4.5, class_="tt-hollow"),
        text("untreated", width - 198.0, 20),
        element("circle", cx=width - 122.0, cy=15.5, r=5, class_="tt-supply"),
        text(verification.remedy if len(verification.remedy) < 15 else "treated", width - 112.0, 20),
    ]


def _axis(left: float, right: float, y: float, low: float, high: float, x: Callable[[float], float]) -> str:
    step = 10.0 ** np.floor(np.log10(high - low))
    step *= next((factor for factor in (0.2, 0.5, 1.0, 2.0) if (high - low) / (step * factor) <= 7), 5.0)
    parts = [line(left, y, right, y, "tt-axis")]
    for mark in np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step:
        parts.append(line(x(mark), y, x(mark), y + 4, "tt-axis"))
        parts.append(text(f"{mark:.6g}".replace("-", "−"), x(mark), y + 18, anchor="middle"))
    return "".join(parts)


def _interval(verification: Verification, left: float, right: float, y: float, judged: bool) -> str:
    """The difference on an axis of its own, which always holds zero."""
    marks = [0.0, verification.low, verification.high, verification.difference]
    finite = [mark for mark in marks if np.isfinite(mark)]
    low, high = min(finite), max(finite)
    reach = max(high - low, 1e-12)
    low, high = low - 0.06 * reach, high + 0.06 * reach

    def x(value: float) -> float:
        return left + (right - left) * (value - low) / (high - low)

    kind = GOOD.get(verification.verdict, "") if judged else ""
    parts = [text("difference", left - 12, y + 4.5, anchor="end")]
    parts.append(line(x(0.0), y - 12, x(0.0), y + 12, "tt-axis") + text("0", x(0.0), y - 16, anchor="middle"))
    if np.isfinite(verification.low) and np.isfinite(verification.high):
        parts.append(line(x(verification.low), y, x(verification.high), y, "tt-span"))
    if np.isfinite(verification.difference):
        parts.append(element("circle", cx=x(verification.difference), cy=y, r=5, class_=kind or "tt-ink"))
        span = f"{signed(verification.low)} to {signed(verification.high)}"
        words = f"{signed(verification.difference)}, 95 % interval {span}: {verification.verdict}"
        half = width_of(words, strong=True) / 2
        centre = min(max(x(verification.difference), 8 + half), right + 14 - half)
        parts.append(text(words, centre, y + 27, f"tt-strong tt-halo {kind or 'tt-ink'}", "middle"))
    return "".join(parts)
