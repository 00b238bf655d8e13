"""textgenrnn 2.0.0: two LSTMs that predict the next character of a text, with an attention over the last 40."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import torch
from reproduce.answer.g2p import ROOT
from torch import Tensor, nn

import throughtime as tt
from examples.atlas.fetching import Package
from examples.atlas.network import Network, ahead

PACKAGE = Package(
    "textgenrnn==2.0.0",
    "textgenrnn-2.0.0.tar.gz",
    "c2b6f1c201c76d5a6021079e95a8db499bbe15d9f3448d33cb51c0cd496c86f8",
)
FOLDER = "textgenrnn-2.0.0/textgenrnn"
WEIGHTS, VOCABULARY = f"{FOLDER}/textgenrnn_weights.hdf5", f"{FOLDER}/textgenrnn_vocab.json"
WINDOW, WINDOWS = 40, 100  # characters that the network is given, its `max_length`; and texts that are measured


class Writer(nn.Module):
    """The network: characters as numbers (40, B) to the logits of the next one (B, 465)."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.rnn_1, self.rnn_2 = tt.load(path, layer="rnn_1"), tt.load(path, layer="rnn_2")
        with h5py.File(path) as file:
            for name, place in (("letters", "embedding/embedding/embeddings:0"),
                                ("attention", "attention/attention/attention_W:0"),
                                ("weight", "output/output/kernel:0"), ("bias", "output/output/bias:0")):  # fmt: skip
                self.register_buffer(name, torch.from_numpy(np.asarray(file[place])))

    def forward(self, text: Tensor) -> Tensor:
        """See the class. The attention is a softmax over the 40 steps."""
        letters = self.letters[text]
        first = self.rnn_1(letters)[0]
        whole = torch.cat([letters, first, self.rnn_2(first)[0]], dim=-1)
        seen = (whole * (whole @ self.attention).softmax(0)).sum(0)
        return seen @ self.weight + self.bias


def texts() -> Tensor:
    """(40, 100): windows of this project's licence, as the network's own vocabulary numbers the characters."""
    number = json.loads(PACKAGE.file(VOCABULARY).read_text(encoding="utf-8"))
    text = " ".join((ROOT / "LICENSE").read_text(encoding="utf-8").split())
    starts = range(0, len(text) - WINDOW, (len(text) - WINDOW) // WINDOWS)
    rows = [[number[letter] for letter in text[start : start + WINDOW]] for start in starts][:WINDOWS]
    return torch.tensor(rows).T


def network() -> Network:
    """Texts of 40 characters."""
    read = texts()
    return Network(
        "textgenrnn 2.0.0", "MIT", "the next character of a text", {"rnn_1": "layer 1", "rnn_2": "layer 2"}, "character", None,
        "log-odds of the character chosen as next over the next best",
        f"{WINDOWS} texts of 40 characters, from this project's licence",
        "texts", Writer(PACKAGE.file(WEIGHTS)), lambda model: ahead(model(read)),
        note="an attention reads every one of the 40 states, so that much of the past need not pass through the recurrence; "
        "40 characters are all that the network is ever given",
    )  # fmt: skip
