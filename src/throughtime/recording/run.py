"""A **run**: one call, or calls that pass their states on, as one batch of sequences, time first, in a working precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from throughtime.cells.cell import Tensors
from throughtime.errors import RecordError
from throughtime.recording.calls import OUTPUT, Call, Form, check
from throughtime.recording.layout import inside, time_first

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
    if form.batch_sizes is not None:
        lengths = inside(form).sum(0).to(call.x.device)
        lengths = None if (lengths == lengths[0]).all() else lengths

    def laid_out(value: Tensor) -> Tensor:
        return time_first(value, form).to(working).contiguous()

    def total(parts: Sequence[dict[int, Tensor]], place: int) -> Tensor | None:
        there = [part[place].to(working) for part in parts if place in part]
        return torch.stack(there).sum(0) if there else None

    x = laid_out(call.x)
    batch = x.shape[1]
    count = form.layers * form.directions
    initial = [state.to(working).reshape(count, batch, -1) for state in call.initial]
    at = [total([each.outputs for each in passes], place) for place in range(len(initial) + 1)]
    output = laid_out(call.results[0])
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
            at_output = laid_out(at[0])
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
        outputs=[*(laid_out(value) for value in _below(call)), output],
        carries=carries,
        initial=initial,
        at_initial=at_initial,
        at_output=at_output,
        at_states={-1: ends},
        masks=[laid_out(mask) for mask in call.masks],
        external_output=laid_out(call.external[OUTPUT]) if OUTPUT in call.external else None,
        lengths=lengths,
        weights={name: value.to(working) for name, value in call.shared.weights.items()},
        gradients=gradients,
        dtype=call.dtype,
    )


def beside(states: Sequence[Tensor], place: int) -> Tensor:
    """(B, C): the states (N, B, width) of a layer and direction side by side."""
    return torch.cat([state[place] for state in states], dim=-1)


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
