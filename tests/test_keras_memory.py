"""Keras layers in memory run as Keras runs them."""

from __future__ import annotations

import importlib
import os
import warnings

import numpy as np
import pytest
import torch

import throughtime as tt
from throughtime.importers.keras_memory import from_keras

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def keras():
    os.environ["KERAS_BACKEND"] = "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("keras")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LSTM", {}),
        ("GRU", {}),
        ("GRU", {"reset_after": False}),
        ("GRU", {"use_bias": False}),
        ("SimpleRNN", {"activation": "relu"}),
        ("LSTM", {"go_backwards": True}),
    ],
)
def test_a_layer_of_a_model_runs_as_kerass_own(kind, options, keras):
    keras.utils.set_random_seed(0)
    start = {"bias_initializer": "random_normal"} if options.get("use_bias", True) else {}
    layer = getattr(keras.layers, kind)(5, return_sequences=True, **start, **options)
    model = keras.Sequential([keras.Input((7, 4)), keras.layers.Dense(3), layer, keras.layers.Dense(1)])
    x = np.random.default_rng(0).normal(size=(2, 7, 4)).astype(np.float32)
    inner = keras.Model(model.inputs, layer.input)(x).detach()
    before = [np.array(weight) for weight in model.get_weights()]
    mine = from_keras(layer)
    output = mine(inner.transpose(0, 1))[0].transpose(0, 1)
    if options.get("go_backwards"):
        output = output.flip(1)  # Keras leaves it in the order of reading
    torch.testing.assert_close(output, layer(inner), rtol=1e-6, atol=1e-6)
    for was, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)
    assert tt.diagnose(mine, inner.transpose(0, 1).contiguous()).flow.residual < 1e-4


def test_what_is_not_such_a_layer_is_told(keras):
    with pytest.raises(tt.ThroughtimeError, match="get_layer"):
        from_keras(keras.Sequential([keras.layers.GRU(3)]))
    with pytest.raises(tt.ThroughtimeError, match="call the model"):
        from_keras(keras.layers.GRU(3))
    layer = keras.layers.GRU(3, activation="relu")
    layer.build((None, 4, 2))
    with pytest.raises(tt.ThroughtimeError, match="relu"):
        from_keras(layer)
