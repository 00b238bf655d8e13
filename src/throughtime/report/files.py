"""Writing a page: whole, or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from throughtime.errors import InputError


def write_whole(path: str | Path, text: str) -> Path:
    """Write `text` to `path` as UTF-8.

    Raises:
        InputError: the path cannot be written. Nothing is left behind, and a file that was there stays as it was.
    """
    path, data = Path(path), text.encode("utf-8")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            part.write_bytes(data)
            os.replace(part, path)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink()
            raise
    except OSError as error:
        raise InputError(
            f"an output path that cannot be written: {path} ({error.strerror or error})",
            "a file name in a folder that exists and is writable",
            "create the folder, or give another path",
        ) from error
    return path
