"""What is analysed: one call of a recurrent layer and the gradient that reached it, in one layout and one dtype."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from throughtime.cells.cell import Cell, Weights
from throughtime.errors import InputError


@dataclass(frozen=True)
class Trace:
    """One call of one layer, frozen. T steps, B sequences, D inputs, H units, S carries.

    x: (T, B, D). carries: (T + 1, B, S·H), the initial one first. gradient: (T, B, H), what enters at the output of each
    step, that of h_n included. cell_gradient: (B, (S − 1)·H), what enters at the other carries of the last step (c_n), or
    None. weight_gradients: what autograd gave this call for each of its weights; initial_gradient: (B, S·H) likewise, or
    None. dtype: that in which the layer ran, which may be lower than that of the analysis. names: weight → state_dict name.
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
        enters = self.gradient.ne(0).flatten(1).any(1)
        if self.cell_gradient is not None and self.cell_gradient.ne(0).any():
            enters[-1] = True
        return enters.nonzero().flatten().tolist()

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
        """Raise InputError that says where the first NaN or infinity stands."""
        arrays = {"the input": self.x, "the states": self.carries, "the gradient at the output": self.gradient}
        arrays |= {f"the weight {self.names.get(name, name)}": value for name, value in self.weights.tensors().items()}
        if self.cell_gradient is not None:
            arrays["the gradient at c_n"] = self.cell_gradient
        for what, value in arrays.items():
            bad = ~torch.isfinite(value)
            if bad.any():
                place = tuple(bad.nonzero()[0].tolist())
                axes = {"the input": "(step, sequence, feature)", "the states": "(step, sequence, unit)"}.get(what, "index")
                raise InputError(
                    f"{value[place].item()} in {what} of layer '{self.name}', first at {axes} {place}",
                    "finite numbers",
                    "look at the data or weights there; a loss that overflowed shows first in the gradient",
                )
