"""The rows of the report: what each window loses and costs, exactly, of joined batches or of what was gathered over many."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from throughtime.cells.cell import Tensors
from throughtime.diagnosis.diagnose import needs
from throughtime.flow import Flow, LayerFlow, Missing
from throughtime.linearize import Linearization
from throughtime.progress import Tell
from throughtime.recording.recorder import record
from throughtime.trace import Trace
from throughtime.training_step import untouched
from throughtime.truncation.advice import advised, few, first_of, within
from throughtime.truncation.gather import HEAD, Gathered, losses_of
from throughtime.truncation.gradient import Window, gradients, unit_of
from throughtime.truncation.lost import LEAST_GROUPS, Comparison, Lost, Moments, compared
from throughtime.truncation.passes import Layer, layer_of, measure
from throughtime.truncation.result import Row, WindowReport

HORIZONS = (0.1, 0.01, 0.001)
FINER = 5  # windows tried between the last that loses too much and the first that does not


@dataclass(frozen=True)
class Plan:
    """The windows to be told. sizes: of chunks and sliding windows, up to the whole sequence."""

    sizes: list[int]
    pairs: list[Window]


class Rows:
    """Rows are made as they are asked for, each window once: of traces, or of what was gathered over many batches."""

    def __init__(self, flow: Flow, traces: list[Trace], needed_lag: int | None, level: float, progress: Tell) -> None:
        self.flow, self.needed_lag, self.level, self.progress = flow, needed_lag, level, progress
        self.traces = traces
        self.needed = tuple(needs(layer, needed_lag) for layer in flow.layers.values())
        self.backwards = any(trace.reverse for trace in traces)
        self.steps = flow.steps
        self.losses = {trace.name: losses_of(trace) for trace in traces}
        # A stack is told as a whole and by its layers: the whole counts its weights already.
        stacks = {trace.module for trace in traces if trace.cell.compound}
        self.outer = [trace.name for trace in traces if trace.cell.compound or trace.module not in stacks]
        self.comparisons: dict[str, Comparison] = {}
        self.moments: dict[Window, dict[str, Moments]] = {}
        self.unit = max(unit_of(trace) for trace in traces)
        self.planned = 1
        self.cut: Callable[[int], list[Tensors] | None] | None = None
        self.whole: list[Tensors] | None = None
        self.layers: list[Layer] = []
        self.linearized: dict[int, Linearization] = {}
        self.gathered: Gathered | None = None

    def over(self, flow: Flow, gathered: Gathered) -> Rows:
        """The same of all batches: traces tell the names and kinds of the layers alone."""
        traces = [trace for trace in self.traces if trace.name in flow.layers]
        late = [name for name in flow.layers if name not in {trace.name for trace in traces}]
        missing = [Missing(f"layers.{name}", f"not reached in the first {HEAD} batches") for name in late]
        layers = {trace.name: flow.layers[trace.name] for trace in traces}
        flow = replace(flow, layers=layers, missing=(*flow.missing, *missing))
        out = Rows(flow, traces, self.needed_lag, self.level, self.progress)
        out.gathered, out.cut, out.losses = gathered, self.cut, dict(gathered.losses)
        return out

    @property
    def farthest(self) -> int | None:
        return max((need.farthest for need in self.needed if need.farthest is not None), default=None)

    def lost(self, window: Window) -> dict[str, Moments]:
        """By layer, exactly."""
        if window not in self.moments and self.gathered is not None:
            self.moments[window] = {trace.name: self.gathered.moments(trace.name, window) for trace in self.traces}
        if window not in self.moments:
            found = {}
            self.progress(len(self.moments), self.planned, "truncated gradients")
            by_cutting = self._by_cutting(window)
            if by_cutting is not None:
                self.moments[window] = by_cutting
                return by_cutting
            for trace in self.traces:
                with torch.no_grad(), torch.autocast(trace.x.device.type, enabled=False):
                    if trace.name not in self.comparisons:
                        self.comparisons[trace.name] = Comparison(Linearization(trace), self.unit)
                    found[trace.name] = self.comparisons[trace.name].moments(window)
            self.moments[window] = found
        return self.moments[window]

    def _by_cutting(self, window: Window) -> dict[str, Moments] | None:
        """Of chunks, through several modules, by layer; None where that cannot be told."""
        if self.cut is None or window.k1 != window.k2:
            return None
        self.whole = self.whole or self.cut(self.steps)
        kept = self.whole if window.k2 >= self.steps else self.cut(window.k2)
        if self.whole is None or kept is None:
            self.cut = None
            return None
        found = {}
        for trace in self.traces:
            names = list(trace.names.values())
            if not all(name in self.whole[0] for name in names):  # made of other parameters (a parametrization)
                self.cut = None
                return None
            whole, cut = (
                [torch.stack([batch[name] for batch in each]) * 2.0**-self.unit for name in names]
                for each in (self.whole, kept)
            )
            found[trace.name] = compared(whole, cut)
        return found

    def row(self, window: Window) -> Row:
        """A window, exactly."""
        found = self.lost(window)
        return self._row(window, found)

    def sliding(self, size: int) -> Row:
        """Every loss goes back over `size` steps: read from the flow, which has every lag."""
        whole = self.lost(Window(self.steps, self.steps))
        found = {}
        for name, layer in self.flow.layers.items():
            g = whole[name].whole[:1]
            lag = min(size, layer.steps) - 1
            bias, share = _told(layer, lag)
            found[name] = Moments(g, g * (bias**2 + 2 * share - 1), g * bias**2, g * share)
        row = self._row(Window(1, size), found)
        layers = {name: self._over_batches(lost, name, size) for name, lost in row.layers.items()}
        return replace(row, layers=layers, whole=layers[self.outer[0]] if len(self.outer) == 1 else row.whole)

    def _over_batches(self, lost: Lost, name: str, size: int) -> Lost:
        """With the interval over batches that the flow has."""
        layer = self.flow.layers[name]
        if layer.intervals is None:
            return lost
        low, high = layer.intervals.bias[:, min(size, layer.steps) - 1].tolist()
        return replace(lost, low=low, high=high)

    def _row(self, window: Window, found: dict[str, Moments]) -> Row:
        whole = found[self.outer[0]]
        for name in self.outer[1:]:
            whole = whole + found[name]
        return Row(window, whole.lost(), {name: each.lost() for name, each in found.items()}, self._reaching(window))

    def _reaching(self, window: Window) -> float:
        """See `Row.reaching`; the least over the layers that ask for a lag."""
        shares = []
        for trace, need in zip(self.traces, self.needed, strict=True):
            if need.farthest is None:
                continue
            losses = self.losses[trace.name].numpy()
            able = np.arange(len(losses)) >= need.farthest
            reach = window.lags(len(losses)) >= need.farthest
            count = losses[able].sum()
            shares.append(losses[able & reach].sum() / count if count else 0.0)
        return float(min(shares, default=np.nan))

    def cost_of(self, model: nn.Module, first: dict[str, Trace]) -> None:
        """Copies of the recurrent layers, on what the first batch gave them."""
        modules = record(model).layers
        for name in dict.fromkeys(first[each].module or each for each in self.outer):
            own = [trace for trace in first.values() if (trace.module or trace.name) == name]
            whole = next((trace for trace in own if trace.cell.compound), own[0])
            lowest = next(trace for trace in own if not trace.cell.compound)
            with untouched(model):
                self.layers.append(layer_of(modules[name], whole, lowest))

    def plan(self, asked: list[Window]) -> Plan:
        """Which windows to tell."""
        horizon = self._horizon(self.level)
        sizes = _sizes(self.steps, self.farthest, [self._horizon(level) for level in HORIZONS], horizon)
        sizes = sorted({*sizes, *(each.k2 for each in asked if each.k1 == each.k2)})
        pairs = [each for each in asked if each.k1 != each.k2]
        if self.backwards:
            return Plan(sizes, pairs)
        self.planned = len(sizes) + len(pairs) + FINER + 1
        chunks = {size: self.row(Window(size, size)) for size in sizes}
        self._finer(chunks)
        pair = self._pair(horizon)
        return Plan(sorted(chunks), [*pairs, *([pair] if pair is not None and pair not in pairs else [])])

    def report(self, title: str, plan: Plan) -> WindowReport:
        """Rows, costs and the advice."""
        horizon = self._horizon(self.level)
        missing = []
        sizes, pairs = sorted({*plan.sizes, self.steps}), plan.pairs  # sequences may be longer than those seen first
        chunks: dict[int, Row] = {}
        if self.backwards:
            missing.append(
                Missing("chunks", "a direction runs back in time: it has no state to carry from chunk to chunk")
            )
        else:
            chunks = {size: self.row(Window(size, size)) for size in sizes}
        paired = [self.row(each) for each in pairs]
        sliding = [self.sliding(size) for size in sorted({*sizes, *self._least(horizon)})]
        report = WindowReport(
            title=title,
            steps=self.steps,
            batch=max(layer.batch for layer in self.flow.layers.values()),
            level=self.level,
            needed=self.needed,
            chunks=tuple(chunks[size] for size in sorted(chunks)),
            sliding=tuple(sliding),
            pairs=tuple(paired),
            full=None,
            recommended=None,
            alternatives=(),
            reasons=(),
            flow=self.flow,
            through=self.cut is not None,
            over="sequences" if self.gathered is None else "batches",
        )
        missing += self._untold(report)
        if not self.layers:
            missing.append(Missing("cost", missing[0].reason if self.backwards else "not asked for"))
            return advised(replace(report, missing=tuple(missing)))
        single = self._least(horizon) if self.farthest is not None else sizes[1:]
        cheap = [row.window for row in sliding if row.window.k2 in single and few(report, row.window)]
        full, costs = measure(
            self.layers,
            [*(row.window for row in report.chunks), *pairs, *cheap],
            self._computed,
            self.progress,
        )

        def with_cost(rows: Iterable[Row]) -> tuple[Row, ...]:
            return tuple(replace(row, cost=costs.get(row.window)) for row in rows)

        told = {name: with_cost(getattr(report, name)) for name in ("chunks", "sliding", "pairs")}
        return advised(replace(report, full=full, missing=tuple(missing), **told))

    def _untold(self, report: WindowReport) -> list[Missing]:
        """Numbers that no row has, and why."""
        out = []
        if self.gathered is None:
            out.append(Missing("sliding.low", "read from the flow, which does not keep sequences apart"))
        elif any(np.isnan(row.whole.low) for row in report.sliding):
            out.append(Missing("sliding.low", "told for each layer, from the flow, where it has intervals"))
        if within(report):
            reason = "told within each module: what one loses on its way through another is not counted"
            out += [Missing("sliding.whole", reason), *([Missing("pairs.whole", reason)] if report.pairs else [])]
        if any(np.isnan(row.whole.bias) for row in report.sliding):
            tails = [layer.tail for layer in self.flow.layers.values() if layer.tail is not None]
            cut = any(tail.tolerance is None for tail in tails)
            left = "max_lag ended them, whatever was left" if cut else "what is left there is under the tolerance"
            out.append(Missing("sliding.bias", f"beyond the lags told apart: {left}"))
        if report.chunks and np.isnan(report.chunks[0].whole.low):
            out.append(
                Missing("chunks.low", f"an interval over sequences needs {LEAST_GROUPS} of them, and a gradient")
                if self.gathered is None
                else Missing("chunks.low", "the gradients of groups of batches would take more than 2 GiB")
            )
        if self.farthest is None:
            out.append(Missing("reaching", "no lag is known to be needed"))
        if self.layers:
            out.append(Missing("sliding.cost", "a pass for each loss is measured only where losses are few"))
            if not all(layer.comparable for layer in self.layers):
                out.append(Missing("cost.residual", "dropout, or states that are multiplied or lost between calls"))
        return out

    def _computed(self, layer: Layer, window: Window) -> Tensors:
        lin = self.linearized.setdefault(id(layer), Linearization(layer.trace))
        with torch.no_grad(), torch.autocast(layer.x.device.type, enabled=False):
            return gradients(lin, window)

    def _horizon(self, level: float) -> int | None:
        """The least K with a bias of at most `level` from there on, over all layers; None where one of them has none."""
        found = []
        for name in self.outer:
            bias = self.flow.layers[name].bias
            known = np.flatnonzero(~np.isnan(bias))
            above = known[bias[known] > level]
            first = int(above[-1]) + 1 if len(above) else 0
            found.append(first if len(known) and first <= known[-1] else None)
        return None if None in found else max((each for each in found if each is not None), default=None)

    def _least(self, horizon: int | None) -> list[int]:
        """The smallest sliding window that holds the needed lag and what the gradient reaches."""
        if horizon is None or self.farthest is None:
            return []
        return [min(max(self.farthest, horizon) + 1, self.steps)]

    def _pair(self, horizon: int | None) -> Window | None:
        """Passes in which every loss reaches back over the needed lag and the horizon, each over twice as many steps."""
        if horizon is None or self.farthest is None:
            return None
        overlap = max(self.farthest, horizon, 1)
        return Window(overlap, 2 * overlap) if 2 * overlap < self.steps else None

    def _finer(self, chunks: dict[int, Row]) -> None:
        """Try sizes between the last that will not do and the first that will."""
        if self.farthest is None:
            return
        for _ in range(FINER):
            good = first_of(chunks.values(), self.farthest, self.level)
            high = self.steps if good is None else good.window.k2
            low = max([self.farthest, *(size for size in chunks if size < high)])
            middle = (low + high) // 2
            if middle <= low or high - low <= max(1, high // 20):
                return
            chunks[middle] = self.row(Window(middle, middle))


def _told(layer: LayerFlow, lag: int) -> tuple[float, float]:
    """bias(lag) and the cumulative share up to it; 0 and 1 at the end, NaN in the tail."""
    if lag >= max(layer.loss_steps):
        return 0.0, 1.0
    return float(layer.bias[lag]), float(np.cumsum(layer.share)[lag])


def _sizes(steps: int, farthest: int | None, horizons: list[int | None], horizon: int | None) -> list[int]:
    """Windows worth a row: 1, 2, 5, 10 …, one step more than each horizon and the needed lag, and twice the larger of both."""
    found = {steps} | {n * 10**power for power in range(6) for n in (1, 2, 5)}
    found |= {each + 1 for each in horizons if each is not None}
    if farthest is not None:
        found |= {farthest + 1} | ({2 * max(horizon, farthest + 1)} if horizon is not None else set())
    return sorted(size for size in found if size <= steps)
