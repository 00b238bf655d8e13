"""safetensors: named tensors and nothing that could run (extra: safetensors); read as a PyTorch state dict is."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from throughtime.errors import InputError, MissingExtraError
from throughtime.importers import importer
from throughtime.importers.importer import Found, Importer
from throughtime.importers.naming import torch_layers, wanted

LONGEST_HEADER = 100_000_000  # bytes; the format's own limit


class Safetensors(Importer):
    """A .safetensors file: eight bytes of length, a JSON header, data."""

    name: ClassVar[str] = "safetensors (.safetensors)"
    extra: ClassVar[str] = "safetensors"

    def reads(self, path: Path, head: bytes) -> bool:
        return len(head) > 8 and int.from_bytes(head[:8], "little") <= LONGEST_HEADER and head[8:9] == b"{"

    def layers(self, path: Path, trust: bool, also: frozenset[str] = frozenset()) -> list[Found]:
        try:
            from safetensors import safe_open
        except ImportError as error:
            raise MissingExtraError(
                "no module safetensors", "the extra [safetensors]", "pip install 'throughtime[safetensors]'"
            ) from error
        size = path.stat().st_size
        if size > importer.LARGEST:
            raise InputError(f"{size:,} bytes in {path}", f"at most {importer.LARGEST:,}", "check the file")
        try:
            with safe_open(path, framework="pt") as file:
                names = [name for name in file.keys() if wanted(name, also)]  # noqa: SIM118 (it is no mapping)
                return torch_layers({name: file.get_tensor(name) for name in names}, also)
        except InputError:
            raise
        except Exception as error:  # the library's own, and whatever a damaged header makes of torch
            said = (str(error) or type(error).__name__).partition("\n")[0]
            raise InputError(
                f"{path}, which cannot be read: {said[:200]}", "a whole .safetensors file", "write it anew"
            ) from error
