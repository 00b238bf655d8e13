"""silero-vad 6.2.3: the LSTM of a voice detector, behind its own front end. TorchScript, which asks for trust."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import throughtime as tt
from examples.atlas.fetching import Package
from examples.atlas.network import Network, edges, stretches

PACKAGE = Package(
    "silero-vad==6.2.3",
    "silero_vad-6.2.3-py3-none-any.whl",
    "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
)
SCRIPT = "silero_vad/data/silero_vad.jit"
CHUNK, CONTEXT, SECONDS = 512, 64, 0.032  # samples at 16 kHz that a call reads anew, and again


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


def speech() -> Tensor:
    """(395680,): the bundled speech, within ±1."""
    with np.load(Path(__file__).parent.parent / "data" / "librivox-speech-16khz.npz") as arrays:
        return torch.from_numpy(arrays["samples"].astype(np.float32) / 2**15)


def chunks(samples: Tensor) -> Tensor:
    """(T, 576): what each call reads, as the package cuts it: 64 samples of the chunk before and 512 new ones; zeros around."""
    missing = -len(samples) % CHUNK
    return nn.functional.pad(samples, (CONTEXT, missing)).unfold(0, CONTEXT + CHUNK, CHUNK)


def features(script: Any) -> Tensor:
    """(773, 1, 128): the speech as the package's own front end hands it to the LSTM. It has no memory."""
    with torch.no_grad():
        return script._model.encoder(script._model.stft(chunks(speech()))).squeeze(-1).unsqueeze(1)


def network() -> Network:
    """Voice activity on read speech, in stretches of 2 s."""
    path = PACKAGE.file(SCRIPT)
    script = torch.jit.load(str(path))
    x = features(script)
    cuts = edges(len(x))
    return Network(
        "silero-vad 6.2.3", "MIT", "voice activity", {"rnn": ""}, "32 ms", SECONDS,
        "log-odds of speech, at every frame", "24.7 s of read English speech, five recordings in a row",
        "stretches of 2 s", Detector(tt.load(path, layer="_model.decoder.rnn", trust=True), script.state_dict()),
        lambda model: stretches(model(x)[:, 0], cuts), cuts,
    )  # fmt: skip
