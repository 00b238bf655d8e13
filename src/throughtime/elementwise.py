"""What a tensor is multiplied by, number by number, on its way through the user's operations: read from autograd's graph.

Masks, resets, dropout, sums, `torch.where`, `lerp`: operations whose derivative is one factor for each number. A state that
goes from step to step through these alone is followed through them; anything else (a matrix product, a normalisation) ends
the way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

Edge = tuple[Node | None, int]
Factor = Tensor | None
"""What each number is multiplied by, in the shape of the state; None is 1 everywhere."""

SAME_ORDER = {  # operations that leave every entry where it is, in a flattened tensor
    *("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "AliasBackward0", "CloneBackward0"),
    *("ToCopyBackward0", "SqueezeBackward0", "SqueezeBackward1", "UnsqueezeBackward0", "ViewBackward"),
}
MIXING = {  # operations in which a new and an old state can meet
    *(torch.add, torch.where, torch.lerp, Tensor.add, Tensor.add_, Tensor.where, Tensor.lerp, Tensor.lerp_),
}
FARTHEST = 64  # operations that are looked through, one after another


def _product(node: Any, place: int) -> Tensor | None:
    return node._saved_other if place == 0 else node._saved_self


def _chosen(node: Any, place: int) -> Tensor:
    return node._saved_condition if place == 0 else ~node._saved_condition


def _mixed(node: Any, place: int) -> Tensor | float | None:
    return (1 - node._saved_weight, node._saved_weight, None)[place]


def _overwritten(node: Any, place: int) -> Tensor | None:
    if place or node._saved_accumulate:
        return None
    left = torch.ones(node._input_metadata[0].shape)
    return left.index_put_([None if i is None else i.cpu() for i in node._saved_indices], left.new_zeros(()))


_DERIVATIVES: Mapping[str, Callable[[Any, int], Tensor | float | None]] = {
    "MulBackward0": _product,
    "DivBackward0": lambda node, place: 1 / node._saved_other if place == 0 else None,
    "WhereBackward0": _chosen,
    "MaskedFillBackward0": lambda node, place: ~node._saved_mask if place == 0 else None,
    "IndexPutBackward0": _overwritten,
    "LerpBackward0": _mixed,
    "LerpBackward1": _mixed,
    "AddBackward0": lambda node, place: node._saved_alpha if place else 1.0,
    "SubBackward0": lambda node, place: -node._saved_alpha if place else 1.0,
    "NegBackward0": lambda node, place: -1.0,
    "RsubBackward1": lambda node, place: -node._saved_alpha,
}
"""Operation → (node, place among its inputs) to the derivative by that input; None where it is not one number by number."""


def times(one: Factor, other: Factor) -> Factor:
    """The product of two factors."""
    return other if one is None else one if other is None else one * other


def plus(one: Factor, other: Factor, like: Tensor) -> Tensor:
    """The sum of two factors, in the shape of `like`."""
    return filled(one, like) + filled(other, like)


def filled(factor: Factor, like: Tensor) -> Tensor:
    """A factor as a tensor of the shape and dtype of `like`."""
    return torch.ones_like(like) if factor is None else factor.to(like.dtype).reshape(like.shape)


@dataclass
class Reader:
    """Reads the ways of one state backwards. like: the state. stops: the edges at which a way has arrived; walls: those at
    which it has gone astray, unless what stands there is `own`.

    others: operations met that are not number by number, or behind a wall: whatever lies behind them is not followed.
    """

    like: Tensor
    stops: Mapping[Edge, Any]
    walls: Mapping[Edge, Any] = field(default_factory=dict)
    own: Any = None
    others: list[Node] = field(default_factory=list)
    _known: dict[Edge, dict[Edge, Factor]] = field(default_factory=dict)

    def arrivals(self, edge: Edge, depth: int = FARTHEST) -> dict[Edge, Factor]:
        """Stop → what the tensor at `edge` is multiplied by between there and here."""
        if edge in self.stops:
            return {edge: None}
        if edge not in self._known:
            self._known[edge] = {}
            self._known[edge] = self._through(edge, depth)
        return self._known[edge]

    def descend(self, edge: Edge) -> list[tuple[Edge, Factor]]:
        """The tensors of which the one at `edge` is made number by number, each of the next alone, itself first, with its
        factor on the last of them; up to a stop, or to where two differentiable tensors meet."""
        chain: list[tuple[Edge, Factor]] = [(edge, None)]
        while edge not in self.stops and len(chain) < FARTHEST:
            node = edge[0]
            inputs = [] if node is None else list(enumerate(node.next_functions))
            live = [each for each in inputs if self.arrivals(each[1])] if self.stops else inputs
            live = [each for each in live if each[1][0] is not None]
            if node is None or len(live) != 1:
                break
            place, following = live[0]
            known, by = self._by(node, place)
            if not known:
                break
            chain = [(above, times(factor, by)) for above, factor in chain] + [(following, None)]
            edge = following
        return chain

    def _through(self, edge: Edge, depth: int) -> dict[Edge, Factor]:
        node = edge[0]
        if node is None:
            return {}
        name = node.name()
        astray = self.walls.get(edge, self.own) != self.own
        if depth == 0 or astray or (name not in SAME_ORDER and name not in _DERIVATIVES):
            self.others.append(node)
            return {}
        made: dict[Edge, Factor] = {}
        for place, following in enumerate(node.next_functions):
            if following[0] is None:
                continue
            arriving = self.arrivals(following, depth - 1)
            if not arriving:
                continue
            known, by = self._by(node, place)
            if not known:
                self.others.append(node)
                continue
            for stop, factor in arriving.items():
                passed = times(factor, by)
                made[stop] = plus(made[stop], passed, self.like) if stop in made else passed
        return made

    def _by(self, node: Node, place: int) -> tuple[bool, Factor]:
        """Whether an operation acts number by number on an input, and by what it multiplies it."""
        name = node.name()
        if name in SAME_ORDER:
            return place == 0, None
        if name not in _DERIVATIVES:
            return False, None
        try:
            by = _DERIVATIVES[name](node, place)
            if by is None:
                return False, None
            if not isinstance(by, Tensor):
                return True, None if by == 1 else torch.full_like(self.like, by)
            shape = node._input_metadata[0].shape  # type: ignore[attr-defined]
            return True, by.detach().to(self.like).expand(shape).reshape(self.like.shape)
        except (RuntimeError, IndexError):  # another layout than the state's, or written to since
            return False, None
