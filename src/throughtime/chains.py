"""Calls that pass their states on, as one sequence: windows of truncated BPTT, the user's own loop over a cell.

A call follows another when its initial states are those that the other made, as they are or multiplied by something on the
way (a `done` mask, dropout on the state). What reaches a state by another way round, through what feeds a later input of the
layer (an output fed back, attention), is kept apart as external.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from throughtime.calls import Call, Edge, edge_of
from throughtime.cells.cell import Pulled, Weights
from throughtime.errors import UnsupportedError
from throughtime.runs import Run, besides, run_of

SAME_ORDER = {  # operations that leave every entry where it is, in a flattened tensor
    *("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "AliasBackward0", "CloneBackward0"),
    *("ToCopyBackward0", "SqueezeBackward0", "SqueezeBackward1", "UnsqueezeBackward0", "ViewBackward"),
}
FARTHEST = 64  # operations between two states that are looked through


def link(call: Call, initial: list[Tensor], earlier: list[Call]) -> None:
    """Find the call whose states this one was given."""
    if call.form.directions > 1 or not all(state.requires_grad for state in initial):
        return
    taken = {id(each.follows) for each in earlier}
    for before in reversed(earlier):
        if id(before) in taken or before.form.batch_sizes is not None or len(before.ends) != len(initial):
            continue
        if [state.shape for state in before.initial] != [state.shape for state in initial]:
            continue
        factors = [
            _factor(edge_of(state), end, state, FARTHEST) for state, end in zip(initial, before.ends, strict=True)
        ]
        found = [factor for factor in factors if factor is not None]
        if len(found) == len(initial):
            call.follows = before
            call.between = [factor.detach().clone() for factor in found]
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
    if value.ndim and value.numel() == state.shape[-2]:
        return value.reshape(-1, 1).expand(state.shape)
    return value.expand(state.shape)


def external(call: Call, x: Tensor, earlier: list[Call], walked: set[Node]) -> Iterator[RemovableHandle]:
    """Hooks that read what the operations behind an input send to states of earlier calls of the layer.

    walked: operations that an earlier input has shown; each is looked at once.
    """
    if not x.requires_grad or not earlier:
        return
    ends = {edge: (each, place) for each in earlier for place, edge in enumerate(each.ends)}
    nodes = {edge[0] for edge in ends}
    call.fed = ends.get(edge_of(x))
    start = edge_of(x)[0]
    waiting = [] if start is None or start in nodes or start in walked else [start]
    walked.update(waiting)
    while waiting:
        node = waiting.pop()
        found = {place: ends[edge] for place, edge in enumerate(node.next_functions) if edge in ends}
        if found:

            def at_node(grads: tuple[Tensor | None, ...], _: Any, found: dict[int, Any] = found) -> None:
                for place, (into, state) in found.items():
                    grad = grads[place]
                    if grad is not None:
                        sent = grad.detach().to(torch.promote_types(grad.dtype, torch.float32), copy=True)
                        into.external[state] = into.external[state] + sent if state in into.external else sent

            yield node.register_hook(at_node)
        for following, _ in node.next_functions:
            if following is not None and following not in nodes and following not in walked:
                walked.add(following)
                waiting.append(following)


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
        return first
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
        sent = [state[None] for state in run.form.cell.split(_pull(after).carry)]
    return [
        besides(whole, back * factor, run.dtype)
        for whole, back, factor in zip(run.at_states[-1], sent, factors, strict=True)
    ]


def _pull(run: Run) -> Pulled:
    """The pullback of a single step, from the gradient at its results."""
    if not run.form.single or run.carries is None:
        raise UnsupportedError(
            f"states of layer '{run.layer}' that are passed on and given to it in another place too",
            "states of their own",
            "give the layer a clone of the state where it is its input",
        )
    cell, w = run.form.cell, Weights(**run.form.weights(run.weights))
    before, after = run.carries
    adjoint = torch.cat([state[0] for state in run.at_states[-1]], dim=-1)
    with torch.no_grad():
        return cell.pull(w, cell.factors(w, run.x[0], before, after), adjoint, paths=False)


def _external(runs: list[Run], chain: list[Call]) -> dict[int, list[Tensor]]:
    """Step → for each state, what reaches it from outside."""
    ends = list(accumulate(run.steps for run in runs))
    out: dict[int, list[Tensor]] = {}

    def add(place: int, state: int, sent: Tensor) -> None:
        run = runs[place]
        sums = out.setdefault(ends[place] - 1, [torch.zeros_like(value) for value in run.initial])
        sums[state] += sent.to(run.x.dtype).reshape(sums[state].shape)

    for place, (run, call) in enumerate(zip(runs, chain, strict=True)):
        for state, sent in call.external.items():
            add(place, state, sent)
        if call.fed is not None and call.fed[0] in chain:
            w = Weights(**run.form.weights(run.weights))
            add(chain.index(call.fed[0]), call.fed[1], run.form.cell.to_input(w, _pull(run).pre))
    return out
