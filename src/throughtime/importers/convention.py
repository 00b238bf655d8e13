"""How stacked arrays are to be read, and the layer that they make: files of arrays do not say which cell they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from throughtime.cells import GRU, LSTM, RNN, Cell, GRUResetBefore, LSTMPeepholes, Weights
from throughtime.cells.activations import CANDIDATES, GATES
from throughtime.errors import InputError
from throughtime.recurrent import Recurrent

CHOICES: Mapping[str, tuple[str, ...]] = {
    "cell": ("gru", "lstm", "rnn-tanh", "rnn-relu"),
    "layout": ("W@x", "x@W", "cudnn"),
    "reset": ("before", "after"),
    "z": ("keeps", "takes"),
    "gate": tuple(GATES),
    "activation": tuple(CANDIDATES),
    "output_activation": ("", *CANDIDATES),
}
"""The words of a convention, by name; `gates` are letters."""
ROLES = {
    "weight_ih": ("weight_ih", "kernel", "w_ih"),
    "weight_hh": ("weight_hh", "recurrent_kernel", "w_hh"),
    "bias_ih": ("bias_ih", "bias", "b_ih"),
    "bias_hh": ("bias_hh", "recurrent_bias", "b_hh"),
}
"""What an array is, by the last part of its name in a file."""
PEEPHOLE = "peephole"  # of an LSTM, (3·H,) or (3, H): i, f, o
PEEPHOLES = {
    f"{PEEPHOLE}_{gate}": (f"peephole_{gate}", f"w_c{gate}", f"W_c{gate}", f"weight_c{gate}", f"w_{gate}_diag")
    for gate in "ifo"
}
"""Peepholes of one gate, (H,); w_i_diag and so on are TensorFlow 1's."""
PROJECTION = "weight_hr"  # of an LSTM with proj_size


@dataclass(frozen=True)
class Convention:
    """How stacked arrays are to be read.

    cell: "gru", "lstm", "rnn-tanh" or "rnn-relu". gates: their order in the file, e.g. "zrh" (n and h, g and c are the
    same). layout: "W@x" (torch: gates stacked in rows), "x@W" (Keras: in columns) or "cudnn" (Keras's CuDNNLSTM and CuDNNGRU:
    in columns, each block (D, H) holding a row-major (H, D), and one bias of both). reset: "before" or "after" the product
    (GRU). z: "keeps" the old state or "takes" the candidate (GRU). scale: the number, or fraction such as "1/128", by which
    integers are multiplied; zero_point: what is taken from them before, 0 where it is not said; of either also a mapping by
    the arrays' names in the file, with "" for all others. forget_bias: a number that the runtime adds to the forget gate's
    logit and that stands in no array (LSTM; 1 in TensorFlow 1's BasicLSTMCell). gate, activation: the functions of gates and
    of the candidate (GRU, LSTM), see `throughtime.cells.activations`; output_activation: that of an LSTM's cell in its
    output, where it is another one than the candidate's. initial_h, initial_c: names of the arrays that hold the
    state at which the layer begins, or "zero". peephole: the name of the array of an LSTM's peepholes i, f, o, or three
    names, "a,b,c".
    """

    cell: str
    gates: str = ""
    layout: str = "W@x"
    reset: str = "after"
    z: str = "keeps"
    scale: str | float | Mapping[str, Any] = ""
    zero_point: str | float | Mapping[str, Any] = ""
    forget_bias: str = ""
    gate: str = "sigmoid"
    activation: str = "tanh"
    output_activation: str = ""
    initial_h: str = ""
    initial_c: str = ""
    peephole: str = ""

    def build(self) -> Cell:
        """The cell. Raises InputError for a word that is not one of the choices."""
        for name, words in CHOICES.items():
            if getattr(self, name) not in words:
                raise InputError(
                    f"{name} {getattr(self, name)!r}", f"one of {', '.join(words)}", f"declare {name}=… of the file"
                )
        if self.output_activation and self.cell != "lstm":
            raise InputError(f"output_activation for cell={self.cell}", "it for an LSTM only", "leave it out")
        if self.cell == "gru":
            kind = GRUResetBefore if self.reset == "before" else GRU
            return kind(keeps=self.z == "keeps", gate=self.gate, activation=self.activation)
        return (
            LSTM(self.gate, self.activation, self.output_activation)
            if self.cell == "lstm"
            else RNN(self.cell.removeprefix("rnn-"))
        )

    def told(self) -> dict[str, str]:
        """The words that say something of this cell."""
        others = ("scale", "zero_point", "forget_bias", "initial_h", "initial_c", "peephole")
        said = {name: _words(getattr(self, name)) for name in others if getattr(self, name) not in ("", {})}
        return {"cell": self.cell, "gates": self.gates, "layout": self.layout} | dict(self.build().convention) | said

    def number(self, name: str, array: str = "") -> float | None:
        """`scale`, `zero_point` (of an array) or `forget_bias`, None where it is not said. Raises InputError for no number."""
        word = getattr(self, name)
        if isinstance(word, Mapping):
            word = word.get(array, word.get("", ""))
        if word == "":
            return None
        try:
            value = float(Fraction(str(word)))
        except (ValueError, ZeroDivisionError, OverflowError) as error:
            raise InputError(
                f"{name} {word!r}", "a number, or a fraction such as 1/128", f"declare {name}=…"
            ) from error
        if name == "scale" and value == 0:
            raise InputError("scale 0", "a number that is not zero", "declare scale=… of the file")
        return value

    def order(self, cell: Cell) -> list[int]:
        """For each gate of the cell, its place in the file."""
        if not self.gates:
            return list(range(len(cell.gates)))
        same = {"h": "n", "c": "g"}
        letters = [
            letter if letter in cell.gates else same.get(letter, letter) for letter in self.gates.replace(",", "")
        ]
        if sorted(letters) != sorted(cell.gates):
            raise InputError(
                f"gate order {self.gates!r}",
                f"the letters {''.join(cell.gates)} in some order (h is n, c is g)",
                "declare gates=…",
            )
        return [letters.index(gate) for gate in cell.gates]


def _words(said: Any) -> str:
    """A number, or one for each array, as the command line takes them."""
    if not isinstance(said, Mapping):
        return str(said)
    return ", ".join(f"{name}={number}" if name else str(number) for name, number in said.items())


def recurrent(
    arrays: Mapping[str, np.ndarray], convention: Convention, names: Mapping[str, str] | None = None
) -> Recurrent | nn.LSTM:
    """The layer made of one layer's arrays, under names that end in one of `ROLES`; with `PROJECTION`, torch's own; with
    `PEEPHOLE` or all of `PEEPHOLES`, an LSTM with peepholes. names: in the file, of arrays that have another name here.

    A bias of two rows (Keras with reset_after) is both biases. Raises InputError for what is missing or does not fit.
    """
    cell = convention.build()
    arrays = {
        name: scaled(value, (names or {}).get(name, name), convention)
        for name, value in arrays.items()
        if role_of(name) or name.split(".")[-1] in (PROJECTION, PEEPHOLE, *PEEPHOLES)
    }
    found = {role: next((value for name, value in arrays.items() if role_of(name) == role), None) for role in ROLES}
    for role in ("weight_ih", "weight_hh"):
        if found[role] is None:
            raise InputError(
                f"arrays {sorted(arrays)}",
                f"one named {' or '.join(ROLES[role])}",
                "rename the arrays when saving them",
            )
    order = convention.order(cell)
    for option in ("scale", "zero_point"):  # what is no number is told, also where nothing needs it
        said = getattr(convention, option)
        for name in said if isinstance(said, Mapping) else ("",):
            convention.number(option, name)
    if convention.layout == "cudnn":
        found = _in_rows(found, len(order))
    bias = found["bias_ih"]
    if bias is not None and bias.ndim == 2 and len(bias) == 2 and found["bias_hh"] is None:
        if convention.cell == "gru" and convention.reset == "before":
            raise InputError(
                "a bias of two rows and reset='before'",
                "reset='after', to which two rows belong",
                "declare reset=after (--reset)",
            )
        found["bias_ih"], found["bias_hh"] = bias
    read = [
        _restack(found[role], role, dimensions, order, convention.layout)
        for role, dimensions in zip(ROLES, (2, 2, 1, 1), strict=True)
    ]
    there = [value for value in read if value is not None]
    if len({(value.dtype, len(value)) for value in there}) > 1:
        raise InputError(
            f"arrays of {', '.join(f'{tuple(v.shape)} {v.dtype}'.replace('torch.', '') for v in there)}",
            "one dtype, and equally many rows of stacked gates in all",
            "check that the arrays belong together",
        )
    read[2] = _offset(read[2], convention, read[0])
    projection = next((value for name, value in arrays.items() if name.split(".")[-1] == PROJECTION), None)
    if projection is not None:
        return _projected(read, projection, convention)
    peephole = _peephole(arrays) if convention.cell == "lstm" else None
    if peephole is not None:
        cell = LSTMPeepholes(convention.gate, convention.activation, convention.output_activation)
        if peephole.dtype != there[0].dtype:
            raise InputError(
                f"peepholes of {peephole.dtype}", f"{there[0].dtype}, as the weights", "convert the arrays"
            )
        return Recurrent(cell, Weights(*read, peephole=peephole))
    return Recurrent(cell, Weights(*read))


def _peephole(arrays: Mapping[str, np.ndarray]) -> Tensor | None:
    """The peepholes (3·H,) of an LSTM, of one array or of one a gate; None where there are none. Raises InputError."""
    found = {name.split(".")[-1]: value for name, value in arrays.items()}
    if PEEPHOLE in found:
        value = found[PEEPHOLE]
        return tensor(value.reshape(-1) if value.ndim == 2 and len(value) == 3 else value, PEEPHOLE)
    parts = [found[role] for role in PEEPHOLES if role in found]
    if not parts:
        return None
    if len(parts) < len(PEEPHOLES) or parts[0].ndim != 1 or len({(part.shape, part.dtype) for part in parts}) > 1:
        told = ", ".join(f"{role} {found[role].shape}" for role in PEEPHOLES if role in found)
        raise InputError(
            f"arrays that may be peepholes: {told}",
            "one (H,) for each of the gates i, f, o",
            "say which they are: peephole=a,b,c (--peephole); or leave these arrays out of the file",
        )
    return tensor(np.concatenate(parts), PEEPHOLE)


def _projected(read: list[Tensor | None], projection: np.ndarray, convention: Convention) -> nn.LSTM:
    """An LSTM whose output is projected, as torch's own module. Raises InputError where the arrays do not fit."""
    weight_ih, weight_hh, *biases = read
    assert weight_ih is not None
    assert weight_hh is not None
    weight_hr = tensor(projection.T if convention.layout == "x@W" else projection, PROJECTION)
    units, size = weight_ih.shape[0] // 4, weight_hh.shape[1]
    if convention.cell != "lstm" or weight_hr.shape != (size, units) or not 0 < size < units:
        raise InputError(
            f"{PROJECTION} {tuple(weight_hr.shape)} beside weight_hh {tuple(weight_hh.shape)}",
            "an LSTM's (P, H) beside (4·H, P), P less than H",
            "check that the arrays belong together",
        )
    bias = any(value is not None for value in biases)
    made = nn.LSTM(weight_ih.shape[1], units, bias=bias, proj_size=size, dtype=weight_ih.dtype)
    with torch.no_grad():
        for role, value in zip((*ROLES, PROJECTION), (*read, weight_hr), strict=True):
            if bias or not role.startswith("bias"):
                target = getattr(made, f"{role}_l0")
                target.zero_() if value is None else target.copy_(value)
    return made


def role_of(name: str) -> str | None:
    """What an array is, of `ROLES`; None for one that is no recurrent layer's."""
    last = name.replace("/", ".").split(".")[-1]
    for role, words in ROLES.items():
        if last.removesuffix("_l0") in words:
            return role
    return None


def tensor(value: np.ndarray, what: str) -> Tensor:
    """A torch tensor of an array from a file. Raises InputError for types torch does not have."""
    try:
        return torch.from_numpy(np.ascontiguousarray(value).astype(value.dtype.newbyteorder("="), copy=False))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{what}, of dtype {value.dtype}", "numbers such as float32 or int64", "convert the array"
        ) from error


def _in_rows(found: Mapping[str, np.ndarray | None], gates: int) -> dict[str, np.ndarray | None]:
    """cuDNN's layout in rows. Keras hands each block to cuDNN as it lies in memory, which reads it as a row-major (H, D)."""
    rows = dict(found)
    for role in ("weight_ih", "weight_hh"):
        value = found[role]
        if value is None or value.ndim != 2 or not value.size or value.shape[1] % gates:
            continue  # told as what it is, with the other shapes that do not fit
        width, units = value.shape[0], value.shape[1] // gates
        rows[role] = np.concatenate([block.reshape(units, width) for block in np.hsplit(value, gates)])
    bias, units = found["bias_ih"], rows["weight_hh"]
    if found["bias_hh"] is not None or bias is None or units is None or bias.shape != (2 * units.shape[0],):
        raise InputError(
            f"a bias of shape {None if bias is None else bias.shape} and layout='cudnn'",
            f"one of ({2 * gates}·H,): that of the input, then that of the state",
            "declare layout=x@W (--layout) of weights that are not cuDNN's",
        )
    rows["bias_ih"], rows["bias_hh"] = np.split(bias, 2)
    return rows


def scaled(value: np.ndarray, name: str, convention: Convention) -> np.ndarray:
    """Integers as what they stand for, (integer − zero_point) · scale; floats as they are. name: in the file.

    Raises InputError for integers without a scale, and for floats to which one is given by their name.
    """
    if value.dtype.kind not in "iu":
        for option in ("scale", "zero_point"):
            said = getattr(convention, option)
            if isinstance(said, Mapping) and name and name in said:
                raise InputError(f"{option} of {name}, of {value.dtype}", "it for integers only", "leave it out")
        return value
    scale = convention.number("scale", name)
    if scale is None:
        raise InputError(
            f"{name} of {value.dtype}",
            "floating point numbers, or what the integers are multiplied by",
            f"declare scale=… (--scale), for all integers or for this array (--scale {name}=…)",
        )
    return ((value.astype(np.float64) - (convention.number("zero_point", name) or 0)) * scale).astype(np.float32)


def _offset(bias: Tensor | None, convention: Convention, weight: Tensor | None) -> Tensor | None:
    """The bias with the forget gate's offset, where one is said; in torch's order of gates."""
    offset = convention.number("forget_bias")
    if offset is None or weight is None:
        return bias
    if convention.cell != "lstm":
        raise InputError(f"forget_bias for cell={convention.cell}", "it for an LSTM only", "leave forget_bias out")
    bias = weight.new_zeros(len(weight)) if bias is None else bias.clone()
    bias.unflatten(0, (4, -1))[LSTM.gates.index("f")] += offset
    return bias


def _restack(value: np.ndarray | None, name: str, dimensions: int, order: list[int], layout: str) -> Tensor | None:
    """The gates in the cell's order, stacked in rows."""
    if value is None:
        return None
    if value.dtype.kind != "f":
        raise InputError(f"{name} of {value.dtype}", "floating point numbers", "check the arrays")
    stacked = value.T if layout == "x@W" else value
    if value.ndim != dimensions or not value.size or stacked.shape[0] % len(order):
        raise InputError(
            f"{name} of shape {value.shape}",
            f"{dimensions} dimension(s), {len(order)} gate(s) stacked in {'columns' if layout == 'x@W' else 'rows'}",
            "check cell=… and layout=…",
        )
    return tensor(stacked, name).unflatten(0, (len(order), -1))[order].flatten(0, 1)
