"""What lies between recurrent modules in series: the part of autograd's graph from a later one's input to earlier outputs.

It is gone through by hand, node by node, once for each origin: no hook fires, nothing is accumulated, and the user's own
backward pass stays as it was. The nodes live as long as the record, and only where the user kept the graph
(`loss.backward(retain_graph=True)`): an ordinary backward pass frees what they need.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

from throughtime.recording.calls import Call
from throughtime.recording.elementwise import Edge, taken_out
from throughtime.recording.graph import takes
from throughtime.recording.hooks import edge_of

IDENTITY = "BackwardHookFunctionBackward"  # the node by which torch calls a module's full backward hooks


@dataclass(frozen=True)
class Passage:
    """The nodes between the input of `call` (the edge `start`) and results of earlier calls, in the order of the pass.

    targets: edge → (call, place of the result: 0 is the output, the states follow).
    """

    call: Call
    start: Edge
    nodes: list[Node]
    targets: dict[Edge, tuple[Call, int]]

    def back(self, at_input: Tensor) -> dict[tuple[int, int], Tensor]:
        """What reaches the results, by (id of the call, place), of a gradient at the input, in the calls' own layouts.

        Raises RuntimeError where the graph was freed, or what it needs was changed.
        """
        out: dict[tuple[int, int], Tensor] = {}
        waiting: dict[Node, dict[int, Tensor]] = {}
        through = set(self.nodes)

        def arrive(edge: Edge, grad: Tensor) -> None:
            node, number = edge
            assert node is not None
            into: dict[Any, Tensor] | None = None
            key: Any = number
            if edge in self.targets:
                call, key = self.targets[edge]
                into, key = out, (id(call), key)
            elif node in through:
                into = waiting.setdefault(node, {})
            if into is not None:
                fitting = fitted(node, number, grad)
                into[key] = into[key] + fitting if key in into else fitting

        arrive(self.start, at_input)
        for node in self.nodes:
            given = waiting.pop(node, None)
            if given is None:
                continue
            operation: Any = node
            arrived = tuple(given.get(number) for number in range(len(takes(node))))
            made = arrived if node.name() == IDENTITY else operation(*arrived)
            sent = made if isinstance(made, tuple) else (made,)
            for edge, grad in zip(node.next_functions, sent, strict=True):
                if grad is not None and edge[0] is not None:
                    arrive(edge, grad)
        return out

    def holds(self) -> bool:
        """Whether the nodes can still run."""
        try:
            with torch.no_grad(), torch.autocast(self.call.x.device.type, enabled=False):
                self.back(self.call.x.new_zeros(self.call.x.shape))
        except Exception:  # whatever the nodes raise, it must not break the user's step
            return False
        return True


def fitted(node: Node, number: int, grad: Tensor) -> Tensor:
    """A gradient in the shape and dtype of what it belongs to, as the engine makes it: broadcast axes are summed up."""
    meta = takes(node)[number]
    shape = tuple(meta.shape)
    return (grad if grad.shape == shape else grad.sum_to_size(shape)).to(meta.dtype)


@dataclass
class _Made:
    call: Call
    x: Edge | None
    states: list[Edge]
    results: list[Edge]


@dataclass
class Passages:
    """Of one record. between: by id of the later call. lost: why there is no whole, or ""."""

    between: dict[int, Passage] = field(default_factory=dict)
    lost: str = ""
    _made: list[_Made] = field(default_factory=list)
    _weights: set[Edge] = field(default_factory=set)

    def clear(self) -> None:
        """Let go of the graph."""
        self.between.clear()
        self._made.clear()
        self._weights.clear()
        self.lost = ""

    def add(
        self, call: Call, x: Tensor, initial: list[Tensor], made: tuple[Tensor, ...], weights: dict[str, Edge]
    ) -> None:
        """Know a call that has run."""
        given = [edge_of(state) for state in initial if state.requires_grad]
        results = [edge_of(result) for result in made]
        self._made.append(_Made(call, edge_of(x) if x.requires_grad else None, given, results))
        self._weights |= set(weights.values())

    def close(self) -> None:
        """At the end of the block: find the ways, and keep those nodes only that can still run."""
        made = [each for each in self._made if each.call.passes]
        targets = {edge: (each.call, place) for each in made for place, edge in enumerate(each.results)}
        found: list[Passage] = []
        why = ""
        layers = [each.call.layer for each in made]
        repeated = len(set(layers)) < len(layers) or any(each.call.form.single for each in made)
        for each in made:
            nodes, reached, problem = _between(each.x, targets, self._weights)
            below = {targets[edge][0].layer for edge in reached}
            others = below - {each.call.layer}
            given = any(self._from_others(state, each.call, targets) for state in each.states)
            if not (others or given or problem):
                continue
            before = " and ".join(repr(name) for name in sorted(others)) or "what is below"
            named = f"between {before} and '{each.call.layer}'"
            passage = None
            if others and each.x is not None:
                passage = Passage(each.call, each.x, nodes, {edge: targets[edge] for edge in reached})
                found.append(passage)
            if given:
                why = (
                    why or f"the states given to '{each.call.layer}' come from another layer: they have no common time"
                )
            elif repeated:
                why = why or "a layer was called more than once in the step"
            elif each.call.layer in below:
                why = why or f"'{each.call.layer}' is called again on what it gave"
            elif problem:
                why = why or f"{problem} lies {named}"
            elif passage is not None and not passage.holds():
                why = why or (
                    f"the graph {named} is freed by a backward pass: run loss.backward(retain_graph=True) in the block"
                )
        self.clear()
        self.lost = why
        if not why:
            self.between.update({id(passage.call): passage for passage in found})

    def _from_others(self, state: Edge, call: Call, targets: dict[Edge, tuple[Call, int]]) -> bool:
        taken = taken_out(state)
        _, reached, _ = _between(state if taken is None else taken[0], targets, self._weights)
        return any(targets[edge][0].layer != call.layer for edge in reached)

    def fail(self) -> str:
        """Why the ways cannot be gone any more, or ""."""
        gone = any(not passage.holds() for passage in self.between.values())
        return (
            "the graph between the layers has changed since: ask for the flow before the optimizer's step"
            if gone
            else ""
        )


def _between(
    start: Edge | None, targets: dict[Edge, tuple[Call, int]], weights: set[Edge]
) -> tuple[list[Node], list[Edge], str]:
    """The nodes on the ways from an edge to targets, in the order of a backward pass; the targets; what forbids them."""
    if start is None or start[0] is None:
        return [], [], ""
    if start in targets:
        return [], [start], ""
    leads: dict[Node, bool] = {}
    order: list[Node] = []
    reached: dict[Edge, None] = {}
    problem = ""
    waiting = [start[0]]
    while waiting:
        node = waiting[-1]
        onward = [edge for edge in node.next_functions if edge[0] is not None]
        if node not in leads:
            leads[node] = False
            waiting += [
                edge[0] for edge in onward if edge not in targets and edge[0] not in leads and edge[0] is not None
            ]
            continue
        waiting.pop()
        if leads[node]:
            continue
        hit = [edge for edge in onward if edge in targets]
        if any(edge in weights for edge in onward):
            problem = problem or "another recorded layer, by a way that is not followed,"
        if hit or any(edge[0] is not None and leads.get(edge[0]) for edge in onward):
            leads[node] = True
            order.append(node)
            reached |= dict.fromkeys(hit)
            if isinstance(node, BackwardCFunction) and node.name() != IDENTITY:
                problem = problem or "an autograd function of your own, which is not run twice,"
    return order[::-1], list(reached), problem
