"""What a file of weights holds, layer by layer, before anything is asked of it: `throughtime inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from throughtime.diagnosis.diagnose import diagnose
from throughtime.diagnosis.finding import Finding
from throughtime.diagnosis.rule import registry
from throughtime.errors import InputError
from throughtime.importers.convention import Convention, recurrent
from throughtime.importers.importer import Found
from throughtime.importers.load import layers, read_as
from throughtime.recurrent import Recurrent

STEPS = 2  # of the probe: what is read of the weights does not depend on the data


@dataclass(frozen=True)
class Inspected:
    """A layer of a file.

    convention: how it is read, from the file and from what was said; None where a word is missing, or it is refused: `lacks`
    says what. inputs, units: D and H, where it could be read. findings: of the rules that need the weights alone. stack: the
    name of the whole that it is a part of, or "".
    """

    name: str
    reverse: bool
    convention: Convention | None
    lacks: str
    inputs: int | None
    units: int | None
    findings: tuple[Finding, ...]
    stack: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As plain Python, for JSON."""
        words = None if self.convention is None else self.convention.told()
        found = [{"code": each.code, "message": each.message, "remedy": each.remedy} for each in self.findings]
        return vars(self) | {"convention": words, "findings": found}


def inspect(file: str | Path, trust: bool = False, **said: str) -> list[Inspected]:
    """The recurrent layers that a file holds. trust, said: as of `throughtime.load`. Raises InputError as it does."""
    return [_inspected(found, str(file), said) for found in layers(file, trust)]


def _inspected(found: Found, file: str, said: Mapping[str, str]) -> Inspected:
    lacks, convention, layer = found.refused, None, None
    if not lacks:
        try:
            convention = read_as(found, file, dict(said))
            layer = recurrent(found.arrays, convention)
        except InputError as error:
            lacks, convention = f"{error.got}; expected {error.expected}", None
    inputs, units = (None, None) if layer is None else (layer.input_size, layer.hidden_size)
    findings = () if layer is None else of_weights(layer)
    return Inspected(found.name, found.reverse, convention, lacks, inputs, units, findings, found.stack)


def of_weights(layer: Recurrent | nn.LSTM) -> tuple[Finding, ...]:
    """What the rules say that need the weights alone."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(STEPS, 1, layer.input_size, generator=generator, dtype=next(layer.parameters()).dtype)
    return tuple(each for each in diagnose(layer, x).findings if registry()[each.code].static)
