"""Networks of other libraries, told without importing them, and what to do with them."""

from __future__ import annotations

from typing import Any

FROM_KERAS = (
    "make a torch module of each recurrent layer: throughtime.importers.keras_memory.from_keras(model.get_layer(…)); "
    "or save the model and load the file"
)


def is_keras(thing: Any) -> bool:
    """Whether it is a Keras layer or model, of any backend."""
    return any(each.__module__.split(".")[0] == "keras" for each in type(thing).__mro__)
