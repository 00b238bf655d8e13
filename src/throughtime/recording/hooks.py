"""Where a call stands in autograd's graph, and the hooks that hear what a backward pass brings there.

Hooks on the nodes that made a call's results see the direct gradients; hooks on the nodes of its own part of the graph with
an edge into a weight or a state see this call's contribution to it, before anything is accumulated, clipped or added from
elsewhere. No node is added and no tensor replaced, so gradients are the user's to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from throughtime.cells.cell import Tensors
from throughtime.recording.calls import Call
from throughtime.recording.elementwise import Edge


def hear_held(call: Call, edge: Edge, place: int) -> RemovableHandle:
    """Keep the gradient at a tensor that is made of one of the call's states and of an older one."""
    node, output = edge
    assert node is not None

    def before(grads: tuple[Tensor | None, ...]) -> None:
        grad = grads[output]
        now = None if grad is None else call.receive(grad)
        if grad is not None and now is not None:
            now.held[place] = grad.detach().clone()

    return node.register_prehook(before)


def edge_of(tensor: Tensor) -> Edge:
    """Where the tensor's gradient enters the graph: autograd's own answer, by the short way where there is a node."""
    node = tensor.grad_fn
    if node is not None:
        return node, tensor.output_nr
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


class Edges:
    """The edges of weights. Those of leaves are made anew each time that one asks, at some cost, and so are kept."""

    def __init__(self) -> None:
        self._leaves: dict[int, tuple[Tensor, Edge]] = {}

    def of(self, weights: Tensors) -> dict[str, Edge]:
        """By name, of those that take a gradient."""
        return {name: self._of(value) for name, value in weights.items() if value.requires_grad}

    def _of(self, tensor: Tensor) -> Edge:
        if tensor.grad_fn is not None:
            return edge_of(tensor)
        if id(tensor) not in self._leaves:
            self._leaves[id(tensor)] = tensor, edge_of(tensor)
        return self._leaves[id(tensor)][1]

    def clear(self) -> None:
        """Let go of the tensors."""
        self._leaves.clear()


def targets_of(x: Tensor, initial: list[Tensor], weights: dict[str, Edge]) -> tuple[dict[Edge, str | int], bool]:
    """Each edge at which the call's contribution is read, and whether those of the states are among them.

    A state given in two places cannot be told apart.
    """
    states = [edge_of(state) for state in initial if state.requires_grad]
    told = len(states) == len(initial) == len(set(states)) and not (x.requires_grad and edge_of(x) in states)
    targets: dict[Edge, str | int] = {edge: place for place, edge in enumerate(states)} if told else {}
    return targets | {edge: name for name, edge in weights.items()}, told


def hook(
    call: Call, results: tuple[Tensor, ...], targets: dict[Edge, str | int], stops: set[Node | None]
) -> Iterator[RemovableHandle]:
    """Hooks on the nodes that made the results, and on those of the call's own graph with an edge into a target."""
    for place, result in enumerate(results):
        if result.grad_fn is not None:
            yield _hook_result(call, place, result)
    own = {edge_of(result): -1 - place for place, result in enumerate(results) if result.grad_fn is not None}
    used = set()
    for node, edges in _into([result.grad_fn for result in results], own | targets, stops):
        used.update(edges.values())

        def at_node(grads: tuple[Tensor | None, ...], _: Any, edges: dict[int, str | int] = edges) -> None:
            for place, target in edges.items():
                grad = grads[place]
                if grad is not None:
                    call.add(target, grad)

        yield node.register_hook(at_node)
    if call.form.single:
        call.idle = [name for name in call.expected if name not in used]
        call.expected = [name for name in call.expected if name in used]


def _hook_result(call: Call, place: int, result: Tensor) -> RemovableHandle:
    """Read the gradient of a result where it enters the node that made it: after the user's own hooks on the tensor.

    Where the result is a view of what the node made, it is read there: an operation in place on a view takes the
    view's own node out of the graph.
    """
    base = result._base
    source = base if base is not None and base.grad_fn is not None and base.numel() == result.numel() else result
    node, number = edge_of(source)
    assert node is not None
    shape, stride, offset = source.shape, source.stride(), result.storage_offset() - source.storage_offset()
    seen = (result.shape, result.stride(), offset)

    def before(grads: tuple[Tensor | None, ...]) -> None:
        grad = grads[number]
        now = None if grad is None else call.receive(grad)
        if grad is not None and now is not None:
            laid = torch.empty_strided(shape, stride, dtype=grad.dtype, device=grad.device).copy_(grad.detach())
            now.outputs[place] = laid.as_strided(*seen)

    return node.register_prehook(before)


def _into(
    starts: list[Node | None], targets: dict[Edge, str | int], stops: set[Node | None]
) -> Iterator[tuple[Node, dict[int, str | int]]]:
    """The nodes of the graph between the results and the call's arguments that have an edge into a target.

    Autocast's cast of a target counts as the target: it is cached, so that other calls may share it.
    """
    waiting = [node for node in dict.fromkeys(starts) if node is not None]
    seen: set[Node] = set(waiting)
    while waiting:
        node = waiting.pop()
        edges = {}
        for place, edge in enumerate(node.next_functions):
            following = edge[0]
            if following is None:
                continue
            name = targets.get(edge)
            if name is None and following not in stops and following.name() == "ToCopyBackward0":
                name = targets.get(following.next_functions[0])
            if name is not None:
                edges[place] = name
            elif following not in seen and following not in stops:
                seen.add(following)
                waiting.append(following)
        if edges:
            yield node, edges
