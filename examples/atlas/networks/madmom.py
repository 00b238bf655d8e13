"""madmom 0.16.1: three LSTMs with peepholes that hear the beat in music. Models CC BY-NC-SA: fetched, never bundled.

The package itself does not run on today's Python: its features are made here, and tests hold them to its own code.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from examples.atlas.fetching import Debian, Package, imported, unpickled
from examples.atlas.network import Network
from throughtime.importers.convention import Convention, recurrent

PACKAGE = Package(
    "madmom==0.16.1",
    "madmom-0.16.1.tar.gz",
    "64a86a29106e7c4e0c5f4ec96801c2d1a8492db710e4fe27e097da5517d68cb2",
    needs="cython<3",
)
MUSIC = Debian(
    "frozen-bubble-data=2.212-11",
    "frozen-bubble-data_2.212-11_all.deb",
    "39cdfd07d9532d1558762cf265a844d09015c4540568573c50f444cc084166e0",
)
FOLDER = "madmom-0.16.1/madmom"
MODEL = f"{FOLDER}/models/beats/2016/beats_lstm_1.pkl"
TRACKS = ("frozen-mainzik-1p", "frozen-mainzik-2p", "introzik")
RATE, HOP, FRAME, SECONDS = 44100, 441, 2048, 0.01
EXCERPTS, LENGTH = 8, 800  # of each track, frames


def stacked(gates: list[Any]) -> dict[str, NDArray[np.float32]]:
    """Arrays of madmom's gates side by side, as columns."""
    size = gates[0].recurrent_weights.shape[1]
    return {
        "kernel": np.hstack([gate.weights for gate in gates]),
        "recurrent_kernel": np.hstack([gate.recurrent_weights for gate in gates]),
        "bias": np.hstack([np.broadcast_to(np.ravel(gate.bias), size) for gate in gates]),
    }


def layer(kept: Any) -> nn.Module:
    """One of madmom's recurrent layers: its z takes the candidate, its reset gate acts after the product."""
    kind = type(kept).__name__
    if kind == "GRULayer":
        arrays = stacked([kept.reset_gate, kept.update_gate, kept.cell])
        return recurrent(arrays, Convention("gru", gates="rzn", layout="x@W", reset="after", z="takes"))
    if kind == "LSTMLayer":
        gates = [kept.input_gate, kept.forget_gate, kept.cell, kept.output_gate]
        peepholes = [np.ravel(gate.peephole_weights) for gate in gates if gate.peephole_weights is not None]
        arrays = stacked(gates) | ({"peephole": np.hstack(peepholes)} if peepholes else {})
        return recurrent(arrays, Convention("lstm", layout="x@W"))
    return recurrent(stacked([kept]), Convention("rnn-tanh", layout="x@W"))


def initial(kept: Any) -> tuple[Tensor, ...] | Tensor | None:
    """The state with which it starts, (H,) or a pair; older files have none, and start at zero."""
    told = [getattr(kept, name) for name in ("hid_init", "init", "cell_init") if hasattr(kept, name)]
    states = tuple(torch.from_numpy(np.array(value, dtype=np.float32)) for value in told)
    return states or None if len(states) != 1 else states[0]


class Beats(nn.Module):
    """The network: x (T, B, 162) to the log-odds of a beat (T, B)."""

    def __init__(self, kept: Any) -> None:
        super().__init__()
        *layers, head = kept.layers
        self.rnn_1, self.rnn_2, self.rnn_3 = (layer(each) for each in layers)
        self.start = [initial(each) for each in layers]
        self.register_buffer("weight", torch.from_numpy(np.ravel(head.weights)))
        self.register_buffer("bias", torch.from_numpy(np.ravel(head.bias)))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        for rnn, state in zip((self.rnn_1, self.rnn_2, self.rnn_3), self.start, strict=True):
            x = rnn(x, expanded(state, x.shape[1]))[0]
        return x @ self.weight + self.bias


def expanded(state: tuple[Tensor, ...] | Tensor | None, sequences: int) -> Any:
    """The same start for every sequence."""
    if isinstance(state, tuple):
        return tuple(part.expand(sequences, -1) for part in state)
    return None if state is None else state.expand(sequences, -1)


def filterbank() -> NDArray[np.float32]:
    """(1024, bands): triangles between neighbouring semitones of a' = 440 Hz from 30 to 17000 Hz, each of sum 1.

    Semitones fall on the nearest frequency of the transform; low ones that share one are one.
    """
    lowest, highest = (np.log2(hertz / 440) * 12 for hertz in (30, 17000))
    semitones = 440 * 2 ** (np.arange(np.ceil(lowest), np.floor(highest) + 1) / 12)
    bins = np.unique(np.floor(semitones * FRAME / RATE + 0.5).astype(int).clip(1, FRAME // 2 - 1))
    edges = np.lib.stride_tricks.sliding_window_view(bins, 3)
    bands = np.stack([np.interp(np.arange(FRAME // 2), each, [0, 1, 0]) for each in edges], axis=1)
    return (bands / bands.sum(0)).astype(np.float32)


def features(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """(T, 162) of mono samples at 44.1 kHz: each 10 ms the log magnitude in each band, and its growth since the last frame."""
    frames = -(-len(samples) // HOP)
    padded = np.pad(samples, (FRAME // 2, FRAME))
    windows = np.lib.stride_tricks.sliding_window_view(padded, FRAME)[::HOP][:frames]
    magnitude = np.abs(np.fft.rfft(windows * np.hanning(FRAME))[:, : FRAME // 2]).astype(np.float32)
    logs = np.log10(magnitude @ filterbank() + 1)
    growth = np.maximum(np.diff(logs, axis=0, prepend=logs[:1]), 0)
    return np.hstack([logs, growth])


def music() -> list[NDArray[np.float32]]:
    """The game's three pieces, mono within ±1, at 44.1 kHz."""
    read = imported("soundfile", "soundfile==0.14.0", "cffi", "pycparser").read
    made = []
    for track in TRACKS:
        samples, rate = read(str(MUSIC.file(f"./usr/share/games/frozen-bubble/snd/{track}.ogg")), dtype="float32")
        assert rate == RATE
        made.append(samples if samples.ndim == 1 else samples.mean(1))
    return made


def excerpts(pieces: list[NDArray[np.float32]]) -> Tensor:
    """(800, 24, 162): excerpts of 8 s, eight of each piece, evenly spread."""
    made = []
    for piece in pieces:
        heard = features(piece)
        starts = np.linspace(0, len(heard) - LENGTH, EXCERPTS + 2)[1:-1].astype(int)
        made += [heard[start : start + LENGTH] for start in starts]
    return torch.from_numpy(np.stack(made, axis=1))


def network() -> Network:
    """Excerpts of music, each from the network's start."""
    x = excerpts(music())
    return Network(
        "madmom 0.16.1, beats", "BSD, models CC BY-NC-SA 4.0", "the beat in music as it plays, network 1 of 8",
        {"rnn_1": "layer 1", "rnn_2": "layer 2", "rnn_3": "layer 3"}, "10 ms", SECONDS,
        "log-odds of a beat, at every frame", f"{x.shape[1]} excerpts of 8 s of the music of the game Frozen Bubble (GPL)",
        "excerpts", Beats(unpickled(PACKAGE.file(MODEL))), lambda model: model(x).sum(0),
    )  # fmt: skip
