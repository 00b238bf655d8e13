"""khmer-english-transliteration 0.1.4: an LSTM encoder and decoder, from English letters to Khmer script."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor, nn

import throughtime as tt
from examples.atlas.fetching import Package, unpickled
from examples.atlas.network import Network, ahead

PACKAGE = Package(
    "khmer-english-transliteration==0.1.4",
    "khmer_english_transliteration-0.1.4-py3-none-any.whl",
    "631c34c8b5d081f1aa6261786f6b6e2116a6770879d39eca8e7c886483cf577d",
)
MODEL = "khmer_text_transliteration/models/pretrained/khmer_transliterator.keras"
LENGTH, ANSWER = 26, 25  # characters that the encoder is given, zeros after the word; and of an answer, at most
START, END = 79, 80


class Transliterator(nn.Module):
    """khmer-english-transliteration: words as numbers (T, B) to the log-odds of the answer (B,)."""

    def __init__(self, path: Path) -> None:
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
        logits = self.logits(words, heard)
        said = logits.argmax(-1)
        speaking = (said == END).cumsum(0) <= (said == END)
        return (ahead(logits) * speaking).sum(0)


def words() -> Tensor:
    """(26, 100): words of the package's own list, as its tokenizer numbers them, with zeros after the end."""
    data = "khmer_text_transliteration/data"
    assets = unpickled(PACKAGE.file(f"{data}/processed/khmer_transliteration_assets.pkl"))
    number = assets["eng_tokenizer"].word_index
    lines = PACKAGE.file(f"{data}/raw/eng_khm_data.txt").read_text(encoding="utf-8").splitlines()
    read = [re.sub("[^a-z]", "", line.partition(":")[2].lower()) for line in lines if "," not in line]
    read = [word for word in read if 4 <= len(word) < LENGTH]
    chosen = read[:: len(read) // 100][:100]
    rows = [[number[letter] for letter in word] + [0] * (LENGTH - len(word)) for word in chosen]
    return torch.tensor(rows).T


def network() -> Network:
    """Words, with zeros after the end."""
    read = words()
    return Network(
        "khmer-english-transliteration 0.1.4", "MIT", "English letters to Khmer script",
        {"encoder": "encoder", "decoder": "decoder"}, "character", None,
        "log-odds of each sign chosen over the next best, added up over the word",
        f"{read.shape[1]} words of the package's own list", "words", Transliterator(PACKAGE.file(MODEL)),
        lambda model: model(read),
        note="the encoder reads every word with zeros after it, 26 steps in all, and is read out after these: the letters "
        "lie behind them in lag",
    )  # fmt: skip
