"""Calls that pass their states on, as one sequence: windows of truncated BPTT, the user's own loop over a cell.

A call follows another when its initial states are made of those that the other made, number by number: as they are,
multiplied by something on the way (a `done` mask, dropout on the state), or mixed with the states that the other was given
(zoneout, a state that is held where a sequence pauses or has ended).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from throughtime.cells.cell import Cell, Weights, pull_by_autograd
from throughtime.errors import UnsupportedError
from throughtime.recording.calls import HELD, OUTPUT, Call, Held
from throughtime.recording.elementwise import Edge, Factor, Reader, filled, plus, times
from throughtime.recording.hooks import edge_of, hear_held
from throughtime.recording.run import Run, Start, besides, run_of
from throughtime.recording.ways import Ways


def link(call: Call, initial: list[Tensor], ways: Ways) -> Iterator[RemovableHandle]:
    """Find the call whose states this one was given, among earlier ones that no call follows yet.

    Sets `follows`, `between` and `origins` of the call, and `held` of the one that it follows, which the hooks hear.
    """
    behind = [node for state in initial if (node := _node(state)) is not None]
    some = initial[0] if call.form.directions == 1 and len(behind) == len(initial) else None
    for before in [] if some is None else _made_by(some, ways):
        if before.form.batch_sizes is not None or len(before.ends) != len(initial):
            continue
        if [state.shape for state in before.initial] != [state.shape for state in initial]:
            continue
        read = [_way(state, before, place, ways) for place, state in enumerate(initial)]
        found = [way for way in read if way is not None]
        if len(found) < len(read):
            continue
        call.follows = ways.open_ends.pop(id(before))
        call.origins = [dict(way.chain) for way in found]
        call.between = [_own(way.chain[0][1]) for way in found]
        for place in list(before.held):
            before.held.pop(place).heard.remove()
        for place, way in enumerate(found):
            if way.hold is not None:
                yield _hold(before, place, way)
                ways.add_held(before, place, way.chain[-1][0])
        yield from ways.parted([node for way in found for node in way.others])
        return
    if len(behind) == len(initial):
        call.origins = [dict(Reader(state, {}).descend(edge_of(state))) for state in initial]
        call.between = [_own(next(iter(origin.values()))) for origin in call.origins]
    yield from ways.parted(behind)


def _made_by(tensor: Tensor, ways: Ways) -> list[Call]:
    """The calls, not followed yet, of whose states a tensor was made number by number; the latest first."""
    arrived = Reader(tensor, ways.known).arrivals(edge_of(tensor))
    made = {id(call): call for call, place in (ways.known[edge] for edge in arrived) if place != OUTPUT}
    there = [call for key, call in made.items() if key in ways.open_ends]
    if len(there) > 1:
        order = list(ways.open_ends)
        there.sort(key=lambda call: -order.index(id(call)))
    return there


def _own(factor: Factor) -> Factor:
    """A copy: the user may write to a mask."""
    return None if factor is None else factor.clone()


def _node(state: Tensor) -> Node | None:
    return edge_of(state)[0] if state.requires_grad else None


@dataclass(frozen=True)
class _Way:
    """How a state was made of those of a call. chain: see `Reader.descend`; its last, the origin, is take∘new + hold∘old."""

    chain: list[tuple[Edge, Factor]]
    take: Factor
    hold: Tensor | None
    others: list[Node]


def _way(state: Tensor, before: Call, place: int, ways: Ways) -> _Way | None:
    """The way from a state of a call to one that was given to a later call; None where it was not made of it."""
    end, old = before.ends[place], before.origins[place] if before.origins else {}
    reader = Reader(state, old | {end: None}, ways.known, (before, HELD + place))
    chain = reader.descend(edge_of(state))
    arrived = reader.arrivals(chain[-1][0])
    if end not in arrived:
        return None
    shaped = {edge: None if factor is None else factor.reshape(state.shape) for edge, factor in old.items()}
    parts = [filled(times(by, shaped[edge]), state) for edge, by in arrived.items() if edge != end]
    return _Way(chain, arrived[end], torch.stack(parts).sum(0) if parts else None, reader.others)


def _hold(call: Call, place: int, way: _Way) -> RemovableHandle:
    assert way.hold is not None
    heard = hear_held(call, way.chain[-1][0], place)
    call.held[place] = Held(_own(way.take), way.hold, heard)
    return heard


def mixed(made: Tensor, ways: Ways) -> Iterator[RemovableHandle]:
    """Look at the result of an operation after the layer's last calls: is it their new state, in part the old one?

    The last call of a loop has none that follows it, and its held state is known by its factors, which add up to 1, or of
    which one is as at the step before (h + cell(x, h)).
    """
    if made.numel() not in ways.sizes:
        return
    edge = edge_of(made)
    for call in _made_by(made, ways):
        for place, state in enumerate(call.initial):
            if place in call.held or state.numel() != made.numel():
                continue
            way = _way(made, call, place, ways)
            if way is None or way.hold is None or way.chain[-1][0] != edge:
                continue
            if _near(plus(way.take, way.hold, made), torch.ones_like(made)) or _as_before(call, place, way, made):
                yield _hold(call, place, way)
                ways.add_held(call, place, edge)


def _as_before(call: Call, place: int, way: _Way, like: Tensor) -> bool:
    """Whether the state before was held by the same factor."""
    held = call.follows.held.get(place) if call.follows is not None else None
    if held is None:
        return False
    pairs = ((way.take, held.take), (way.hold, held.hold))
    return any(_near(filled(one, like), filled(other, like)) for one, other in pairs)


def _near(one: Tensor, other: Tensor) -> bool:
    return float((one - other).abs().max()) <= 1e-5


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
    at_states: dict[int, list[Tensor]] = {}
    at_held: dict[int, list[Tensor]] = {}
    starts: list[Start] = []
    step = 0
    origins = [_at_origins(call, run) for call, run in zip(chain, runs, strict=True)]
    for place, (run, call) in enumerate(zip(runs, chain, strict=True)):
        if place:
            starts.append(Start(step, run.initial, _filled(call.between, run), *_mixture(chain[place - 1], run)))
        step += run.steps
        end = -1 if run is last else step - 1
        new, at_origin = run.at_states[-1], origins[place]
        if run is not last:
            at_origin = _entering(at_origin, runs[place + 1], chain[place + 1], origins[place + 1])
        at_held[end], at_states[end] = [], []
        for state, (value, entering, takes) in enumerate(zip(new, at_origin, _mixture(call, run)[0], strict=True)):
            held = state in call.held
            direct = besides(value, takes * origins[place][state], run.dtype) if held else entering
            at_states[end].append(direct)
            at_held[end].append(entering if held else torch.zeros_like(entering))
    held = any(call.held for call in chain)
    at_initial = first.at_initial
    if held and at_initial is not None:  # told at the origin, as which the state is carried on
        at_initial = _sent_back(first, chain[0], origins[0])
    return replace(
        first,
        x=torch.cat([run.x for run in runs]),
        outputs=[torch.cat(parts) for parts in zip(*(run.outputs for run in runs), strict=True)],
        carries=None
        if first.carries is None
        else torch.cat([first.carries, *(run.carries[1:] for run in runs[1:] if run.carries is not None)]),
        at_initial=at_initial,
        at_output=torch.cat([run.at_output for run in runs]),
        at_states=at_states,
        at_held=at_held,
        external=_external(runs, chain),
        external_held=_external(runs, chain, HELD),
        external_output=None
        if all(run.external_output is None for run in runs)
        else torch.cat(
            [torch.zeros_like(run.at_output) if run.external_output is None else run.external_output for run in runs]
        ),
        masks=[torch.cat(parts) for parts in zip(*(run.masks for run in runs), strict=True)],
        starts=starts,
        first_masks=_filled(chain[0].between, first),
        ended=_mixture(chain[-1], last),
        passed=any(factor is not None and bool((factor != 1).any()) for call in chain[1:] for factor in call.between),
        held=held,
        lengths=last.lengths,
    )


def _filled(factors: Sequence[Factor], run: Run) -> list[Tensor]:
    """For each state, its factor (N, B, width); 1 where none is given."""
    given = factors or [None] * len(run.initial)
    return [filled(factor, state) for factor, state in zip(given, run.initial, strict=True)]


def _mixture(call: Call, run: Run) -> tuple[list[Tensor], list[Tensor]]:
    """For each state (N, B, width) what the new and what the older one are multiplied by in the origin that follows."""
    held = [call.held.get(place) for place in range(len(run.initial))]
    takes = _filled([None if each is None else each.take for each in held], run)
    holds = [
        torch.zeros_like(state) if each is None else filled(each.hold, state)
        for each, state in zip(held, run.initial, strict=True)
    ]
    return takes, holds


def _at_origins(call: Call, run: Run) -> list[Tensor]:
    """For each state (N, B, width), all that reaches the origin which is made of it: the state itself where none is held."""
    out = []
    for place, new in enumerate(run.at_states[-1]):
        there = [each.held[place].to(new).reshape(new.shape) for each in call.passes.values() if place in each.held]
        out.append(torch.stack([torch.zeros_like(new), *there]).sum(0) if place in call.held else new)
    return out


def _sent_back(run: Run, call: Call, at_origins: list[Tensor]) -> list[Tensor]:
    """For each state, what a run sends back to the origin before it: by its states, and past itself where they are held."""
    sent = run.at_initial
    if sent is None:
        sent = [state[None] for state in run.form.cell.split(_pull(run))]
    masks, holds = _filled(call.between, run), _mixture(call, run)[1]
    parts = zip(sent, masks, at_origins, holds, strict=True)
    return [back * mask + whole * hold for back, mask, whole, hold in parts]


def _entering(whole: list[Tensor], after: Run, call: Call, at_origins: list[Tensor]) -> list[Tensor]:
    """What enters at the origins of a run's states besides what the next run, of this call, sends back to them."""
    sent = _sent_back(after, call, at_origins)
    return [besides(value, back, after.dtype) for value, back in zip(whole, sent, strict=True)]


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


def _external(runs: list[Run], chain: list[Call], base: int = 0) -> dict[int, list[Tensor]]:
    """Step → for each state, what reaches it from outside; the step −1 is each sequence's own last. base: HELD for origins."""
    ends = list(accumulate(run.steps for run in runs))
    out: dict[int, list[Tensor]] = {}

    def add(place: int, state: int, sent: Tensor) -> None:
        run = runs[place]
        step = -1 if place == len(runs) - 1 else ends[place] - 1
        sums = out.setdefault(step, [torch.zeros_like(value) for value in run.initial])
        sums[state] += sent.to(run.x.dtype).reshape(sums[state].shape)

    for place, (run, call) in enumerate(zip(runs, chain, strict=True)):
        for state, sent in call.external.items():
            if base <= state < base + HELD:
                add(place, state - base, sent)
        if call.fed is not None and call.fed[0] in chain and base <= call.fed[1] < base + HELD:
            add(chain.index(call.fed[0]), call.fed[1] - base, _to_input(run))
    return out


def _to_input(run: Run) -> Tensor:
    """(B, D): what a single step sends to its input, by autograd: a cell of the user's own has no products."""
    cell, w, before, adjoint = _single(run)
    with torch.enable_grad():
        x = run.x[0].detach().clone().requires_grad_()
        after = cell.step(w, x, dict.fromkeys(cell.ports, before))
        return torch.autograd.grad(after, x, adjoint)[0]
