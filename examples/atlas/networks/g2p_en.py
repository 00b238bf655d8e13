"""g2p_en 2.1.0: a GRU encoder and decoder that spell English words in phonemes."""

from __future__ import annotations

import numpy as np
from reproduce.answer import g2p

import throughtime as tt
from examples.atlas.fetching import Package
from examples.atlas.network import Network

PACKAGE = Package("g2p_en==2.1.0", g2p.WHEEL, g2p.SHA256)
ARRAYS = "g2p_en/checkpoint20.npz"


def network() -> Network:
    """Words of ten letters and the end."""
    path = PACKAGE.file(ARRAYS)
    model = g2p.Speller(dict(np.load(path)))
    for name, part in (("encoder", "enc"), ("decoder", "dec")):
        model.add_module(name, tt.load(path, layer=part, cell="gru"))
    words = g2p.words()
    letters = g2p.letters(words)
    return Network(
        "g2p_en 2.1.0", "Apache-2.0", "English words to phonemes",
        {"encoder": "encoder", "decoder": "decoder"}, "character", None,
        "log-odds of each phoneme chosen over the next best, added up over the word",
        f"{len(words)} English words of ten letters, from this project's licence", "words",
        model, lambda model: model(letters),
        note="the encoder reads 11 characters: it cannot reach further back than 10",
    )  # fmt: skip
