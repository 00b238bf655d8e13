"""The gradient of truncated BPTT, exactly, from a trace: every window at once, as rows of one backward pass.

Williams & Peng (1990) write BPTT(h; h′): a backward pass every h′ steps (K1), for the losses of these steps, over the last h
steps (K2). K1 = K2 = K are **chunks**: the state is detached every K steps. K1 = 1 is a **sliding window**: every loss goes
back over K2 steps, lags 0 … K2 − 1. The states are those of the run as it was, so the windows do not depend on each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index

import numpy as np
import torch
from torch import Tensor

from throughtime.block import Block, contiguous
from throughtime.cells.cell import Pulled
from throughtime.errors import InputError
from throughtime.linearize import Linearization
from throughtime.reducers.products import AUTOGRAD, grouped, outer
from throughtime.scaled import DEAD, exponent_of, power_of_two, rescale, shifted
from throughtime.sweep import BLOCK_ENTRIES
from throughtime.trace import Trace


@dataclass(frozen=True, order=True)
class Window:
    """k1 steps between two backward passes, k2 steps that each goes back over; see the module. Raises InputError."""

    k1: int
    k2: int

    def __post_init__(self) -> None:
        if not 1 <= self.k1 <= self.k2:
            raise InputError(
                f"a window of K1={self.k1}, K2={self.k2}",
                "1 ≤ K1 ≤ K2: a pass every K1 steps that goes back over K2",
                "give one number for chunks (K1 = K2)",
            )

    @staticmethod
    def of(given: int | str | Sequence[int]) -> Window:
        """K, (K1, K2), "K" or "K1,K2". Raises InputError."""
        parts = given.split(",") if isinstance(given, str) else given if isinstance(given, Sequence) else [given]
        try:
            numbers = [int(part) if isinstance(part, str) else index(part) for part in parts]
        except (TypeError, ValueError):
            numbers = []
        if len(numbers) not in (1, 2):
            raise InputError(f"the window {given!r}", "a number of steps K, or a pair K1,K2", "write 50, or 10,50")
        return Window(numbers[0], numbers[-1])

    def __str__(self) -> str:
        return str(self.k2) if self.k1 == self.k2 else f"{self.k1},{self.k2}"

    @property
    def overlap(self) -> int:
        """Steps before its own K1 into which a pass goes back: every loss reaches back at least so far."""
        return self.k2 - self.k1

    def passes(self, steps: int) -> list[tuple[int, int, int]]:
        """(first step, first step with a loss of its own, end) of each backward pass over T steps."""
        return [(max(0, a - self.overlap), a, min(a + self.k1, steps)) for a in range(0, steps, self.k1)]

    def lags(self, steps: int) -> np.ndarray:
        """(T,) the farthest lag that a loss at each step reaches back to."""
        at = np.arange(steps)
        return at - np.maximum(0, at // self.k1 * self.k1 - self.overlap)


def truncated(
    linearization: Linearization, window: Window, groups: list[slice] | None = None, unit: int = 0
) -> list[Tensor]:
    """The gradient that a window gives, (groups, K, H, width) for each of `products.grouped`, in units of 2^unit.

    groups: the sequences whose gradients are told apart; all together by default.
    """
    trace, whole = linearization.trace, linearization.whole
    sums = _Sums(linearization, groups or [slice(0, trace.batch)], unit)
    passes = [each for each in window.passes(trace.steps) if bool(trace.gradient[each[1] : each[2]].any())]
    starts = torch.tensor([own - window.overlap for _, own, _ in passes])  # negative where there is less before it
    rows = trace.gradient.new_zeros(len(passes), *trace.gradient.shape[1:])
    power = torch.full(rows.shape[:2], DEAD, dtype=torch.int64, device=rows.device)
    kept = _Kept(linearization, sums)
    with torch.no_grad():
        for turn in reversed(range(window.k2 if passes else 0)):
            steps = starts + turn
            inside = ((steps >= 0) & (steps < trace.steps)).nonzero().flatten()
            if not len(inside):
                continue
            alive = slice(int(inside[0]), int(inside[-1]) + 1)
            at = _picked(steps[alive])
            now, exponent = rows[alive].clone(), power[alive]  # what is pulled may be kept as a view of it
            if turn >= window.overlap:
                now, exponent = _joined(now, exponent, trace.gradient[at])
            peak = now.abs().amax(-1)
            now, exponent = rescale(now, exponent, peak)
            exponent = torch.where(peak > 0, exponent, DEAD)
            pulled = linearization.pull(whole, lambda array, at=at: array[at], now, paths=False)
            kept.add(steps[alive], now, exponent, pulled)
            rows[alive], power[alive] = pulled.carry, exponent
        kept.flush()
    return sums.blocks


def gradients(linearization: Linearization, window: Window) -> dict[str, Tensor]:
    """The gradient of all sequences together, by parameter."""
    unit = unit_of(linearization.trace)
    out = {name: torch.zeros_like(value) for name, value in linearization.trace.weights.tensors().items()}
    blocks = truncated(linearization, window, unit=unit)
    for group, block in zip(grouped(linearization), blocks, strict=True):
        group.put(block[0] * 2.0**unit, out[group.parameter])
    return out


def unit_of(trace: Trace) -> int:
    """The exponent of the power of two next to the largest entry of the gradient; 0 where it is not known."""
    return exponent_of(trace.weight_gradients.values())


def _picked(steps: Tensor) -> slice | Tensor:
    """Ascending steps as a slice, which copies nothing, where they stand at equal distances."""
    if len(steps) == 1:
        return slice(int(steps[0]), int(steps[0]) + 1)
    apart = steps.diff()
    if bool((apart == apart[0]).all()):
        return slice(int(steps[0]), int(steps[-1]) + 1, int(apart[0]))
    return steps


def _joined(rows: Tensor, power: Tensor, entering: Tensor) -> tuple[Tensor, Tensor]:
    """rows (R, B, C) · 2^power plus what enters at their steps, exactly."""
    own = torch.where(entering.abs().amax(-1) > 0, 0, DEAD)
    new = torch.maximum(power, own)
    return shifted(rows, new - power) + shifted(entering, new - own), new


class _Kept:
    """Rows of several turns as one block, so that the parameters' terms are made of few large products."""

    def __init__(self, linearization: Linearization, sums: _Sums) -> None:
        self.linearization, self.sums = linearization, sums
        self.turns: list[tuple[Tensor, Tensor, Tensor, Pulled]] = []

    def add(self, steps: Tensor, rows: Tensor, exponent: Tensor, pulled: Pulled) -> None:
        if self.turns and (len(self.turns[0][0]) != len(steps) or len(self.turns) * rows.numel() >= BLOCK_ENTRIES):
            self.flush()
        self.turns.append((steps, rows, exponent, pulled))

    def flush(self) -> None:
        if not self.turns:
            return
        steps, rows, exponents, pulled = zip(*reversed(self.turns), strict=True)  # ascending, for slices of the factors
        lin, at = self.linearization, torch.stack(steps)
        adjoint, exponent = torch.stack(rows), torch.stack(exponents)
        common = exponent.flatten(1).amax(1)
        picked = contiguous(at)
        picked = picked if isinstance(picked, slice) else picked.to(adjoint.device)
        self.sums.add(Block(lin, lin.whole, None, at[-1], at, picked, adjoint, exponent, common, list(pulled)))
        self.turns = []


class _Sums:
    """Σ p ⊗ x over the rows of blocks, by group of parameters and by group of sequences."""

    def __init__(self, linearization: Linearization, sequences: list[slice], unit: int) -> None:
        tensors = linearization.trace.weights.tensors()
        self.groups, self.sequences, self.unit = grouped(linearization), sequences, unit
        self.blocks = [
            torch.zeros_like(group.of(tensors[group.parameter])).expand(len(sequences), -1, -1, -1).clone()
            for group in self.groups
        ]

    def add(self, block: Block) -> None:
        rows, batch = block.adjoint.shape[1:3]
        scale = power_of_two(block.common - self.unit, block.adjoint.dtype)
        apart = any(group.operand == AUTOGRAD for group in self.groups)
        by_autograd = [block.rows_by_autograd(each) if apart else [] for each in self.sequences]
        for group, summed in zip(self.groups, self.blocks, strict=True):
            if group.operand == AUTOGRAD:
                for each, terms in zip(summed, by_autograd, strict=True):
                    for weight, term in zip(scale, terms, strict=True):
                        each += weight * term[group.parameter].reshape(each.shape)
                continue
            p, x = group.factors(block)
            p = (p * scale[:, None, None]).unflatten(2, (rows, batch))
            x = None if x is None else x.unflatten(1, (rows, batch))
            for each, own in zip(summed, self.sequences, strict=True):
                each += outer(p[..., own, :].flatten(1, 3), None if x is None else x[:, :, own].flatten(0, 2))
