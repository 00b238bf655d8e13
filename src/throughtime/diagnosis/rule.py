"""What a rule is: a permanent code, a name that says the fault, thresholds with their source, one docstring for
everything."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from throughtime.diagnosis.finding import Finding, Severity
from throughtime.diagnosis.report import Needed
from throughtime.errors import InputError
from throughtime.flow import LayerFlow
from throughtime.registry import instances

SECTIONS = ("What", "Why", "Example", "Remedy", "References")


@dataclass(frozen=True)
class History:
    """What is known of the training so far: loss by step and, where kept, the norm of the whole gradient by step."""

    loss: NDArray[np.float64]
    gradient_norm: NDArray[np.float64] | None = None

    @staticmethod
    def of(given: Any) -> History | None:
        """From None, a History, a sequence of losses, or a mapping with "loss" and perhaps "gradient_norm"."""
        if given is None or isinstance(given, History):
            return given
        if isinstance(given, dict):
            norms = given.get("gradient_norm")
            if "loss" in given:
                return History(_numbers(given["loss"]), None if norms is None else _numbers(norms))
        elif isinstance(given, Sequence | np.ndarray):
            return History(_numbers(given))
        raise InputError(
            f"history of type {type(given).__name__}",
            'a sequence of losses, or a mapping with "loss" and perhaps "gradient_norm"',
            "pass the numbers by training step",
        )


def _numbers(values: Any) -> NDArray[np.float64]:
    try:
        return np.asarray(values, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"a history that holds no numbers: {error}", "one number a step", "check the history"
        ) from error


class Rule(ABC):
    """One rule, in one file of diagnosis/rules/, called like the rule.

    code: permanent; TT1xx gradient, TT2xx gates, TT3xx dynamics, TT4xx set-up. name: says the fault, not the fix.
    preview: not calibrated: told as a note, without effect on exit codes. static: it needs the weights alone. The docstring
    is one sentence and the sections of `SECTIONS`; `throughtime explain`, the docs and the report are made of it. `fires` and
    `silent` are examples, small and measured, that tests run.
    """

    code: ClassVar[str]
    name: ClassVar[str]
    severity: ClassVar[Severity]
    preview: ClassVar[bool] = False
    static: ClassVar[bool] = False

    @abstractmethod
    def check(self, layer: LayerFlow, needed: Needed, history: History | None) -> Finding | None:
        """The finding in this layer, or None."""

    @abstractmethod
    def fires(self) -> tuple[LayerFlow, Needed, History | None]:
        """An example on which the rule fires."""

    @abstractmethod
    def silent(self) -> tuple[LayerFlow, Needed, History | None]:
        """An example, near to the other, on which it is silent."""

    def finding(
        self,
        layer: LayerFlow,
        value: float,
        threshold: float,
        message: str,
        remedy: str,
        severity: Severity | None = None,
    ) -> Finding:
        """A finding of this rule."""
        return Finding(
            code=self.code,
            name=self.name,
            severity=severity or self.severity,
            preview=self.preview,
            layer=layer.name,
            value=float(value),
            threshold=float(threshold),
            message=message,
            remedy=remedy,
            references=self.references,
        )

    @property
    def references(self) -> tuple[str, ...]:
        """The list items of the docstring's section References."""
        items = self.sections().get("References", "").split("\n- ")
        return tuple(" ".join(item.removeprefix("- ").split()) for item in items if item)

    def text(self) -> str:
        """The docstring (Markdown), for `throughtime explain CODE`, the docs and the report."""
        return inspect.cleandoc(type(self).__doc__ or "")

    def summary(self) -> str:
        """The docstring's first sentence."""
        return self.text().partition("\n")[0]

    def sections(self) -> dict[str, str]:
        """The docstring's sections by title."""
        parts = self.text().split("\n## ")[1:]
        return {title: body.strip() for title, _, body in (part.partition("\n") for part in parts)}


@cache
def registry() -> dict[str, Rule]:
    """All rules by code, in order of code: whatever stands in diagnosis/rules/."""
    found = sorted(instances("throughtime.diagnosis.rules", Rule), key=lambda rule: rule.code)
    codes = [rule.code for rule in found]
    if len(set(codes)) < len(codes):
        raise ValueError(f"two rules share a code: {codes}")
    return {rule.code: rule for rule in found}
