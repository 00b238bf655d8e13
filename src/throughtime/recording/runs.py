"""From calls to traces: everything foreign (layout, packing, directions, dtypes) is converted here, once.

A **run** is one call, or calls that pass their states on, as one batch of sequences, time first. A run of several layers
becomes one trace for the whole stack and one a layer and direction; what a lower layer gets is what the layer above sends
to its input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from throughtime.block import Block
from throughtime.cells.between import Between
from throughtime.cells.cell import Cell, Tensors, Weights
from throughtime.cells.held import Held
from throughtime.cells.stack import Stack
from throughtime.errors import RecordError
from throughtime.linearize import Linearization
from throughtime.recording.calls import OUTPUT, Call, Form, check
from throughtime.recording.own import OwnCell
from throughtime.scaled import power_of_two
from throughtime.sweep import stream
from throughtime.trace import Trace

SAME = {torch.float64: 1e-12, torch.float32: 1e-4}  # of a stack run again; lower precisions: 5e-2
NOTHING = {torch.float64: 1e-13, torch.float32: 2e-6}  # what a difference of two gradients leaves of rounding


@dataclass(frozen=True)
class Start:
    """Where a later call of a run begins. For each state (N, B, width): the given one; masks: what it was multiplied by on
    the way from its origin; takes, holds: the origin is takes∘(the state just made) + holds∘(the origin at the last start).
    """

    step: int
    states: list[Tensor]
    masks: list[Tensor]
    takes: list[Tensor]
    holds: list[Tensor]


@dataclass(frozen=True)
class Run:
    """T steps, B sequences. N = layers times directions.

    x: (T, B, D). outputs: of each layer (T, B, directions·H), the lowest first. carries: (T + 1, B, C) where the call told
    them, else None. initial: for each state (N, B, width); at_initial: what autograd gave them, or None. at_output:
    (T, B, directions·H), what enters at the top. at_states: step → for each state (N, B, width), what enters there; the
    step −1 is each sequence's own last; external: the part of it that came round outside the layer, external_output:
    likewise of at_output, or None. starts: of the later calls; first_masks: the masks of the first one's states; ended: the
    takes and holds at the end. at_held, external_held: as at_states and external, at the origins where a state is held.
    passed: whether the masks are anything but 1; held: whether a state is held. masks: (T, B, directions·H) for each layer but
    the lowest, or none.
    """

    layer: str
    form: Form
    x: Tensor
    outputs: list[Tensor]
    carries: Tensor | None
    initial: list[Tensor]
    at_initial: list[Tensor] | None
    at_output: Tensor
    at_states: dict[int, list[Tensor]]
    masks: list[Tensor]
    lengths: Tensor | None
    weights: Tensors
    gradients: Tensors
    dtype: torch.dtype
    external: dict[int, list[Tensor]] = field(default_factory=dict)
    external_output: Tensor | None = None
    starts: list[Start] = field(default_factory=list)
    first_masks: list[Tensor] = field(default_factory=list)
    ended: tuple[list[Tensor], list[Tensor]] | None = None
    at_held: dict[int, list[Tensor]] = field(default_factory=dict)
    external_held: dict[int, list[Tensor]] = field(default_factory=dict)
    passed: bool = False
    held: bool = False

    @property
    def steps(self) -> int:
        return self.x.shape[0]


def run_of(call: Call) -> Run:
    """A run of the sum of the call's passes."""
    check(call)
    form = call.form
    working = torch.float64 if next(iter(call.shared.weights.values())).dtype == torch.float64 else torch.float32
    passes = list(call.passes.values())
    lengths = None
    inside: Tensor | None = None
    if form.batch_sizes is not None:
        inside = (torch.arange(int(form.batch_sizes[0])) < form.batch_sizes[:, None]).to(call.x.device)
        lengths = inside.sum(0)
        lengths = None if (lengths == lengths[0]).all() else lengths

    def time_first(value: Tensor) -> Tensor:
        if inside is not None:
            padded = value.new_zeros(*inside.shape, value.shape[-1])
            padded[inside] = value
            value = padded
        elif form.single:
            value = value.reshape(1, len(value), -1)
        elif form.batch_first:
            value = value.transpose(0, 1)
        return value.to(working).contiguous()

    def total(parts: Sequence[dict[int, Tensor]], place: int) -> Tensor | None:
        there = [part[place].to(working) for part in parts if place in part]
        return torch.stack(there).sum(0) if there else None

    x = time_first(call.x)
    batch = x.shape[1]
    count = form.layers * form.directions
    initial = [state.to(working).reshape(count, batch, -1) for state in call.initial]
    at = [total([each.outputs for each in passes], place) for place in range(len(initial) + 1)]
    output = time_first(call.results[0])
    carries, at_output = None, torch.zeros_like(output)
    if form.single:
        inner = [total([each.inner for each in passes], place) for place in range(len(initial))]
        at = [
            whole if whole is None or part is None else besides(whole.flatten(1), part.flatten(1), call.dtype)
            for whole, part in zip(at, inner, strict=False)
        ]
        made = torch.cat([state.to(working).reshape(batch, -1) for state in call.results], dim=-1)
        carries = torch.stack((torch.cat([state[0] for state in initial], dim=-1), made))
        of_states = at[: len(initial)]
    else:
        if at[0] is not None:
            at_output = time_first(at[0])
        of_states = at[1:]
    ends = [
        torch.zeros_like(state) if given is None else given.reshape(state.shape)
        for state, given in zip(initial, of_states, strict=True)
    ]
    at_initial = None
    if call.told:
        given = [total([each.initial for each in passes], place) for place in range(len(initial))]
        there = [value.reshape(state.shape) for value, state in zip(given, initial, strict=True) if value is not None]
        at_initial = there if len(there) == len(initial) else None
    gradients = {
        name: torch.stack([part[name].to(working) for part in call.shared.sums.values() if name in part]).sum(0)
        for name in call.expected
    }
    gradients |= {name: torch.zeros_like(call.shared.weights[name], dtype=working) for name in call.idle}
    return Run(
        layer=call.layer,
        form=form,
        x=x,
        outputs=[*(time_first(value) for value in _below(call)), output],
        carries=carries,
        initial=initial,
        at_initial=at_initial,
        at_output=at_output,
        at_states={-1: ends},
        masks=[time_first(mask) for mask in call.masks],
        external_output=time_first(call.external[OUTPUT]) if OUTPUT in call.external else None,
        lengths=lengths,
        weights={name: value.to(working) for name, value in call.shared.weights.items()},
        gradients=gradients,
        dtype=call.dtype,
    )


def besides(whole: Tensor, part: Tensor, dtype: torch.dtype, loose: float = 1.0) -> Tensor:
    """What is left of gradients (…, width) without a part of them; zero where only `loose` times the rounding of `dtype`
    would be left."""
    rest = whole - part
    large = rest.norm(dim=-1, keepdim=True) > loose * NOTHING.get(dtype, 2e-2) * whole.norm(dim=-1, keepdim=True)
    return torch.where(large, rest, 0.0)


def _below(call: Call) -> list[Tensor]:
    """The outputs of all layers but the top one, which a fused call keeps to itself: they are run again, one by one."""
    form, out = call.form, []
    if form.layers == 1:
        return out
    x = call.x
    states = [state.reshape(form.layers, form.directions, *state.shape[1:]) for state in call.initial]
    low = call.dtype not in SAME
    with torch.no_grad(), torch.autocast(x.device.type, call.dtype if low else None, enabled=low):
        for layer in range(form.layers):
            given = [state[layer] for state in states]
            flat = [
                value
                for direction in range(form.directions)
                for value in form.weights(call.shared.weights, layer, direction).values()
            ]
            into = x if layer == 0 else out[-1] * call.masks[layer - 1] if call.masks else out[-1]
            bias = any("bias" in name for name in call.shared.weights)
            end = (bias, 1, 0.0, False, form.directions == 2)
            hx = given if len(given) > 1 else given[0]
            if form.batch_sizes is None:
                result = form.function(into, hx, flat, *end, form.batch_first)
            else:
                result = form.function(into, form.batch_sizes, hx, flat, *end)
            out.append(result[0])
    off = float((out[-1].double() - call.results[0].double()).abs().max())
    if off > SAME.get(call.dtype, 5e-2):
        raise RecordError(
            f"layers of '{call.layer}' whose output run again misses by {off:.1g}",
            "the masks of the dropout between its layers",
            "on a GPU record the step under torch.backends.cudnn.flags(enabled=False), or with dropout=0",
        )
    return out[:-1]


def flipped(value: Tensor, lengths: Tensor | None) -> Tensor:
    """(T, B, …) with time turned round within each sequence."""
    if lengths is None:
        return value.flip(0)
    step = torch.arange(value.shape[0], device=value.device)[:, None]
    at = torch.where(step < lengths, lengths - 1 - step, step)
    return value.gather(0, at[..., None].expand(value.shape))


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
    initial = torch.cat([state[place] for state in run.initial], dim=-1)
    w = Weights(**weights)
    carries = run.carries
    if carries is None:
        carries = _carries(run, w, into, output, place)
    gradient = at_carries(run, layer, direction, at_output, initial.shape[-1])
    apart = run.external or run.external_held or run.external_output is not None
    outside = torch.zeros_like(gradient) if apart else None
    if outside is not None and run.external_output is not None and layer == form.layers - 1:
        entered = run.external_output[..., direction * width : (direction + 1) * width]
        outside[..., :width] = flipped(entered, run.lengths) if direction else entered
    sequences = torch.arange(into.shape[1], device=into.device)
    last = into.shape[0] - 1 if run.lengths is None else run.lengths - 1

    def enter(at: Tensor, given: dict[int, list[Tensor]]) -> None:
        for step, states in given.items():
            at[last if step < 0 else step, sequences] += torch.cat([state[place] for state in states], dim=-1)

    if outside is not None:
        enter(outside, run.external)
    cell, noise, before = form.cell, None, carries[:-1]
    starting = None if run.at_initial is None else torch.cat([state[place] for state in run.at_initial], dim=-1)
    if run.held:
        cell, (noise, older) = Held(form.cell, into.shape[-1], carries.shape[-1]), _held(run, carries, place)
        p, q, u, *_ = noise.chunk(5, dim=-1)
        before = p * before + q * older[:-1] + u
        carries = torch.cat((older, carries), dim=-1)
        at_held = torch.zeros_like(gradient)
        enter(at_held, run.at_held)
        gradient = torch.cat((at_held, gradient), dim=-1)
        if outside is not None:
            outside_held = torch.zeros_like(at_held)
            enter(outside_held, run.external_held)
            outside = torch.cat((outside_held, outside), dim=-1)
        starting = None if starting is None else torch.cat((starting, torch.zeros_like(starting)), dim=-1)
    elif run.starts or run.passed:
        between = _noise(run, carries, place)
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
    sequences = torch.arange(gradient.shape[1], device=gradient.device)
    last = len(gradient) - 1 if run.lengths is None else run.lengths - 1
    place = layer * run.form.directions + direction
    for step, states in run.at_states.items():
        gradient[last if step < 0 else step, sequences] += torch.cat([state[place] for state in states], dim=-1)
    return gradient


def _carries(run: Run, w: Weights, into: Tensor, output: Tensor, place: int) -> Tensor:
    """All carries of a layer and direction, from its outputs: call by call, each from the states that it was given."""
    bounds = [(0, run.initial), *((start.step, start.states) for start in run.starts)]
    ends = [*(step for step, _ in bounds[1:]), run.steps]
    parts = []
    with torch.no_grad(), torch.autocast(into.device.type, enabled=False):
        for (first, states), end in zip(bounds, ends, strict=True):
            initial = torch.cat([state[place] for state in states], dim=-1)
            made = run.form.cell.carries(w, into[first:end], output[first:end], initial)
            parts.append(made if first == 0 else made[1:])
    return torch.cat(parts)


def _noise(run: Run, carries: Tensor, place: int) -> Tensor:
    """(T, B, 2C): what the carry before each step is multiplied by, and what is added to it. See `Between`."""
    mask, shift = torch.ones_like(carries[:-1]), torch.zeros_like(carries[:-1])
    for start in run.starts:
        mask[start.step] = _beside(start.masks, place)
        shift[start.step] = _beside(start.states, place) - mask[start.step] * carries[start.step]
    return torch.cat((mask, shift), dim=-1)


def _held(run: Run, carries: Tensor, place: int) -> tuple[Tensor, Tensor]:
    """(T, B, 5C) what `Held` reads beside the input, and (T + 1, B, C) the origins, up to what has no gradient."""
    from_new, take, hold = (torch.ones_like(carries[:-1]) for _ in range(3))
    from_held, shift = torch.zeros_like(from_new), torch.zeros_like(from_new)
    take.zero_()
    origin = _beside(run.initial, place)
    origins = [origin]
    begins = {0: (run.initial, run.first_masks or [torch.ones_like(state) for state in run.initial])}
    begins |= {start.step: (start.states, start.masks) for start in run.starts}
    ends = {start.step - 1: (start.takes, start.holds) for start in run.starts}
    if run.ended is not None:
        ends[run.steps - 1] = run.ended
    for step in range(run.steps):
        if step in begins:
            states, masks = begins[step]
            from_new[step] = 0
            from_held[step] = _beside(masks, place)
            shift[step] = _beside(states, place) - from_held[step] * origin
        if step in ends:
            take[step], hold[step] = (_beside(each, place) for each in ends[step])
            origin = take[step] * carries[step + 1] + hold[step] * origin
        origins.append(origin)
    return torch.cat((from_new, from_held, shift, take, hold), dim=-1), torch.stack(origins)


def _beside(states: Sequence[Tensor], place: int) -> Tensor:
    """(B, C): the states (N, B, width) of a layer and direction side by side."""
    return torch.cat([state[place] for state in states], dim=-1)


def _whole(run: Run, parts: list[Trace]) -> Trace:
    """The stack of the parts as one trace."""

    halves = 2 if run.held else 1  # of a held carry: the states as they are carried on, and the new ones

    def beside(values: Sequence[Tensor], pieces: int = halves) -> Tensor:
        split = [value.chunk(pieces, dim=-1) for value in values]
        return torch.cat([each for piece in zip(*split, strict=True) for each in piece], dim=-1)

    first = parts[0]
    gradient = [torch.zeros_like(part.gradient) for part in parts[:-1]]
    sequences = torch.arange(first.batch, device=first.x.device)
    last = first.steps - 1 if run.lengths is None else run.lengths - 1
    for half, given in enumerate((run.at_held, run.at_states) if run.held else (run.at_states,)):
        for step, states in given.items():  # what enters a lower layer from outside
            for layer, into in enumerate(gradient):
                into.chunk(halves, dim=-1)[half][last if step < 0 else step, sequences] += _beside(states, layer)
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
        noise.append(beside([part.noise for part in parts if part.noise is not None], 5))
        cell = Held(cell, first.x.shape[-1] + sum(mask.shape[-1] for mask in run.masks), sum(cell.sizes))
    elif any(part.noise is not None for part in parts):  # what the states pass through on their way into a later call
        noise.append(beside([_noise(run, part.carries, place) for place, part in enumerate(parts)], 2))
        cell = Between(cell, first.x.shape[-1])
    return replace(
        first,
        name=run.layer,
        cell=cell,
        weights=Weights(**{f"l{k}.{n}": v for k, part in enumerate(parts) for n, v in part.weights.tensors().items()}),
        carries=beside([part.carries for part in parts]),
        gradient=beside([*gradient, parts[-1].gradient]),
        weight_gradients={f"l{k}.{n}": v for k, part in enumerate(parts) for n, v in part.weight_gradients.items()},
        initial_gradient=beside(starts) if len(starts) == len(parts) else None,
        names={f"l{k}.{n}": name for k, part in enumerate(parts) for n, name in part.names.items()},
        noise=torch.cat(noise, dim=-1) if noise else None,
        external=beside(outside) if outside else None,
        lag="total",
        inner=False,
    )


class _Inputs:
    """Collects what a stream sends to the input of each step."""

    paths = False

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.gradient = torch.zeros_like(trace.x)

    def update(self, block: Block) -> None:
        raise NotImplementedError("a stream has no lags")

    def tail(self, block: Block) -> None:
        sent = self.trace.cell.to_input(self.trace.weights, block.pre)[:, 0]
        self.gradient[block.steps[:, 0]] = sent * power_of_two(block.common, sent.dtype)[:, None, None]

    def initial(self, lag: int | None, adjoint: Tensor, exponent: Tensor) -> None:
        pass


def input_gradient(trace: Trace) -> Tensor:
    """(T, B, D): the gradient at the input of every step, of all that enters the trace."""
    origins, sent = trace.origins(), _Inputs(trace)
    if origins:
        rows = trace.rows(origins)
        exponent = torch.zeros(rows.shape[:2], dtype=torch.int64, device=rows.device)
        with torch.no_grad():
            stream(Linearization(trace), rows, exponent, torch.tensor(origins), [sent])
    return sent.gradient
