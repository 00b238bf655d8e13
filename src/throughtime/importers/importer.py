"""What an importer is: it knows a format by its content, and tells the recurrent layers that a file holds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from throughtime.errors import InputError
from throughtime.registry import instances

LARGEST = 2**31
"""Bytes of all arrays together that are read of a file; a small file may claim much more."""
HEAD = 512  # bytes of a file that an importer is shown


@dataclass(frozen=True)
class Found:
    """A recurrent layer in a file.

    name: in the file. arrays: by role (`ROLES`), as they lie there. stated: words of the convention that the format or the
    file itself says (see `Convention`). choices: where the cell is not stated, what it may be. reverse: whether it reads the
    sequence from its end. refused: why it cannot be loaded, or "". stacks: the wholes that it is a part of, by name, the
    largest first, with its level there from the input on; row: its own among the states of the whole, and how many there are.
    merge: how outputs of both directions become one: "concat", as in torch, "sum", "mul", "ave", or "none" where they stay two.
    names: of the arrays in the file, by role, where they have any. beside: arrays by their names in the file that may belong
    to it, its initial state by their name or whatever an option names; unsure: those among them that may be another layer's.
    """

    name: str
    arrays: Mapping[str, np.ndarray]
    stated: Mapping[str, str] = field(default_factory=dict)
    choices: tuple[str, ...] = ()
    reverse: bool = False
    refused: str = ""
    stacks: Mapping[str, int] = field(default_factory=dict)
    row: tuple[int, int] = (0, 1)
    merge: str = "concat"
    names: Mapping[str, str] = field(default_factory=dict)
    beside: Mapping[str, np.ndarray] = field(default_factory=dict)
    unsure: frozenset[str] = frozenset()


class Importer(ABC):
    """A format, in one file of importers/.

    name: as a person calls it, and its suffixes. extra: the optional dependency that it needs. trusted: what is read only
    with `trust`. refuses: what is refused by name, though the format has it. Nothing here runs code from a file or opens
    another one, unless `trust` says so.
    """

    name: ClassVar[str]
    extra: ClassVar[str] = ""
    trusted: ClassVar[str] = ""
    refuses: ClassVar[str] = ""

    @abstractmethod
    def reads(self, path: Path, head: bytes) -> bool:
        """Whether the file is of this format, by its content; head: its first bytes."""

    @abstractmethod
    def layers(self, path: Path, trust: bool, also: frozenset[str] = frozenset()) -> list[Found]:
        """The recurrent layers of the file, in its order. also: names of arrays that go into `Found.beside`.

        Raises InputError for a file that is damaged, too large, or would run code and is not trusted.
        """


@cache
def registry() -> Mapping[str, Importer]:
    """All importers by name: whatever stands in importers/."""
    return {each.name: each for each in instances("throughtime.importers", Importer)}


def of(path: str | Path) -> Importer:
    """The importer that reads this file. Raises InputError: no such file, or none of the formats."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise InputError(
            f"the file {path}, which cannot be opened: {error.strerror}", "a file of weights", "check the path"
        ) from error
    for importer in registry().values():
        if importer.reads(path, head):
            return importer
    raise InputError(
        f"the file {path}, of none of the formats that are read",
        " or ".join(registry()),
        "save the weights in one of them, e.g. torch.save(model.state_dict(), …)",
    )
