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


def test_integers_with_a_scale_of_their_own(tmp_path):
    """As quantised files have them: each array its own scale and zero point, over all layers of a stack."""
    rng = np.random.default_rng(3)
    rnn = nn.GRU(D, H, 2)
    whole, scale, zero = {}, {}, {}
    for name, value in rnn.state_dict().items():
        whole[f"net.{name}"] = rng.integers(0, 256, tuple(value.shape)).astype(np.uint8)
        scale[f"net.{name}"], zero[f"net.{name}"] = float(rng.uniform(0.002, 0.01)), int(rng.integers(100, 156))
    real = {
        name.removeprefix("net."): torch.from_numpy((value.astype(np.float64) - zero[name]) * scale[name]).float()
        for name, value in whole.items()
    }
    rnn.load_state_dict(real)
    np.savez(tmp_path / "uint8.npz", **whole)
    x = torch.from_numpy(X)
    made = tt.load(tmp_path / "uint8.npz", cell="gru", scale=scale, zero_point=zero)
    torch.testing.assert_close(made(x), rnn(x))
    one = tt.load(tmp_path / "uint8.npz", layer="net_l0", cell="gru", scale=scale, zero_point=zero)
    torch.testing.assert_close(one.weight_hh_l0, rnn.weight_hh_l0)
    fewer = {name: value for name, value in scale.items() if "bias" not in name}
    with pytest.raises(tt.ThroughtimeError, match=r"net\.bias_ih_l0 of uint8.*--scale net\.bias_ih_l0="):
        tt.load(tmp_path / "uint8.npz", cell="gru", scale=fewer, zero_point=zero)
    rest = tt.load(tmp_path / "uint8.npz", cell="gru", scale=fewer | {"": "1/128"}, zero_point=zero)
    np.testing.assert_allclose(
        rest.bias_hh_l1.detach(), (whole["net.bias_hh_l1"].astype(float) - zero["net.bias_hh_l1"]) / 128, rtol=1e-6
    )
    words = ["inspect", str(tmp_path / "uint8.npz"), "--cell", "gru"]
    for option, numbers in (("--scale", fewer), ("--zero-point", zero)):
        words += [word for name, number in numbers.items() for word in (option, f"{name}={number!r}")]
    assert "net.bias_ih_l0 of uint8" in CliRunner().invoke(main, words).output
    told = CliRunner().invoke(main, [*words, "--scale", "1/128"])
    assert told.exit_code == 0, told.output
    assert f"net_l0 (part of net): gru, {D} inputs, {H} units" in told.output
    twice = CliRunner().invoke(main, [*words, "--scale", "1/128", "--scale", "1/64"])
    assert twice.exit_code == 2
    assert "one number for each array" in twice.output


def test_quantised_arrays_beside_the_weights_have_scales_too():
    rng = np.random.default_rng(4)
    whole = {f"weight_{way}": rng.integers(-9, 9, (4 * H, size), np.int8) for way, size in (("ih", D), ("hh", H))}
    whole |= {"h0": rng.integers(-9, 9, H, np.int8), "cell": rng.integers(-9, 9, H, np.int8)}
    whole |= {f"p_{gate}": rng.integers(-9, 9, H, np.int8) for gate in "ifo"}
    scale = {name: (1 + place) / 64 for place, name in enumerate(whole)}
    real = {name: (value * scale[name]).astype(np.float32) for name, value in whole.items()}
    said = {"cell": "lstm", "initial_c": "cell", "peephole": "p_i,p_f,p_o"}
    x = torch.from_numpy(X)
    torch.testing.assert_close(tt.load(whole, scale=scale, **said)(x), tt.load(real, **said)(x))


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"cell": "lstm", "scale": {"weight_ih": "1/2"}}, "weight_ih, of float32"),
        ({"cell": "lstm", "scale": {"kernel": "1/2"}}, r"scale of 'kernel'.*weight_hh, weight_ih"),
        ({"cell": "lstm", "zero_point": {"kernel": 3}}, "zero_point of 'kernel'"),
        ({"cell": "lstm", "scale": "an eighth"}, "a number, or a fraction"),
        ({"cell": "lstm", "scale": "1/0"}, "a number, or a fraction"),
        ({"cell": "lstm", "scale": "0"}, "not zero"),
        ({"cell": "lstm", "scale": "1", "zero_point": "none"}, "zero_point 'none'"),
        ({"cell": "lstm", "forget_bias": "nan"}, "a number, or a fraction"),
        ({"cell": "gru", "forget_bias": "1"}, "for an LSTM only"),
        ({"cell": "gru", "output_activation": "relu"}, "for an LSTM only"),
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
