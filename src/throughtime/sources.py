"""What the command line is given: names of things in the user's own modules, and files of arrays."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.errors import InputError
from throughtime.importers.npz import Convention, load_npz, read_arrays, tensor


def named(name: str) -> Any:
    """`package.module:object`, imported: the name is the user's explicit word to run that module. Raises InputError."""
    module, _, path = name.partition(":")
    if not module or not path:
        raise InputError(f"{name!r}", "package.module:name, or a file", "write the module, a colon and the name")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does
    try:
        found: Any = import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
        return found
    except (ImportError, AttributeError, SyntaxError) as error:
        raise InputError(
            f"{name}, which failed: {type(error).__name__}: {error}",
            "something that can be imported",
            "check the name, the folder and what the module itself imports",
        ) from error


def model(
    name: str, convention: Convention | None = None, seed: int = 0
) -> tuple[nn.Module, Callable[[], nn.Module] | None]:
    """The model, and its factory where it has one, called under a seed. Raises InputError for a file that holds none."""
    is_file = _is_file(name)
    if convention is not None and not is_file:
        raise InputError(
            f"--cell with the model {name}", "it for a file of bare weights (.npz) only", "leave --cell out"
        )
    if is_file:
        if convention is None:
            raise InputError(
                f"the weights {name} without a convention",
                "--cell, and for other layouts than torch's --gates, --layout, --reset, --z",
                "say how the arrays are to be read: a file of arrays does not",
            )
        return load_npz(name, convention), None
    torch.manual_seed(seed)  # of what the module makes when it is imported
    made: Any = named(name)
    torch.manual_seed(seed)
    factory: Any = made if callable(made) and not isinstance(made, nn.Module) else None
    if factory is not None:
        made = factory()
    if not isinstance(made, nn.Module):
        raise InputError(
            f"{name}, which gave a {type(made).__name__}", "an nn.Module, or a function that returns one", "check it"
        )
    return made, factory


def data(name: str) -> Any:
    """Batches: what a name stands for (called, if it is a function), or the arrays of a file."""
    if not _is_file(name):
        found = named(name)
        return found() if callable(found) and not isinstance(found, Tensor) else found
    arrays = {key: tensor(value, f"{key or 'the array'} in {name}") for key, value in read_arrays(name).items()}
    x = arrays.get("") if "" in arrays else arrays.get("x", arrays.get("inputs"))
    if x is None and len(arrays) == 1:
        x = next(iter(arrays.values()))
    if x is None:
        raise InputError(
            f"arrays {sorted(arrays)} in {name}", "one named x or inputs, and perhaps y or targets", "rename them"
        )
    y = arrays.get("y", arrays.get("targets"))
    if x.is_floating_point() and x.ndim == 2 and y is None:
        x = x.unsqueeze(1)  # one sequence
    return x if y is None else (x, y)


def history(path: str) -> Any:
    """Losses by training step, or a mapping with loss and perhaps gradient_norm, of an .npy, .npz or .json file."""
    if Path(path).suffix != ".json":
        arrays = read_arrays(path)
        return arrays.get("", arrays)
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}, which cannot be read: {error}", "a file .json, .npz or .npy", "check the file"
        ) from error


def _is_file(name: str) -> bool:
    if Path(name).suffix in (".npz", ".npy"):
        if not Path(name).exists():
            raise InputError(f"no file {name}", "a file .npz or .npy", "check the path")
        return True
    if Path(name).is_file():
        raise InputError(
            f"the file {name}", "a file .npz or .npy, or package.module:name", "save the arrays with numpy.savez"
        )
    return False
