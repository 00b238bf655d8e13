"""Zip archives from anywhere: what they hold, and that it is not too much, before anything in them is unpacked."""

from __future__ import annotations

import zipfile
from io import BytesIO
from pathlib import Path

from throughtime.errors import InputError
from throughtime.importers import importer


def names(path: Path | BytesIO) -> list[str]:
    """Of the entries; none of a file that is no archive, or a damaged one."""
    return [entry.filename for entry in _entries(path)]


def check_size(path: Path | BytesIO) -> None:
    """Raise InputError where the entries together claim more than is read of any file. A file that is no archive passes."""
    size = sum(entry.file_size for entry in _entries(path))
    if size > importer.LARGEST:
        place = path if isinstance(path, Path) else "an archive in the file"
        raise InputError(f"arrays of {size:,} bytes in {place}", f"at most {importer.LARGEST:,}", "check the file")


def _entries(path: Path | BytesIO) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except Exception:  # zipfile has many for what is damaged: struct.error, NotImplementedError, UnicodeDecodeError, …
        return []
