"""Sums over steps and sequences of products of two series, at every lag and for many orders of the batch at once.

    S(order, τ) = Σ_entries ( Σ_t Σ_i  left[t, order(i)] ⊗ right_τ[t − τ, i] )^power

The left series lives at a few steps, the origins; the right one may be another at the nearest lags:
`rights[min(τ, last)]`.
The items i are sequences, or pairs of sequences, as the form says. Two ways to the same numbers, both kept callable:
`by_product` (few origins) and `by_transform` (many).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 2**23  # numbers held at once in a product: 32 MB in float32
_most: ContextVar[int] = ContextVar("most", default=CHUNK)


@contextmanager
def at_once(numbers: int) -> Iterator[None]:
    """Hold no more than so many numbers at once in a product, nor more than `CHUNK`."""
    token = _most.set(numbers)
    try:
        yield
    finally:
        _most.reset(token)


def _chunk() -> int:
    return min(CHUNK, _most.get())


@dataclass(frozen=True)
class Form:
    """How a series (n, B, D) enters the sum: itself, or as a matrix over pairs of sequences flattened to (n, B², 1)."""

    lift: Callable[[Tensor], Tensor]
    pairs: bool

    @property
    def power(self) -> int:
        return 1 if self.pairs else 2

    def reordered(self, items: Tensor, orders: Tensor) -> Tensor:
        """Lifted items (n, I, r) in each of the orders (p, B) of the sequences: (n, p, I, r)."""
        if not self.pairs:
            return items[:, orders]
        batch = orders.shape[1]
        matrices = items.reshape(len(items), batch, batch)
        # symmetric: rows, transposed, rows again are much faster than rows and columns
        each = [matrices[:, order].mT.contiguous()[:, order] for order in orders]
        return torch.stack(each, dim=1).reshape(len(items), len(orders), batch * batch, 1)


def _grams(x: Tensor) -> Tensor:
    return (x @ x.mT).flatten(1)[..., None]


def _distances(x: Tensor) -> Tensor:
    d = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    d = d - d.mean(1, keepdim=True) - d.mean(2, keepdim=True) + d.mean((1, 2), keepdim=True)
    return d.flatten(1)[..., None]


PRODUCTS = Form(lambda x: x, pairs=False)
"""‖C(τ)‖², C summed over the sequences."""
GRAMS = Form(_grams, pairs=True)
"""The same number for a single origin, by inner products between sequences."""
DISTANCES = Form(_distances, pairs=True)
"""B² × squared distance covariance, summed over the origins: distances less their row and column means."""


def by_product(left: Tensor, origins: Tensor, rights: Sequence[Tensor], orders: Tensor, form: Form) -> Tensor:
    """S (p, T) lag by lag: left (n, B, r) at the steps `origins` (n,), rights each (T, B, d), orders (p, B)."""
    items, steps = form.lift(left), len(rights[0])
    out = left.new_zeros(len(orders), steps)
    near = min(len(rights) - 1, steps)
    width = items.shape[1] * (1 if form.pairs else rights[-1].shape[2])
    chunk = max(
        1, (4 * _chunk() if form.pairs else _chunk()) // (len(items) * width)
    )  # each chunk orders the pairs again
    groups = [range(lag, lag + 1) for lag in range(near)]
    groups += [range(first, min(first + chunk, steps)) for first in range(near, steps, chunk)]
    for lags in groups:
        right = _delayed(rights[min(lags[0], near)], origins, torch.arange(lags.start, lags.stop))
        right = form.lift(right.flatten(0, 1)).unflatten(0, right.shape[:2])
        out[:, lags.start : lags.stop] = _contracted(items, right, orders, form)
    return out


def by_transform(left: Tensor, origins: Tensor, rights: Sequence[Tensor], orders: Tensor, form: Form) -> Tensor:
    """S (p, T), the same by Fourier transforms over time (the nearest lags, with an own right side, by product)."""
    items, right, steps = form.lift(left), form.lift(rights[-1]), len(rights[0])
    near = min(len(rights) - 1, steps)
    whole = items.new_zeros(steps, *items.shape[1:])
    whole[origins] = items
    count, rank = items.shape[1:]
    length = _fast_length(2 * steps - 1)  # long enough that no lag wraps round
    left_f = torch.fft.rfft(whole, length, dim=0)
    out = left.new_zeros(len(orders), steps)
    for part in right.split(max(1, _chunk() // (length * max(count, rank))), dim=2):  # of one order there is room
        part_f = torch.fft.rfft(part, length, dim=0).conj()
        chunk = max(1, _chunk() // (length * rank * max(count, part.shape[2])))
        for some, of in zip(orders.split(chunk), out.split(chunk), strict=True):
            ordered = form.reordered(left_f, some).permute(0, 1, 3, 2).flatten(1, 2)  # (frequency, p·r, I)
            c = torch.fft.irfft(ordered @ part_f, length, dim=0)[:steps]
            of += c.pow_(form.power).sum(2).reshape(steps, -1, rank).sum(2).T
    for lag in range(near):
        own = form.lift(_delayed(rights[lag], origins, torch.tensor([lag]))[:, 0])[:, None]
        out[:, lag] = _contracted(items, own, orders, form)[:, 0]
    return out


def _delayed(x: Tensor, origins: Tensor, lags: Tensor) -> Tensor:
    """(n, L, B, d): x at the steps origins − lags, zero before the first step."""
    step = origins[:, None] - lags
    return x[step.clamp(min=0)] * (step >= 0)[:, :, None, None]


def _contracted(items: Tensor, right: Tensor, orders: Tensor, form: Form) -> Tensor:
    """(p, L) from items (n, I, r) and right (n, L, I, d)."""
    origins, lags, count, size = right.shape
    rank = items.shape[2]
    flat = right.transpose(1, 2).reshape(origins * count, lags * size)
    out = right.new_empty(len(orders), lags)
    chunk = max(1, _chunk() // (rank * max(origins * count, lags * size)))
    for some, of in zip(orders.split(chunk), out.split(chunk), strict=True):
        ordered = form.reordered(items, some).permute(1, 3, 0, 2)  # (p, r, n, I)
        c = (ordered.reshape(-1, origins * count) @ flat).reshape(len(some), rank, lags, size)
        of.copy_(c.pow_(form.power).sum((1, 3)))
    return out


def _fast_length(least: int) -> int:
    """The smallest 2^a, 3·2^a or 5·2^a that is not below `least`."""
    return min(odd << max(0, math.ceil(math.log2(least / odd))) for odd in (1, 3, 5))
