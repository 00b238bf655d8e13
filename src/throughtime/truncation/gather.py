"""Over a data set of any size: what each window gives the weights, added up batch by batch.

Bias and cosine are of sums over all batches, so the sums are kept: 8 bytes a weight and window, and that for each of eight
groups of batches, of which the intervals leave out one after another, as long as it fits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.cells.cell import Tensors
from throughtime.errors import InputError
from throughtime.linearize import Linearization
from throughtime.streaming.engines import Job
from throughtime.streaming.sums import added
from throughtime.streaming.task import Measured, Read, Task
from throughtime.trace import Trace
from throughtime.training_step import untouched
from throughtime.truncation.gradient import Window, truncated, unit_of
from throughtime.truncation.lost import GROUPS, Moments, compared

HEAD = 8  # batches that are held together, and on which windows are chosen
MEMORY = 2**31  # bytes that the sums of all windows and groups may take; with more there is one group, and no interval
WHOLE, THROUGH = "whole", "whole through all modules"
Parts = list[Tensor]
Cut = Callable[[nn.Module, list[Any], Mapping[str, list[int]], int], "list[Tensors] | None"]
"""The gradients of some batches in chunks of so many steps, see `throughtime.truncation.cut.cut_gradients`."""


@dataclass(frozen=True)
class Gathered:
    """sums: (layer, which gradient) → group → its parts, float64, in units that are the same in all. losses: layer → (T,)
    sequences with a loss at each step."""

    groups: int
    through: bool
    sums: Mapping[tuple[str, str], Mapping[int, Parts]]
    losses: Mapping[str, Tensor]

    def __add__(self, other: Gathered) -> Gathered:
        sums = {key: dict(groups) for key, groups in self.sums.items()}
        for key, groups in other.sums.items():
            own = sums.setdefault(key, {})
            for group, parts in groups.items():
                own[group] = [a + b for a, b in zip(own[group], parts, strict=True)] if group in own else parts
        losses = dict(self.losses)
        for layer, count in other.losses.items():
            losses[layer] = added(losses[layer], count) if layer in losses else count
        return Gathered(self.groups, self.through, sums, losses)

    def moments(self, layer: str, window: Window) -> Moments:
        """What this window makes of the gradient of all batches."""
        whole = self._stacked(layer, THROUGH if self.through and window.k1 == window.k2 else WHOLE)
        longest = window.k1 >= len(self.losses[layer])
        return compared(whole, whole if longest else self._stacked(layer, str(window)))

    def _stacked(self, layer: str, which: str) -> Parts:
        groups = self.sums[layer, which]
        first = next(iter(groups.values()))
        nothing = [torch.zeros_like(part) for part in first]
        return [torch.stack(each) for each in zip(*(groups.get(g, nothing) for g in range(self.groups)), strict=True)]


def groups_of(weights: int, windows: int) -> int:
    """Into how many groups batches are put: `GROUPS`, or 1 where these would take more than `MEMORY`."""
    return GROUPS if 8 * weights * windows * GROUPS <= MEMORY else 1


@dataclass(frozen=True)
class WindowTask(Task):
    """The sums of a flow, and beside them those of some windows.

    unit: they are in units of 2^unit, for squares of a gradient may leave the range of floats. cut: runs chunks through several
    modules, or None.
    """

    windows: tuple[Window, ...]
    groups: int
    unit: int
    cut: Cut | None

    def added_up(self, model: nn.Module, read: Read, job: Job) -> Measured:
        """See `Task`."""
        group = job.number % self.groups
        sums: dict[tuple[str, str], Parts] = {}
        for trace in read.traces:
            sums |= self._own(trace)
        if self.cut is not None:
            sums |= self._cut(self.cut, model, read, job)
        losses = {trace.name: losses_of(trace) for trace in read.traces}
        gathered = Gathered(
            self.groups, self.cut is not None, {key: {group: parts} for key, parts in sums.items()}, losses
        )
        return replace(super().added_up(model, read, job), beside=gathered)

    def _own(self, trace: Trace) -> dict[tuple[str, str], Parts]:
        """Of one layer: chunks too where none are run through several modules."""
        with torch.no_grad(), torch.autocast(trace.x.device.type, enabled=False):
            lin, unit = Linearization(trace), unit_of(trace)

            def sums(window: Window) -> Parts:
                return [
                    part[0].double().cpu() * 2.0 ** (unit - self.unit) for part in truncated(lin, window, unit=unit)
                ]

            out = {(trace.name, WHOLE): sums(Window(trace.steps, trace.steps))}
            for window in self.windows:
                if self.cut is None or window.k1 != window.k2:
                    whole = window.k1 >= trace.steps
                    out[trace.name, str(window)] = out[trace.name, WHOLE] if whole else sums(window)
        return out

    def _cut(self, cut: Cut, model: nn.Module, read: Read, job: Job) -> dict[tuple[str, str], Parts]:
        steps = {trace.module or trace.name: [trace.steps] for trace in read.traces}
        longest = max(trace.steps for trace in read.traces)
        out: dict[tuple[str, str], Parts] = {}
        chunks = [window for window in self.windows if window.k1 == window.k2]
        sizes = [(THROUGH, longest), *((str(window), min(window.k2, longest)) for window in chunks)]
        for which, size in sizes:
            with untouched(model):  # the same random numbers for every size
                torch.manual_seed((job.seed + job.number) % 2**63)
                made = cut(model, [job.batch], steps, size)
            if made is None:
                raise InputError(
                    f"a step that calls its layers in another way than those before it, in batch {job.number}",
                    "each recurrent module called once a step, or its cell once a step of the sequence",
                    "tell windows of batches of one kind at a time",
                )
            for trace in read.traces:
                out[trace.name, which] = [
                    made[0][name].double().cpu() * 2.0**-self.unit for name in trace.names.values()
                ]
        return out


def losses_of(trace: Trace) -> Tensor:
    """(T,): the sequences with a loss at each step."""
    return (trace.gradient.abs().amax(-1) > 0).sum(1).cpu()
