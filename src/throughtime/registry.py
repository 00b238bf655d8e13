"""What stands in a package: adding a rule or an importer is adding a file, and nobody lists it."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


def instances(package: str, base: type[T]) -> Iterator[T]:
    """One instance of each final subclass of `base` that a module of the package defines, in order of the modules' names."""
    where = importlib.import_module(package)
    for module in pkgutil.iter_modules(where.__path__):
        loaded = importlib.import_module(f"{package}.{module.name}")
        for value in vars(loaded).values():
            own = inspect.isclass(value) and value.__module__ == loaded.__name__
            if own and issubclass(value, base) and not inspect.isabstract(value):
                yield value()
