"""The speech/music network of the Opus codec, as a module, with the loss of the demo."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from throughtime.importers.convention import Convention, recurrent
from throughtime.tasks import opus

CONVENTION = Convention("gru", gates="zrn", layout="x@W", reset="before", z="keeps")


class SpeechMusic(nn.Module):
    """The recurrent layer of Opus 1.3, `rnn`, and its two logits: x (T, B, 32) → (T, B, 2), music and activity."""

    def __init__(self) -> None:
        super().__init__()
        arrays = opus.load()
        self.rnn = recurrent(
            {"kernel": arrays.kernel, "recurrent_kernel": arrays.recurrent_kernel, "bias": arrays.bias}, CONVENTION
        )
        self.head = nn.Linear(self.rnn.hidden_size, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(arrays.head_kernel.T))
            self.head.bias.copy_(torch.from_numpy(arrays.head_bias))

    def forward(self, x: Tensor) -> Tensor:
        """Logits at every frame of 20 ms."""
        return self.head(self.rnn(x)[0])


def inputs() -> Tensor:
    """24.7 s of read English speech as the codec's own features: (1236, 1, 32)."""
    return torch.from_numpy(opus.load().inputs).unsqueeze(1)


def activity(output: Tensor) -> Tensor:
    """The loss of the demo: the log-odds of the voice-activity decision, added up over all frames, in nats."""
    return output[..., opus.ACTIVITY].sum()
