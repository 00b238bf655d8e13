"""A recurrent layer of any registered cell as an nn.Module, called as torch's own: also for cells torch does not have."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

from throughtime.cells.cell import Cell, Weights
from throughtime.errors import InputError


class Recurrent(nn.Module):
    """One layer, one direction: x (T, B, D) or (T, D), state (B, H) or None, to (output, state) as torch returns them.

    Parameters are named as torch's: weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0; a cell with two states takes
    and returns a pair. Raises InputError where shapes do not fit.
    """

    weight_ih_l0: Tensor
    weight_hh_l0: Tensor
    bias_ih_l0: Tensor | None
    bias_hh_l0: Tensor | None

    def __init__(self, cell: Cell, weights: Weights) -> None:
        super().__init__()
        self.cell = cell
        rows, self.hidden_size = weights.weight_hh.shape
        self.input_size = weights.weight_ih.shape[1]
        if rows != len(cell.gates) * self.hidden_size or weights.weight_ih.shape[0] != rows:
            raise InputError(
                f"weight_ih {tuple(weights.weight_ih.shape)} and weight_hh {tuple(weights.weight_hh.shape)}",
                f"{len(cell.gates)} stacked gates of H rows for a {cell.name}: (G·H, D) and (G·H, H)",
                "check the gate order, the transposition and the cell",
            )
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            value = getattr(weights, name)
            setattr(self, f"{name}_l0", None if value is None else nn.Parameter(value.detach().clone()))

    def forward(self, x: Tensor, state: Tensor | tuple[Tensor, ...] | None = None):
        """See the class."""
        batched = x.ndim == 3
        if x.ndim not in (2, 3) or x.shape[-1] != self.input_size or x.shape[0] == 0:
            raise InputError(f"input {tuple(x.shape)}", f"(steps, sequences, {self.input_size})", "put time first")
        x = x if batched else x.unsqueeze(1)
        count, shape = len(self.cell.states), (x.shape[1], self.hidden_size)
        if state is None:
            initial = [x.new_zeros(shape) for _ in range(count)]
        else:
            parts = state if isinstance(state, tuple | list) else (state,)
            if len(parts) != count or any(part.numel() != shape[0] * shape[1] for part in parts):
                raise InputError(
                    f"states {[tuple(part.shape) for part in parts]}",
                    f"{count} of shape {shape}",
                    "expand one state over the batch: state.expand(sequences, units)",
                )
            initial = [part.reshape(shape) for part in parts]
        weights = Weights(self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0)
        output, carry = scan(self, x, initial, weights)
        last = [state.clone() for state in self.cell.split(carry)]  # copies can be written to
        last = [part.unsqueeze(0) if batched else part for part in last]
        return (output if batched else output.squeeze(1)), (tuple(last) if count > 1 else last[0])

    def extra_repr(self) -> str:
        """Shapes and convention."""
        told = ", ".join(f"{name}={value}" for name, value in self.cell.convention.items())
        return f"{self.cell.name}, {self.input_size}, {self.hidden_size}" + (f", {told}" if told else "")


def scan(layer: Recurrent, x: Tensor, initial: list[Tensor], weights: Weights) -> tuple[Tensor, ...]:
    """Run a layer's forward equations over x (T, B, D) from the states `initial`, each (B, H), under autograd.

    Returns the output (T, B, H), then the last carry, laid out as the first.
    """
    if has_torch_function((x,)):  # lets a recorder see this call as it sees torch's fused ones
        return handle_torch_function(scan, (x,), layer, x, initial, weights)
    cell, carry, outputs = layer.cell, torch.cat(initial, dim=-1), []
    for step in x:
        carry = cell.step(weights, step, dict.fromkeys(cell.ports, carry))
        outputs.append(cell.output(carry))
    # A copy, so that a gradient of the last carry is told from that of the last output.
    return torch.stack(outputs), carry.clone()
