"""Names of arrays in files, torch's above all: which layer of which stack and direction an array belongs to."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from throughtime.errors import InputError
from throughtime.importers import importer
from throughtime.importers.convention import PROJECTION, ROLES
from throughtime.importers.importer import Found

WORDS = sorted([word for words in ROLES.values() for word in words] + [PROJECTION], key=len, reverse=True)
NAME = re.compile(rf"(?P<prefix>.*?)[._/]?(?P<role>{'|'.join(WORDS)})(?:_l(?P<level>\d{{1,6}}))?(?P<reverse>_reverse)?")
"""A recurrent layer's array: any prefix, what it is, the layer of a stack, the direction."""


class Place(NamedTuple):
    """Where a layer stands: its name, direction, and the stack and level, see `Found`."""

    name: str
    reverse: bool
    stack: str
    level: int


def by_layer(arrays: Mapping[str, np.ndarray]) -> dict[Place, dict[str, np.ndarray]]:
    """Arrays grouped: the layer's place → role → array.

    `a.rnn.weight_ih_l1_reverse` is weight_ih of the layer "a.rnn_l1_reverse", of the stack "a.rnn"; a layer that stands alone
    is "a.rnn" itself, and one without a prefix "rnn". Arrays that are no recurrent layer's are passed over, as are groups that
    lack a weight.
    """
    grouped: dict[tuple[str, int, bool], dict[str, np.ndarray]] = {}
    for name, value in arrays.items():
        read = NAME.fullmatch(name)
        if read is None:
            continue
        role = next((role for role, words in ROLES.items() if read["role"] in words), read["role"])
        place = (read["prefix"].rstrip("._/"), int(read["level"] or 0), bool(read["reverse"]))
        grouped.setdefault(place, {})[role] = value
    whole = {place: roles for place, roles in grouped.items() if {"weight_ih", "weight_hh"} <= set(roles)}
    parts = Counter(prefix for prefix, _, _ in whole)
    named = {}
    for (prefix, level, reverse), roles in whole.items():
        name, way = prefix or "rnn", "_reverse" if reverse else ""
        stacked = parts[prefix] > 1
        place = (f"{name}_l{level}{way}", reverse, name, level) if stacked else (name + way, reverse, "", 0)
        named[Place(*place)] = roles
    return named


def torch_layers(tensors: Mapping[str, Tensor]) -> list[Found]:
    """The recurrent layers among tensors named as torch names them, which have torch's convention.

    How many square gates are stacked says which they are: 3 a GRU (reset after the product), 4 an LSTM, 1 an RNN, whose
    activation no state dict holds.
    """
    arrays = {name: as_array(name, value) for name, value in tensors.items() if NAME.fullmatch(name)}
    return [
        replace(_torch_layer(place.name, place.reverse, roles), stack=place.stack, level=place.level)
        for place, roles in by_layer(arrays).items()
    ]


def _torch_layer(name: str, reverse: bool, roles: Mapping[str, np.ndarray]) -> Found:
    shape = roles["weight_hh"].shape
    gates = shape[0] / shape[1] if len(shape) == 2 and shape[1] else 0
    if PROJECTION in roles:
        return Found(name, roles, {"layout": "W@x", "cell": "lstm", "gates": "ifgo"}, reverse=reverse)
    if gates == 3:
        return Found(
            name,
            roles,
            {"layout": "W@x", "cell": "gru", "gates": "rzn", "reset": "after", "z": "keeps"},
            reverse=reverse,
        )
    if gates == 4:
        return Found(name, roles, {"layout": "W@x", "cell": "lstm", "gates": "ifgo"}, reverse=reverse)
    if gates == 1:
        return Found(name, roles, {"layout": "W@x"}, choices=("rnn-tanh", "rnn-relu"), reverse=reverse)
    return Found(name, roles, reverse=reverse, refused=f"weight_hh of shape {shape}, not 1, 3 or 4 square gates")


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
