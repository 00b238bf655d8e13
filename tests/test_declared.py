"""What a file of arrays does not say and the user declares: against the runtime's own arithmetic, written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import throughtime as tt
from throughtime.cli import main

D, H, T = 3, 4, 6
RNG = np.random.default_rng(2)
X = RNG.normal(size=(T, 1, D)).astype(np.float32)


def sigmoid(value: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-value))


def lstm_states(kernel, recurrent, bias, offset: float) -> np.ndarray:
    """TensorFlow 1's BasicLSTMCell: gates i, j, f, o in columns, the offset added when it runs."""
    h, c, states = np.zeros(H), np.zeros(H), []
    for x in X[:, 0]:
        i, j, f, o = np.split(x @ kernel + h @ recurrent + bias, 4)
        c = sigmoid(f + offset) * c + sigmoid(i) * np.tanh(j)
        h = sigmoid(o) * np.tanh(c)
        states.append(h)
    return np.stack(states)


@pytest.mark.parametrize("offset", ["1", "2.5"])
@pytest.mark.parametrize("biased", [True, False])
def test_the_forget_bias_that_a_runtime_adds(offset, biased):
    kernel, recurrent, bias = (RNG.normal(size=size).astype(np.float32) for size in ((D, 4 * H), (H, 4 * H), 4 * H))
    arrays = {"kernel": kernel, "recurrent_kernel": recurrent} | ({"bias": bias} if biased else {})
    layer = tt.load(arrays, cell="lstm", gates="icfo", layout="x@W", forget_bias=offset)
    expected = lstm_states(kernel, recurrent, bias if biased else 0, float(offset))
    np.testing.assert_allclose(layer(torch.from_numpy(X))[0][:, 0].detach(), expected, atol=1e-6)


def test_integers_with_their_scale(tmp_path):
    """Weights in 128ths, as in codecs; a bias of floats among them stays as it is."""
    kernel, recurrent = (RNG.integers(-128, 128, size, np.int8) for size in ((D, 4 * H), (H, 4 * H)))
    bias = RNG.normal(size=4 * H).astype(np.float32)
    np.savez(tmp_path / "int8.npz", kernel=kernel, recurrent_kernel=recurrent, bias=bias)
    said = {"cell": "lstm", "gates": "icfo", "layout": "x@W"}
    with pytest.raises(tt.ThroughtimeError, match=r"int8.*--scale"):
        tt.load(tmp_path / "int8.npz", **said)
    expected = lstm_states(kernel / 128, recurrent / 128, bias, 0)
    for scale in ("1/128", "0.0078125"):
        layer = tt.load(tmp_path / "int8.npz", scale=scale, **said)
        np.testing.assert_allclose(layer(torch.from_numpy(X))[0][:, 0].detach(), expected, atol=1e-6)
    words = [f"--{name}={word}" for name, word in (said | {"scale": "1/128", "forget-bias": "1"}).items()]
    told = CliRunner().invoke(main, ["inspect", str(tmp_path / "int8.npz"), *words])
    assert told.exit_code == 0, told.output
    assert "scale 1/128, forget_bias 1" in told.output


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"cell": "lstm", "scale": "an eighth"}, "a number, or a fraction"),
        ({"cell": "lstm", "scale": "1/0"}, "a number, or a fraction"),
        ({"cell": "lstm", "scale": "0"}, "not zero"),
        ({"cell": "lstm", "forget_bias": "nan"}, "a number, or a fraction"),
        ({"cell": "gru", "forget_bias": "1"}, "for an LSTM only"),
    ],
)
def test_what_is_no_such_number_is_said(said, words):
    rows = {"lstm": 4, "gru": 3}[said["cell"]] * H
    arrays = {"weight_ih": np.ones((rows, D), np.float32), "weight_hh": np.ones((rows, H), np.float32)}
    with pytest.raises(tt.ThroughtimeError, match=words):
        tt.load(arrays, **said)


@pytest.mark.parametrize("form", ["tensors", "arrays"])
def test_arrays_in_memory(form):
    """Tensors named as torch's are a state dict, whole stacks too; other arrays are read as a convention says."""
    rnn = nn.GRU(D, H, 2, bidirectional=True)
    state = {f"net.rnn.{name}": value for name, value in rnn.state_dict().items()} | {"head.weight": torch.ones(2, 2)}
    given = state if form == "tensors" else {name: value.numpy() for name, value in state.items()}
    made = tt.load(given, **({} if form == "tensors" else {"cell": "gru"}))
    x = torch.from_numpy(X)
    torch.testing.assert_close(made(x)[0], rnn(x)[0])
    with torch.no_grad():
        next(made.parameters()).zero_()  # a copy: the model's own stays
    assert rnn.weight_ih_l0.abs().min() > 0
    with pytest.raises(tt.ThroughtimeError, match="the arrays, in which no array is named"):
        tt.load({"head.weight": torch.ones(2, 2)})
    with pytest.raises(tt.ThroughtimeError, match="arrays of numbers"):
        tt.load({"weight_ih": "none", "weight_hh": np.ones((3, 1))})
