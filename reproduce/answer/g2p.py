"""g2p_en 2.1.0 (PyPI, Apache-2.0): a GRU encoder and decoder that spell English words in phonemes, fetched when asked for."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from throughtime.importers.convention import Convention, recurrent

ROOT = Path(__file__).parent.parent.parent
WHEEL = "g2p_en-2.1.0-py3-none-any.whl"
SHA256 = "2a7aabf1fc7f270fcc3349881407988c9245173c2413debbe5432f4a4f31319f"
START, END, END_OF_WORD, FIRST_LETTER = 2, 3, 2, 3  # of the network's own tables
LETTERS, PHONEMES = 10, 14  # of the words that are read, and decoder steps


def weights() -> dict[str, np.ndarray]:
    """The arrays inside the wheel, which pip fetches; the package itself is not imported.

    Raises RuntimeError: no wheel, for pip's reason, or one of other contents than the ones that were measured.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        done = subprocess.run(
            [*command, "--dest", folder, "g2p_en==2.1.0"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"got no {WHEEL} (pip: {done.stderr.strip()[-300:]}); do this: let pip reach its index")
        content = (Path(folder) / WHEEL).read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise RuntimeError(f"got another {WHEEL} than expected (sha256 {SHA256[:12]}…); do this: measure it anew")
    with zipfile.ZipFile(BytesIO(content)) as wheel:
        return dict(np.load(BytesIO(wheel.read("g2p_en/checkpoint20.npz"))))


def words() -> list[str]:
    """The words of `LETTERS` letters in this project's licence."""
    text = (ROOT / "LICENSE").read_text(encoding="utf-8").lower()
    return sorted({word for word in re.findall("[a-z]+", text) if len(word) == LETTERS})


class Speller(nn.Module):
    """The network: words as letter numbers (T, B) to the log-odds of its answer (B,), in nats.

    The answer is the network's own, phoneme by phoneme; its log-odds are the logit of each phoneme chosen over the next best,
    added up to the end of the word.
    """

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        super().__init__()
        layers = [
            recurrent({name: arrays[f"{part}_{name}"] for name in ("w_ih", "w_hh", "b_ih", "b_hh")}, Convention("gru"))
            for part in ("enc", "dec")
        ]
        self.encoder, self.decoder = layers
        for name in ("enc_emb", "dec_emb", "fc_w", "fc_b"):
            self.register_buffer(name, torch.from_numpy(arrays[name]))

    def forward(self, letters: Tensor) -> Tensor:
        """See the class."""
        word = self.encoder(self.enc_emb[letters])[1]
        with torch.no_grad():
            said = self.spell(word)
        heard = torch.cat([torch.full_like(said[:1], START), said[:-1]])
        best = (self.decoder(self.dec_emb[heard], word)[0] @ self.fc_w.T + self.fc_b).topk(2).values
        speaking = (said == END).cumsum(0) <= (said == END)  # up to the end, and the end itself
        return ((best[..., 0] - best[..., 1]) * speaking).sum(0)

    def spell(self, word: Tensor) -> Tensor:
        """(PHONEMES, B): the phonemes chosen one after the other, from the encoder's last state (1, B, 256)."""
        said, state = torch.full((1, word.shape[1]), START), word
        chosen = []
        for _ in range(PHONEMES):
            output, state = self.decoder(self.dec_emb[said], state)
            said = (output @ self.fc_w.T + self.fc_b).argmax(-1)
            chosen.append(said)
        return torch.cat(chosen)


def letters(spelled: list[str]) -> Tensor:
    """(LETTERS + 1, words): each word's letters as the network numbers them, and the end."""
    rows = [[FIRST_LETTER + ord(letter) - ord("a") for letter in word] + [END_OF_WORD] for word in spelled]
    return torch.tensor(rows).T
