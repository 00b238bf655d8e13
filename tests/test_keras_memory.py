"""Keras layers in memory run as Keras runs them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import throughtime as tt
from throughtime.importers.keras_memory import from_keras

pytestmark = pytest.mark.filterwarnings("ignore")


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
    layer = keras.layers.GRU(3, activation="softsign")
    layer.build((None, 4, 2))
    with pytest.raises(tt.ThroughtimeError, match="softsign"):
        from_keras(layer)


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3), ("SimpleRNN", 1)])
def test_the_module_in_the_layers_place_has_the_layers_own_gradient(kind, gates, keras):
    """Keras's own autograd on the torch backend is the truth: the same loss through the layer itself."""
    keras.utils.set_random_seed(1)
    layer = getattr(keras.layers, kind)(5, return_sequences=True)
    model = keras.Sequential([keras.Input((7, 4)), keras.layers.Dense(3), layer, keras.layers.Dense(1)])
    x, y = np.random.default_rng(1).normal(size=(2, 2, 7, 4)).astype(np.float32)
    loss = torch.nn.MSELoss()
    target = torch.from_numpy(y[..., :1])
    loss(model(x), target).backward()
    theirs = layer.cell.recurrent_kernel.value.grad.T.unflatten(0, (gates, 5))
    before, after = keras.Model(model.inputs, layer.input), model.layers[-1]
    mine = from_keras(layer)
    with tt.record(mine) as record:
        loss(after(mine(before(x).transpose(0, 1))[0].transpose(0, 1)), target).backward()
    order = {"LSTM": [0, 1, 2, 3], "GRU": [1, 0, 2], "SimpleRNN": [0]}[kind]
    torch.testing.assert_close(mine.weight_hh_l0.grad.unflatten(0, (gates, 5)), theirs[order], rtol=1e-4, atol=1e-6)
    assert record.flow(demand=False).residual < 1e-4


def test_a_keras_object_is_told_its_own_way(keras):
    """Wherever a torch module or a file is expected; nothing of Keras is imported for it."""
    model = keras.Sequential([keras.Input((7, 4)), keras.layers.GRU(3)])
    x = torch.zeros(2, 7, 4)
    for thing in (model, model.layers[0], torch.nn.Sequential(model)):
        with pytest.raises(tt.ThroughtimeError, match=r"keras_memory\.from_keras"):
            tt.record(thing)
        with pytest.raises(tt.ThroughtimeError, match=r"keras_memory\.from_keras"):
            tt.diagnose(thing, x)
    for thing in (model, model.layers[0]):
        with pytest.raises(tt.ThroughtimeError, match=r"keras_memory\.from_keras"):
            tt.load(thing)
    with pytest.raises(tt.ThroughtimeError, match=r"throughtime\.record"):
        tt.load(torch.nn.GRU(2, 3))
    with pytest.raises(tt.ThroughtimeError, match="path"):
        tt.load(3)
    with pytest.raises(tt.ThroughtimeError) as told:
        tt.record(torch.nn.Linear(2, 3))
    assert "keras" not in str(told.value)
