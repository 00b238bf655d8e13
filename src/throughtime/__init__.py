"""throughtime: how far back a recurrent network learns, how far back its loss needs it to, and what helps."""

from importlib import import_module
from typing import Any

__version__: str
# Names are found when first used, so that the command line's --help need import neither torch nor importlib.metadata.
_PUBLIC = {
    "record": "recording.recorder",
    "Record": "recording.recorder",
    "Flow": "flow",
    "LayerFlow": "flow",
    "diagnose": "diagnosis.diagnose",
    "Report": "diagnosis.report",
    "Finding": "diagnosis.finding",
    "Demand": "demand",
    "ThroughtimeError": "errors",
    "plot_lags": "plot",
    "Options": "asked",
    "load": "importers.load",
    "register_cell": "recording.own",
    "window": "truncation.choose",
    "WindowReport": "truncation.result",
}
_MODULES = ("cells", "demand", "errors", "init", "lightning", "reducers", "tasks", "theory")

__all__ = ["__version__", *_PUBLIC, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"throughtime.{_PUBLIC[name]}"), name)
    if name == "__version__":
        return import_module("importlib.metadata").version("throughtime")
    if name in _MODULES:
        return import_module(f"throughtime.{name}")
    raise AttributeError(f"module 'throughtime' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
