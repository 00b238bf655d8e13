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
from throughtime.errors import InputError, ThroughtimeError
from throughtime.importers.beside import WithInitialState
from throughtime.importers.convention import Convention
from throughtime.importers.importer import Found
from throughtime.importers.load import layers, made_of, read_as, stacks_of, whole_of
from throughtime.recurrent import Recurrent

STEPS = 2  # of the probe: what is read of the weights does not depend on the data


@dataclass(frozen=True)
class Inspected:
    """A layer of a file.

    convention: how it is read, from the file and from what was said; None where a word is missing, or it is refused: `lacks`
    says what. inputs, units: D and H, where it could be read. findings: of the rules that need the weights alone. stack: the
    name of the smallest whole that it is a part of, or "". parts: names, of a whole stack; lacks says why it cannot be
    loaded whole. initial_state: whether it begins at a state of the file's, other than zero.
    """

    name: str
    reverse: bool
    convention: Convention | None
    lacks: str
    inputs: int | None
    units: int | None
    findings: tuple[Finding, ...]
    stack: str = ""
    parts: tuple[str, ...] = ()
    initial_state: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As plain Python, for JSON."""
        words = None if self.convention is None else self.convention.told()
        found = [{"code": each.code, "message": each.message, "remedy": each.remedy} for each in self.findings]
        return vars(self) | {"convention": words, "findings": found}


def inspect(file: str | Path, trust: bool = False, **said: Any) -> list[Inspected]:
    """The recurrent layers that a file holds, each stack before its parts.

    trust, said: as of `throughtime.load`. Raises InputError as it does.
    """
    held, told = layers(file, trust, said), []
    stacks = stacks_of(held)
    for found in held:
        told += [_whole(name, stacks.pop(name), str(file), dict(said)) for name in found.stacks if name in stacks]
        told.append(_inspected(found, str(file), said))
    return told


def _whole(name: str, parts: list[Found], file: str, said: dict[str, Any]) -> Inspected:
    """A stack, loaded to see whether it can be."""
    names = tuple(each.name for each in parts)
    try:
        made: Any = whole_of(parts, name, file, said)
        convention = read_as(parts[0], file, said)
    except ThroughtimeError as error:
        return Inspected(name, False, None, f"{error.got}; expected {error.expected}", None, None, (), parts=names)
    begins = any(isinstance(each, WithInitialState) for each in made.modules())
    inner: Any = next(each for each in made.modules() if isinstance(each, nn.RNNBase))
    return Inspected(
        name, False, convention, "", inner.input_size, inner.hidden_size, (), parts=names, initial_state=begins
    )


def _inspected(found: Found, file: str, said: Mapping[str, Any]) -> Inspected:
    lacks, convention, layer, states = found.refused, None, None, None
    if not lacks:
        try:
            convention = read_as(found, file, dict(said))
            layer, states = made_of(found, file, dict(said))
        except InputError as error:
            lacks, convention, layer = f"{error.got}; expected {error.expected}", None, None
    inputs, units = (None, None) if layer is None else (layer.input_size, layer.hidden_size)
    findings = () if layer is None else of_weights(layer)
    begins, stack = states is not None, next(reversed(list(found.stacks)), "")
    return Inspected(found.name, found.reverse, convention, lacks, inputs, units, findings, stack, initial_state=begins)


def of_weights(layer: Recurrent | nn.LSTM) -> tuple[Finding, ...]:
    """What the rules say that need the weights alone."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(STEPS, 1, layer.input_size, generator=generator, dtype=next(layer.parameters()).dtype)
    return tuple(each for each in diagnose(layer, x).findings if registry()[each.code].static)
