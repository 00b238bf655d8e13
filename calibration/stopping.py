"""Does the interval still hold the truth where it ended the run? `python -m calibration.stopping [data sets [level]]`.

Ten minutes for 400. level: of the interval that ends a run, 0.99 as it is, or 0.95, as the one that is told.

A run is ended at the first look at which the gradient horizon's interval is narrow: chosen for being narrow, it may miss more
often than one of a fixed number of batches. Two kinds of data sets:

- terms: each batch's G(τ) is drawn about means that are known, so that the truth is a formula. `noise`: of a batch, in parts of
  the gradient; `heavy`: it differs in size from batch to batch, log-normally. `late`: what one late lag brings, in parts of the
  gradient: near ε the truth is nearly a tie between two horizons far apart.
- GRU: the network and data of `calibration.intervals`, with less noise, whose truth is that of a very large sample.

Both read on to `MOST` batches where the interval never becomes narrow. Nominal: 95 %.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from calibration import intervals as gru
from calibration.score import wilson
from throughtime.flow import Intervals
from throughtime.streaming.accumulate import horizon_of
from throughtime.streaming.intervals import LEVEL as NOMINAL
from throughtime.streaming.intervals import SURE, Block, Blocks, Moments, intervals, narrow
from throughtime.streaming.stream import LEVEL, LOOKS
from throughtime.streaming.sums import merge

MOST = 32  # batches
WANTED = (0.1, 0.3)  # `stop_when`
WEIGHTS, LAGS, LATE = 20, 160, 90
NONE = Moments(1, *(torch.ones(LAGS, dtype=torch.float64) for _ in range(5)))


@dataclass(frozen=True)
class Look:
    """After so many batches: whether the interval ends the run, for each of `WANTED`, and whether it holds the truth."""

    batches: int
    ends: tuple[bool, ...]
    holds: bool


def look(
    batches: int, told: Intervals | None, sure: Intervals | None, horizon: Mapping[float, int | None], true: int
) -> Look:
    """The look after so many batches."""
    assert told is not None
    low, high = told.horizon[LEVEL]
    holds = (low is None or low <= true) and (high is None or true <= high)
    return Look(batches, tuple(narrow(sure, horizon, LEVEL, wanted) is not None for wanted in WANTED), holds)


@dataclass(frozen=True)
class Terms:
    """Data sets of terms. reach: steps in which the mean falls to 1/e; the rest: see the module."""

    reach: float
    noise: float
    heavy: float = 0.0
    late: float = 0.0

    @cached_property
    def mean(self) -> Tensor:
        """(W, L): the same in every data set; what stands at neighbouring lags points in similar directions."""
        drawn = torch.randn(WEIGHTS, LAGS, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        ways = drawn[:, :1] + 0.5 * drawn
        terms = ways / ways.norm(dim=0) * torch.exp(-torch.arange(LAGS) / self.reach)
        terms[:, LATE] += self.late * terms.sum(1).norm() * ways[:, LATE] / ways[:, LATE].norm()
        return terms

    @property
    def truth(self) -> int:
        """The gradient horizon."""
        return horizon_by_definition(self.mean)

    def batch(self, generator: torch.Generator) -> Tensor:
        """(W, L) of one batch. Its noise falls with the lag as the mean does."""
        drawn = torch.randn(WEIGHTS, LAGS, generator=generator, dtype=torch.float64)
        sizes = self.mean.norm(dim=0)
        factor = torch.exp(self.heavy * torch.randn((), generator=generator, dtype=torch.float64))
        own = factor * self.noise * float(self.mean.sum(1).norm()) * sizes / sizes.norm()
        return self.mean + own * drawn / WEIGHTS**0.5

    def looks(self, level: float, seed: int) -> Iterator[Look]:
        """One data set, look by look."""
        generator = torch.Generator().manual_seed(seed)
        blocks, total = None, torch.zeros(WEIGHTS, LAGS, dtype=torch.float64)
        for number in range(MOST):
            terms = self.batch(generator)
            total += terms
            own = Block(terms, terms.new_zeros(WEIGHTS), terms.new_zeros(0), terms.new_zeros(0))
            one = Blocks({0: {number: Block(terms, own.tail, *own.squares())}}, {}, NONE)
            blocks = one if blocks is None else blocks + one
            if number + 1 in LOOKS:
                bias = beyond(total) / float(total.sum(1).norm())
                horizon: dict[float, int | None] = {LEVEL: horizon_by_definition(total)}
                told, sure = (
                    intervals(blocks, bias, np.zeros(LAGS), horizon, np.zeros(LAGS), each) for each in (NOMINAL, level)
                )
                yield look(number + 1, told, sure, horizon, self.truth)


def beyond(terms: Tensor) -> np.ndarray:
    """(L,): the norm of what lies beyond each lag, summed from the far end."""
    return (terms.flip(1).cumsum(1).flip(1) - terms).norm(dim=0).numpy()


def horizon_by_definition(terms: Tensor) -> int:
    """The smallest K from which on no more than `LEVEL` of the gradient lies beyond it."""
    above = np.flatnonzero(beyond(terms) > LEVEL * float(terms.sum(1).norm()))
    return int(above[-1]) + 1 if len(above) else 0


def gru_looks(size: int, noise: float, true: int, level: float, seed: int) -> Iterator[Look]:
    """One data set of a GRU, look by look."""
    model, generator, sums = gru.network(), torch.Generator().manual_seed(seed), None
    for number in range(MOST):
        one = gru.sums_of(model, number, size, generator, noise)
        sums = one if sums is None else merge(sums, one)
        if number + 1 in LOOKS:
            told, sure, horizon = horizon_of(sums)
            yield look(number + 1, told, told if level == NOMINAL else sure, horizon, true)


Found = dict[str, list[bool]]


def measured(looks: Callable[[int], Iterator[Look]], sets: int) -> Found:
    """Whether the truth was held: after each number of batches, whether ended or not ("fixed 8", …); and, by `WANTED`, at the
    end of the run ("0.1 told"); of these, where it ended early ("0.1 ended", by batches "0.1 ended 8") or read all."""
    found: Found = {}
    for seed in range(sets):
        all_looks = list(looks(seed))
        for each in all_looks:
            found.setdefault(f"fixed {each.batches}", []).append(each.holds)
        for place, wanted in enumerate(WANTED):
            ended = next((each for each in all_looks if each.ends[place]), None)
            found.setdefault(f"{wanted} told", []).append((ended or all_looks[-1]).holds)
            if ended is None:
                found.setdefault(f"{wanted} read all", []).append(all_looks[-1].holds)
                continue
            for key in (f"{wanted} ended", f"{wanted} ended {ended.batches}"):
                found.setdefault(key, []).append(ended.holds)
    return found


def told(found: Found) -> str:
    """Percentages, the number of data sets, and the 95 % interval of a proportion."""
    parts = []
    for name in sorted(found, key=lambda name: [(len(part), part) for part in name.split()]):
        low, high = wilson(sum(found[name]), len(found[name]))
        parts.append(f"    {name}: {np.mean(found[name]):.1%} of {len(found[name])} ({low:.1%} to {high:.1%})")
    return "\n".join(parts)


SETS = {
    f"terms, reach {each.reach:g}, noise {each.noise:g}{', heavy' * (each.heavy > 0)}, late {each.late:g}": each
    for each in (
        *(Terms(reach, noise) for reach in (3, 20) for noise in (0.1, 1.0, 3.0)),
        *(Terms(20, noise, heavy=1.0) for noise in (0.1, 1.0)),
        *(Terms(5, noise, late=late) for noise in (0.1, 1.0) for late in (0.0095, 0.0105, 0.02)),
    )
}
GRUS = {
    f"GRU, batches of {size}, noise {noise:g}": (size, noise) for size, noise in ((256, 0.1), (64, 0.1), (256, 1.0))
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    level = float(sys.argv[2]) if len(sys.argv) > 2 else SURE
    together: Found = {}
    for name, each in SETS.items():
        found = measured(partial(each.looks, level), count)
        print(f"{name}, true {each.truth}\n{told(found)}", flush=True)
        for key, hits in found.items():
            together.setdefault(key, []).extend(hits)
    print(f"terms, together\n{told(together)}", flush=True)
    for name, (size, noise) in GRUS.items():
        true = gru.told(gru.network(), 50, 4000, torch.Generator().manual_seed(10**6), noise).horizon[LEVEL]
        assert true is not None
        found = measured(partial(gru_looks, size, noise, true, level), max(1, count // 4))
        print(f"{name}, true {true}\n{told(found)}", flush=True)
