"""Calls that pass their states on, as one sequence: windows of truncated BPTT, the user's own loop over a cell.

A call follows another when its initial states are those that the other made, as they are or multiplied by something on the
way (a `done` mask, dropout on the state). What reaches a state by another way round, through what feeds a later input of the
layer (an output fed back, attention), is kept apart as external.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from throughtime.calls import OUTPUT, Call, Edge, edge_of
from throughtime.cells.cell import Cell, Weights, pull_by_autograd
from throughtime.errors import UnsupportedError
from throughtime.runs import NOTHING, Run, besides, run_of

SAME_ORDER = {  # operations that leave every entry where it is, in a flattened tensor
    *("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "AliasBackward0", "CloneBackward0"),
    *("ToCopyBackward0", "SqueezeBackward0", "SqueezeBackward1", "UnsqueezeBackward0", "ViewBackward"),
}
FARTHEST = 64  # operations between two states that are looked through


def link(call: Call, initial: list[Tensor], open_ends: dict[int, Call]) -> None:
    """Find the call whose states this one was given, among earlier ones that no call follows yet (by id, in order)."""
    if call.form.directions > 1 or not all(state.requires_grad for state in initial):
        return
    for before in reversed(open_ends.values()):
        if before.form.batch_sizes is not None or len(before.ends) != len(initial):
            continue
        if [state.shape for state in before.initial] != [state.shape for state in initial]:
            continue
        try:
            factors = [
                _factor(edge_of(state), end, state, FARTHEST) for state, end in zip(initial, before.ends, strict=True)
            ]
        except RuntimeError:  # a factor in a layout that is not the state's
            continue
        found = [factor for factor in factors if factor is not None]
        if len(found) == len(initial):
            call.follows = open_ends.pop(id(before))
            call.between = [_rows(factor.detach(), state).clone() for factor, state in zip(found, initial, strict=True)]
            return


def _factor(edge: Edge, end: Edge, state: Tensor, depth: int) -> Tensor | None:
    """What a state is multiplied by between `end` and `edge`, entry by entry; None where the way is another one."""
    node = edge[0]
    if edge == end:
        return state.new_ones(())
    if node is None or depth == 0:
        return None
    inputs, name = list(node.next_functions), node.name()
    if name in SAME_ORDER and inputs:
        return _factor(inputs[0], end, state, depth - 1)
    if name not in ("MulBackward0", "WhereBackward0", "AddBackward0"):
        return None
    saved: Any = node
    parts = []
    for place, following in enumerate(inputs):
        factor = _factor(following, end, state, depth - 1)
        if factor is None:
            continue
        if name == "MulBackward0":
            other = saved._saved_other if place == 0 else saved._saved_self
            if other is None or (other.requires_grad and _factor(edge_of(other), end, state, depth - 1) is not None):
                return None
            factor = _rows(factor, state) * _rows(other, state)
        elif name == "WhereBackward0":
            condition = _rows(saved._saved_condition.to(state.dtype), state)
            factor = _rows(factor, state) * (condition if place == 0 else 1 - condition)
        elif place == 1 and saved._saved_alpha != 1:
            return None
        parts.append(factor)
    return torch.stack([_rows(part, state) for part in parts]).sum(0) if parts else None


def _rows(value: Tensor, state: Tensor) -> Tensor:
    """A value for each sequence, entry or all, spread to the shape of the state."""
    if value.numel() == state.numel():
        return value.reshape(state.shape)
    if value.ndim and value.shape[-1] == 1 and value.numel() == state.shape[:-1].numel():  # in another layout
        return value.reshape(*state.shape[:-1], 1).expand(state.shape)
    return value.expand(state.shape)


class Ways:
    """The ways round outside a layer: from an input of a call, through the user's operations, to states of earlier calls.

    Only what a call sends to its input goes this way: an operation on it may pass on other gradients too (a loss on an
    output that is fed back, the way of the states themselves), and then runs once more on this part alone.

    cut: whether states came back by another way than those that `link` follows. lost: whether some operation could not run
    again, so that the part is not known. open_ends: calls that none follows.
    """

    def __init__(self) -> None:
        self.lost = self.cut = False
        self.open_ends: dict[int, Call] = {}
        self._calls: dict[Edge, tuple[Call, int]] = {}
        self._makers: set[Node] = set()
        self._leads: dict[Node, bool] = {}  # operations seen so far: whether a state lies behind
        self._arrived: dict[tuple[int, Node], dict[int, Tensor]] = {}

    def close(self) -> None:
        """Let go of the graph."""
        for held in (self.open_ends, self._calls, self._makers, self._leads, self._arrived):
            held.clear()

    def add(self, call: Call, output: Tensor) -> None:
        """Know the states and the output that a call made, for the inputs of later ones."""
        self.open_ends[id(call)] = call
        made = list(enumerate(call.ends))
        if not call.form.single:
            made.append((OUTPUT, edge_of(output)))
        for place, edge in made:
            self._calls[edge] = call, place
            if edge[0] is not None:
                self._makers.add(edge[0])

    def behind(self, call: Call, x: Tensor, initial: list[Tensor]) -> Iterator[RemovableHandle]:
        """Hooks on the operations between the call's input and states; sets `call.fed` and `call.sent_to_input`."""
        if not x.requires_grad or not self._calls:
            return
        node, number = edge = edge_of(x)
        fed = self._calls.get(edge)
        if fed is not None and edge not in [edge_of(state) for state in initial if state.requires_grad]:
            call.sent_to_input = lambda grad: self._told(*fed, grad)
        else:
            call.fed = fed
        if node is None or node in self._makers:
            return
        yield from self._walk(node)
        if self._leads[node]:
            call.sent_to_input = lambda grad: self._arrive(node, number, grad.detach().clone())

    def parted(self, call: Call, initial: list[Tensor]) -> Iterator[RemovableHandle]:
        """Note where the states of a call come from earlier ones of the layer by a way that is not followed."""
        for state in initial if call.follows is None else []:
            node = edge_of(state)[0] if state.requires_grad else None
            if node is not None:
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
                if edge in self._calls or (edge[0] is not None and self._leads.get(edge[0]))
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
                if edge in self._calls:
                    self._told(*self._calls[edge], part)
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


def runs_of(calls: list[Call]) -> list[Run]:
    """The calls of one layer as runs, each a chain of calls in order."""
    following = {id(call.follows): call for call in calls if call.follows is not None}
    made = {id(call): run_of(call) for call in calls}
    if any(run.masks for run in made.values()):  # a call without dropout beside one with it
        made = {
            key: run if run.masks else replace(run, masks=[torch.ones_like(value) for value in run.outputs[:-1]])
            for key, run in made.items()
        }
    firsts = [call for call in calls if call.follows is None or id(call.follows) not in made]
    out = []
    for call in firsts:
        chain = [call]
        while (after := following.get(id(chain[-1]))) is not None:
            chain.append(after)
        out.append(_chained(chain, [made[id(call)] for call in chain]))
    return out


def _chained(chain: list[Call], runs: list[Run]) -> Run:
    first, last = runs[0], runs[-1]
    if len(runs) == 1:
        return replace(first, external=_external(runs, chain))
    at_states: dict[int, list[Tensor]] = {}
    starts: list[tuple[int, list[Tensor], list[Tensor]]] = []
    step = 0
    for place, run in enumerate(runs):
        for own, states in run.at_states.items():
            assert own == -1
            ending = states
            if run is not last:
                ending = _entering(run, runs[place + 1], chain[place + 1])
            at_states[-1 if run is last else step + run.steps - 1] = ending
        if place:
            working = run.x.dtype
            factors = [
                _rows(factor.to(working), state).reshape(state.shape)
                for factor, state in zip(chain[place].between, run.initial, strict=True)
            ]
            starts.append((step, run.initial, factors))
        step += run.steps
    plain = all(bool((factor == 1).all()) for _, _, factors in starts for factor in factors)
    return replace(
        first,
        x=torch.cat([run.x for run in runs]),
        outputs=[torch.cat(parts) for parts in zip(*(run.outputs for run in runs), strict=True)],
        carries=None
        if first.carries is None
        else torch.cat([first.carries, *(run.carries[1:] for run in runs[1:] if run.carries is not None)]),
        at_output=torch.cat([run.at_output for run in runs]),
        at_states=at_states,
        external=_external(runs, chain),
        external_output=None
        if all(run.external_output is None for run in runs)
        else torch.cat(
            [torch.zeros_like(run.at_output) if run.external_output is None else run.external_output for run in runs]
        ),
        masks=[torch.cat(parts) for parts in zip(*(run.masks for run in runs), strict=True)],
        starts=starts,
        passed=not plain,
        lengths=last.lengths,
    )


def _entering(run: Run, after: Run, call: Call) -> list[Tensor]:
    """What enters at a run's last states besides what the next run sends back to them."""
    factors = [
        _rows(factor.to(run.x.dtype), state).reshape(state.shape)
        for factor, state in zip(call.between, after.initial, strict=True)
    ]
    sent = after.at_initial
    if sent is None:
        sent = [state[None] for state in run.form.cell.split(_pull(after))]
    return [
        besides(whole, back * factor, NOTHING.get(run.dtype, 2e-2))
        for whole, back, factor in zip(run.at_states[-1], sent, factors, strict=True)
    ]


def _single(run: Run) -> tuple[Cell, Weights, Tensor, Tensor]:
    """The cell and weights of a single step, the carry before it and the gradient at its results."""
    if not run.form.single or run.carries is None:
        raise UnsupportedError(
            f"states of layer '{run.layer}' that are passed on and given to it in another place too",
            "states of their own",
            "give the layer a clone of the state where it is its input",
        )
    adjoint = torch.cat([state[0] for state in run.at_states[-1]], dim=-1)
    return run.form.cell, Weights(**run.form.weights(run.weights)), run.carries[0], adjoint


def _pull(run: Run) -> Tensor:
    """(B, C): what a single step sends to the carry before it."""
    cell, w, before, adjoint = _single(run)
    return pull_by_autograd(cell, w, run.x[0], before, adjoint).carry


def _external(runs: list[Run], chain: list[Call]) -> dict[int, list[Tensor]]:
    """Step → for each state, what reaches it from outside; the step −1 is each sequence's own last."""
    ends = list(accumulate(run.steps for run in runs))
    out: dict[int, list[Tensor]] = {}

    def add(place: int, state: int, sent: Tensor) -> None:
        run = runs[place]
        step = -1 if place == len(runs) - 1 else ends[place] - 1
        sums = out.setdefault(step, [torch.zeros_like(value) for value in run.initial])
        sums[state] += sent.to(run.x.dtype).reshape(sums[state].shape)

    for place, (run, call) in enumerate(zip(runs, chain, strict=True)):
        for state, sent in call.external.items():
            if state != OUTPUT:
                add(place, state, sent)
        if call.fed is not None and call.fed[0] in chain:
            add(chain.index(call.fed[0]), call.fed[1], _to_input(run))
    return out


def _to_input(run: Run) -> Tensor:
    """(B, D): what a single step sends to its input, by autograd: a cell of the user's own has no products."""
    cell, w, before, adjoint = _single(run)
    with torch.enable_grad():
        x = run.x[0].detach().clone().requires_grad_()
        after = cell.step(w, x, dict.fromkeys(cell.ports, before))
        return torch.autograd.grad(after, x, adjoint)[0]
