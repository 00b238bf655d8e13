"""What an analysis of gradients is: sums over the blocks of a sweep, so that two of them merge into the whole."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor

from throughtime.block import Block
from throughtime.linearize import Linearization
from throughtime.scaled import Later, Scaled, scaled_of, tensor_of


class Reducer:
    """Fed by a sweep. Everything kept stands in `sums` and is a sum over sequences and origins: merging adds.

    A subclass overrides what it needs of `update` (a block of told-apart lags), `tail` (a block of the tail's stream) and
    `initial` (an adjoint of the initial state), and has a `finish` that makes its result of the sums alone. One that reads
    the block's paths says so in `paths`.
    """

    paths = False

    def __init__(self, linearization: Linearization) -> None:
        self.linearization = linearization
        self.sums: dict[str, Scaled | Tensor] = {}
        self.later = Later()
        self._open: dict[str, Tensor] = {}

    @classmethod
    def of(cls, sums: Mapping[str, Scaled | Tensor], **facts: Any) -> Self:
        """One without a layer, to `finish` sums that were added up elsewhere; facts: what else its `finish` reads."""
        made = cls.__new__(cls)
        made.sums, made.later = dict(sums), Later()
        vars(made).update(facts)
        return made

    def update(self, block: Block) -> None:
        """A block of told-apart lags."""

    def tail(self, block: Block) -> None:
        """A block of the tail's stream."""

    def initial(self, lag: int | None, adjoint: Tensor, exponent: Tensor) -> None:
        """The adjoint (B, S·H) · 2^exponent (B,) at the initial state: of the origin `lag` − 1, or None, of the tail."""

    def settle_at_once(self) -> None:
        """Let nothing wait to be added up: small tensors that live on split the memory that large ones leave behind."""
        for value in (*vars(self).values(), *self.sums.values()):
            if isinstance(value, Scaled):
                value.most = 0

    def scaled(self, name: str) -> Scaled:
        """The sum of this name, which is one by lag."""
        return scaled_of(self.sums, name)

    def tensor(self, name: str) -> Tensor:
        """The sum of this name, which is a plain tensor."""
        self.later.settle()
        return tensor_of(self.sums, name)

    def add(self, name: str, block: Block, value: Tensor, lags: Tensor | None = None) -> None:
        """Add value (..., L) · 4^common to this sum, at the block's lags or at these, once all blocks of the lag are in."""
        whole = self._open.pop(name) + value if name in self._open else value
        if not block.last:
            self._open[name] = whole
            return
        at = block.lags if lags is None else lags
        assert at is not None
        there = at < self.linearization.trace.steps
        if not there.all():
            here = there.nonzero().flatten()
            on = here.to(whole.device)
            at, whole, common = at[here], whole[..., on], block.common[on]
        else:
            common = block.common
        self.scaled(name).add_at(at, whole, 2 * common)

    def merge(self, other: Self) -> Self:
        """The same analysis over the sequences of both."""
        self.later.settle()
        other.later.settle()
        merged = copy.copy(self)
        merged.later = Later()
        merged.sums = {name: _sum(value, other.sums[name]) for name, value in self.sums.items()}
        merged.join(self, other)
        return merged

    def join(self, one: Any, other: Any) -> None:
        """For the merged one of two: what they keep besides their sums."""


def _sum(one: Scaled | Tensor, other: Scaled | Tensor) -> Scaled | Tensor:
    if isinstance(one, Scaled):
        assert isinstance(other, Scaled)
        return one + other
    assert isinstance(other, Tensor)
    return one + other
