"""Opus 1.3: the GRU that tells speech from music and silence in the codec. Bundled with throughtime."""

from __future__ import annotations

from examples.atlas.network import Network, edges, stretches
from throughtime.tasks import opus_demo

SECONDS = 0.02


def network() -> Network:
    """Voice activity on read speech, in stretches of 2 s."""
    x = opus_demo.inputs()
    cuts = edges(len(x))
    return Network(
        "Opus 1.3", "BSD-3-Clause", "voice activity, in the codec of most internet calls", {"rnn": ""}, "20 ms", SECONDS,
        "log-odds of voice activity, at every frame", "24.7 s of read English speech, five recordings in a row",
        "stretches of 2 s", opus_demo.SpeechMusic(),
        lambda model: stretches(model(x)[:, 0, opus_demo.opus.ACTIVITY], cuts), cuts,
    )  # fmt: skip
