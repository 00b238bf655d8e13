"""From runs to traces: of a run of several layers one for the whole stack, and one a layer and direction.

What a lower layer gets is what the layer above sends to its input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from throughtime.cells.between import Between
from throughtime.cells.cell import Cell, Weights
from throughtime.cells.held import Held
from throughtime.cells.stack import Stack
from throughtime.recording.between_calls import held_states, masks_and_shifts
from throughtime.recording.input_gradient import input_gradient
from throughtime.recording.layout import flipped
from throughtime.recording.own import OwnCell
from throughtime.recording.run import SAME, Run, beside
from throughtime.trace import Trace


def traces_of(run: Run) -> list[Trace]:
    """The run's traces: of a stack the whole first, then each layer and direction from the lowest."""
    form, told = run.form, parts_of(run)
    for part in told:
        part.check_finite()
    if form.layers == 1:
        return told
    whole = [_whole(run, told)] if form.directions == 1 else []
    return [*whole, *_with_external(run, told)]


def parts_of(run: Run) -> list[Trace]:
    """The trace of each layer and direction, from the lowest, the forward direction first."""
    form = run.form
    parts: dict[tuple[int, int], Trace] = {}
    above = run.at_output
    for layer in reversed(range(form.layers)):
        width = run.outputs[layer].shape[-1] // form.directions
        below = torch.zeros_like(run.outputs[layer - 1]) if layer else None
        for direction in range(form.directions):
            part = _part(run, layer, direction, above[..., direction * width : (direction + 1) * width])
            parts[layer, direction] = part
            if below is not None:
                sent = input_gradient(part)
                below += flipped(sent, run.lengths) if direction else sent
        if below is not None:
            above = below * run.masks[layer - 1] if run.masks else below
    return [part for _, part in sorted(parts.items())]


def _with_external(run: Run, parts: list[Trace]) -> list[Trace]:
    """The parts of a stack from the lowest, their external gradients with what the layers above send down of theirs."""
    out: dict[tuple[int, int], Trace] = {}
    above: Tensor | None = None
    for layer in reversed(range(run.form.layers)):
        below = torch.zeros_like(run.outputs[layer - 1]) if layer else None
        for direction in range(run.form.directions):
            part = parts[layer * run.form.directions + direction]
            if part.external is None:  # in all of them, or in none
                return parts
            external = part.external.clone()
            if above is not None:
                width = above.shape[-1] // run.form.directions
                sent = above[..., direction * width : (direction + 1) * width]
                new = external.chunk(2 if run.held else 1, dim=-1)[-1]  # a view: of a held carry the new state
                new[..., :width] += flipped(sent, run.lengths) if direction else sent
            out[layer, direction] = replace(part, external=external)
            if below is not None:
                sent = input_gradient(replace(part, gradient=external))
                below += flipped(sent, run.lengths) if direction else sent
        if below is not None:
            above = below * run.masks[layer - 1] if run.masks else below
    return [part for _, part in sorted(out.items())]


def _part(run: Run, layer: int, direction: int, at_output: Tensor) -> Trace:
    """The trace of one layer and direction, time running as it does in it."""
    form = run.form
    place = layer * form.directions + direction
    weights = form.weights(run.weights, layer, direction)
    into = run.x
    if layer:
        into = run.outputs[layer - 1] * run.masks[layer - 1] if run.masks else run.outputs[layer - 1]
    output = run.outputs[layer]
    width = output.shape[-1] // form.directions
    output = output[..., direction * width : (direction + 1) * width]
    if direction:
        into, output = (flipped(value, run.lengths) for value in (into, output))
    w = Weights(**weights)
    carries = run.carries
    if carries is None:
        carries = _carries(run, w, into, output, place)
    gradient = at_carries(run, layer, direction, at_output, carries.shape[-1])
    apart = run.external or run.external_held or run.external_output is not None
    outside = torch.zeros_like(gradient) if apart else None
    if outside is not None and run.external_output is not None and layer == form.layers - 1:
        entered = run.external_output[..., direction * width : (direction + 1) * width]
        outside[..., :width] = flipped(entered, run.lengths) if direction else entered
    if outside is not None:
        _enter(outside, run, run.external, place)
    cell, noise, before = form.cell, None, carries[:-1]
    starting = None if run.at_initial is None else beside(run.at_initial, place)
    if run.held:
        cell, (noise, older) = Held(form.cell, into.shape[-1], carries.shape[-1]), held_states(run, carries, place)
        p, q, u, *_ = noise.chunk(5, dim=-1)
        before = p * before + q * older[:-1] + u
        carries = torch.cat((older, carries), dim=-1)
        at_held = torch.zeros_like(gradient)
        _enter(at_held, run, run.at_held, place)
        gradient = torch.cat((at_held, gradient), dim=-1)
        if outside is not None:
            outside_held = torch.zeros_like(at_held)
            _enter(outside_held, run, run.external_held, place)
            outside = torch.cat((outside_held, outside), dim=-1)
        starting = None if starting is None else torch.cat((starting, torch.zeros_like(starting)), dim=-1)
    elif run.starts or run.passed:
        between = masks_and_shifts(run, carries, place)
        mask, shift = between.chunk(2, dim=-1)
        if run.passed or float(shift.abs().max()) > SAME.get(run.dtype, 5e-2):
            cell, noise = Between(form.cell, into.shape[-1]), between
            before = mask * before + shift
    if isinstance(form.cell, OwnCell):
        form.cell.check(w, into, before, carries[1:, :, -before.shape[-1] :], SAME.get(run.dtype, 5e-2))
    several = form.layers > 1
    alone = form.layers * form.directions == 1
    end = "" if alone else f".l{layer}{'_reverse' if direction else ''}"
    inner = several and (form.directions == 1 or layer < form.layers - 1)
    source = None
    if several and form.directions == 2 and layer == form.layers - 1:
        source = flipped(run.x, run.lengths) if direction else run.x
    return Trace(
        name=f"{run.layer}{end}",
        module=run.layer,
        cell=cell,
        weights=w,
        x=into,
        carries=carries,
        gradient=gradient,
        weight_gradients=form.weights(run.gradients, layer, direction),
        initial_gradient=starting,
        dtype=run.dtype,
        names={name: f"{run.layer}.{form.name(name, layer, direction)}" for name in weights},
        lengths=run.lengths,
        lag="within-layer" if several else "total",
        reverse=bool(direction),
        source=source,
        inner=inner,
        noise=noise,
        external=outside,
    )


def at_carries(run: Run, layer: int, direction: int, at_output: Tensor, width: int) -> Tensor:
    """(T, B, C) what enters at the carries of a layer and direction, in its own time: at_output (T, B, H), in the run's
    time, and what the run says of its states. width: C."""
    gradient = at_output.new_zeros(*at_output.shape[:2], width)
    gradient[..., : at_output.shape[-1]] = flipped(at_output, run.lengths) if direction else at_output
    _enter(gradient, run, run.at_states, layer * run.form.directions + direction)
    return gradient


def _enter(at: Tensor, run: Run, given: Mapping[int, list[Tensor]], place: int) -> None:
    """Add to (T, B, C) what enters at the states of a layer and direction, given by step; −1 is each sequence's last."""
    sequences = torch.arange(at.shape[1], device=at.device)
    last = len(at) - 1 if run.lengths is None else run.lengths - 1
    for step, states in given.items():
        at[last if step < 0 else step, sequences] += beside(states, place)


def _carries(run: Run, w: Weights, into: Tensor, output: Tensor, place: int) -> Tensor:
    """All carries of a layer and direction, from its outputs: call by call, each from the states that it was given."""
    bounds = [(0, run.initial), *((start.step, start.states) for start in run.starts)]
    ends = [*(step for step, _ in bounds[1:]), run.steps]
    parts = []
    with torch.no_grad(), torch.autocast(into.device.type, enabled=False):
        for (first, states), end in zip(bounds, ends, strict=True):
            made = run.form.cell.carries(w, into[first:end], output[first:end], beside(states, place))
            parts.append(made if first == 0 else made[1:])
    return torch.cat(parts)


def _whole(run: Run, parts: list[Trace]) -> Trace:
    """The stack of the parts as one trace."""

    halves = 2 if run.held else 1  # of a held carry: the states as they are carried on, and the new ones

    def side_by_side(values: Sequence[Tensor], pieces: int = halves) -> Tensor:
        split = [value.chunk(pieces, dim=-1) for value in values]
        return torch.cat([each for piece in zip(*split, strict=True) for each in piece], dim=-1)

    first = parts[0]
    gradient = [torch.zeros_like(part.gradient) for part in parts[:-1]]
    for half, given in enumerate((run.at_held, run.at_states) if run.held else (run.at_states,)):
        for layer, into in enumerate(gradient):  # what enters a lower layer from outside
            _enter(into.chunk(halves, dim=-1)[half], run, given, layer)
    starts = [part.initial_gradient for part in parts if part.initial_gradient is not None]
    outside = [part.external for part in parts if part.external is not None]
    cell: Cell = Stack(
        (run.form.cell,) * len(parts),
        tuple(part.carries.shape[-1] // halves for part in parts),
        first.x.shape[-1],
        bool(run.masks),
    )
    noise = list(run.masks)
    if run.held:
        noise.append(side_by_side([part.noise for part in parts if part.noise is not None], 5))
        cell = Held(cell, first.x.shape[-1] + sum(mask.shape[-1] for mask in run.masks), sum(cell.sizes))
    elif any(part.noise is not None for part in parts):  # what the states pass through on their way into a later call
        noise.append(side_by_side([masks_and_shifts(run, part.carries, place) for place, part in enumerate(parts)], 2))
        cell = Between(cell, first.x.shape[-1])
    return replace(
        first,
        name=run.layer,
        cell=cell,
        weights=Weights(**{f"l{k}.{n}": v for k, part in enumerate(parts) for n, v in part.weights.tensors().items()}),
        carries=side_by_side([part.carries for part in parts]),
        gradient=side_by_side([*gradient, parts[-1].gradient]),
        weight_gradients={f"l{k}.{n}": v for k, part in enumerate(parts) for n, v in part.weight_gradients.items()},
        initial_gradient=side_by_side(starts) if len(starts) == len(parts) else None,
        names={f"l{k}.{n}": name for k, part in enumerate(parts) for n, name in part.names.items()},
        noise=torch.cat(noise, dim=-1) if noise else None,
        external=side_by_side(outside) if outside else None,
        lag="total",
        inner=False,
    )
