"""Names of arrays in files, torch's above all: which layer of which stack and direction an array belongs to."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from throughtime.errors import InputError
from throughtime.importers import importer
from throughtime.importers.convention import PEEPHOLE, PEEPHOLES, PROJECTION, ROLES
from throughtime.importers.importer import Found

INITIAL = {
    "initial_h": ("h0", "h_0", "hx", "init_h", "h_init", "initial_h", "init_h0", "initial_hidden", "initial_hidden_state",
                  "init_hidden", "hidden_init", "initial_state", "init_state", "initial_state_h"),
    "initial_c": ("c0", "c_0", "cx", "init_c", "c_init", "initial_c", "init_c0", "initial_cell", "initial_cell_state",
                  "init_cell", "cell_init", "initial_state_c"),
}  # fmt: skip
"""Names that a learned initial state has in files."""
KINDS = ROLES | PEEPHOLES | {PROJECTION: (PROJECTION,), PEEPHOLE: (PEEPHOLE,)}
WORDS = sorted([word for words in KINDS.values() for word in words], key=len, reverse=True)
NAME = re.compile(rf"(?P<prefix>.*?)[._/]?(?P<role>{'|'.join(WORDS)})(?:_l(?P<level>\d{{1,6}}))?(?P<reverse>_reverse)?")
"""A recurrent layer's array: any prefix, what it is, the layer of a stack, the direction."""
STATE = re.compile(
    rf"(?:(?P<prefix>.*?)[._/])?(?P<word>{'|'.join(word for words in INITIAL.values() for word in words)})"
)
"""What may be an initial state: any prefix and one of its names."""


def wanted(name: str, also: frozenset[str] = frozenset()) -> bool:
    """Whether an array of that name may belong to a recurrent layer. also: names that an option says."""
    return name in also or any(pattern.fullmatch(name) is not None for pattern in (NAME, STATE))


def by_layer(arrays: Mapping[str, np.ndarray], also: frozenset[str] = frozenset()) -> list[Found]:
    """Arrays grouped by layer, each `Found` with nothing stated; also: names of arrays that an option says.

    `a.rnn.weight_ih_l1_reverse` is weight_ih of the layer "a.rnn_l1_reverse", of the stack "a.rnn"; a layer that stands alone
    is "a.rnn" itself, and one without a prefix "rnn". An initial state lies beside it, `a.rnn.h0`, or one level up, `a.h0`.
    Arrays that are no recurrent layer's are passed over, as are groups that lack a weight.
    """
    grouped: dict[tuple[str, int, bool], dict[str, str]] = {}
    for name in arrays:
        read = NAME.fullmatch(name)
        if read is not None:
            role = next(role for role, words in KINDS.items() if read["role"] in words)
            place = (read["prefix"].rstrip("._/"), int(read["level"] or 0), bool(read["reverse"]))
            grouped.setdefault(place, {})[role] = name
    whole = {place: roles for place, roles in grouped.items() if {"weight_ih", "weight_hh"} <= set(roles)}
    parts = Counter(prefix for prefix, _, _ in whole)
    rows = {place: row for row, place in enumerate(sorted(whole))}
    first = {place[0]: rows[place] for place in sorted(whole, reverse=True)}
    states = _states(arrays, list(parts))
    made = []
    for place, names in whole.items():
        prefix, level, reverse = place
        name, way = prefix or "rnn", "_reverse" if reverse else ""
        stacked = parts[prefix] > 1
        sure, unsure = states[prefix]
        made.append(
            Found(
                f"{name}_l{level}{way}" if stacked else name + way,
                {role: arrays[each] for role, each in names.items()},
                reverse=reverse,
                stacks={name: level} if stacked else {},
                row=(rows[place] - first[prefix], parts[prefix]),
                names=names,
                beside={each: arrays[each] for each in (*sure, *unsure, *sorted(also)) if each in arrays},
                unsure=frozenset(unsure),
            )
        )
    return made


def _states(arrays: Mapping[str, np.ndarray], prefixes: list[str]) -> dict[str, tuple[list[str], list[str]]]:
    """For each prefix of layers: the names of what may be its initial state, and of what may be another's too."""
    made: dict[str, tuple[list[str], list[str]]] = {prefix: ([], []) for prefix in prefixes}
    beneath: dict[str, list[str]] = {}
    for prefix in prefixes:
        beneath.setdefault(re.sub(r"[./]?[^./]*$", "", prefix), []).append(prefix)
    for name in arrays:
        read = STATE.fullmatch(name)
        if read is None:
            continue
        where = read["prefix"] or ""
        owners = [where] if where in made else beneath.get(where, [])
        for owner in owners:
            made[owner][len(owners) > 1].append(name)
    return made


def torch_layers(tensors: Mapping[str, Tensor], also: frozenset[str] = frozenset()) -> list[Found]:
    """The recurrent layers among tensors named as torch names them, which have torch's convention.

    How many square gates are stacked says which they are: 3 a GRU (reset after the product), 4 an LSTM, 1 an RNN, whose
    activation no state dict holds.
    """
    arrays = {name: as_array(name, value) for name, value in tensors.items() if wanted(name, also)}
    return [_torch_layer(each) for each in by_layer(arrays, also)]


def _torch_layer(found: Found) -> Found:
    shape = found.arrays["weight_hh"].shape
    gates = shape[0] / shape[1] if len(shape) == 2 and shape[1] else 0
    if gates == 4 or PROJECTION in found.arrays:
        return replace(found, stated={"layout": "W@x", "cell": "lstm", "gates": "ifgo"})
    if gates == 3:
        return replace(found, stated={"layout": "W@x", "cell": "gru", "gates": "rzn", "reset": "after", "z": "keeps"})
    if gates == 1:
        return replace(found, stated={"layout": "W@x"}, choices=("rnn-tanh", "rnn-relu"))
    return replace(found, refused=f"weight_hh of shape {shape}, not 1, 3 or 4 square gates")


def as_array(name: str, value: Tensor) -> np.ndarray:
    """A tensor as numpy has it. Raises InputError for one that claims more than a file could hold, or has no such type."""
    if value.numel() * value.element_size() > importer.LARGEST:
        raise InputError(
            f"{name} of shape {tuple(value.shape)}", f"at most {importer.LARGEST:,} bytes", "check the file"
        )
    if value.layout is not torch.strided or value.is_quantized or value.is_meta:
        raise InputError(
            f"{name}, which is no dense tensor with data", "plain weights", "save dequantized, dense weights"
        )
    plain = value.detach().cpu()
    return (plain.float() if plain.dtype in (torch.float16, torch.bfloat16) else plain).numpy()
