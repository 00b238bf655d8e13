"""What is analysed: one call of a recurrent layer and the gradient that reached it, in one layout and one dtype."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from throughtime.cells.cell import Cell, Weights
from throughtime.errors import InputError

PORTION = 2**18  # numbers of an array over all steps that are worked on at once, where steps can go one after another


@dataclass(frozen=True)
class Trace:
    """One run of one layer, or of a whole stack, frozen. T steps, B sequences, D inputs, H units, C the width of the carry.

    x: (T, B, D). carries: (T + 1, B, C), the initial one first. gradient: (T, B, C), what enters at the carry of each
    step: at the output, that of h_n included, and at the other states (c_n). weight_gradients: what autograd gave this run
    for each of its weights; initial_gradient: (B, C) likewise, or None. dtype: the lowest in which the layer ran; the
    analysis may stand in a higher one. names: weight → state_dict name. bare: whether the model is this layer itself.
    lengths: (B,) steps of each sequence where they differ: what follows is padding. noise: (T, B, M), what a cell reads
    beside its input (masks of dropout), or None. lag: "total", or "within-layer" where other layers carry the gradient
    too. reverse: whether time runs backwards: a lag is then a number of steps ahead. source: the input by which demand is
    judged, where it is not x; inner: whether demand is told for the whole stack, and not here. external: (T, B, C), the part
    of the gradient that came round outside the layer, or None. module: the module that the layer is part of, where it is
    not `name`.
    """

    name: str
    cell: Cell
    weights: Weights
    x: Tensor
    carries: Tensor
    gradient: Tensor
    weight_gradients: Mapping[str, Tensor]
    initial_gradient: Tensor | None
    dtype: torch.dtype
    names: Mapping[str, str] = field(default_factory=dict)
    bare: bool = False
    lengths: Tensor | None = None
    noise: Tensor | None = None
    lag: str = "total"
    reverse: bool = False
    source: Tensor | None = None
    inner: bool = False
    external: Tensor | None = None
    module: str | None = None

    @property
    def steps(self) -> int:
        return self.x.shape[0]

    @property
    def batch(self) -> int:
        return self.x.shape[1]

    @property
    def hidden_size(self) -> int:
        """Units, as the cell tells them apart."""
        return self.cell.units(self.carries.shape[-1])

    @property
    def at_output(self) -> Tensor:
        """(T, B, H): the part of the gradient that enters at the output."""
        return self.cell.entering(self.gradient)

    def origins(self) -> list[int]:
        """The steps at which any gradient enters, ascending."""
        return self.pairs.any(1).nonzero().flatten().tolist()

    @cached_property
    def pairs(self) -> Tensor:
        """(T, B) bool: at which steps of which sequences any gradient enters."""
        return torch.cat([self.gradient[at].abs().amax(-1) != 0 for at in self.portions()])

    def squares(self, unit: int = 0) -> Tensor:
        """(T, B) float64: ‖g‖² in units of 4^unit."""
        out = self.gradient.new_zeros(self.steps, self.batch, dtype=torch.float64)
        origins = torch.tensor(self.origins(), dtype=torch.int64, device=self.gradient.device)
        for at in origins.split(max(1, PORTION // self.carries[0].numel())):
            out[at] = (self.gradient[at].double() * 2.0**-unit).square().sum(-1)
        return out

    def portions(self) -> list[slice]:
        """All steps, in slices that hold about `PORTION` numbers of a carry."""
        return slices(self.steps, PORTION // max(1, self.carries[0].numel()))

    def entering(self) -> Tensor:
        """(T,) log10 of the root mean square of ‖λ[t, t]‖ by lag, over the pairs with g ≠ 0 that this lag has (t > τ)."""
        squares = self.squares()
        summed = squares.sum(1).flip(0).cumsum(0).flip(0)
        pairs = (squares > 0).sum(1).flip(0).cumsum(0).flip(0)
        return (0.5 * torch.log10(summed / pairs)).cpu()

    def ends(self) -> Tensor | None:
        """(B,) `lengths`, or steps up to each sequence's last loss, where they differ: the rest is padding to this loss."""
        return ends_of(self.gradient, self.lengths)

    def rows(self, steps: list[int]) -> Tensor:
        """λ[t, t] for these steps: (R, B, C)."""
        return self.gradient[steps]

    def part(self, sequences: slice, copy: bool = True) -> Trace:
        """Some of the sequences, as far as the derivative of the steps needs them. copy: lay them in one piece."""

        def own(value: Tensor) -> Tensor:
            return value[:, sequences].contiguous() if copy else value[:, sequences]

        return replace(
            self,
            x=own(self.x),
            carries=own(self.carries),
            gradient=self.gradient[:, sequences],
            noise=None if self.noise is None else own(self.noise),
            lengths=None if self.lengths is None else self.lengths[sequences],
            initial_gradient=None,
            source=None,
            external=None,
        )

    def check_finite(self) -> None:
        """Raise InputError that says where the first NaN or infinity stands: causes first, then what they spoil."""
        unit = "(step, sequence, unit)"
        arrays = [("the input", "(step, sequence, feature)", self.x)]
        arrays += [(self.names.get(name, name), "index", value) for name, value in self.weights.tensors().items()]
        arrays += [("the initial state", "(sequence, unit)", self.carries[0]), ("the states", unit, self.carries[1:])]
        arrays += [
            (f"the gradient at {'the output' if place == 0 else 'the state ' + state}", unit, part)
            for place, (state, part) in enumerate(zip(self.cell.states, self.cell.split(self.gradient), strict=True))
        ]
        given = self.weight_gradients.items()
        arrays += [(f"the gradient of {self.names.get(name, name)}", "index", value) for name, value in given]
        if self.initial_gradient is not None:
            arrays.append(("the gradient at the initial state", "(sequence, unit)", self.initial_gradient))
        for what, axes, value in arrays:
            bad = ~torch.isfinite(value)
            if bad.any():
                place = tuple(bad.nonzero()[0].tolist())
                raise InputError(
                    f"{value[place].item()} in {what} of layer '{self.name}', first at {axes} {place}",
                    "finite numbers",
                    "check the targets and the loss, or the recurrence: something overflowed on the way back"
                    if "gradient" in what
                    else "look at the data, the weights or the step before this one",
                )


def slices(count: int, size: int) -> list[slice]:
    """0 … count − 1, `size` at a time, at least one."""
    size = max(1, size)
    return [slice(first, min(first + size, count)) for first in range(0, count, size)]


def ends_of(gradient: Tensor, lengths: Tensor | None) -> Tensor | None:
    """See `Trace.ends`: of what enters (T, B, C)."""
    if lengths is not None:
        return lengths
    enters = (gradient != 0).any(-1)
    step = torch.arange(1, len(gradient) + 1, device=enters.device)[:, None]
    ends = (enters * step).amax(0)
    ends = torch.where(ends > 0, ends, len(gradient)).cpu()  # a sequence without a loss says nothing
    return None if (ends == ends[0]).all() else ends


def joined(traces: list[Trace]) -> Trace:
    """Several batches of one layer, with the same weights, as one: their losses are added up.

    Shorter ones are padded at their ends, where no gradient enters; their states stand still there.
    """
    first = traces[0]
    if len(traces) == 1:
        return first
    steps = max(trace.steps for trace in traces)

    def along(parts: list[Tensor | None], hold: bool = False) -> Tensor | None:
        there = [part for part in parts if part is not None]
        if len(there) < len(parts):
            return None
        longest = steps + hold
        return torch.cat([_longer(part, longest, hold) for part in there], dim=1)

    def beside(parts: list[Tensor | None]) -> Tensor | None:
        there = [part for part in parts if part is not None]
        return torch.cat(there) if len(there) == len(parts) else None

    lengths = torch.cat([torch.full((t.batch,), t.steps) if t.lengths is None else t.lengths.cpu() for t in traces])
    names = [name for name in first.weight_gradients if all(name in trace.weight_gradients for trace in traces)]
    x, carries = along([t.x for t in traces]), along([t.carries for t in traces], hold=True)
    gradient = along([t.gradient for t in traces])
    assert x is not None
    assert carries is not None
    assert gradient is not None
    return replace(
        first,
        x=x,
        carries=carries,
        gradient=gradient,
        weight_gradients={name: torch.stack([t.weight_gradients[name] for t in traces]).sum(0) for name in names},
        initial_gradient=beside([trace.initial_gradient for trace in traces]),
        noise=along([t.noise for t in traces]),
        source=along([t.source for t in traces]),
        external=None
        if all(t.external is None for t in traces)
        else along([torch.zeros_like(t.gradient) if t.external is None else t.external for t in traces]),
        lengths=None if (lengths == steps).all() else lengths,
    )


def _longer(part: Tensor, steps: int, hold: bool) -> Tensor:
    """(steps, …) from fewer: zeros after the end, or the last entry again."""
    lacking = steps - part.shape[0]
    if not lacking:
        return part
    return torch.cat(
        (part, part[-1:].expand(lacking, *part.shape[1:]) if hold else part.new_zeros(lacking, *part.shape[1:]))
    )
