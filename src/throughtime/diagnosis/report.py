"""The frozen report: a flow, the findings, and, where asked for, the measured effect of a remedy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from throughtime.diagnosis.finding import SEVERITIES, Finding, Severity
from throughtime.errors import InputError

if TYPE_CHECKING:
    from throughtime.flow import Flow
    from throughtime.verify import Verification


@dataclass(frozen=True)
class Needed:
    """Which lags the loss asks for in a layer, and who says so.

    source: "demand" (measured), "user" (needed_lag was given, `said`; what demand detected stands beside it in `lags`) or
    "unknown" (none detected and none given).
    """

    layer: str
    lags: tuple[int, ...]
    source: str
    said: int | None = None

    @property
    def farthest(self) -> int | None:
        """The largest needed lag."""
        return max(self.lags, default=None)


@dataclass(frozen=True)
class Report:
    """What `diagnose` returns. `needed` holds one entry a layer, in the flow's order."""

    flow: Flow
    needed: tuple[Needed, ...]
    findings: tuple[Finding, ...]
    verification: Verification | None = None
    title: str = "throughtime"
    before: Flow | None = None
    after: Flow | None = None

    def passed(self, fail_on: Severity = "warning") -> bool:
        """Whether no stable finding is at or above `fail_on` ("info", "warning", "error")."""
        if fail_on not in SEVERITIES:
            raise InputError(f"fail_on={fail_on!r}", f"one of {', '.join(SEVERITIES)}", "pass another severity")
        least = SEVERITIES.index(fail_on)
        return not any(SEVERITIES.index(f.severity) >= least for f in self.findings if not f.preview)

    def headline(self) -> list[tuple[str, str]]:
        """The first screen: (label, sentence) for needed, reached, finding, try and, if measured, after."""
        from throughtime.report.headline import headline

        return headline(self)

    def to_dict(self, network: bool = False) -> dict[str, Any]:
        """The JSON document (schema throughtime/1) as plain Python. network: see `Flow.to_json`."""
        from throughtime.report.json import report_to_dict

        return report_to_dict(self, network)

    def to_json(self, indent: int | None = None, network: bool = False) -> str:
        """The JSON document (schema throughtime/1). network: see `Flow.to_json`."""
        from throughtime.report.json import dumps

        return dumps(self.to_dict(network), indent)

    def save_html(self, path: str | Path) -> Path:
        """Write the self-contained HTML report; nothing is left half written when it cannot be."""
        from throughtime.report.html import save_html

        return save_html(self, path)

    def __repr__(self) -> str:
        from throughtime.report.text import report_text

        return report_text(self)

    def _repr_html_(self) -> str:
        from throughtime.report.html import notebook_html

        return notebook_html(self)
