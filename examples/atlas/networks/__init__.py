"""The networks: one file each, with a function `network`; `NETWORKS` has them by name, in the page's order."""

from __future__ import annotations

from collections.abc import Callable

from examples.atlas.network import Network
from examples.atlas.networks import g2p_en, g2pm, khmer, madmom, opus, silero, textgenrnn

NETWORKS: dict[str, Callable[[], Network]] = {
    each.__name__.rpartition(".")[2]: each.network for each in (opus, silero, madmom, g2p_en, khmer, textgenrnn, g2pm)
}
