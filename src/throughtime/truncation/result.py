"""The frozen result of `tt.window`: what each window loses and costs, and which one to use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from throughtime.diagnosis.report import Needed
from throughtime.flow import Flow, Missing
from throughtime.truncation.gradient import Window
from throughtime.truncation.lost import Lost
from throughtime.truncation.passes import Cost


@dataclass(frozen=True)
class Row:
    """One window. whole: of the weights of all recurrent layers together; layers: of each, by name.

    reaching: the share of the losses that reach back to the farthest needed lag, among those that have so many steps before
    them; NaN where no lag is known to be needed. cost: None where it was not measured.
    """

    window: Window
    whole: Lost
    layers: Mapping[str, Lost]
    reaching: float = float("nan")
    cost: Cost | None = None


@dataclass(frozen=True)
class WindowReport:
    """Which truncation window to use. Windows are told in steps: one of K steps holds the lags 0 … K − 1.

    chunks: the state detached every K steps (K1 = K2 = K). sliding: every loss goes back over K steps (K1 = 1). pairs: a pass
    every K1 steps over the last K2. full: the cost of a pass over everything. needed: which lags the loss asks for, by layer,
    and who says so. level: the bias that a recommended window may have. recommended: None where no lag is known to be needed,
    or where no window can hold it; alternatives: others that would do; reasons: in words. flow: the decomposition that it
    stands on. missing: what could not be told, and why. through: whether chunks were told through several recurrent modules, by
    the step itself run in chunks; else each module's lags are within it. over: what the intervals of chunks and pairs are over,
    "sequences" or "batches". How far a loader was read: flow.stream.
    """

    title: str
    steps: int
    batch: int
    level: float
    needed: tuple[Needed, ...]
    chunks: tuple[Row, ...]
    sliding: tuple[Row, ...]
    pairs: tuple[Row, ...]
    full: Cost | None
    recommended: Row | None
    alternatives: tuple[Row, ...]
    reasons: tuple[str, ...]
    flow: Flow
    missing: tuple[Missing, ...] = ()
    through: bool = False
    over: str = "sequences"

    @property
    def farthest(self) -> int | None:
        """The largest needed lag over layers: no window of fewer steps than it + 1 is recommended."""
        return max((need.farthest for need in self.needed if need.farthest is not None), default=None)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document (schema throughtime/window/1) as plain Python."""
        from throughtime.report.window import window_to_dict

        return window_to_dict(self)

    def to_json(self, indent: int | None = None) -> str:
        """The JSON document (schema throughtime/window/1)."""
        from throughtime.report.json import dumps

        return dumps(self.to_dict(), indent)

    def __repr__(self) -> str:
        from throughtime.report.window import window_text

        return window_text(self)
