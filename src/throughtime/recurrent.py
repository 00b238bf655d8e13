"""A recurrent layer of any registered cell as an nn.Module, called as torch's own: also for cells torch does not have."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import handle_torch_function, has_torch_function

from throughtime.cells.cell import Cell, Weights
from throughtime.errors import InputError


class Recurrent(nn.Module):
    """One layer, one direction: x (T, B, D), (T, D) or packed, state (B, H) or None, to (output, state) as torch returns them.

    Parameters have the cell's names and the end `_l0`, as torch's: weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0. A cell
    with two states takes and returns a pair. Raises InputError where shapes do not fit.
    """

    weight_ih_l0: Tensor
    weight_hh_l0: Tensor
    bias_ih_l0: Tensor | None
    bias_hh_l0: Tensor | None

    def __init__(self, cell: Cell, weights: Weights) -> None:
        super().__init__()
        self.cell = cell
        given = weights.tensors()
        self.input_size, self.hidden_size, self._names = _checked(cell, weights)
        for name in self._names:
            setattr(self, f"{name}_l0", nn.Parameter(given[name].detach().clone()) if name in given else None)
        carry = torch.empty(cell.carry_size(weights), device="meta")
        self._widths = [part.shape[-1] for part in cell.split(carry)]

    def forward(self, x: Tensor | PackedSequence, state: Tensor | tuple[Tensor, ...] | None = None):
        """See the class."""
        weights = Weights(**{name: getattr(self, f"{name}_l0") for name in self._names})
        if isinstance(x, PackedSequence):
            data, sizes, order, back = x
            self._check(data, data.ndim == 2)
            initial = self._initial(state, int(sizes[0]), data)
            output, *last = scan(
                self, data, initial if order is None else [each[order] for each in initial], weights, sizes
            )
            last = [(each if back is None else each[back]).unsqueeze(0) for each in last]
            return PackedSequence(output, sizes, order, back), (tuple(last) if len(last) > 1 else last[0])
        batched = x.ndim == 3
        self._check(x, x.ndim in (2, 3))
        x = x if batched else x.unsqueeze(1)
        output, *last = scan(self, x, self._initial(state, x.shape[1], x), weights)
        last = [part.unsqueeze(0) if batched else part for part in last]
        return (output if batched else output.squeeze(1)), (tuple(last) if len(last) > 1 else last[0])

    def _check(self, x: Tensor, fits: bool) -> None:
        if not fits or x.shape[-1] != self.input_size or x.shape[0] == 0:
            raise InputError(f"input {tuple(x.shape)}", f"(steps, sequences, {self.input_size})", "put time first")

    def _initial(self, state: Tensor | tuple[Tensor, ...] | None, batch: int, like: Tensor) -> list[Tensor]:
        """The states (B, width) at which the layer begins. Raises InputError for those that do not fit."""
        shapes = [(batch, width) for width in self._widths]
        if state is None:
            return [like.new_zeros(shape) for shape in shapes]
        parts = state if isinstance(state, tuple | list) else (state,)
        if len(parts) != len(shapes) or any(
            part.numel() != shape[0] * shape[1] for part, shape in zip(parts, shapes, strict=True)
        ):
            raise InputError(
                f"states {[tuple(part.shape) for part in parts]}",
                f"{len(shapes)} of shape {' and '.join(str(shape) for shape in dict.fromkeys(shapes))}",
                "expand one state over the batch: state.expand(sequences, units)",
            )
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def extra_repr(self) -> str:
        """Shapes and convention."""
        told = ", ".join(f"{name}={value}" for name, value in self.cell.convention.items())
        return f"{self.cell.name}, {self.input_size}, {self.hidden_size}" + (f", {told}" if told else "")


def _checked(cell: Cell, weights: Weights) -> tuple[int, int, list[str]]:
    """Inputs, hidden units and the names of a cell's arrays. Raises InputError where they do not fit one another."""
    given = {name: tuple(value.shape) for name, value in weights.tensors().items()}
    try:
        inputs, hidden = cell.dimensions(weights)
        wanted = cell.shapes(inputs, hidden)
    except (AttributeError, IndexError):  # arrays that are absent or of too few axes
        inputs, hidden, wanted = 0, 0, {}
    lacking = [name for name in wanted if name not in given and not name.startswith("bias")]
    if not wanted or lacking or any(shape != wanted.get(name) for name, shape in given.items()):
        stacked = f"{len(cell.gates)} stacked gates of H rows" if "weight_hh" in wanted else "the arrays"
        named = [f"{name} {shape}" for name, shape in wanted.items()] or cell.shapes(1, cell.multiple)
        raise InputError(
            ", ".join(f"{name} {shape}" for name, shape in given.items()) or "no arrays",
            f"{stacked} for a {cell.name}: {', '.join(named)}",
            "check the gate order, the transposition and the cell",
        )
    return inputs, hidden, list(wanted)


def scan(
    layer: Recurrent, x: Tensor, initial: list[Tensor], weights: Weights, batch_sizes: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Run a layer's forward equations over x (T, B, D) from the states `initial`, each (B, width), under autograd.

    batch_sizes: of packed x (all steps, D), sequences in order of their lengths, as in torch. Returns the output (T, B, H),
    packed for packed x, then the last of each state (B, width).
    """
    if has_torch_function((x,)):  # lets a recorder see this call as it sees torch's fused ones
        return handle_torch_function(scan, (x,), layer, x, initial, weights, batch_sizes)
    cell, carry, outputs, ended = layer.cell, torch.cat(initial, dim=-1), [], []
    for step in x if batch_sizes is None else x.split(batch_sizes.tolist()):
        if len(step) < len(carry):
            ended.append(carry[len(step) :])
            carry = carry[: len(step)]
        carry = cell.step(weights, step, dict.fromkeys(cell.ports, carry))
        outputs.append(cell.output(carry))
    carry = torch.cat([carry, *reversed(ended)]) if ended else carry
    # Copies, so that a gradient of a last state is told from that of the last output, and both can be written to.
    output = torch.stack(outputs) if batch_sizes is None else torch.cat(outputs)
    return output, *(state.clone() for state in cell.split(carry))
