"""Arrays beside a layer's weights: the state at which it begins, and peepholes that an option names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from throughtime.errors import InputError
from throughtime.importers.convention import PEEPHOLE, Convention, scaled, tensor
from throughtime.importers.importer import Found
from throughtime.importers.naming import INITIAL, STATE
from throughtime.recurrent import Recurrent

ZERO = "zero"
"""The word for a layer that begins at zero, whatever the file holds."""
OPTIONS = (*INITIAL, "peephole")
"""Words of a `Convention` that name arrays."""


class WithInitialState(nn.Module):
    """A layer that begins at states of its own where none are given: x (T, B, D) to (output, states), as the layer's.

    initial_h (N, H), and initial_c for an LSTM: parameters, the same for every sequence; N layers times directions.
    """

    def __init__(self, layer: nn.Module, states: Sequence[Tensor]) -> None:
        super().__init__()
        self.rnn = layer
        self._states = list(INITIAL)[: len(states)]
        for name, value in zip(self._states, states, strict=True):
            setattr(self, name, nn.Parameter(value.detach().clone()))

    def forward(self, x: Tensor | PackedSequence, state: Tensor | tuple[Tensor, ...] | None = None) -> tuple:
        """See the class."""
        if state is None:
            state = self._expanded(x)
        return self.rnn(x, state)

    def _expanded(self, x: Tensor | PackedSequence) -> Tensor | tuple[Tensor, ...]:
        """The states (N, B, width) for these sequences, (N, width) for a single one without a batch."""
        own = [getattr(self, name) for name in self._states]
        if isinstance(x, PackedSequence) or x.ndim == 3:
            batch = int(x.batch_sizes[0]) if isinstance(x, PackedSequence) else x.shape[1]
            own = [each.unsqueeze(1).expand(-1, batch, -1).contiguous() for each in own]
        return own[0] if len(own) == 1 else tuple(own)


def names(said: Mapping[str, Any]) -> frozenset[str]:
    """The arrays that options name for what lies beside the weights."""
    words = [word for option in OPTIONS for word in str(said.get(option) or "").split(",")]
    return frozenset(word for word in words if word and word != ZERO)


def with_peephole(found: Found, convention: Convention) -> Mapping[str, np.ndarray]:
    """The layer's arrays, with the peepholes that the option names. Raises InputError for names that the file lacks."""
    if not convention.peephole:
        return found.arrays
    parts = [scaled(_named(found, "peephole", name), name, convention) for name in convention.peephole.split(",")]
    fit = all(part.ndim == 1 for part in parts) and len({(part.shape, part.dtype) for part in parts}) == 1
    if convention.cell != "lstm" or len(parts) not in (1, 3) or not (fit or len(parts) == 1):
        raise InputError(
            f"peephole={convention.peephole}, arrays of {', '.join(str(part.shape) for part in parts)}, for {convention.cell}",
            "an LSTM's one array (3·H,) or (3, H), or three of (H,), in the order i, f, o",
            "name them so: peephole=a,b,c (--peephole)",
        )
    others = {role: value for role, value in found.arrays.items() if not role.startswith(PEEPHOLE)}
    return {**others, PEEPHOLE: parts[0] if len(parts) == 1 else np.stack(parts)}


def initial_states(found: Found, convention: Convention, layer: Recurrent | nn.LSTM) -> list[Tensor] | None:
    """The states (1, width) at which the layer begins, None where that is zero: those of the graph, those that options
    name, or those whose names and shapes tell.

    Raises InputError for what is named and is not there or does not fit, and where it must be named.
    """
    hidden, dtype = layer.hidden_size, next(layer.parameters()).dtype
    widths = {"initial_h": getattr(layer, "proj_size", 0) or hidden}
    widths |= {"initial_c": hidden} if convention.cell == "lstm" else {}
    if convention.initial_c and "initial_c" not in widths:
        raise InputError(f"initial_c for cell={convention.cell}", "it for an LSTM only", "leave initial_c out")
    read = {role: _state(found, convention, role, width) for role, width in widths.items()}
    told = {role for role in widths if getattr(convention, role) or role in found.arrays}
    if all(value is None for value in read.values()):
        return None
    lacking = [role for role, value in read.items() if value is None and role not in told]
    if lacking and not any(role in found.arrays for role in widths):
        have = next(role for role in widths if role not in lacking)
        raise _asked(found, lacking[0], f"an array for {have} and none for {lacking[0]}")
    states = []
    for role, width in widths.items():
        value = np.zeros(width, np.float32) if read[role] is None else read[role]
        assert value is not None
        if value.dtype.kind != "f":
            raise InputError(f"{role} of {value.dtype}", "floating point numbers", "check the arrays")
        states.append(tensor(value, role).to(dtype).reshape(1, width))
    return states


def begun(layer: nn.Module, parts: Sequence[list[Tensor] | None]) -> nn.Module:
    """The layer, which begins at the states of its parts in torch's order; as it is where all are zero."""
    given = next((states for states in parts if states is not None), None)
    if given is None:
        return layer
    rows = [states or [torch.zeros_like(each) for each in given] for states in parts]
    return WithInitialState(layer, [torch.cat(each) for each in zip(*rows, strict=True)])


def _state(found: Found, convention: Convention, role: str, width: int) -> np.ndarray | None:
    """The state (width,) of that role, None for zero."""
    said = getattr(convention, role)
    if said == ZERO:
        return None
    if role in found.arrays and not said:
        return found.arrays[role]
    if said:
        value = scaled(_named(found, role, said), said, convention)
        fit = _row(value, *found.row, width)
        fit = value.reshape(-1) if fit is None and value.size == width == value.shape[-1] else fit
        if fit is None:
            raise InputError(
                f"{role}={said} of shape {value.shape} for {found.name!r}",
                f"({width},), or {found.row[1]} of them with 1 in the place of the sequences",
                "name the array of the state at which the layer begins",
            )
        return fit
    may = [name for name, value in found.beside.items() if _may_be(name, value, role, width)]
    if not may:
        return None
    fit = _row(found.beside[may[0]], *found.row, width)
    if len(may) > 1 or may[0] in found.unsure or fit is None:
        raise _asked(found, role, " and ".join(f"{name} of shape {found.beside[name].shape}" for name in may))
    return scaled(fit, may[0], convention)


def _may_be(name: str, value: np.ndarray, role: str, width: int) -> bool:
    """Whether an array's name is one of the role's, and its last axis as wide as the state."""
    read = STATE.fullmatch(name)
    return read is not None and read["word"] in INITIAL[role] and value.ndim > 0 and value.shape[-1] == width


def _row(value: np.ndarray, row: int, rows: int, width: int) -> np.ndarray | None:
    """The part's state (width,) out of (rows, width) or (rows, 1, width), or of one row alone; None where it is neither."""
    shapes = [(rows, width), (rows, 1, width)] + ([(width,)] if rows == 1 else [])
    return value.reshape(rows, width)[row] if value.shape in shapes else None


def _named(found: Found, option: str, name: str) -> np.ndarray:
    if name not in found.beside:
        raise InputError(f"{option}={name}", "the name of an array in the file", "name one that the file holds")
    return found.beside[name]


def _asked(found: Found, role: str, got: str) -> InputError:
    return InputError(
        f"{got} beside layer {found.name!r}, which may be the state at which it begins",
        f"your word for it: {role}=NAME (--{role.replace('_', '-')} NAME), or {role}={ZERO}",
        "name the array, or say that the layer begins at zero",
    )
