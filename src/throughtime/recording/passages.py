"""What lies between recurrent modules in series: the part of autograd's graph from a later one's input to earlier outputs.

It is gone through by hand, node by node, once for each origin: no hook fires, nothing is accumulated, and the user's own
backward pass stays as it was. The nodes live as long as the record, and only where the user kept the graph
(`loss.backward(retain_graph=True)`): an ordinary backward pass frees what they need.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

from throughtime.recording.calls import Call, Form
from throughtime.recording.elementwise import Edge, taken_out
from throughtime.recording.graph import takes
from throughtime.recording.hooks import edge_of
from throughtime.recording.input_gradient import input_gradient
from throughtime.recording.layout import laid, time_first
from throughtime.recording.run import NOTHING, Run, besides, run_of
from throughtime.scaled import power_of_two
from throughtime.whole.series import Level, Sent, Series, levels_of, outputs_of, widened

SERIES = "series"
"""Of the whole of several modules."""
LOOSE = 50  # what came from above by two ways differs by this times the rounding of one
IDENTITY = "BackwardHookFunctionBackward"  # the node by which torch calls a module's full backward hooks
RANGE = -36.0
"""log10 of what single precision holds beside the largest number of a step."""


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


@dataclass(frozen=True)
class Through:
    """The way of a module's lowest level to modules below. form: of the later call; by id of a call places: of its highest
    level, and forms."""

    passage: Passage
    form: Form
    forms: dict[int, Form]
    places: dict[int, int]

    def back(self, at_input: Tensor) -> Iterator[Sent]:
        """See `throughtime.whole.series.Way`."""
        for _, sent in self.told(at_input):
            yield sent

    def told(self, at_input: Tensor) -> Iterator[tuple[int, Sent]]:
        """The same, with the id of the call that it goes to."""
        sums: dict[tuple[int, int], list[Tensor]] = {}
        for row in at_input.unbind(1):
            for key, value in self._row(row).items():
                sums.setdefault(key, []).append(value)
        for (call, place), rows in sums.items():
            if place == 0:
                yield call, Sent(self.places[call], torch.stack(rows, dim=1), moved=self.moves)
                continue
            directions = self.forms[call].directions
            states = torch.stack(rows, dim=1)  # (N, S, B, width), the lowest layer first
            for number, value in enumerate(states):
                highest = self.places[call] + self.forms[call].layers - 1
                yield call, Sent(highest - number // directions, value, number % directions, place - 1, moved=True)

    @cached_property
    def moves(self) -> bool:
        """Whether a gradient goes to other steps on the way: tried with those of single steps."""
        like = time_first(self.passage.call.x, self.form)
        for step in {0, len(like) // 2, len(like) - 1}:
            row = torch.zeros_like(like, dtype=torch.float64)
            row[step] = torch.randn(row.shape[1:], generator=torch.Generator().manual_seed(0)).to(row)
            for (_, place), sent in self._row(row).items():
                if place == 0 and (sent[:step].any() or sent[step + 1 :].any()):
                    return True
        return False

    def _row(self, row: Tensor) -> dict[tuple[int, int], Tensor]:
        """One origin: (T, B, D) at the input, to (T, B, W) at outputs and (N, B, width) at last states, float64."""
        call = self.passage.call
        exponent = torch.frexp(row.abs().amax()).exponent.long()
        given = row * power_of_two(-exponent)
        sent = self.passage.back(laid(given, self.form).to(call.x.dtype))
        out = {}
        for (key, place), value in sent.items():
            form = self.forms[key]
            value = value.double()
            value = (
                time_first(value, form)
                if place == 0
                else value.reshape(form.layers * form.directions, -1, value.shape[-1])
            )
            out[key, place] = value * power_of_two(exponent)
        return out


def whole_of(passages: Passages, calls: list[Call], name: str) -> Series | str | None:
    """The series of the modules of these calls, in the order in which they ran; why there is none, or None where none is."""
    if passages.lost or not passages.between:
        return passages.lost or None
    runs = [(call, run_of(call)) for call in calls]
    sizes = {(run.steps, run.x.shape[1]) for _, run in runs}
    if len(sizes) > 1:
        steps = ", ".join(f"{run.layer} {run.steps} × {run.x.shape[1]}" for _, run in runs)
        return f"the layers do not have the same steps and sequences ({steps}), so that they have no common time"
    why = passages.fail()
    if why:
        return why
    forms = {id(call): run.form for call, run in runs}
    levels: list[Level] = []
    places: dict[int, int] = {}
    sent: dict[int, list[Sent]] = {}  # by id of the call, with the level counted from its highest
    tops: list[Tensor] = []
    for call, run in reversed(runs):
        outside = _from_outside(run, sent.get(id(call), []))
        places[id(call)] = len(levels)
        passage = passages.between.get(id(call))
        below = () if passage is None else (Through(passage, run.form, forms, places),)
        made = levels_of(run, outside, len(levels), below)
        levels += made
        if outside.at_output.any():
            tops.append(outputs_of(made[0]))
        if passage is not None:
            own = Through(passage, run.form, forms, dict.fromkeys(forms, 0))
            at_input = torch.stack([p.turned(input_gradient(widened(p.trace))[:, None]) for p in made[-1].parts]).sum(0)
            for lower, each in own.told(at_input):
                sent.setdefault(lower, []).append(each)
    lengths = [run.lengths for _, run in runs]
    alike = all(each is None for each in lengths) or (
        all(run.form.batch_sizes is not None for _, run in runs)
        and all(each is not None and lengths[0] is not None and torch.equal(each, lengths[0]) for each in lengths)
    )
    return Series(
        name=name,
        module="",
        kind={"modules": ", ".join(run.layer for _, run in runs)},
        levels=tuple(levels),
        source=torch.cat([run.x for call, run in runs if id(call) not in passages.between], dim=-1),
        at_output=torch.cat(tops, dim=-1) if tops and alike else None,
        together=True,
        range=RANGE if any(call.x.dtype != torch.float64 for call, _ in runs) else -math.inf,
    )


def _from_outside(run: Run, sent: list[Sent]) -> Run:
    """A run with what enters it from outside of the series: without what later modules sent it."""
    at_output, ends = run.at_output, [state.clone() for state in run.at_states[-1]]
    loose = LOOSE if run.dtype in NOTHING else 2.5
    outputs = [each.value[:, 0] for each in sent if each.part is None]
    if outputs:
        at_output = besides(at_output, torch.stack(outputs).sum(0).to(at_output.dtype), run.dtype, loose)
    for state, whole in enumerate(ends):
        part = torch.zeros_like(whole)
        for each in sent:
            if each.part is not None and each.state == state:
                layer = run.form.layers - 1 - each.level
                part[layer * run.form.directions + each.part] += each.value[0].to(whole.dtype)
        ends[state] = besides(whole, part, run.dtype, loose) if part.any() else whole
    return replace(run, at_output=at_output, at_states={**run.at_states, -1: ends})
