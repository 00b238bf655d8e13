"""A whole stack, all layers and both directions, as torch's own module: `load` of a stack's name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.cells import GRU, LSTM, RNN, Cell
from throughtime.cells.lstm_projected import LSTMProjected
from throughtime.errors import InputError, UnsupportedError
from throughtime.importers.convention import PROJECTION
from throughtime.importers.importer import Found
from throughtime.recurrent import Recurrent

TORCH = {GRU(): nn.GRU, LSTM(): nn.LSTM}
"""Cells of which torch has stacks, besides its RNN; a GRU of another convention is none of them."""


MERGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": torch.add,
    "mul": torch.mul,
    "ave": lambda one, other: (one + other) / 2,
}


class Merged(nn.Module):
    """A layer of both directions whose outputs become one of H: x (T, B, D) to (output, states). mode: of `MERGES`."""

    def __init__(self, layer: nn.Module, mode: str) -> None:
        super().__init__()
        self.rnn, self.mode = layer, mode

    def forward(self, x: Tensor, state: Tensor | tuple[Tensor, ...] | None = None) -> tuple:
        """See the class."""
        output, last = self.rnn(x, state)
        return MERGES[self.mode](*output.chunk(2, dim=-1)), last


def merged(layer: nn.Module, parts: Sequence[Found], name: str) -> nn.Module:
    """The whole layer with its outputs merged as the file says. Raises UnsupportedError for outputs that stay two."""
    mode = parts[0].merge
    if mode == "concat":
        return layer
    if mode not in MERGES:
        raise UnsupportedError(
            f"the whole of {name}, with merge_mode {mode}",
            f"one output: concat, {', '.join(MERGES)}",
            "load its parts one by one",
        )
    return Merged(layer, mode)


def whole(parts: Sequence[tuple[Found, Recurrent | nn.LSTM]], name: str) -> nn.GRU | nn.LSTM | nn.RNN:
    """torch.nn.GRU, LSTM or RNN of these parts: x (T, B, D) to (output, states), each part's weights copied.

    Raises InputError where parts are missing or do not fit one another; UnsupportedError for a cell that torch does not stack.
    """
    layers = {(found.stacks[name], found.reverse): layer for found, layer in parts}
    first = parts[0][1]
    ways = [False, True] if any(reverse for _, reverse in layers) else [False]
    depth = 1 + max(level for level, _ in layers)
    wanted = {(level, way) for level in range(min(depth, len(parts) + 1)) for way in ways}
    if set(layers) != wanted or len(layers) != len(parts):
        have = ", ".join(found.name for found, _ in parts)
        raise InputError(
            f"{name} of the parts {have}", "every layer of the stack, in as many directions", "check the file"
        )
    cell = _cell(first)
    if any(_cell(layer) != cell for layer in layers.values()):
        raise InputError(f"{name}, of several cells", "one cell in all its parts", "load its parts one by one")
    make = nn.RNN if cell.name == "rnn" else nn.LSTM if isinstance(cell, LSTMProjected) else TORCH.get(cell)
    if make is None:
        told = ", ".join(f"{word}={value}" for word, value in cell.convention.items())
        raise UnsupportedError(
            f"the whole of {name}, {cell.name} with {told}",
            "a cell that torch stacks",
            "load its parts one by one",
        )
    biased = any(value is not None for layer in layers.values() for value in _biases(layer))
    projected = cell.projected if isinstance(cell, LSTMProjected) else 0
    options: dict[str, Any] = {"nonlinearity": cell.activation} if isinstance(cell, RNN) else {}
    options |= {"proj_size": projected} if projected else {}
    for (level, _), layer in layers.items():
        width = first.input_size if not level else (projected or first.hidden_size) * len(ways)
        if (layer.input_size, layer.hidden_size) != (width, first.hidden_size):
            raise InputError(
                f"{name}, whose layer {level} has {layer.input_size} inputs and {layer.hidden_size} units",
                f"{width} and {first.hidden_size}, as the layers before it say",
                "load its parts one by one",
            )
    made = make(
        first.input_size,
        first.hidden_size,
        num_layers=depth,
        bias=biased,
        bidirectional=len(ways) == 2,
        dtype=first.weight_hh_l0.dtype,
        **options,
    )
    with torch.no_grad():
        for (level, reverse), layer in layers.items():
            for role in ("weight_ih", "weight_hh", *["bias_ih", "bias_hh"] * biased, *[PROJECTION] * bool(projected)):
                value, target = (
                    getattr(layer, f"{role}_l0", None),
                    getattr(made, f"{role}_l{level}{'_reverse' * reverse}"),
                )
                target.zero_() if value is None else target.copy_(value)
    return made


def _cell(layer: Recurrent | nn.LSTM) -> Cell:
    """The part's cell."""
    return layer.cell if isinstance(layer, Recurrent) else LSTMProjected(projected=layer.proj_size)


def _biases(layer: Recurrent | nn.LSTM) -> list[Tensor | None]:
    return [getattr(layer, f"{name}_l0", None) for name in ("bias_ih", "bias_hh")]
