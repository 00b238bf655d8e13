"""PyTorch: a state dict, under any prefix and nesting, as torch.save wrote it.

Names are torch's: `….weight_ih_l0`, `_l1` of a stack, `_reverse`, and those of single-step cells, `….weight_ih`. How many gates
are stacked says which layer it is: 3 a GRU (reset after the product), 4 an LSTM, 1 an RNN, whose activation is not in the file.

It is read with weights_only=True, which builds tensors and plain containers and runs nothing. A whole pickled module and a
TorchScript archive run code when they are loaded: only with `trust`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from throughtime.errors import InputError
from throughtime.importers import archive
from throughtime.importers.importer import Found, Importer
from throughtime.importers.naming import torch_layers

DEEPEST = 20  # levels of nested containers that are looked into
SCRIPT = "constants.pkl"  # in every TorchScript archive, and in no other


class StateDict(Importer):
    """torch.save of a state dict, or of a checkpoint that holds one; with trust also modules and TorchScript."""

    name: ClassVar[str] = "PyTorch state dict (.pt, .pth, .bin, .ckpt)"
    trusted: ClassVar[str] = "pickles of whole modules, TorchScript"
    refuses: ClassVar[str] = "quantized and sparse tensors"

    def reads(self, path: Path, head: bytes) -> bool:
        if head[:2] == b"\x80\x02" and b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19" in head:
            return True  # the magic number of torch.save before 1.6
        return any(name.endswith(("/data.pkl", f"/{SCRIPT}")) for name in archive.names(path))

    def layers(self, path: Path, trust: bool, also: frozenset[str] = frozenset()) -> list[Found]:
        return torch_layers(dict(_tensors(saved(path, trust))), also)


def saved(path: Path, trust: bool) -> Any:
    """What torch.save wrote; without trust only tensors and plain containers. Raises InputError."""
    archive.check_size(path)
    script = any(name.endswith(f"/{SCRIPT}") for name in archive.names(path))
    if script and not trust:
        raise _untrusted(path, "a TorchScript archive, which can run code")
    try:
        if script:
            return torch.jit.load(str(path), map_location="cpu").state_dict()
        loaded = torch.load(path, map_location="cpu", weights_only=not trust)
    except Exception as error:  # pickle, zip and torch have their own for damaged and hostile files
        said = (str(error) or type(error).__name__).partition("\n")[0]
        if not trust and ("weights_only" in str(error) or "Weights only" in str(error)):
            raise _untrusted(path, "a pickle of more than weights, which can run code") from error
        raise InputError(
            f"{path}, which cannot be read: {said[:200]}",
            "a whole file that torch.save wrote",
            "write it anew: torch.save(model.state_dict(), path)",
        ) from error
    return loaded.state_dict() if isinstance(loaded, nn.Module) else loaded


def _untrusted(path: Path, what: str) -> InputError:
    return InputError(
        f"{path}: {what} when it is loaded",
        "a state dict, or your word that you trust the file",
        "save model.state_dict(); or, if you know where it comes from, pass --trust (trust=True)",
    )


def _tensors(loaded: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of nested mappings, by its path."""
    if isinstance(loaded, Tensor):
        yield prefix, loaded
    elif isinstance(loaded, nn.Module):
        yield from _tensors(loaded.state_dict(), prefix, depth + 1)
    elif isinstance(loaded, Mapping) and depth < DEEPEST:
        for key, value in loaded.items():
            yield from _tensors(value, f"{prefix}.{key}" if prefix else str(key), depth + 1)
