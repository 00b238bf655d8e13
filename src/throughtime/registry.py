"""What stands in a package: adding a rule or an importer is adding a file, and nobody lists it."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


def modules(package: str) -> Iterator[tuple[str, ModuleType]]:
    """The modules of a package, imported, by name and in order of their names."""
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        yield module.name, importlib.import_module(f"{package}.{module.name}")


def instances(package: str, base: type[T]) -> Iterator[T]:
    """One instance of each final subclass of `base` that a module of the package defines, in order of the modules' names."""
    for _, loaded in modules(package):
        for value in vars(loaded).values():
            own = inspect.isclass(value) and value.__module__ == loaded.__name__
            if own and issubclass(value, base) and not inspect.isabstract(value):
                yield value()
