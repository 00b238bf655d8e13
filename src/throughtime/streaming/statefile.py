"""A run's state in a file: what was added up so far, so that it can go on. Written whole or not at all, after every batch.

A file is read as one that a stranger made: numbers, strings, lists, dicts and tensors alone come out of it, none of which runs
code (`torch.load(weights_only=True)`), and none of which takes more memory than the file does.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from throughtime.errors import InputError
from throughtime.streaming.sums import fits, from_plain, plain

FORMAT = "throughtime-state/3"
NODES = 10**7  # numbers, strings and tensors that are read of a file


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state; the file that was there stays whole until the new one is. Raises InputError where it cannot be written."""
    path = path.resolve()  # behind a link, the file that it leads to
    part = path.with_name(f".{path.name}.part")  # one name: what a killed run leaves is written over by the next
    try:
        with open(part, "wb") as file:
            kept = plain(state)
            torch.save({"format": FORMAT, "state": kept, "digest": digest(kept)}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:
        # Where the disk is full torch's own writer complains once more, of a position that it does not know.
        told = error.__context__ if isinstance(error.__context__, OSError) else error
        raise InputError(
            f"resume={str(path)!r}, which cannot be written ({getattr(told, 'strerror', None) or told})",
            "room for the file, twice while it is replaced, in a folder that may be written to",
            "make room, or give another path, and call again: what the file held before it holds still",
        ) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def load(path: Path, kinds: Mapping[str, Any], check: Callable[[dict[str, Any]], None]) -> dict[str, Any] | None:
    """The state in a file; None where there is no file. No code in it can run, and a damaged file is refused.

    kinds: of its parts, by name. check: raises, whatever it likes, where they do not fit together.
    """
    if not path.exists():
        return None
    wrong = InputError(
        f"{path}, which is no state of a run, or a damaged one",
        f"a file of format {FORMAT}",
        "name another file, or delete this one",
    )
    if not path.is_file():
        raise wrong
    try:
        _check_stored(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
        _check_plain(found, path.stat().st_size)
        if found["format"] != FORMAT or digest(found["state"]) != found["digest"]:
            raise wrong
        state = from_plain(found["state"])
        if not all(fits(state[name], kind) for name, kind in kinds.items()):
            raise wrong
        check(state)
    except Exception as error:  # whatever a file that nobody has checked can do to a reader
        raise wrong from error
    return state


def _check_stored(path: Path) -> None:
    """Raise ValueError where an entry is packed: torch writes none so, and a small one may claim any size."""
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("packed entries")


def _check_plain(found: Any, size: int) -> None:
    """Raise ValueError where there is more, or of another kind, than a file of so many bytes can hold.

    Lists that hold each other many times, and tensors that repeat one number, take no room in a file and any room when read.
    """
    waiting, nodes, numbers = [found], 0, 0
    while waiting:
        value = waiting.pop()
        nodes += 1
        if type(value) is Tensor:
            if value.layout != torch.strided or value.is_quantized:
                raise ValueError(f"a tensor of layout {value.layout}")
            numbers += value.numel() * value.element_size()
        elif type(value) is dict:
            waiting += [*value, *value.values()]
        elif type(value) is list:
            waiting += value
        elif not isinstance(value, str | int | float | bool | None):
            raise ValueError(f"a {type(value).__name__}")
        if nodes > NODES or numbers > 4 * size + 2**20:  # a few may share their numbers
            raise ValueError("more than the file can hold")


def digest(batch: Any) -> str:
    """Of all numbers in a batch: whether a loader gives the same again. Objects count by their attributes."""
    told = hashlib.blake2b(digest_size=8)
    inside: list[int] = []  # objects that are being read: one may hold itself

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            told.update(repr((value.dtype, tuple(value.shape))).encode())
            dense = value.detach() if value.layout == torch.strided else value.detach().to_dense()
            told.update(
                dense.cpu().resolve_conj().resolve_neg().reshape(-1).contiguous().view(torch.uint8).numpy().data
            )
        elif isinstance(value, np.ndarray):
            told.update(repr((value.dtype, value.shape)).encode())
            if value.dtype.hasobject:
                add(value.ravel().tolist())
            else:
                told.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        elif isinstance(value, np.generic):
            add(np.asarray(value))
        elif isinstance(value, Mapping):
            told.update(b"{")
            for name in value:
                add(name)
                add(value[name])
            told.update(b"}")
        elif isinstance(value, list | tuple):
            told.update(b"[")
            for each in value:
                add(each)
            told.update(b"]")
        elif isinstance(value, set | frozenset):
            add(sorted(digest(each) for each in value))
        elif isinstance(value, bytes | bytearray | str | int | float | complex | bool | None):
            told.update(f"{value!r},".encode())  # with an end: 1, 23 is not 12, 3
        elif hasattr(value, "__dict__") and id(value) not in inside:
            inside.append(id(value))
            add(type(value).__name__)
            add(vars(value))
            inside.pop()

    add(batch)
    return told.hexdigest()
