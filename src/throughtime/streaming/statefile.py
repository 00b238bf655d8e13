"""A run's state in a file: what was added up so far, so that it can go on. Written whole or not at all, after every batch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from throughtime.errors import InputError
from throughtime.streaming.sums import from_plain, plain

FORMAT = "throughtime-state/3"


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state; the file that was there stays whole until the new one is."""
    part = path.with_name(f".{path.name}.part")  # one name: what a killed run leaves is written over by the next
    try:
        with open(part, "wb") as file:
            kept = plain(state)
            torch.save({"format": FORMAT, "state": kept, "digest": digest(kept)}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any] | None:
    """The state in a file; None where there is no file. No code in it can run, and a damaged file is refused."""
    if not path.exists():
        return None
    wrong = InputError(
        f"{path}, which is no state of a run, or a damaged one",
        f"a file of format {FORMAT}",
        "name another file, or delete this one",
    )
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        whole = isinstance(found, dict) and found.get("format") == FORMAT and digest(found["state"]) == found["digest"]
        state = from_plain(found["state"]) if whole else None
    except Exception as error:  # whatever a file that nobody has checked can do to a reader
        raise wrong from error
    if not isinstance(state, dict):
        raise wrong
    return state


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
        elif isinstance(value, Mapping):
            for name in value:
                add(name)
                add(value[name])
        elif isinstance(value, list | tuple):
            for each in value:
                add(each)
        elif isinstance(value, str | int | float | bool | None):
            told.update(repr(value).encode())
        elif hasattr(value, "__dict__") and id(value) not in inside:
            inside.append(id(value))
            add(type(value).__name__)
            add(vars(value))
            inside.pop()

    add(batch)
    return told.hexdigest()
