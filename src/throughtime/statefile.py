"""A run's state in a file: what was added up so far, so that it can go on. Written whole or not at all, after every batch."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from throughtime.errors import InputError
from throughtime.sums import from_plain, plain

FORMAT = "throughtime-state/1"


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state; the file that was there stays whole until the new one is."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            torch.save({"format": FORMAT, "state": plain(state)}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any] | None:
    """The state in a file; None where there is no file. No code in it can run."""
    if not path.exists():
        return None
    wrong = InputError(
        f"{path}, which is no state of a run", f"a file of format {FORMAT}", "name another file, or delete this one"
    )
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        raise wrong from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise wrong
    try:
        return from_plain(found["state"])
    except (KeyError, TypeError) as error:
        raise wrong from error


def digest(batch: Any) -> str:
    """Of all numbers in a batch: whether a loader gives the same again."""
    told = hashlib.blake2b(digest_size=8)

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            add(value.detach().cpu().contiguous().view(torch.uint8).numpy() if value.numel() else tuple(value.shape))
        elif isinstance(value, np.ndarray):
            told.update(np.ascontiguousarray(value).view(np.uint8).data)
        elif isinstance(value, Mapping):
            for name in value:
                add(name)
                add(value[name])
        elif isinstance(value, list | tuple):
            for each in value:
                add(each)
        elif isinstance(value, str | int | float | bool | None):
            told.update(repr(value).encode())

    add(batch)
    return told.hexdigest()
