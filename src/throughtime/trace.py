"""What is analysed: one call of a recurrent layer and the gradient that reached it, in one layout and one dtype."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from throughtime.cells.cell import Cell, Weights
from throughtime.errors import InputError


@dataclass(frozen=True)
class Trace:
    """One call of one layer, frozen. T steps, B sequences, D inputs, H units, S carries.

    x: (T, B, D). carries: (T + 1, B, S·H), the initial one first. gradient: (T, B, H), what enters at the output of
    each step, that of h_n included. cell_gradient: (B, (S − 1)·H), what enters at the other carries of the last step
    (c_n), or None. weight_gradients: what autograd gave this call for each of its weights; initial_gradient: (B, S·H)
    likewise, or None. dtype: the lowest in which the layer ran; the analysis may stand in a higher one. names: weight →
    state_dict name. bare: whether the model is this layer itself.
    """

    name: str
    cell: Cell
    weights: Weights
    x: Tensor
    carries: Tensor
    gradient: Tensor
    cell_gradient: Tensor | None
    weight_gradients: Mapping[str, Tensor]
    initial_gradient: Tensor | None
    dtype: torch.dtype
    names: Mapping[str, str] = field(default_factory=dict)
    bare: bool = False

    @property
    def steps(self) -> int:
        return self.x.shape[0]

    @property
    def batch(self) -> int:
        return self.x.shape[1]

    @property
    def hidden_size(self) -> int:
        return self.gradient.shape[-1]

    def origins(self) -> list[int]:
        """The steps at which any gradient enters, ascending."""
        enters = self.gradient.abs().amax((1, 2)) != 0
        if self.cell_gradient is not None and self.cell_gradient.ne(0).any():
            enters[-1] = True
        return enters.nonzero().flatten().tolist()

    def entering(self) -> Tensor:
        """(T,) log10 of the root mean square of ‖λ[t, t]‖ by lag, over the pairs with g ≠ 0 that this lag has (t > τ)."""
        squares = self.gradient.double().square().sum(-1)
        if self.cell_gradient is not None:
            squares[-1] += self.cell_gradient.double().square().sum(-1)
        summed = squares.sum(1).flip(0).cumsum(0).flip(0)
        pairs = (squares > 0).sum(1).flip(0).cumsum(0).flip(0)
        return (0.5 * torch.log10(summed / pairs)).cpu()

    def ends(self) -> Tensor | None:
        """(B,) steps up to each sequence's last loss, where they differ: what follows is padding to this loss."""
        enters = self.gradient.abs().amax(-1) != 0
        if self.cell_gradient is not None:
            enters[-1] |= self.cell_gradient.abs().amax(-1) != 0
        step = torch.arange(1, self.steps + 1, device=enters.device)[:, None]
        ends = (enters * step).amax(0)
        ends = torch.where(ends > 0, ends, self.steps).cpu()  # a sequence without a loss says nothing
        return None if (ends == ends[0]).all() else ends

    def rows(self, steps: list[int]) -> Tensor:
        """λ[t, t] for these steps: (R, B, S·H)."""
        rows = self.gradient[steps]
        if len(self.cell.states) == 1:
            return rows
        others = rows.new_zeros(*rows.shape[:2], (len(self.cell.states) - 1) * self.hidden_size)
        if self.cell_gradient is not None and steps[-1] == self.steps - 1:
            others[-1] = self.cell_gradient
        return torch.cat((rows, others), dim=-1)

    def check_finite(self) -> None:
        """Raise InputError that says where the first NaN or infinity stands: causes first, then what they spoil."""
        unit = "(step, sequence, unit)"
        arrays = [("the input", "(step, sequence, feature)", self.x)]
        arrays += [(self.names.get(name, name), "index", value) for name, value in self.weights.tensors().items()]
        arrays += [("the initial state", "(sequence, unit)", self.carries[0]), ("the states", unit, self.carries[1:])]
        arrays += [("the gradient at the output", unit, self.gradient)]
        if self.cell_gradient is not None:
            arrays.append(("the gradient at c_n", "(sequence, unit)", self.cell_gradient))
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


def joined(traces: list[Trace]) -> Trace:
    """Several batches of one layer, with the same weights and steps, as one: their losses are added up.

    Raises InputError where the number of steps differs.
    """
    first = traces[0]
    if len(traces) == 1:
        return first
    lengths = sorted({trace.steps for trace in traces})
    if len(lengths) > 1:
        raise InputError(
            f"batches of {' and '.join(map(str, lengths))} steps at layer '{first.name}'",
            "batches of equally many steps",
            "give batches of one length, or one batch",
        )

    def beside(parts: list[Tensor | None]) -> Tensor | None:
        there = [part for part in parts if part is not None]
        return torch.cat(there) if len(there) == len(parts) else None

    def cell_gradient(trace: Trace) -> Tensor | None:
        if trace.cell_gradient is not None or len(trace.cell.states) == 1:
            return trace.cell_gradient
        return torch.zeros_like(trace.carries[-1, :, trace.hidden_size :])

    names = [name for name in first.weight_gradients if all(name in trace.weight_gradients for trace in traces)]
    return replace(
        first,
        x=torch.cat([trace.x for trace in traces], dim=1),
        carries=torch.cat([trace.carries for trace in traces], dim=1),
        gradient=torch.cat([trace.gradient for trace in traces], dim=1),
        cell_gradient=beside([cell_gradient(trace) for trace in traces]),
        weight_gradients={name: torch.stack([t.weight_gradients[name] for t in traces]).sum(0) for name in names},
        initial_gradient=beside([trace.initial_gradient for trace in traces]),
    )
