"""Keras: the LSTM, GRU and SimpleRNN layers of .keras, .h5 and .weights.h5 files (extra: keras). Nothing is run.

kernel (D, G·H), recurrent_kernel (H, G·H), bias: gates in columns, i, f, c, o (LSTM) and z, r, h (GRU); z keeps. A GRU's bias
of two rows means that it resets after the product, of one row before. A configuration, where the file has one, says activations
and direction; a file of weights alone does not, so the cell is asked for, and with it sigmoid gates and tanh are meant.
CuDNNLSTM and CuDNNGRU (Keras 2), told by a bias of 8H or 6H, have a layout of their own ("cudnn", see `Convention`); they are
always sigmoid and tanh, reset after the product, so nothing is asked.

Links to other places and files, virtual data sets and data outside of the file are refused: HDF5 would follow them.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from throughtime.cells.activations import CANDIDATES, GATES
from throughtime.errors import InputError, MissingExtraError
from throughtime.importers import archive, importer
from throughtime.importers.importer import Found, Importer

MAGIC = b"\x89HDF\r\n\x1a\n"
WEIGHTS, CONFIG, METADATA = "model.weights.h5", "config.json", "metadata.json"
CELLS = {"LSTM": (4, "lstm", "ifgo"), "GRU": (3, "gru", "zrn"), "SimpleRNN": (1, "", "")}
"""By class: stacked gates, the cell, their order."""
DEEPEST, MOST = 20, 100_000  # levels of groups, and objects, that are looked into
ROLES = {
    "kernel": "weight_ih",
    "recurrent_kernel": "weight_hh",
    "bias": "bias_ih",
    "0": "weight_ih",
    "1": "weight_hh",
    "2": "bias_ih",
}
Arrays = dict[str, np.ndarray]


class Keras(Importer):
    """A whole Keras 3 file (.keras), or HDF5 of a whole model or its weights, old paths and new."""

    name: ClassVar[str] = "Keras (.keras, .h5, .hdf5)"
    extra: ClassVar[str] = "keras"
    refuses: ClassVar[str] = "other activations; links, virtual data sets, data outside of the file"

    def reads(self, path: Path, head: bytes) -> bool:
        return head.startswith(MAGIC) or {WEIGHTS, CONFIG} <= set(archive.names(path))

    def layers(self, path: Path, trust: bool, also: frozenset[str] = frozenset()) -> list[Found]:
        try:
            groups, configs = _read(path)
            named = _by_name(configs)
            found = []
            for name, roles in groups.items():
                layer = named.get(name.split("/")[0])
                found.append(_part(_found(name, roles, _own(name, layer)), layer))
            return found
        except (InputError, MissingExtraError):
            raise
        except Exception as error:  # HDF5, zip and JSON have their own for damaged files
            said = (str(error) or type(error).__name__).partition("\n")[0]
            raise InputError(
                f"{path}, which cannot be read: {said[:200]}", "a whole Keras file", "save it anew"
            ) from error


def _read(path: Path) -> tuple[dict[str, Arrays], list[dict[str, Any]]]:
    """The arrays of each recurrent layer by its name, and the configurations of all layers, in order."""
    try:
        import h5py
    except ImportError as error:
        raise MissingExtraError("no module h5py", "the extra [keras]", "pip install 'throughtime[keras]'") from error
    archive.check_size(path)
    with open(path, "rb") as file:
        whole = file.read(len(MAGIC)) == MAGIC
    config, source, version = None, str(path), ""
    if not whole:
        with zipfile.ZipFile(path) as packed:
            config, source = json.loads(packed.read(CONFIG)), BytesIO(packed.read(WEIGHTS))
            if METADATA in packed.namelist():
                version = json.loads(packed.read(METADATA)).get("keras_version", "")
    with h5py.File(source, "r") as hdf:
        stored: Any = hdf.attrs.get("model_config")
        wrote: Any = hdf.attrs.get("keras_version", version)
        if config is None and isinstance(stored, str | bytes):
            config = json.loads(stored)
        groups: dict[str, Arrays] = {}
        for place, roles in _groups(hdf, h5py, [MOST, importer.LARGEST]):
            groups[_name(place)] = roles
    version = wrote.decode() if isinstance(wrote, bytes) else str(wrote)
    return groups, [layer | {"keras_version": version} for layer in _layers_of(config)]


def _groups(group: Any, h5py: Any, left: list[int], path: str = "", depth: int = 0) -> Iterator[tuple[str, Arrays]]:
    """Groups that hold a kernel and a recurrent kernel. left: objects and bytes that may still be read."""
    found: Arrays = {}
    for name in group:
        left[0] -= 1
        where = f"{path}/{name}".strip("/")
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise InputError(f"{where}, a link to another place or file", "arrays in the file itself", "save it anew")
        if left[0] < 0 or depth > DEEPEST:
            raise InputError(f"more than {MOST:,} objects, or {DEEPEST} levels", "a Keras file", "check the file")
        value = group[name]
        if isinstance(value, h5py.Group):
            yield from _groups(value, h5py, left, where, depth + 1)
            continue
        role = ROLES.get(name.removesuffix(":0"))
        if role is None or (name.isdigit() and not path.endswith("/cell/vars")):
            continue
        if value.external or value.is_virtual:
            raise InputError(
                f"{where}, whose data lie outside of the file", "arrays in the file itself", "save it anew"
            )
        left[1] -= value.dtype.itemsize * int(np.prod([float(size) for size in value.shape]))
        if left[1] < 0:
            raise InputError(
                f"{where} of shape {value.shape}", f"at most {importer.LARGEST:,} bytes in all", "check the file"
            )
        found[role] = value[()]
    if {"weight_ih", "weight_hh"} <= set(found):
        yield path, found


def _name(path: str) -> str:
    """Of the layer whose arrays lie in this group: that of Keras, and the direction where there are two."""
    parts = [
        part for part in path.split("/") if part not in ("model_weights", "layers", "_layer_checkpoint_dependencies")
    ]
    ways = [part for part in parts[1:] if part.startswith(("forward", "backward"))]
    return "/".join(parts[:1] + ways[:1])


def _layers_of(config: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    """The layers of a model's configuration, in order; of nested models too."""
    inner = config.get("config") if isinstance(config, dict) else None
    listed = inner.get("layers") if isinstance(inner, dict) else inner
    for layer in listed if isinstance(listed, list) and depth < DEEPEST else ():
        if isinstance(layer, dict) and isinstance(layer.get("config"), dict):
            yield layer
            yield from _layers_of(layer, depth + 1)


def _by_name(configs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Configurations by both names that files use: the layer's own, and the class's with a number, as Keras 3 saves."""
    named, seen = {}, Counter()
    for layer in configs:
        kind = str(layer.get("class_name"))
        snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", kind).lower()
        number = seen[snake]
        seen[snake] += 1
        named.setdefault(snake + (f"_{number}" if number else ""), layer)
        named[str(layer["config"].get("name"))] = layer
    return named


def _part(found: Found, layer: dict[str, Any] | None) -> Found:
    """As a direction of a Bidirectional layer, where it is one whose configuration says how outputs are merged."""
    if "/" not in found.name or (layer or {}).get("class_name") != "Bidirectional":
        return found
    assert layer is not None
    mode = layer["config"].get("merge_mode", "concat")
    return replace(found, stacks={found.name.split("/")[0]: 0}, merge="none" if mode is None else str(mode))


def _reverse(name: str, layer: dict[str, Any] | None) -> bool:
    """Whether the layer reads from the end: the backward one of a Bidirectional layer, or as it says."""
    return "/backward" in name or bool(_config(layer).get("go_backwards"))


def _own(name: str, layer: dict[str, Any] | None) -> dict[str, Any] | None:
    """The layer's configuration; of a Bidirectional one with that of this direction, which may be given apart."""
    config = (layer or {}).get("config", {})
    if "/backward" not in name or not isinstance(config.get("backward_layer"), dict):
        return layer
    return {**(layer or {}), "config": config | {"layer": config["backward_layer"]}}


def _found(name: str, roles: Arrays, layer: dict[str, Any] | None) -> Found:
    kernel, recurrent, bias = roles["weight_ih"], roles["weight_hh"], roles.get("bias_ih")
    gates = recurrent.shape[1] / recurrent.shape[0] if recurrent.ndim == 2 and recurrent.size else 0
    kind = next((kind for kind, (count, *_) in CELLS.items() if count == gates), "")
    if not kind or kernel.ndim != 2:
        return Found(name, roles, refused=f"recurrent_kernel of shape {recurrent.shape}, not 1, 3 or 4 square gates")
    count, cell, order = CELLS[kind]
    cudnn = cell != "" and bias is not None and bias.shape == (2 * count * recurrent.shape[0],)
    if cudnn:
        return _cudnn(name, roles, kind, layer)
    if _class(layer).startswith("CuDNN"):
        shape = None if bias is None else bias.shape
        return Found(name, roles, refused=f"a {_class(layer)} with a bias of shape {shape}, not ({2 * count}·H,)")
    stated = {"layout": "x@W"} | ({"gates": order} if order else {})
    if kind == "GRU":
        after = bias.ndim == 2 if bias is not None else _config(layer).get("reset_after")
        if after is None:
            return Found(
                name, roles, refused="a GRU without bias and configuration, which does not say where it resets"
            )
        stated |= {"reset": "after" if after else "before", "z": "keeps"}
    backward = _reverse(name, layer)
    if layer is None:
        choices = (cell,) if cell else ("rnn-tanh", "rnn-relu")
        return Found(name, roles, stated, choices, reverse=backward)
    config = _config(layer)
    activation, recurrent_activation = config.get("activation", "tanh"), config.get("recurrent_activation", "sigmoid")
    refused = ""
    if kind == "SimpleRNN":
        stated["cell"] = f"rnn-{activation}"
        refused = "" if activation in ("tanh", "relu") else f"activation {activation}, which cannot be explained yet"
    else:
        stated["cell"] = cell
        gate = _gate(recurrent_activation, str((layer or {}).get("keras_version", "")))
        if gate not in GATES or activation not in CANDIDATES:
            refused = f"activations {recurrent_activation} and {activation}, which cannot be explained yet"
        else:
            stated |= ({"gate": gate} if gate != "sigmoid" else {}) | (
                {"activation": activation} if activation != "tanh" else {}
            )
    return Found(name, roles, stated, reverse=backward, refused=refused)


def _gate(word: str, version: str) -> str:
    """The gate's function: Keras had one hard sigmoid up to 2 and has another from 3 on; a file that does not say which
    Keras wrote it is refused."""
    if word != "hard_sigmoid":
        return word
    major = version.partition(".")[0]
    return {"1": "hard-sigmoid", "2": "hard-sigmoid", "3": "hard-sigmoid-6"}.get(
        major, "hard_sigmoid of an unknown Keras"
    )


def _cudnn(name: str, roles: Arrays, kind: str, layer: dict[str, Any] | None) -> Found:
    """A layer in cuDNN's layout, of any configuration: Keras tells it by the bias, and converts, whatever the class."""
    _, cell, order = CELLS[kind]
    stated = {"layout": "cudnn", "cell": cell, "gates": order}
    stated |= {"reset": "after", "z": "keeps"} if kind == "GRU" else {}
    config = _config(layer)
    used = config.get("activation", "tanh"), config.get("recurrent_activation", "sigmoid")
    refused = "" if used == ("tanh", "sigmoid") else f"activations {used[1]} and {used[0]}, which cuDNN does not have"
    return Found(name, roles, stated, reverse=_reverse(name, layer), refused=refused)


def _class(layer: dict[str, Any] | None) -> str:
    """The class of the recurrent layer itself, which a Bidirectional one holds inside."""
    inner = (layer or {}).get("config", {}).get("layer")
    return str((inner if isinstance(inner, dict) else layer or {}).get("class_name", ""))


def _config(layer: dict[str, Any] | None) -> dict[str, Any]:
    """The configuration of the recurrent layer itself, which a Bidirectional one holds inside."""
    config = (layer or {}).get("config", {})
    inner = config.get("layer")
    return inner["config"] if isinstance(inner, dict) and isinstance(inner.get("config"), dict) else config
