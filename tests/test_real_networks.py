"""The atlas's networks: each layer runs as its own runtime runs it, and its decomposition adds up on its own input."""

from __future__ import annotations

import ast
import collections.abc
import importlib
import importlib.util
import os
import subprocess
import sys
import types
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from examples.atlas import fetching, measure, networks
from examples.atlas.network import Network
from examples.atlas.networks import g2p_en, g2pm, khmer, madmom, silero, textgenrnn
from reproduce.answer import g2p

import throughtime as tt
from throughtime.importers.onnx_run import input_of
from throughtime.tasks import opus as opus_arrays
from throughtime.tasks import opus_demo

pytestmark = [pytest.mark.network, pytest.mark.filterwarnings("ignore")]


def check_opus(network: Network) -> None:
    """Against the states of the codec's own C code."""
    states = network.model.rnn(opus_demo.inputs())[0].squeeze(1)
    np.testing.assert_allclose(states.detach(), opus_arrays.load().reference_states, atol=1e-5)


def check_silero(network: Network) -> None:
    """Against the package's own call, chunk by chunk, and its front end against that of the ONNX file of the same package."""
    script = torch.jit.load(str(silero.PACKAGE.file(silero.SCRIPT)))
    x, samples = silero.features(script), silero.speech()
    samples = torch.nn.functional.pad(samples, (0, -len(samples) % silero.CHUNK))
    with torch.no_grad():
        told = [script(chunk.unsqueeze(0), 16000).flatten() for chunk in samples.split(silero.CHUNK)]
    own = network.model(x).sigmoid().squeeze(1).detach()
    torch.testing.assert_close(own, torch.cat(told), rtol=1e-5, atol=1e-5)
    path, chunks = silero.PACKAGE.file("silero_vad/data/silero_vad.onnx"), silero.chunks(silero.speech()).numpy()
    given = {"input": chunks, "state": np.zeros((2, len(chunks), 128), np.float32), "sr": np.array(16000)}
    expected = input_of(path, given, "If_0_then_branch__Inline_0__/decoder/rnn/LSTM").reshape(len(chunks), 128)
    torch.testing.assert_close(x.squeeze(1), expected, rtol=1e-5, atol=2e-5)


def check_g2p_en(network: Network) -> None:
    """Against the package's arithmetic, written out in numpy: the encoder's last state and every decoder step."""
    arrays = np.load(g2p_en.PACKAGE.file(g2p_en.ARRAYS))

    def cell(x, h, part):
        ins = x @ arrays[f"{part}_w_ih"].T + arrays[f"{part}_b_ih"]
        back = h @ arrays[f"{part}_w_hh"].T + arrays[f"{part}_b_hh"]
        r, z = (1 / (1 + np.exp(-(ins[:, k : k + 256] + back[:, k : k + 256]))) for k in (0, 256))
        return z * h + (1 - z) * np.tanh(ins[:, 512:] + r * back[:, 512:])

    letters = g2p.letters(g2p.words())
    h = np.zeros((letters.shape[1], 256), np.float32)
    for letter in letters:
        h = cell(arrays["enc_emb"][letter], h, "enc")
    word = network.model.encoder(network.model.enc_emb[letters])[1]
    np.testing.assert_allclose(word[0].detach(), h, atol=1e-5)
    sounds = torch.arange(3, 12).unsqueeze(1).expand(-1, letters.shape[1])
    output, states = network.model.decoder(network.model.dec_emb[sounds], word)[0], []
    for sound in sounds:
        h = cell(arrays["dec_emb"][sound], h, "dec")
        states.append(h)
    np.testing.assert_allclose(output.detach(), np.stack(states), atol=1e-5)


def check_khmer(network: Network) -> None:
    """Against the whole model in Keras on torch: the probabilities of every sign."""
    os.environ["KERAS_BACKEND"] = "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = importlib.import_module("keras").saving.load_model(khmer.PACKAGE.file(khmer.MODEL), compile=False)
    words = khmer.words()
    heard = torch.arange(3, 20).unsqueeze(1).expand(-1, words.shape[1])
    expected = model([words.T.numpy(), heard.T.numpy()]).detach().cpu().numpy()
    own = network.model.logits(words, heard).softmax(-1).detach().numpy()
    np.testing.assert_allclose(own.transpose(1, 0, 2), expected, atol=1e-5)


def check_textgenrnn(network: Network) -> None:
    """Against the network as its model.py builds it, in Keras on torch, weights converted by Keras 2.3.1's own function."""
    import h5py

    os.environ["KERAS_BACKEND"] = "torch"
    keras = importlib.import_module("keras")
    convert = conversion(fetching.FILES)
    with h5py.File(textgenrnn.PACKAGE.file(textgenrnn.WEIGHTS)) as file:
        arrays = {name: np.asarray(value) for name, value in leaves(file)}
    rnns = []
    for name in ("rnn_1", "rnn_2"):
        rnn = keras.layers.LSTM(128, return_sequences=True)
        rnn.build((None, 40, 100 if name == "rnn_1" else 128))
        three = [arrays[f"{name}/{part}:0"] for part in ("kernel", "recurrent_kernel", "bias")]
        rnn.set_weights(convert(type("LSTM", (), {})(), three))
        rnns.append(rnn)
    text = textgenrnn.texts()
    x = arrays["embedding/embeddings:0"][text.T.numpy()]
    first = rnns[0](x)
    whole = np.concatenate([x, *(each.detach().numpy() for each in (first, rnns[1](first)))], axis=2)
    weight = np.exp(whole @ arrays["attention/attention_W:0"])
    seen = (whole * weight).sum(1) / weight.sum(1)
    expected = torch.from_numpy(seen @ arrays["output/kernel:0"] + arrays["output/bias:0"]).softmax(-1)
    torch.testing.assert_close(network.model(text).softmax(-1).detach(), expected, rtol=1e-5, atol=1e-5)


def leaves(file: Any) -> list[tuple[str, Any]]:
    """The arrays of a Keras file, by layer and name."""
    found = []
    file.visititems(lambda name, each: found.append((name, each)) if hasattr(each, "shape") else None)
    return [("/".join(name.split("/")[-2:]), each) for name, each in found]


def conversion(folder: Path) -> Any:
    """Keras 2.3.1's own function that makes a plain LSTM's weights of a CuDNNLSTM's."""
    wheel = folder / "Keras-2.3.1-py2.py3-none-any.whl"
    if not wheel.exists():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*command, "-d", str(folder), "keras==2.3.1"], check=True)
    with zipfile.ZipFile(wheel) as archive:
        saving = ast.parse(archive.read("keras/engine/saving.py").decode())
    wanted = [each for each in saving.body if getattr(each, "name", "") == "_convert_rnn_weights"]
    names: dict = {"np": np}
    exec(compile(ast.Module(wanted, []), "saving.py", "exec"), names)
    return names["_convert_rnn_weights"]


def check_g2pm(network: Network) -> None:
    """Against the package's own class, which is numpy, sentence by sentence; its pickles are read without running them."""
    with pytest.raises(tt.ThroughtimeError):
        tt.load(g2pm.PACKAGE.file("g2pM/np_ckpt.pkl"))
    theirs = source(g2pm.PACKAGE.file("g2pM/g2pM.py"), "g2pM").G2pM
    package = theirs.__new__(theirs)
    package.load_variable(fetching.unpickled(g2pm.PACKAGE.file("g2pM/np_ckpt.pkl")))
    told: list[np.ndarray] = []
    package.fc_layer = lambda states: told.append(theirs.fc_layer(package, states)) or told[-1]
    rows, asked = g2pm.numbered(g2pm.sentences())
    logits = network.model(rows).detach()
    for place, row in enumerate(rows):
        at = asked[: len(row), place].nonzero().flatten().tolist()
        package.predict(row[None].numpy(), at)
        np.testing.assert_allclose(logits[at, place], told[-1], rtol=1e-5, atol=1e-5)


def source(path: Path, name: str) -> Any:
    """A module of a fetched package, run from its source."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_madmom(network: Network) -> None:
    """Against the package's own audio code and its own layers, both in float64.

    In float32 the two differ by 4e-5 after 500 steps of one excerpt: rounding grows over three layers of long memory.
    """
    pieces = [piece[: 20 * madmom.RATE] for piece in madmom.music()]
    x = madmom.excerpts(pieces).double()
    with theirs() as modules:
        for piece in pieces:
            np.testing.assert_allclose(madmom.features(piece), own_features(modules, piece), atol=1e-5)
        modules.layers.NN_DTYPE = np.float64
        net = revived(fetching.unpickled(madmom.PACKAGE.file(madmom.MODEL)), modules)
        expected = np.stack([net.process(x[:, place].numpy()) for place in range(x.shape[1])], axis=1)
    model = madmom.Beats(fetching.unpickled(madmom.PACKAGE.file(madmom.MODEL))).double()
    model.start = [tuple(part.double() for part in state) for state in model.start]
    torch.testing.assert_close(model(x).sigmoid().detach(), torch.from_numpy(expected), rtol=0, atol=1e-9)


CHECKS = {
    "opus": check_opus,
    "silero": check_silero,
    "madmom": check_madmom,
    "g2p_en": check_g2p_en,
    "khmer": check_khmer,
    "textgenrnn": check_textgenrnn,
    "g2pm": check_g2pm,
}


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_it_runs_as_its_own_runtime_and_its_terms_add_up(name):
    network = networks.NETWORKS[name]()
    CHECKS[name](network)
    flow = tt.diagnose(network.model, [None], network.loss, layers=measure.layers(network), **measure.LESS).flow
    assert set(flow.layers) == set(network.layers)
    assert all(layer.error < 1e-4 and layer.residual < 1e-4 for layer in flow.layers.values())


# --- madmom: every recurrent layer of its models, in its own code -----------------------------------------------------


PARTS = (
    "audio.signal",
    "audio.stft",
    "audio.filters",
    "audio.spectrogram",
    "ml.nn",
    "ml.nn.layers",
    "ml.nn.activations",
)
MEMBERS = (*PARTS, "processors", "io.audio", "utils")
PACKAGES = ("ml.nn", "utils")  # whose __init__ is read; those of others import what must be compiled


@contextmanager
def theirs() -> Iterator[types.SimpleNamespace]:
    """madmom's own modules out of its sdist, as far as they are plain Python, by the last part of their names.

    Names that Python and numpy have dropped since 2018 stand in while it lasts.
    """
    folder = fetching.FILES / "madmom-source"
    for member in MEMBERS:
        path = f"madmom/{member.replace('.', '/')}{'/__init__' * (member in PACKAGES)}.py"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(madmom.PACKAGE.read(f"madmom-0.16.1/{path}"))
    with pytest.MonkeyPatch.context() as patch:
        for package in ("madmom", "madmom.audio", "madmom.io", "madmom.ml"):
            empty = types.ModuleType(package)
            empty.__path__ = [str(folder / package.replace(".", "/"))]
            patch.setitem(sys.modules, package, empty)
        patch.setattr(collections, "MutableSequence", collections.abc.MutableSequence, raising=False)
        for name, kind in (("float", float), ("int", int), ("bool", bool)):
            patch.setattr(np, name, kind, raising=False)
        made = {part: importlib.import_module(f"madmom.{part}") for part in PARTS}
        yield types.SimpleNamespace(**{part.rpartition(".")[2]: module for part, module in made.items()})
    for name in [name for name in sys.modules if name.partition(".")[0] == "madmom"]:
        del sys.modules[name]


def own_features(modules: Any, samples: np.ndarray) -> np.ndarray:
    """What RNNBeatProcessor(online=True) makes of a signal, by the same processors."""
    signal = modules.signal.Signal(samples, sample_rate=madmom.RATE, num_channels=1)
    x = modules.signal.FramedSignalProcessor(frame_size=2048)(signal)
    x = modules.stft.ShortTimeFourierTransformProcessor()(x)
    spectrogram = modules.spectrogram
    x = spectrogram.FilteredSpectrogramProcessor(num_bands=12, fmin=30, fmax=17000, norm_filters=True)(x)
    x = spectrogram.LogarithmicSpectrogramProcessor(mul=1, add=1)(x)
    grown = {"diff_ratio": 0.5, "positive_diffs": True, "stack_diffs": np.hstack}
    return np.asarray(spectrogram.SpectrogramDifferenceProcessor(**grown)(x))


def revived(kept: Any, modules: types.SimpleNamespace) -> Any:
    """What a pickle held, as objects of madmom's own classes."""
    if isinstance(kept, list):
        return [revived(each, modules) for each in kept]
    if isinstance(kept, type):
        return getattr(modules.activations, kept.__name__)
    if not isinstance(kept, fetching.Kept):
        return kept
    name = type(kept).__name__
    kind = modules.nn.NeuralNetwork if name == "NeuralNetwork" else getattr(modules.layers, name)
    state = {key: revived(value, modules) for key, value in vars(kept).items() if key != "given"}
    made = kind.__new__(kind)
    made.__setstate__(state) if hasattr(kind, "__setstate__") else vars(made).update(state)
    return made


def summed(state: Any) -> Any:
    """The loss of a bare layer: all its outputs added up."""

    def loss(model: Any, x: torch.Tensor) -> torch.Tensor:
        return model(x, state)[0].sum()

    return loss


MODELS = {  # and how many layers each has, both directions counted
    "onsets/2013/onsets_rnn_1": 3,  # tanh
    "onsets/2013/onsets_brnn_1": 6,
    "notes/2013/notes_brnn": 6,
    "beats/2016/beats_lstm_1": 3,  # LSTM with peepholes
    "beats/2015/beats_blstm_1": 6,
    "downbeats/2016/downbeats_blstm_1": 6,
    "downbeats/2016/downbeats_bgru_rhythmic_0": 4,  # GRU from a learned state, z takes the candidate
    "downbeats/2016/downbeats_bgru_harmonic_0": 4,
}


@pytest.mark.parametrize(("name", "layers"), MODELS.items())
def test_madmoms_layers(name, layers):
    """Every recurrent layer of a model, each fed by madmom's own layer below it; and its terms add up.

    The lowest reads noise as large as features are: the models of both directions need beats or several spectrograms at once.
    """
    kept = fetching.unpickled(madmom.PACKAGE.file(f"{madmom.FOLDER}/models/{name}.pkl"))
    rng = np.random.default_rng(0)
    with theirs() as modules:
        net = revived(kept, modules)
        checked, x = 0, None
        for held, layer in zip(kept.layers, net.layers, strict=True):
            both = type(held).__name__ == "BidirectionalLayer"
            if not both and not hasattr(held, "recurrent_weights") and not hasattr(held, "cell"):
                continue  # the output layer
            ways = (
                ((held.fwd_layer, layer.fwd_layer, 1), (held.bwd_layer, layer.bwd_layer, -1))
                if both
                else ((held, layer, 1),)
            )
            for plain, own, step in ways:
                made = madmom.layer(plain)
                x = np.abs(rng.normal(size=(40, made.input_size))).astype(np.float32) if x is None else x
                read = torch.from_numpy(np.ascontiguousarray(x[::step]))
                expected = own.activate(x[::step])
                state = madmom.expanded(madmom.initial(plain), 1)
                output = made(read.unsqueeze(1), state)[0].squeeze(1)
                np.testing.assert_allclose(output.detach(), expected, atol=1e-5)
                flow = tt.diagnose(made, read.unsqueeze(1), summed(state), **measure.LESS).flow
                assert flow.layers["rnn"].error < 1e-4
                assert flow.residual < 1e-4
                checked += 1
            x = layer.activate(x)
    assert checked == layers


def test_what_madmoms_models_hold():
    """Which cells are tried above: one with peepholes, one with a learned state that is not zero."""
    lstm = fetching.unpickled(madmom.PACKAGE.file(f"{madmom.FOLDER}/models/beats/2016/beats_lstm_1.pkl")).layers[0]
    assert madmom.layer(lstm).cell.name == "lstm-peepholes"
    gru = fetching.unpickled(
        madmom.PACKAGE.file(f"{madmom.FOLDER}/models/downbeats/2016/downbeats_bgru_rhythmic_0.pkl")
    )
    assert madmom.layer(gru.layers[0].fwd_layer).cell.name == "gru"
    assert madmom.initial(gru.layers[0].fwd_layer).abs().max() > 0.01
