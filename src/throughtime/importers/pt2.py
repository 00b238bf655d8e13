"""torch.export archives (.pt2), read as a PyTorch state dict is. The program in them is neither loaded nor run.

torch.export.load may unpickle, so it is not used: a JSON table beside the weights says name, dtype, sizes and strides of each,
and the data are raw bytes. Weights that the table calls pickled are refused by name. Archives of torch before 2.8 hold a state
dict instead, which torch.save wrote: it is read with weights_only=True, as such files are.
"""

from __future__ import annotations

import json
import math
import pickle
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from throughtime.errors import InputError
from throughtime.importers import archive, importer
from throughtime.importers.importer import Found, Importer
from throughtime.importers.naming import NAME, torch_layers, wanted

TABLE = "data/weights/model_weights_config.json"
BEFORE = "serialized_exported_program.json"  # in the archives of torch before 2.8
STATES = ("serialized_state_dict.pt", "serialized_state_dict.json")  # beside it; the second is no JSON either
KINDS = {6: torch.float16, 7: torch.float32, 8: torch.float64, 13: torch.bfloat16}
"""By torch's own number of a type in the table, torch._export.serde.schema.ScalarType."""
STRIDED, LITTLE = 7, b"little"


class Pt2(Importer):
    """A .pt2 file that torch.export.save wrote."""

    name: ClassVar[str] = "torch.export archive (.pt2)"
    refuses: ClassVar[str] = "pickles of more than weights"

    def reads(self, path: Path, head: bytes) -> bool:
        return any(each == BEFORE or each.endswith(f"/{TABLE}") for each in archive.names(path))

    def layers(self, path: Path, trust: bool, also: frozenset[str] = frozenset()) -> list[Found]:
        archive.check_size(path)
        try:
            read = _weights_before(path) if BEFORE in archive.names(path) else _weights(path, also)
            return torch_layers(read, also)
        except InputError:
            raise
        except Exception as error:  # zip and JSON have their own for damaged files, and a table may hold anything
            said = (str(error) or type(error).__name__).partition("\n")[0]
            raise InputError(
                f"{path}, which cannot be read: {said[:200]}", "a whole .pt2 file", "write it anew: torch.export.save"
            ) from error


def _weights_before(path: Path) -> dict[str, Tensor]:
    """Tensors by their names in the program of an older torch. Raises InputError for a state dict that holds more."""
    with zipfile.ZipFile(path) as packed:
        content = BytesIO(packed.read(next(name for name in STATES if name in packed.namelist())))
    archive.check_size(content)
    content.seek(0)
    try:
        loaded = torch.load(content, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}, an archive of an older torch with a pickle of more than weights, which can run code",
            "weights alone",
            "save it anew with this torch, or save model.state_dict()",
        ) from error
    return {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}


def _weights(path: Path, also: frozenset[str]) -> dict[str, Tensor]:
    """Tensors that may be recurrent layers', by their names in the program. also: names that an option says."""
    with zipfile.ZipFile(path) as packed:
        place = next(each for each in packed.namelist() if each.endswith(f"/{TABLE}"))
        root = place.removesuffix(TABLE)
        order = packed.read(f"{root}byteorder")
        if order != LITTLE:
            raise InputError(f"{path} with bytes in the order {order[:20]!r}", "little", "save model.state_dict()")
        table = json.loads(packed.read(place))["config"]
        folder, left, read = root + TABLE.rpartition("/")[0], importer.LARGEST, {}
        for name, told in table.items():
            if not wanted(name, also) or not (_plain(told) or name in also or NAME.fullmatch(name)):
                continue  # what only may be a state, and is none that can be read, is left alone
            size = packed.getinfo(f"{folder}/{told['path_name']}").file_size
            left -= size  # several names may share one entry: what is read counts, not what is stored
            if left < 0:
                raise InputError(f"weights of more than {importer.LARGEST:,} bytes", "fewer", "check the file")
            read[name] = _tensor(name, told, packed.read(f"{folder}/{told['path_name']}"))
        return read


def _plain(told: dict[str, Any]) -> bool:
    """Whether a row of the table describes floating point numbers as they lie in memory."""
    meta = told["tensor_meta"]
    return not told["use_pickle"] and meta["dtype"] in KINDS and meta["layout"] == STRIDED


def _tensor(name: str, told: dict[str, Any], content: bytes) -> Tensor:
    """The tensor that a row of the table describes. Raises InputError where it is pickled, or does not fit its data."""
    meta = told["tensor_meta"]
    if not _plain(told):
        raise InputError(
            f"{name}, which is pickled or no dense tensor of floating point numbers",
            "raw weights",
            "save model.state_dict()",
        )
    sizes, strides = ([int(each["as_int"]) for each in meta[key]] for key in ("sizes", "strides"))
    kind, offset = KINDS[meta["dtype"]], int(meta["storage_offset"]["as_int"])
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    bad = not sizes or min(sizes) < 1 or min(strides) < 1 or offset < 0
    largest = max(last + 1, math.prod(sizes))  # strides that overlap would make much of little
    if bad or largest * kind.itemsize > len(content):
        raise InputError(
            f"{name} of sizes {sizes}, strides {strides}, in {len(content):,} bytes",
            "a tensor within its data",
            "check the file",
        )
    return torch.frombuffer(bytearray(content), dtype=kind, count=len(content) // kind.itemsize).as_strided(
        sizes, strides, offset
    )
