"""A recurrent layer from a file, as a module that is called as torch's own: `throughtime.load`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from throughtime.errors import InputError, UnsupportedError
from throughtime.importers import importer
from throughtime.importers.beside import begun, initial_states, names, with_peephole
from throughtime.importers.convention import CHOICES, Convention, recurrent
from throughtime.importers.importer import Found
from throughtime.importers.naming import as_array, torch_layers, wanted
from throughtime.importers.npz import bare_layers
from throughtime.importers.stack import merged, whole
from throughtime.recording.foreign import FROM_KERAS, is_keras
from throughtime.recording.layout import flipped
from throughtime.recurrent import Recurrent


class Reversed(nn.Module):
    """A layer that reads the sequence from its end: x (T, B, D) or packed to (output, state), as the reverse half of a torch
    layer.

    Lags of `rnn` are steps as it reads them: they lead to the future.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.rnn = layer

    def forward(self, x: Tensor | PackedSequence, state: Tensor | tuple[Tensor, ...] | None = None) -> tuple:
        """See the class."""
        if isinstance(x, PackedSequence):
            padded, lengths = pad_packed_sequence(x)
            output, last = self.rnn(_turned(padded, lengths), state)
            return _turned(pad_packed_sequence(output)[0], lengths), last
        output, last = self.rnn(x.flip(0), state)
        return output.flip(0), last


def _turned(padded: Tensor, lengths: Tensor) -> PackedSequence:
    """Sequences (T, B, …) with time turned round within each, packed."""
    return pack_padded_sequence(flipped(padded, lengths.to(padded.device)), lengths, enforce_sorted=False)


def load(
    file: str | Path | Mapping[str, Any], layer: str | None = None, trust: bool = False, **convention: Any
) -> nn.Module:
    """The recurrent layer of a file of weights: x (T, B, D) to (output, state), ready for `throughtime.record`.

    file: a PyTorch state dict, a torch.export archive (.pt2), safetensors, ONNX, Keras or .npz, told by its content; or arrays
    in memory by name, read as a state dict where all are tensors, else as .npz. layer: which one, where it holds several; a
    stack's own name, which may be left out where the file holds nothing else, gives all its layers and directions as one
    torch.nn.GRU, LSTM or RNN (files named as torch names them, ONNX, and Keras's Bidirectional, whose outputs are merged as
    it says). trust: your word that the file may run code (pickles of whole modules, TorchScript). convention: cell, gates,
    layout, reset, z, scale, zero_point, forget_bias, initial_h, initial_c, peephole, for what the file leaves open (see
    `throughtime.importers.convention.Convention`). A layer that begins at a state of the file is a
    `throughtime.importers.beside.WithInitialState`.

    Raises InputError: no such file or layer, several layers and none named, a convention that is needed and not given, or given
    and another than the file states, a file that is damaged or not trusted; UnsupportedError: a layer that cannot be explained.
    """
    unknown = sorted(set(convention) - set(Convention.__dataclass_fields__))
    if unknown:
        names = ", ".join(Convention.__dataclass_fields__)
        raise InputError(f"the option {unknown[0]!r}", f"options of {names}", "say the file's convention by these")
    held, told = layers(file, trust, convention), _told(file)
    stacks = stacks_of(held)
    name = next((name for name, parts in stacks.items() if len(parts) == len(held)), None) if layer is None else layer
    if name in stacks:
        return whole_of(stacks[name], name, told, convention)
    found = chosen(held, told, layer)
    made, states = made_of(found, told, convention)
    made = begun(made, [states])
    return Reversed(made) if found.reverse else made


def stacks_of(held: list[Found]) -> dict[str, list[Found]]:
    """The parts of each whole, by its name; a layer's own name stands for the layer."""
    made: dict[str, list[Found]] = {}
    for each in held:
        for name in each.stacks:
            made.setdefault(name, []).append(each)
    own = {each.name for each in held}
    return {name: parts for name, parts in made.items() if name not in own}


def whole_of(parts: list[Found], name: str, file: str, convention: dict[str, Any]) -> nn.Module:
    """All layers and directions of a stack as one module. Raises InputError and UnsupportedError as `load` does."""
    ordered = sorted(parts, key=lambda each: (each.stacks[name], each.reverse))
    made = [made_of(each, file, convention) for each in ordered]
    stack = whole([(each, layer) for each, (layer, _) in zip(ordered, made, strict=True)], name)
    return merged(begun(stack, [states for _, states in made]), parts, name)


def _instead(thing: Any) -> str:
    """What to do with a thing that is no path."""
    if is_keras(thing):
        return FROM_KERAS
    if isinstance(thing, nn.Module):
        return "pass it to throughtime.record or throughtime.diagnose as it is"
    return "pass the file's path"


def made_of(found: Found, file: str, convention: dict[str, Any]) -> tuple[Recurrent | nn.LSTM, list[Tensor] | None]:
    """One layer in the direction in which it reads, and its initial states (1, width), None where they are zero.

    Raises InputError and UnsupportedError as `load` does.
    """
    if found.refused:
        raise UnsupportedError(
            f"layer {found.name!r} of {file}, {found.refused}",
            "one layer of a GRU, an LSTM or an RNN",
            "choose another layer (`throughtime inspect` lists them), or record the model itself",
        )
    how = read_as(found, file, convention)
    layer = recurrent(with_peephole(found, how), how, found.names)
    return layer, initial_states(found, how, layer)


def _told(file: str | Path | Mapping[str, Any]) -> str:
    """The file in an error's words."""
    return "the arrays" if isinstance(file, Mapping) else str(file)


def layers(
    file: str | Path | Mapping[str, Any], trust: bool = False, convention: Mapping[str, Any] | None = None
) -> list[Found]:
    """The recurrent layers that a file holds, in its order. convention: as of `load`, which may name arrays.

    Raises InputError as `load` does, and where it holds none.
    """
    also = names(convention or {})
    if isinstance(file, Mapping):
        found = _in_memory(file, also)
    elif isinstance(file, str | Path):
        found = importer.of(file).layers(Path(file), trust, also)
    else:
        raise InputError(f"a {type(file).__name__}", "the path of a file of weights", _instead(file))
    if not found:
        raise InputError(
            f"{_told(file)}, in which no array is named as a recurrent layer's",
            "weight_ih and weight_hh (or kernel and recurrent_kernel) under one prefix",
            "check the file; rename the arrays when saving them",
        )
    for option in ("scale", "zero_point"):
        _check_names(found, option, (convention or {}).get(option))
    return found


def _check_names(found: list[Found], option: str, said: Any) -> None:
    """Raise InputError where a number is said for an array that no layer has."""
    held = {each.names.get(role, role) for each in found for role in each.arrays} | {""}
    held |= {name for each in found for name in each.beside}
    unknown = [name for name in said if name not in held] if isinstance(said, Mapping) else []
    if unknown:
        raise InputError(
            f"{option} of {unknown[0]!r}",
            f"one of the arrays {', '.join(sorted(held - {''})[:20])}",
            "name one of them",
        )


def _in_memory(arrays: Mapping[str, Any], also: frozenset[str]) -> list[Found]:
    """The recurrent layers among arrays by name. Raises InputError for what is no array."""
    if all(isinstance(value, Tensor) for value in arrays.values()):
        return torch_layers(arrays, also)
    made = {}
    for name, value in arrays.items():
        if not wanted(str(name), also):
            continue
        made[str(name)] = as_array(name, value) if isinstance(value, Tensor) else np.array(value)
        if made[str(name)].dtype.kind not in "fiu":
            raise InputError(f"{name} of type {type(value).__name__}", "arrays of numbers", "pass arrays by name")
    return bare_layers(made, also)


def chosen(found: list[Found], file: str, name: str | None) -> Found:
    """The one of that name, or the only one. Raises InputError."""
    held = [each.name for each in found]
    stacks = list(stacks_of(found))
    if name is None and len(found) == 1:
        return found[0]
    if name is None:
        raise InputError(
            f"{len(found)} recurrent layers in {file}",
            f"one of {', '.join(held + stacks)}",
            "name one: layer (--layer)",
        )
    if name not in held:
        raise InputError(f"layer {name!r}", f"one of {', '.join(held + stacks)}", "name one that the file holds")
    return found[held.index(name)]


def read_as(found: Found, file: str, said: dict[str, Any]) -> Convention:
    """The layer's convention: what the file states, and what the user said of the rest. Raises InputError."""
    for name, word in said.items():
        stated = found.stated.get(name)
        if stated is not None and word != stated:
            raise InputError(
                f"{name}={word} for {file}", f"{name}={stated}, which the file states", f"leave {name} out"
            )
    words = {name: word for name, word in said.items() if word not in (None, "")} | dict(found.stated)
    if "cell" not in words:
        choices = ", ".join(found.choices or CHOICES["cell"])
        raise InputError(
            f"layer {found.name!r} of {file} without --cell (cell=…), which the file does not state",
            f"one of {choices}"
            + ("" if found.stated else "; and for other layouts than torch's gates, layout, reset, z"),
            "say how its arrays are to be read",
        )
    if found.choices and words["cell"] not in found.choices:
        raise InputError(f"cell={words['cell']} for {file}", f"one of {', '.join(found.choices)}", "say which it is")
    return Convention(**words)
