"""The networks: each a model of layers that `tt.load` read, its own input, and the log-odds of its own decision as loss."""

from __future__ import annotations

import itertools
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import torch
from reproduce.answer import g2p
from torch import Tensor, nn

import throughtime as tt
from examples.atlas import fetching
from throughtime.tasks import opus_demo

CLIPS = (0.0, 7.1, 10.09, 15.39, 21.44, 24.72)
"""Seconds at which the recordings of the speech begin, and the end."""


@dataclass(frozen=True)
class Network:
    """parts: batches of the model's own input, measured together and one by one. loss(model, part): the decision.

    step: what one step is; seconds: its length, or None. decision: where the loss is, in words.
    """

    name: str
    licence: str
    layers: tuple[str, ...]
    step: str
    seconds: float | None
    decision: str
    model: nn.Module
    parts: list[Any]
    loss: Callable[[nn.Module, Any], Tensor]


def opus() -> Network:
    """Bundled with throughtime."""
    x = opus_demo.inputs()
    edges = [round(second / 0.02) for second in CLIPS]
    return Network(
        "Opus 1.3", "BSD-3-Clause", ("rnn",), "20 ms", 0.02, "log-odds of voice activity at every frame",
        opus_demo.SpeechMusic(), [(x, *pair) for pair in itertools.pairwise(edges)],
        lambda model, part: opus_demo.activity(model(part[0])[part[1] : part[2]]),
    )  # fmt: skip


class Detector(nn.Module):
    """The decoder of silero-vad: x (T, B, 128) to the log-odds of speech (T, B)."""

    def __init__(self, rnn: nn.Module, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.rnn = rnn
        self.register_buffer("weight", state["_model.decoder.decoder.2.weight"].flatten())
        self.register_buffer("bias", state["_model.decoder.decoder.2.bias"])

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.rnn(x)[0].relu() @ self.weight + self.bias


def silero() -> Network:
    """TorchScript, which asks for trust."""
    path = fetching.SILERO.file("silero_vad/data/silero_vad.jit")
    rnn = tt.load(path, layer="_model.decoder.rnn", trust=True)
    x = speech()
    edges = [round(second / 0.032) for second in CLIPS]
    return Network(
        "silero-vad 6.2.3", "MIT", ("rnn",), "32 ms", 0.032, "log-odds of speech at every frame",
        Detector(rnn, torch.jit.load(str(path)).state_dict()),
        [(x, *pair) for pair in itertools.pairwise(edges)],
        lambda model, part: model(part[0])[part[1] : part[2]].sum(),
    )  # fmt: skip


def speech() -> Tensor:
    """(772, 1, 128): the speech as silero-vad's front end hands it to the LSTM."""
    with np.load(fetching.Path(__file__).parent / "data" / "silero-vad-lstm-inputs.npz") as arrays:
        return torch.from_numpy(arrays["inputs"]).unsqueeze(1)


def speller() -> Network:
    """Words of ten letters and the end, in five groups."""
    path = fetching.G2P_EN.file("g2p_en/checkpoint20.npz")
    model = g2p.Speller(dict(np.load(path)))
    model.encoder, model.decoder = (tt.load(path, layer=part, cell="gru") for part in ("enc", "dec"))  # type: ignore[assignment]
    letters = g2p.letters(g2p.words())
    return Network(
        "g2p_en 2.1.0", "Apache-2.0", ("encoder", "decoder"), "character", None,
        "log-odds of each phoneme chosen over the next best, added up over the word",
        model, [(letters[:, place::5],) for place in range(5)], lambda model, part: model(part[0]).sum(),
    )  # fmt: skip


KHMER_LENGTH, ANSWER = (
    26,
    25,
)  # characters that the encoder is given, zeros after the word; and characters of an answer, at most
START, END = 79, 80


class Transliterator(nn.Module):
    """khmer-english-transliteration: words as numbers (T, B) to the log-odds of the answer (B,)."""

    def __init__(self, path: fetching.Path) -> None:
        super().__init__()
        self.encoder, self.decoder = tt.load(path, layer="lstm"), tt.load(path, layer="lstm_1")
        with zipfile.ZipFile(path) as packed, packed.open("model.weights.h5") as file, h5py.File(file) as hdf:
            for name, place in (("letters", "embedding/vars/0"), ("signs", "embedding_1/vars/0"),
                                ("weight", "dense/vars/0"), ("bias", "dense/vars/1")):  # fmt: skip
                self.register_buffer(name, torch.from_numpy(np.asarray(hdf[f"layers/{place}"])))

    def logits(self, words: Tensor, heard: Tensor) -> Tensor:
        """(T′, B, signs): of the sign after each of those heard."""
        state = self.encoder(self.letters[words])[1]
        return self.decoder(self.signs[heard], state)[0] @ self.weight + self.bias

    def forward(self, words: Tensor) -> Tensor:
        """See the class; the answer is the network's own, sign by sign to its end."""
        heard = torch.full((1, words.shape[1]), START)
        with torch.no_grad():
            for _ in range(ANSWER - 1):
                heard = torch.cat([heard, self.logits(words, heard)[-1:].argmax(-1)])
        best = self.logits(words, heard).topk(2)
        said = best.indices[..., 0]
        speaking = (said == END).cumsum(0) <= (said == END)
        return ((best.values[..., 0] - best.values[..., 1]) * speaking).sum(0)


def khmer_words() -> Tensor:
    """(26, 100): words of the package's own list, as its tokenizer numbers them, with zeros after the end."""
    data = "khmer_text_transliteration/data"
    assets = fetching.unpickled(fetching.KHMER.file(f"{data}/processed/khmer_transliteration_assets.pkl"))
    number = assets["eng_tokenizer"].word_index
    lines = fetching.KHMER.file(f"{data}/raw/eng_khm_data.txt").read_text(encoding="utf-8").splitlines()
    words = [re.sub("[^a-z]", "", line.partition(":")[2].lower()) for line in lines if "," not in line]
    words = [word for word in words if 4 <= len(word) < KHMER_LENGTH]
    chosen = words[:: len(words) // 100][:100]
    rows = [[number[letter] for letter in word] + [0] * (KHMER_LENGTH - len(word)) for word in chosen]
    return torch.tensor(rows).T


def khmer() -> Network:
    """Words in five groups."""
    model = Transliterator(
        fetching.KHMER.file("khmer_text_transliteration/models/pretrained/khmer_transliterator.keras")
    )
    words = khmer_words()
    return Network(
        "khmer-english-transliteration 0.1.4", "MIT", ("encoder", "decoder"), "character", None,
        "log-odds of each sign chosen over the next best, added up over the word",
        model, [(words[:, place::5],) for place in range(5)], lambda model, part: model(part[0]).sum(),
    )  # fmt: skip


NETWORKS: dict[str, Callable[[], Network]] = {
    "opus": opus,
    "silero": silero,
    "g2p_en": speller,
    "khmer": khmer,
}
