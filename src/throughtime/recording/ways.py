"""The ways round outside a layer: an output fed back, attention: what of a state's gradient came by a later input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from throughtime.recording.calls import HELD, OUTPUT, Call
from throughtime.recording.elementwise import Edge
from throughtime.recording.hooks import edge_of
from throughtime.recording.run import NOTHING


class Ways:
    """The ways round outside a layer: from an input of a call, through the user's operations, to states of earlier calls.

    Only what a call sends to its input goes this way: an operation on it may pass on other gradients too (a loss on an
    output that is fed back, the way of the states themselves), and then runs once more on this part alone.

    known: the edges of the layer's states and outputs, with the call and the place. cut: whether states came back by another
    way than those that `link` follows. lost: whether some operation could not run again, so that the part is not known.
    open_ends: calls that none follows. sizes: how many numbers the states hold.
    """

    def __init__(self) -> None:
        self.lost = self.cut = False
        self.open_ends: dict[int, Call] = {}
        self.sizes: set[int] = set()
        self.known: dict[Edge, tuple[Call, int]] = {}
        self._makers: set[Node] = set()
        self._leads: dict[Node, bool] = {}  # operations seen so far: whether a state lies behind
        self._arrived: dict[tuple[int, Node], dict[int, Tensor]] = {}

    def close(self) -> None:
        """Let go of the graph."""
        for held in (self.open_ends, self.known, self._makers, self._leads, self._arrived):
            held.clear()

    def add(self, call: Call, output: Tensor) -> None:
        """Know the states and the output that a call made, for the inputs of later ones."""
        self.open_ends[id(call)] = call
        self.sizes.update(state.numel() for state in call.initial)
        made = list(enumerate(call.ends))
        if not call.form.single:
            made.append((OUTPUT, edge_of(output)))
        for place, edge in made:
            self.known[edge] = call, place
            if edge[0] is not None:
                self._makers.add(edge[0])

    def add_held(self, call: Call, place: int, edge: Edge) -> None:
        """Know a tensor that is made of one of the call's states and of an older one."""
        self.known[edge] = call, HELD + place
        if edge[0] is not None:
            self._makers.add(edge[0])

    def behind(self, call: Call, x: Tensor, initial: list[Tensor]) -> Iterator[RemovableHandle]:
        """Hooks on the operations between the call's input and states; sets `call.fed` and `call.sent_to_input`."""
        if not x.requires_grad or not self.known:
            return
        node, number = edge = edge_of(x)
        fed = self.known.get(edge)
        if fed is not None and edge not in [edge_of(state) for state in initial if state.requires_grad]:
            call.sent_to_input = lambda grad: self._told(*fed, grad)
        else:
            call.fed = fed
        if node is None or node in self._makers:
            return
        yield from self._walk(node)
        if self._leads[node]:
            call.sent_to_input = lambda grad: self._arrive(node, number, grad.detach().clone())

    def parted(self, nodes: list[Node]) -> Iterator[RemovableHandle]:
        """Note where the operations behind a call's states, which are not followed, lead to earlier states of the layer."""
        for node in nodes:
            if node not in self._makers and node not in self._leads:
                yield from self._walk(node)
            self.cut |= node in self._makers or self._leads[node]

    def _walk(self, start: Node) -> Iterator[RemovableHandle]:
        waiting = [start]
        while waiting:
            node = waiting[-1]
            following = [(place, edge) for place, edge in enumerate(node.next_functions) if edge[0] is not None]
            if node not in self._leads:
                self._leads[node] = False
                waiting += [
                    edge[0]
                    for _, edge in following
                    if edge[0] is not None and edge[0] not in self._makers and edge[0] not in self._leads
                ]
                continue
            waiting.pop()
            onward = [
                (place, edge)
                for place, edge in following
                if edge in self.known or (edge[0] is not None and self._leads.get(edge[0]))
            ]
            if onward and not self._leads[node]:
                self._leads[node] = True
                yield self._listen(node, onward)

    def _listen(self, node: Node, onward: list[tuple[int, Edge]]) -> RemovableHandle:
        def at_node(sent: tuple[Tensor | None, ...], received: tuple[Tensor | None, ...]) -> None:
            arrived = self._arrived.pop((torch._C._current_graph_task_id(), node), None)
            if arrived is None:
                return
            parts = _passed_on(node, arrived, sent, received)
            self.lost |= parts is None
            for place, edge in onward if parts else ():
                part = parts[place] if parts else None
                if part is None:
                    continue
                if edge in self.known:
                    self._told(*self.known[edge], part)
                elif edge[0] is not None:
                    self._arrive(edge[0], edge[1], part.detach().clone())

        return node.register_hook(at_node)

    @staticmethod
    def _told(call: Call, place: int, part: Tensor) -> None:
        wide = part.detach().to(torch.promote_types(part.dtype, torch.float32), copy=True)
        call.external[place] = call.external[place] + wide if place in call.external else wide

    def _arrive(self, node: Node, number: int, part: Tensor) -> None:
        """Add to what reaches an output of an operation in the pass that is running."""
        there = self._arrived.setdefault((torch._C._current_graph_task_id(), node), {})
        there[number] = there[number] + part if number in there else part


def _passed_on(
    node: Node, arrived: dict[int, Tensor], sent: tuple[Tensor | None, ...], received: tuple[Tensor | None, ...]
) -> Sequence[Tensor | None] | None:
    """What an operation sends on of a part of what it received; None where it cannot be known."""
    parts = [arrived.get(number) for number in range(len(received))]
    if all(_same(part, whole) for part, whole in zip(parts, received, strict=True)):
        return sent
    if isinstance(node, BackwardCFunction) or torch.is_grad_enabled():  # the user's own code is not run twice
        return None
    given = [
        part if part is None or whole is None else part.to(whole.dtype).reshape(whole.shape)
        for part, whole in zip(parts, received, strict=True)
    ]
    operation: Any = node
    try:
        again = operation(*given)
    except Exception:  # saved tensors that can be read once only, as under a checkpoint
        return None
    return again if isinstance(again, tuple) else (again,)


def _same(part: Tensor | None, whole: Tensor | None) -> bool:
    if part is None or whole is None:
        return part is whole
    close = float((whole - part.reshape(whole.shape)).norm()) <= NOTHING.get(whole.dtype, 2e-2) * float(whole.norm())
    return close
