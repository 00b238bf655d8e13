"""What the command line is given: names of things in the user's own modules, and files of arrays."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.errors import InputError
from throughtime.importers.convention import tensor
from throughtime.importers.load import load
from throughtime.importers.npz import read_arrays
from throughtime.importers.state_dict import StateDict, saved


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
    name: str,
    convention: dict[str, Any] | None = None,
    seed: int = 0,
    layer: str | None = None,
    trust: bool = False,
) -> tuple[nn.Module, Callable[[], nn.Module] | None]:
    """The model, and its factory where it has one, called under a seed; or the layer of a file, see `importers.load.load`.

    Raises InputError for a file that holds none, and for a convention where there is no file.
    """
    if is_file(name):
        return load(name, layer, trust, **(convention or {})), None
    if convention:
        option = f"--{next(iter(convention)).replace('_', '-')}"
        raise InputError(f"{option} with the model {name}", "it for a file of weights only", f"leave {option} out")
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
    if not is_file(name):
        found = named(name)
        return found() if callable(found) and not isinstance(found, Tensor) else found
    arrays = _arrays(Path(name))
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


def _arrays(path: Path) -> dict[str, Tensor]:
    """By name; a single one under "". Of numpy, or tensors that torch.save wrote, read with weights_only=True."""
    with path.open("rb") as file:
        head = file.read(64)
    if not StateDict().reads(path, head):
        return {key: tensor(value, f"{key or 'the array'} in {path}") for key, value in read_arrays(path).items()}
    loaded = saved(path, trust=False)
    if isinstance(loaded, list | tuple) and len(loaded) == 2:
        loaded = dict(zip(("x", "y"), loaded, strict=True))
    found = {"": loaded} if isinstance(loaded, Tensor) else loaded
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise InputError(
            f"{path}, which holds a {type(loaded).__name__} of more than tensors",
            "tensors by name, or a pair",
            "write it with torch.save({'x': x, 'y': y}, path)",
        )
    return {str(key): value for key, value in found.items()}


def in_graph(layer: nn.Module, model: str, name: str | None, data: str) -> tuple[nn.Module, Tensor]:
    """A layer of an ONNX file as its operator runs when the graph is given these data, arrays by the graph's inputs.

    Returns what is called with x alone, and x; see `throughtime.importers.onnx_run.arguments_of`, which takes the name.
    """
    from throughtime.importers.onnx_run import arguments_of

    if not is_file(model):
        raise InputError(f"--run-graph with the model {model}", "it for an ONNX file only", "leave --run-graph out")
    if is_file(data):
        given: Any = read_arrays(data)
    else:
        found: Any = named(data)
        given = found() if callable(found) else found
    arguments = arguments_of(model, given, name)
    return arguments.given_to(layer), arguments.x


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


def is_file(name: str) -> bool:
    """Whether the name is that of a file. Raises InputError where it looks like one that is not there."""
    path = Path(name)
    if path.is_file():
        return True
    if ":" not in name and (path.is_dir() or path.suffix):
        what = f"the folder {name}" if path.is_dir() else f"no file {name}"
        raise InputError(what, "a file, or package.module:name", "check the path")
    return False
