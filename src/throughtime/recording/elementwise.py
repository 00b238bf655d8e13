"""What a tensor is multiplied by, number by number, on its way through the user's operations: read from autograd's graph.

Masks, resets, dropout, sums, `torch.where`, `lerp`: operations whose derivative is one factor for each number. A state that
goes from step to step through these alone is followed through them, and out of a tensor in which the states of several layers
were laid side by side (`torch.stack`, `torch.cat`); anything else (a matrix product, a normalisation) ends the way.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from throughtime.recording.graph import takes

Edge = tuple[Node | None, int]
Factor = Tensor | None
"""What each number is multiplied by, in the shape of the state; None is 1 everywhere."""

SAME_ORDER = {  # operations that leave every entry where it is, in a flattened tensor
    *("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "AliasBackward0", "CloneBackward0"),
    *("ToCopyBackward0", "SqueezeBackward0", "SqueezeBackward1", "UnsqueezeBackward0", "ViewBackward"),
}
TAKING = {"SelectBackward0", "UnbindBackward0", "SliceBackward0", "SplitBackward0", "SplitWithSizesBackward0"}
MIXING = {  # operations in which a new and an old state can meet
    *(
        torch.add,
        torch.sub,
        torch.subtract,
        torch.where,
        torch.lerp,
        torch.addcmul,
        Tensor.add,
        Tensor.add_,
        Tensor.sub,
    ),
    *(Tensor.sub_, Tensor.where, Tensor.lerp, Tensor.lerp_, Tensor.addcmul, Tensor.addcmul_),
}
FARTHEST = 64  # operations that are looked through, one after another


def _product(node: Any, place: int) -> Tensor | None:
    return node._saved_other if place == 0 else node._saved_self


def _chosen(node: Any, place: int) -> Tensor:
    return node._saved_condition if place == 0 else ~node._saved_condition


def _mixed(node: Any, place: int) -> Tensor | float | None:
    return (1 - node._saved_weight, node._saved_weight, None)[place]


def _added_product(node: Any, place: int) -> Tensor | float | None:
    if place == 0:
        return 1.0
    other = node._saved_tensor2 if place == 1 else node._saved_tensor1
    return None if other is None else node._saved_value * other


def _overwritten(node: Any, place: int) -> Tensor | None:
    if place or node._saved_accumulate:
        return None
    left = torch.ones(takes(node)[0].shape)
    return left.index_put_([None if i is None else i.cpu() for i in node._saved_indices], left.new_zeros(()))


_DERIVATIVES: Mapping[str, Callable[[Any, int], Tensor | float | None]] = {
    "MulBackward0": _product,
    "DivBackward0": lambda node, place: 1 / node._saved_other if place == 0 else None,
    "WhereBackward0": _chosen,
    "MaskedFillBackward0": lambda node, place: ~node._saved_mask if place == 0 else None,
    "IndexPutBackward0": _overwritten,
    "LerpBackward0": _mixed,
    "LerpBackward1": _mixed,
    "AddcmulBackward0": _added_product,
    "AddBackward0": lambda node, place: node._saved_alpha if place else 1.0,
    "SubBackward0": lambda node, place: -node._saved_alpha if place else 1.0,
    "NegBackward0": lambda node, place: -1.0,
    "RsubBackward1": lambda node, place: -node._saved_alpha,
}
"""Operation → (node, place among its inputs) to the derivative by that input; None where it is not one number by number."""


def taken_out(edge: Edge, *barred: Container[Edge]) -> tuple[Edge, Factor] | None:
    """The tensor that is taken out whole again (`torch.unbind`, an index, a slice) of those that were laid side by side just
    before (`torch.stack`, `torch.cat`), and what it was multiplied by between (a mask on all of them); None where the edge is
    not of such an operation, or one of `barred` lies on the way."""
    taking: Any = edge[0]
    if taking is None or taking.name() not in TAKING:
        return None
    together: Any = taking.next_functions[0]
    factor: Factor = None
    while together[0] is not None and together[0].name() in _DERIVATIVES and not _in(together, barred):
        passed = _only_way(together[0])
        if passed is None:
            return None
        together, by = passed
        factor = times(factor, by)
    laid: Any = together[0]
    if laid is None or laid.name() not in ("StackBackward0", "CatBackward0") or _in(together, barred):
        return None
    shape = takes(laid)[0].shape
    dim = _wrapped(taking._saved_dim, len(shape))
    if dim != _wrapped(laid._saved_dim, len(shape)):
        return None
    whole, place = shape[dim], edge[1]
    match taking.name():
        case "SelectBackward0":
            first = _wrapped(taking._saved_index, whole)
            last = first + 1
        case "UnbindBackward0":
            first, last = place, place + 1
        case "SplitBackward0":
            first, last = place * taking._saved_split_size, (place + 1) * taking._saved_split_size
        case "SplitWithSizesBackward0":
            first = sum(taking._saved_split_sizes[:place])
            last = first + taking._saved_split_sizes[place]
        case _ if taking._saved_step != 1:
            return None
        case _:
            first, last = _wrapped(taking._saved_start, whole), taking._saved_end
    parts = laid.next_functions
    if laid.name() == "StackBackward0":
        by = None if factor is None else factor.select(dim, first)
        return (parts[first], by) if taking.name() in ("SelectBackward0", "UnbindBackward0") else None
    if taking.name() in ("SelectBackward0", "UnbindBackward0"):
        return None
    sizes = [None if node is None else takes(node)[number].shape[dim] for node, number in parts]
    begin = 0
    for part, size in zip(parts, sizes, strict=True):
        if size is None:  # without a gradient: its size is known where all others are
            if sizes.count(None) > 1:
                return None
            size = whole - sum(each for each in sizes if each is not None)
        if (first, min(_wrapped(last, whole), whole)) == (begin, begin + size):
            return part, None if factor is None else factor.narrow(dim, begin, size)
        begin += size
    return None


def _in(edge: Edge, places: Iterable[Container[Edge]]) -> bool:
    return any(edge in each for each in places)


def _only_way(node: Any) -> tuple[Edge, Factor] | None:
    """The only differentiable input of an operation, of the same shape, and what it is multiplied by; None of others."""
    live = [(place, edge) for place, edge in enumerate(node.next_functions) if edge[0] is not None]
    shape = takes(node)[0].shape
    if len(live) != 1 or takes(live[0][1][0])[live[0][1][1]].shape != shape:
        return None
    place, edge = live[0]
    try:
        by = _DERIVATIVES[node.name()](node, place)
    except RuntimeError:  # written to since
        return None
    if by is None:
        return None
    return edge, by.detach().expand(shape) if isinstance(by, Tensor) else torch.full(shape, float(by))


def _wrapped(index: int, count: int) -> int:
    """From the front; autograd keeps a negative one as an unsigned number."""
    index = index - 2**64 if index >= 2**63 else index
    return index + count if index < 0 else index


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
            inside = self._inside(edge)
            if inside is not None:
                edge, by = inside
                chain = [(above, times(factor, by)) for above, factor in chain] + [(edge, None)]
                continue
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

    def _inside(self, edge: Edge) -> tuple[Edge, Factor] | None:
        """See `taken_out`; not where the tensor with all of them is a stop or a wall itself."""
        taken = None if edge in self.walls else taken_out(edge, self.stops, self.walls)
        if taken is None or taken[1] is None:
            return taken
        return taken[0], taken[1].to(self.like).reshape(self.like.shape)

    def _through(self, edge: Edge, depth: int) -> dict[Edge, Factor]:
        node = edge[0]
        if node is None:
            return {}
        inside = self._inside(edge)
        if inside is not None and depth:
            arrived = self.arrivals(inside[0], depth - 1)
            return {stop: times(factor, inside[1]) for stop, factor in arrived.items()}
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
            shape = takes(node)[0].shape
            return True, by.detach().to(self.like).expand(shape).reshape(self.like.shape)
        except (RuntimeError, IndexError):  # another layout than the state's, or written to since
            return False, None
