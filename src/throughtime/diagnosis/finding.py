"""What a rule says when it fires."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["info", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "error")


@dataclass(frozen=True)
class Finding:
    """One finding: the measured value, the threshold it crossed, the layer, and what to do about it.

    preview: a rule that is not calibrated yet; it never changes an exit code.
    """

    code: str
    name: str
    severity: Severity
    preview: bool
    layer: str
    value: float
    threshold: float
    message: str
    remedy: str
    references: tuple[str, ...]
