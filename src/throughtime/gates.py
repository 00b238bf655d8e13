"""The gates: means, fractions, a histogram and quantiles of logits, as counts that add up over batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from throughtime.cells.activations import GATES
from throughtime.cells.cell import Cell
from throughtime.flow import QUANTILES, Gate
from throughtime.linearize import Linearization
from throughtime.order import Order
from throughtime.trace import PORTION

BINS = 20  # of the histogram of gate values
ROOM = (
    2**20
)  # logits of a gate that are kept as they are when batches are added up; beyond it they are counted in steps
STEP = 1 / 128  # of the logit: quantiles of more logits are right to this
FAR = 64  # logits beyond ±FAR are counted as if they stood there


@dataclass(frozen=True)
class GateSums:
    """tally: (5,) count, sum of values, and how many are under .1, over .9, saturated. histogram: (BINS,) of values.

    logits: (n,) ascending, or None where they were too many: then steps (2·FAR/STEP,) holds their counts; ordered: rank → the
    logit there, for the quantiles, where they were sought one by one.
    """

    tally: NDArray[np.float64]
    histogram: NDArray[np.int64]
    logits: NDArray | None
    steps: NDArray[np.int64] | None = None
    ordered: Mapping[int, float] | None = None

    def __add__(self, other: GateSums) -> GateSums:
        tally, histogram = self.tally + other.tally, self.histogram + other.histogram
        if self.logits is not None and other.logits is not None and tally[0] <= ROOM:
            return GateSums(tally, histogram, np.sort(np.concatenate((self.logits, other.logits))))
        return GateSums(tally, histogram, None, self._counted() + other._counted())

    def bounded(self) -> GateSums:
        """The same in bounded memory."""
        if self.logits is None or len(self.logits) <= ROOM:
            return self
        return GateSums(self.tally, self.histogram, None, self._counted())

    def _counted(self) -> NDArray[np.int64]:
        if self.steps is not None:
            return self.steps
        assert self.logits is not None
        edges = (np.arange(1, int(2 * FAR / STEP)) * STEP - FAR).astype(self.logits.dtype)
        return np.diff(np.searchsorted(self.logits, edges), prepend=0, append=len(self.logits)).astype(np.int64)

    def _quantile(self, level: float) -> float:
        """Linear interpolation between the two nearest of sorted logits; of counts, within the step."""
        if self.logits is not None:
            return _between(self.logits, level * (len(self.logits) - 1))
        if self.ordered is not None:
            return _between(self.ordered, level * (int(self.tally[0]) - 1))
        assert self.steps is not None
        passed = self.steps.cumsum()
        place = level * passed[-1]
        at = int(np.searchsorted(passed, place))
        inside = (place - (passed[at] - self.steps[at])) / max(1, self.steps[at])
        return (at + inside) * STEP - FAR

    def finish(self) -> Gate:
        """See `throughtime.flow.Gate`."""
        mean, below, above, saturated = (self.tally[1:] / self.tally[0]).tolist()
        return Gate(
            mean=mean,
            below=below,
            above=above,
            saturated=saturated,
            logit_quantiles=np.array([self._quantile(level) for level in QUANTILES]),
            histogram=self.histogram,
        )


def _between(logits: NDArray | Mapping[int, float], place: float) -> float:
    low, high = float(logits[math.floor(place)]), float(logits[math.ceil(place)])
    return low + (place - math.floor(place)) * (high - low)


def told(linearization: Linearization, inside: Tensor | None) -> dict[str, GateSums]:
    """Each sigmoid gate over steps, sequences and units; inside: (T, B) bool, without padding.

    It takes the logits out of the linearization, which would have to make them again.
    """
    if not linearization.keeps_logits:
        return _told_in_passes(linearization, inside)
    out, taken = {}, linearization.take_logits()
    for name in list(taken):
        logits = taken.pop(name)
        chosen = logits if inside is None else logits[inside.to(logits.device)]
        logit = chosen.flatten().cpu().numpy()
        del logits, chosen
        logit.sort()  # in place; sorting once is cheaper than selecting quantiles
        out[name] = _counted(linearization.cell, logit)
    return out


def _counted(cell: Cell, logit: NDArray) -> GateSums:
    """Of ascending logits."""
    # a plain float would make numpy convert the whole array
    far = logit.dtype.type(GATES[cell.gate].beyond)
    cold, hot = np.searchsorted(logit, -far), np.searchsorted(logit, far, side="right")
    tally = np.array([len(logit), 0, 0, 0, len(logit) - hot + cold], np.float64)
    histogram = np.zeros(BINS, np.int64)
    for part in torch.from_numpy(logit).split(PORTION):
        values = cell.opened(part)

        def at(levels: list[float], value: Tensor = values, side: str = "left") -> NDArray:
            return torch.searchsorted(value, torch.tensor(levels, dtype=value.dtype), side=side).numpy()

        above = len(part) - at([0.9], side="right")[0]
        tally[1:4] += [float(values.sum(dtype=torch.float64)), at([0.1])[0], above]
        edges = at([place / BINS for place in range(1, BINS)])
        histogram += np.diff(edges, prepend=0, append=len(part))
    return GateSums(tally, histogram, logit)


def _told_in_passes(linearization: Linearization, inside: Tensor | None) -> dict[str, GateSums]:
    """`told` where there is no room for the logits of all steps: they are made again for each pass."""

    def portions() -> Iterator[tuple[str, NDArray]]:
        for at in linearization.trace.portions():
            for name, logits in linearization.logits_at(at).items():
                chosen = logits if inside is None else logits[inside[at].to(logits.device)]
                if chosen.numel():
                    yield name, np.sort(chosen.flatten().cpu().numpy())

    out: dict[str, GateSums] = {}
    for name, logit in portions():
        own = _counted(linearization.cell, logit)
        own = replace(own, logits=None, steps=own._counted())
        out[name] = out[name] + own if name in out else own
    sought = {name: Order(_ranks(int(gate.tally[0]))) for name, gate in out.items()}
    while any(not order.found for order in sought.values()):
        for name, logit in portions():
            sought[name].see(logit)
        for order in sought.values():
            order.narrow()
    return {name: replace(gate, ordered=sought[name].values()) for name, gate in out.items()}


def _ranks(count: int) -> list[int]:
    """Places among ascending logits between which the quantiles lie."""
    places = [level * (count - 1) for level in QUANTILES]
    return sorted({bound for place in places for bound in (math.floor(place), math.ceil(place))})
