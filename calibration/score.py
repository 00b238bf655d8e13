"""Precision and recall of rules over cases, and the thresholds that serve the first half of them best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any
from unittest.mock import patch

from calibration.case import Case
from throughtime.diagnosis.rule import registry

RULES = "throughtime.diagnosis.rules."


@dataclass(frozen=True)
class Score:
    """Counts of a rule over the cases that judge it."""

    hits: int = 0
    false_alarms: int = 0
    misses: int = 0
    quiet: int = 0

    @property
    def precision(self) -> tuple[int, int]:
        """(right, fired)."""
        return self.hits, self.hits + self.false_alarms

    @property
    def recall(self) -> tuple[int, int]:
        """(found, there)."""
        return self.hits, self.hits + self.misses

    @property
    def merit(self) -> float:
        """F½: precision counts twice as much as recall, for a false alarm costs more trust than a miss."""
        return 1.25 * self.hits / max(1.25 * self.hits + self.false_alarms + 0.25 * self.misses, 1)


def score(code: str, cases: Iterable[Case]) -> Score:
    """The rule as it stands."""
    counts = {(True, True): 0, (True, False): 0, (False, True): 0, (False, False): 0}
    for case in cases:
        if code in case.truth:
            counts[fires(code, case), case.truth[code]] += 1
    return Score(counts[True, True], counts[True, False], counts[False, True], counts[False, False])


def fires(code: str, case: Case) -> bool:
    """Whether the rule speaks up. TT190 without a history only says that it cannot judge: that is no finding."""
    if code == "TT190" and case.history is None:
        return False
    return registry()[code].check(case.layer, case.needed, case.history) is not None


def wilson(right: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson 1927)."""
    if of == 0:
        return 0.0, 1.0
    p = right / of
    centre = (p + z * z / (2 * of)) / (1 + z * z / of)
    margin = z / (1 + z * z / of) * math.sqrt(p * (1 - p) / of + z * z / (4 * of * of))
    return max(0.0, centre - margin), min(1.0, centre + margin)


@dataclass(frozen=True)
class Threshold:
    """A named constant of a rule's module, and the values to try."""

    code: str
    module: str
    name: str
    values: tuple[float, ...]
    moments: tuple[str, ...]

    def owner(self) -> ModuleType:
        """The module that holds it."""
        return import_module(RULES + self.module)

    @property
    def current(self) -> float:
        """Its value now."""
        return getattr(self.owner(), self.name)


NORMS_KNOWN = ("during", "before, norms known", "at the largest norm")
THRESHOLDS = (
    Threshold(
        "TT101",
        "gradient_vanishes_before_needed_lag",
        "ENOUGH",
        tuple(10.0 ** (-k / 2) for k in range(2, 17)),
        ("before",),
    ),
    Threshold(
        "TT102", "gradient_explodes", "HEAVY_BY_STEP", (1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 100), NORMS_KNOWN
    ),
    Threshold(
        "TT102", "gradient_explodes", "HEAVY_BY_SEQUENCE", (1.5, 2, 3, 5, 7, 10, 20, 30, 50, 100, 300), ("before",)
    ),
    Threshold(
        "TT190", "not_a_gradient_problem", "PROGRESS", (0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2), ("during",)
    ),
)


def chosen(threshold: Threshold, cases: Sequence[Case]) -> tuple[list[float], list[Score]]:
    """The values of the greatest merit, and the score of every value tried."""
    registry()  # so that no module is loaded while another one's constant is replaced
    cases = [case for case in cases if case.moment in threshold.moments]
    scores = []
    for value in threshold.values:
        with _set(threshold, value):
            scores.append(score(threshold.code, cases))
    best = max(each.merit for each in scores)
    return [value for value, each in zip(threshold.values, scores, strict=True) if each.merit == best], scores


@contextmanager
def _set(threshold: Threshold, value: float) -> Iterator[Any]:
    with patch.object(threshold.owner(), threshold.name, value):
        yield
