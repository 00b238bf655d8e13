"""Arrays from .npz, with a convention that the user declares: a file of arrays does not say which cell it belongs to.

Keys, with any prefix and perhaps `_l0` at the end: weight_ih or kernel, weight_hh or recurrent_kernel, bias_ih and bias_hh, or
bias; a bias of two rows (Keras with reset_after) is both. Nothing is unpickled and no other file is opened.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from throughtime.cells import GRU, LSTM, RNN, Cell, GRUResetBefore, Weights
from throughtime.errors import InputError
from throughtime.recurrent import Recurrent

ALIASES = {
    "weight_ih": ("weight_ih", "kernel", "w_ih"),
    "weight_hh": ("weight_hh", "recurrent_kernel", "w_hh"),
    "bias_ih": ("bias_ih", "bias", "b_ih"),
    "bias_hh": ("bias_hh", "recurrent_bias", "b_hh"),
}
LARGEST = 2**31  # bytes of all arrays together; a small file may claim much more


@dataclass(frozen=True)
class Convention:
    """How stacked arrays are to be read.

    cell: "gru", "lstm", "rnn-tanh" or "rnn-relu". gates: their order in the file, e.g. "zrh" (n and h, g and c are the
    same). layout: "W@x" (torch: gates stacked in rows) or "x@W" (Keras: in columns). reset: "before" or "after" the product
    (GRU). z: "keeps" the old state or "takes" the candidate (GRU).
    """

    cell: str
    gates: str = ""
    layout: str = "W@x"
    reset: str = "after"
    z: str = "keeps"

    def build(self) -> Cell:
        """The cell. Raises InputError for a word that is not one of the choices."""
        choices = {
            "cell": ("gru", "lstm", "rnn-tanh", "rnn-relu"),
            "layout": ("W@x", "x@W"),
            "reset": ("before", "after"),
            "z": ("keeps", "takes"),
        }
        for name, words in choices.items():
            if getattr(self, name) not in words:
                raise InputError(
                    f"{name} {getattr(self, name)!r}", f"one of {', '.join(words)}", f"declare {name}=… of the file"
                )
        if self.cell == "gru":
            return (GRUResetBefore if self.reset == "before" else GRU)(keeps=self.z == "keeps")
        return LSTM() if self.cell == "lstm" else RNN(self.cell.removeprefix("rnn-"))

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


def recurrent(arrays: dict[str, np.ndarray], convention: Convention) -> Recurrent:
    """The layer made of arrays under their file names. Raises InputError for what is missing or does not fit."""
    cell = convention.build()
    found = {name: _find(arrays, words) for name, words in ALIASES.items()}
    for name in ("weight_ih", "weight_hh"):
        if found[name] is None:
            raise InputError(
                f"arrays {sorted(arrays)}",
                f"one named {' or '.join(ALIASES[name])}",
                "rename the arrays when saving them",
            )
    order, bias = convention.order(cell), found["bias_ih"]
    if bias is not None and bias.ndim == 2 and len(bias) == 2 and found["bias_hh"] is None:
        if convention.cell == "gru" and convention.reset == "before":
            raise InputError(
                "a bias of two rows and reset='before'",
                "reset='after', to which two rows belong",
                "declare reset=after (--reset)",
            )
        found["bias_ih"], found["bias_hh"] = bias
    read = [
        _restack(found[name], name, dimensions, order, convention.layout)
        for name, dimensions in zip(ALIASES, (2, 2, 1, 1), strict=True)
    ]
    there = [value for value in read if value is not None]
    if len({(value.dtype, len(value)) for value in there}) > 1:
        raise InputError(
            f"arrays of {', '.join(f'{tuple(v.shape)} {v.dtype}'.replace('torch.', '') for v in there)}",
            "one dtype, and equally many rows of stacked gates in all",
            "check that the arrays belong together",
        )
    return Recurrent(cell, Weights(*read))  # type: ignore[arg-type]


def load_npz(path: str | Path, convention: Convention) -> Recurrent:
    """The recurrent layer of an .npz file of arrays. Raises InputError: no such file, no npz, absurd sizes, wrong shapes."""
    return recurrent(read_arrays(path), convention)


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz, or the one of an .npy as {"": array}; never unpickles."""
    path = Path(path)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                size = sum(entry.file_size for entry in archive.infolist())
            if size > LARGEST:
                raise InputError(f"arrays of {size:,} bytes in {path}", f"at most {LARGEST:,}", "check the file")
        with open(path, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {"": loaded}
            return {name: loaded[name] for name in loaded.files}
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"no file {path}", "a file of arrays, .npz or .npy", "check the path") from error
    except Exception as error:  # numpy, zipfile and zlib have their own for damaged and hostile files
        said = (str(error) or type(error).__name__).partition("\n")[0]
        raise InputError(
            f"{path}, which cannot be read: {said}",
            "a whole file of arrays of numbers, .npz or .npy",
            "write it anew with numpy.savez",
        ) from error


def tensor(value: np.ndarray, what: str) -> Tensor:
    """A torch tensor of an array from a file. Raises InputError for types torch does not have."""
    try:
        return torch.from_numpy(np.ascontiguousarray(value).astype(value.dtype.newbyteorder("="), copy=False))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{what}, of dtype {value.dtype}", "numbers such as float32 or int64", "convert the array"
        ) from error


def _find(arrays: dict[str, np.ndarray], words: tuple[str, ...]) -> np.ndarray | None:
    for word in words:
        for name, value in arrays.items():
            last = name.replace("/", ".").split(".")[-1].removesuffix("_l0")
            if last == word:
                return value
    return None


def _restack(value: np.ndarray | None, name: str, dimensions: int, order: list[int], layout: str) -> Tensor | None:
    """The gates in the cell's order, stacked in rows."""
    if value is None:
        return None
    if value.dtype.kind != "f":
        raise InputError(
            f"{name} of {value.dtype}", "floating point numbers", "scale integer tables before saving them"
        )
    stacked = value.T if layout == "x@W" else value
    if value.ndim != dimensions or not value.size or stacked.shape[0] % len(order):
        raise InputError(
            f"{name} of shape {value.shape}",
            f"{dimensions} dimension(s), {len(order)} gate(s) stacked in {'columns' if layout == 'x@W' else 'rows'}",
            "check cell=… and layout=…",
        )
    return tensor(stacked, name).unflatten(0, (len(order), -1))[order].flatten(0, 1)
