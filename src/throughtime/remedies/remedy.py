"""What every remedy is, and the registry of all of them.

A remedy is one file in this package: a frozen subclass of `Remedy`. `registered()` finds it there, and
tests/contracts/test_remedies.py then tests it; nothing else has to be touched.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, ClassVar

from torch import nn

from throughtime.errors import InputError
from throughtime.registry import instances


@dataclass(frozen=True)
class Remedy(ABC):
    """One change to a model that treats a finding; whether it helped is measured by `throughtime.verify.verify`.

    name: as the report and the command line say it.
    treats: codes of the findings it is prescribed for, e.g. ("TT101",).
    safe: True when only initial values change, and every parameter keeps its place and meaning: the user's own training
        code runs on as it is, a checkpoint loads as before.
    formula: what it sets, in one line.
    evidence: names of the measured values it needs, passed to `apply` and `lines` as keywords.
    references: where it comes from.
    """

    name: ClassVar[str]
    treats: ClassVar[tuple[str, ...]]
    safe: ClassVar[bool]
    formula: ClassVar[str]
    evidence: ClassVar[tuple[str, ...]]
    references: ClassVar[tuple[str, ...]]

    @abstractmethod
    def precondition(self, module: nn.Module) -> str | None:
        """Why this remedy cannot be used on the recurrent layer `module`, or None when it can."""

    @abstractmethod
    def lines(self, layer_name: str, **evidence: Any) -> str:
        """The lines of Python to paste, for a model called `model`; `layer_name` "" when it is the layer itself."""

    @abstractmethod
    def treat_(self, layer: nn.Module, **evidence: Any) -> nn.Module:
        """Treat `layer`, in place or by returning another layer to stand in its stead."""

    def apply(self, model: nn.Module, layer_name: str, **evidence: Any) -> nn.Module:
        """A treated copy of `model`; `model` itself stays as it is, to the last bit.

        layer_name: the recurrent layer's name in `model.named_modules()`, or "rnn" or "" when `model` is the layer
            itself.

        Raises InputError: no such layer, a precondition that does not hold, or evidence that is missing.
        """
        missing = [name for name in self.evidence if evidence.get(name) is None]
        if missing:
            raise InputError(
                f"no {' and no '.join(missing)} for the remedy {self.name}",
                f"{' and '.join(self.evidence)}",
                f"pass {missing[0]}=…",
            )
        layer, path = _layer(model, layer_name)
        objection = self.precondition(layer)
        if objection is not None:
            raise InputError(objection, f"a layer that {self.name} can treat", "see the remedy's documentation")
        treated = copy.deepcopy(model)
        old = treated.get_submodule(path)
        new = self.treat_(old, **evidence)
        if new is old:
            return treated
        if not path:
            return new
        parent, _, child = path.rpartition(".")
        setattr(treated.get_submodule(parent), child, new)
        return treated


@cache
def registered() -> Mapping[str, Remedy]:
    """All remedies by name: whatever stands in remedies/."""
    found = sorted(instances("throughtime.remedies", Remedy), key=lambda remedy: remedy.name)
    names = [remedy.name for remedy in found]
    if len(set(names)) < len(names):
        raise ValueError(f"two remedies have one name: {names}")
    return MappingProxyType(dict(zip(names, found, strict=True)))


def treating(code: str) -> tuple[Remedy, ...]:
    """The remedies prescribed for the finding `code`."""
    return tuple(remedy for remedy in registered().values() if code in remedy.treats)


def access(layer_name: str) -> str:
    """The Python expression for a layer of `model`; "" is the model itself."""
    if all(part.isidentifier() for part in layer_name.split(".")):
        return f"model.{layer_name}"
    return f"model.get_submodule({layer_name!r})" if layer_name else "model"


def _layer(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The layer and its path; "rnn" also stands for a model that is the layer itself."""
    modules = dict(model.named_modules(remove_duplicate=False))
    if name and name in modules:
        return modules[name], name
    if name in ("", "rnn") and isinstance(model, nn.RNNBase | nn.RNNCellBase):
        return model, ""
    raise InputError(
        f"the layer name {name!r}",
        f"one of {', '.join(key for key in modules if key) or 'rnn'}",
        "use a name from model.named_modules(), as the report prints it",
    )
