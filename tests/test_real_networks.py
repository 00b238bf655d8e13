"""The atlas's networks: each layer runs as its own runtime runs it, and its decomposition adds up on its own input."""

from __future__ import annotations

import importlib
import os
import warnings

import numpy as np
import pytest
import torch
from examples.atlas import fetching, networks

import throughtime as tt
from throughtime.tasks import opus as opus_arrays

pytestmark = [pytest.mark.network, pytest.mark.filterwarnings("ignore")]


def check_opus(network: networks.Network) -> None:
    """Against the states of the codec's own C code."""
    states = network.model.rnn(network.parts[0][0])[0].squeeze(1)
    np.testing.assert_allclose(states.detach(), opus_arrays.load().reference_states, atol=1e-5)


def check_silero(network: networks.Network) -> None:
    """Against the TorchScript itself, and against onnxruntime on the same part of the ONNX graph."""
    import onnx
    import onnxruntime

    x = networks.speech()
    probabilities = network.model(x).sigmoid().squeeze(1).detach()
    script = torch.jit.load(str(fetching.SILERO.file("silero_vad/data/silero_vad.jit")))._model.decoder
    state, told = torch.zeros(0), []
    with torch.no_grad():
        for step in x:
            out, state = script(step.unsqueeze(-1), state)
            told.append(out.flatten())
    torch.testing.assert_close(probabilities, torch.cat(told), rtol=1e-5, atol=1e-5)
    path = fetching.SILERO.file("silero_vad/data/silero_vad_16k_sequence.onnx")
    cut = path.with_name("lstm.onnx")
    onnx.utils.extract_model(path, cut, ["/Transpose_output_0", "h", "c"], ["/recurrent/LSTM_output_0"])
    zero = np.zeros((1, 1, 128), np.float32)
    given = {"/Transpose_output_0": x.numpy(), "h": zero, "c": zero}
    (expected,) = onnxruntime.InferenceSession(cut, providers=["CPUExecutionProvider"]).run(None, given)
    np.testing.assert_allclose(tt.load(path)(x)[0].detach(), expected[:, 0], atol=1e-5)


def check_g2p_en(network: networks.Network) -> None:
    """Against the package's arithmetic, written out in numpy: the encoder's last state and every decoder step."""
    arrays = np.load(fetching.G2P_EN.file("g2p_en/checkpoint20.npz"))

    def cell(x, h, part):
        ins = x @ arrays[f"{part}_w_ih"].T + arrays[f"{part}_b_ih"]
        back = h @ arrays[f"{part}_w_hh"].T + arrays[f"{part}_b_hh"]
        r, z = (1 / (1 + np.exp(-(ins[:, k : k + 256] + back[:, k : k + 256]))) for k in (0, 256))
        return z * h + (1 - z) * np.tanh(ins[:, 512:] + r * back[:, 512:])

    letters = network.parts[0][0]
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


def check_khmer(network: networks.Network) -> None:
    """Against the whole model in Keras on torch: the probabilities of every sign."""
    member = "khmer_text_transliteration/models/pretrained/khmer_transliterator.keras"
    os.environ["KERAS_BACKEND"] = "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = importlib.import_module("keras").saving.load_model(fetching.KHMER.file(member), compile=False)
    words = network.parts[0][0]
    heard = torch.arange(3, 20).unsqueeze(1).expand(-1, words.shape[1])
    expected = model([words.T.numpy(), heard.T.numpy()]).detach().cpu().numpy()
    own = network.model.logits(words, heard).softmax(-1).detach().numpy()
    np.testing.assert_allclose(own.transpose(1, 0, 2), expected, atol=1e-5)


CHECKS = {"opus": check_opus, "silero": check_silero, "g2p_en": check_g2p_en, "khmer": check_khmer}


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_it_runs_as_its_own_runtime_and_its_terms_add_up(name):
    network = networks.NETWORKS[name]()
    CHECKS[name](network)
    less = {"demand": False, "hops": False, "signal_to_noise": False, "origin_step": False, "bias": "horizon"}
    flow = tt.diagnose(network.model, network.parts[:1], network.loss, layers=list(network.layers), **less).flow
    assert tuple(flow.layers) == network.layers
    assert all(layer.error < 1e-4 for layer in flow.layers.values())


def test_g2pm_in_both_directions(tmp_path):
    """A pickle of arrays (Apache-2.0): never loaded as it is; its arrays, against the package's arithmetic in numpy."""
    path = fetching.G2PM.file("g2pM/np_ckpt.pkl")
    with pytest.raises(tt.ThroughtimeError):
        tt.load(path)
    arrays = {name: value for name, value in fetching.unpickled(path).items() if name.startswith("lstm.")}
    np.savez(tmp_path / "g2pm.npz", **arrays)
    x = np.random.default_rng(0).normal(size=(15, arrays["lstm.weight_ih_l0"].shape[1])).astype(np.float32)
    for way in ("", "_reverse"):
        w, u, b, d = (arrays[f"lstm.{name}_l0{way}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        h, c, states = np.zeros(32), np.zeros(32), []
        for step in x[::-1] if way else x:
            i, f, g, o = np.split(w @ step + b + u @ h + d, 4)
            i, f, o = (1 / (1 + np.exp(-gate)) for gate in (i, f, o))
            c = f * c + i * np.tanh(g)
            h = o * np.tanh(c)
            states.append(h)
        layer = tt.load(tmp_path / "g2pm.npz", layer=f"lstm_l0{way}", cell="lstm")
        output = layer(torch.from_numpy(x).unsqueeze(1))[0].squeeze(1)
        np.testing.assert_allclose(output.detach(), np.stack(states[::-1] if way else states), atol=1e-5)


def stacked(gates: list, size: int) -> dict[str, np.ndarray]:
    """Arrays of madmom's gates side by side, as columns."""
    return {
        "kernel": np.hstack([gate.weights for gate in gates]),
        "recurrent_kernel": np.hstack([gate.recurrent_weights for gate in gates]),
        "bias": np.hstack([np.broadcast_to(gate.bias, size) for gate in gates]),
    }


def test_madmoms_plain_layers(tmp_path):
    """Three tanh layers of 25 units, each fed by the one below (models CC BY-NC-SA: fetched only)."""
    path = fetching.MADMOM.file("madmom-0.16.1/madmom/models/onsets/2013/onsets_rnn_1.pkl")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 236)).astype(np.float32)
    for theirs in fetching.unpickled(path).layers[:3]:
        np.savez(tmp_path / "rnn.npz", **stacked([theirs], 25))
        ours = tt.load(tmp_path / "rnn.npz", cell="rnn-tanh", layout="x@W")(torch.from_numpy(x).unsqueeze(1))[0]
        out, before = x @ theirs.weights + theirs.bias, np.zeros(25, np.float32)
        for place in range(len(x)):
            before = out[place] = np.tanh(out[place] + before @ theirs.recurrent_weights)
        np.testing.assert_allclose(ours.squeeze(1).detach(), out, atol=1e-5)
        x = out
