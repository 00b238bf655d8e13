"""Tasks that say which lags they need: `synthetic`, `digits`, `opus`, `throttle`. Each is imported when first used."""

from importlib import import_module
from types import ModuleType

_MODULES = ("digits", "opus", "synthetic", "throttle")


def __getattr__(name: str) -> ModuleType:
    if name in _MODULES:
        return import_module(f"throughtime.tasks.{name}")
    raise AttributeError(f"module 'throughtime.tasks' has no attribute {name!r}")
