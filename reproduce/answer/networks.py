"""The trained networks of docs/answer.md and what is asked of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reproduce.answer import g2p, latch
from throughtime.tasks import opus_demo


@dataclass(frozen=True)
class Network:
    """layer: of the model, a GRU. losses: of the model's output, by name, whose gradients are read, the usual one first."""

    name: str
    model: nn.Module
    layer: str
    inputs: Tensor
    losses: Mapping[str, Callable[[Tensor], Tensor]]


def opus() -> Network:
    """24.7 s of speech; the log-odds of voice activity at every frame."""
    return Network("Opus", opus_demo.SpeechMusic(), "rnn", opus_demo.inputs(), {"activity": opus_demo.activity})


def speller() -> Network:
    """Words of ten letters; the log-odds of the network's own answer, read at the encoder."""
    return Network("g2p_en", g2p.Speller(g2p.weights()), "encoder", g2p.letters(g2p.words()), {"answer": torch.sum})


def here(chrono: bool, model: latch.Latch) -> Network:
    """A network trained here to hold and to filter; its outputs at every step, each times a fixed draw from N(0, 1)."""
    generator = torch.Generator().manual_seed(1)
    inputs, targets = latch.batch(generator)
    draws = torch.randn(targets.shape, generator=generator)
    losses = {
        "both": lambda output: (output * draws).sum(),
        "held": lambda output: (output * draws)[..., 0].sum(),
        "filtered": lambda output: (output * draws)[..., 1].sum(),
    }
    return Network("trained here, chrono" if chrono else "trained here", model, "rnn", inputs, losses)
