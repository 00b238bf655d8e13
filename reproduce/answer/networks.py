"""The trained networks of docs/answer.md and what is asked of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import throughtime as tt
from reproduce.answer import g2p, latch
from throughtime.progress import Tell
from throughtime.tasks import opus_demo


@dataclass(frozen=True)
class Network:
    """layer: of the model, a GRU. loss: of the model's output, whose gradient is read. error: of a network trained here."""

    name: str
    model: nn.Module
    layer: str
    inputs: Tensor
    loss: Callable[[Tensor], Tensor]
    error: list[float] | None = None


def opus() -> Network:
    """24.7 s of speech; the log-odds of voice activity at every frame."""
    return Network("Opus", opus_demo.SpeechMusic(), "rnn", opus_demo.inputs(), opus_demo.activity)


def speller() -> Network:
    """Words of ten letters; the log-odds of the network's own answer, read at the encoder."""
    return Network("g2p_en", g2p.Speller(g2p.weights()), "encoder", g2p.letters(g2p.words()), torch.sum)


def trained(chrono: bool, tell: Tell, steps: int = latch.TRAINING) -> Network:
    """Trained here to hold and to filter; both outputs at every step, each times a fixed draw from N(0, 1)."""

    def begin(model: latch.Latch) -> None:
        if chrono:
            tt.init.chrono_(model.rnn, max_lag=latch.STEPS)

    model, error = latch.trained(0, tell, steps, begin)
    generator = torch.Generator().manual_seed(1)
    inputs, targets = latch.batch(generator)
    draws = torch.randn(targets.shape, generator=generator)
    name = "trained here, chrono" if chrono else "trained here"
    return Network(name, model, "rnn", inputs, lambda output: (output * draws).sum(), error)
