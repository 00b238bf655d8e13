"""A network that everyone uses: the recurrent layer by which the Opus 1.3 codec tells speech and music from noise.

Its cell is that of Cho et al. 2014 v3, in the arrangement of the codec's own code:

    z = σ(x Wᶻ + h₋ Uᶻ + bᶻ)                r = σ(x Wʳ + h₋ Uʳ + bʳ)
    h̃ = tanh(x Wʰ + (r ∘ h₋) Uʰ + bʰ)       h = z ∘ h₋ + (1 − z) ∘ h̃

- weights stand to the right, `x @ kernel + h₋ @ recurrent_kernel`; their columns are the gates in the order z, r, h;
- z keeps;
- the reset gate acts before the matrix product, which torch.nn.GRU does not: that layer cannot hold these weights;
- one bias a gate.

The layer of 24 units reads 32 features of each 20 ms of sound (the codec's first, dense layer has made them), and a
dense layer of two sigmoid outputs reads the layer. In the codec's src/analysis.c output 0 becomes `music_prob` and
output 1 `activity_probability`, "probability of speech or music vs noise": what src/opus_encoder.c compares with a
threshold and hands to SILK as the codec's decision on voice activity.

Source: Opus, https://opus-codec.org; licence in data/NOTICE.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from throughtime.errors import InputError

Array = NDArray[np.float32]
S = TypeVar("S", NDArray[Any], Tensor)

INPUTS, UNITS = 32, 24
GATES = ("z", "r", "h")
MUSIC, ACTIVITY = 0, 1
"""Columns of the head."""


@dataclass(frozen=True, eq=False)
class OpusGRU:
    """Weights, a recording's features and what the codec's own C code computed from them; all float32.

    kernel: (32, 72); recurrent_kernel: (24, 72); bias: (72,): columns z, r, h, 24 each.
    head_kernel: (24, 2); head_bias: (2,): columns music, activity.
    inputs: (1236, 32), the features of 24.7 s of read English, one row every 20 ms.
    reference_states: (1236, 24), the states h_1 … h_1236 of the C code, from h_0 = 0.
    """

    kernel: Array
    recurrent_kernel: Array
    bias: Array
    head_kernel: Array
    head_bias: Array
    inputs: Array
    reference_states: Array

    def vad_log_odds(self, states: S) -> S:
        """Log-odds of voice activity, ln p/(1 − p), at every step: states (…, 24) → (…).

        It is the head's second output before its sigmoid. Arrays and torch tensors are taken, and gradients pass.

        Raises InputError: states of another width.
        """
        if tuple(states.shape[-1:]) != (UNITS,):
            got = f"states of shape {tuple(states.shape)}"
            raise InputError(got, f"(…, {UNITS})", "pass the layer's states, units last")
        weight, bias = self.head_kernel[:, ACTIVITY], float(self.head_bias[ACTIVITY])
        if isinstance(states, Tensor):
            return states @ states.new_tensor(weight) + bias
        return states @ weight + bias


def load() -> OpusGRU:
    """The network and the recording that are bundled with throughtime."""
    with np.load(str(files("throughtime.tasks") / "data" / "opus-gru.npz")) as bundled:
        return OpusGRU(**bundled)
