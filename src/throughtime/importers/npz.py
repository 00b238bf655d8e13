"""Arrays from .npz and .npy, with a convention that the user declares: a file of arrays does not say which cell it belongs to.

Keys, with any prefix and perhaps `_l0` at the end: weight_ih or kernel, weight_hh or recurrent_kernel, bias_ih and bias_hh, or
bias; a bias of two rows (Keras with reset_after) is both. Nothing is unpickled and no other file is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from throughtime.errors import InputError
from throughtime.importers import archive
from throughtime.importers.convention import CHOICES
from throughtime.importers.importer import Found, Importer
from throughtime.importers.naming import by_layer


class NumpyArrays(Importer):
    """numpy's .npz of named arrays."""

    name: ClassVar[str] = "numpy arrays (.npz)"
    refuses: ClassVar[str] = "arrays of objects; integers without `--scale`"

    def reads(self, path: Path, head: bytes) -> bool:
        if head.startswith(b"\x93NUMPY"):
            return True
        names = archive.names(path)
        return bool(names) and all(name.endswith(".npy") for name in names)

    def layers(self, path: Path, trust: bool, also: frozenset[str] = frozenset()) -> list[Found]:
        return bare_layers(read_arrays(path), also)


def bare_layers(arrays: Mapping[str, np.ndarray], also: frozenset[str] = frozenset()) -> list[Found]:
    """The recurrent layers among arrays that do not say which cell they belong to."""
    return [replace(each, choices=CHOICES["cell"]) for each in by_layer(arrays, also)]


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz, or the one of an .npy as {"": array}; never unpickles."""
    path = Path(path)
    try:
        archive.check_size(path)
        with open(path, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {"": loaded}
            arrays = {name: loaded[name] for name in loaded.files}
        if strange := [name for name, value in arrays.items() if not isinstance(value, np.ndarray)]:
            raise InputError(
                f"{path}, which holds {strange[0]!r}", "an archive of arrays alone", "write it with numpy.savez"
            )
        return arrays
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
