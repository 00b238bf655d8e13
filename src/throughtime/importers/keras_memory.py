"""A Keras 3 layer in memory as a torch module with the same weights: Keras runs its own loop, which cannot be recorded."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from throughtime.errors import InputError, UnsupportedError
from throughtime.importers.convention import recurrent
from throughtime.importers.keras import CELLS, ROLES, _found
from throughtime.importers.load import Reversed, read_as


def from_keras(layer: Any) -> nn.Module:
    """The same as `throughtime.load` of the saved layer: x (T, B, D) to (output, state), its weights copied.

    layer: a built keras.layers.LSTM, GRU or SimpleRNN, on any backend; of a Bidirectional one its forward_layer and
    backward_layer. Its real input is that of a sub-model: keras.Model(model.inputs, layer.input), time first.

    Raises InputError: another object, or a layer without weights yet; UnsupportedError: activations that cannot be explained.
    """
    kind = type(layer).__name__
    if kind not in CELLS or not type(layer).__module__.startswith("keras"):
        raise InputError(
            f"a {kind}", f"a Keras layer of {', '.join(CELLS)}", "pass one layer, e.g. model.get_layer('gru')"
        )
    if not layer.built:
        raise InputError(f"layer {layer.name!r} without weights", "a built layer", "call the model on data first")
    arrays = {ROLES[each.name]: _array(each) for each in layer.cell.trainable_variables + layer.cell.non_trainable_variables
              if each.name in ROLES}  # fmt: skip
    found = _found(layer.name, arrays, {"class_name": kind, "config": layer.get_config(), "keras_version": "3"})
    if found.refused:
        raise UnsupportedError(
            f"layer {layer.name!r}, {found.refused}",
            "a GRU, LSTM or SimpleRNN whose functions have a cell",
            "choose another layer",
        )
    made = recurrent(found.arrays, read_as(found, layer.name, {}))
    return Reversed(made) if found.reverse else made


def _array(variable: Any) -> np.ndarray:
    """A copy of a variable, on any backend."""
    value = variable.value
    return np.array(value.detach().cpu().numpy() if hasattr(value, "detach") else value)
