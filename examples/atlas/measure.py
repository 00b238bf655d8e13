"""What is measured of a network: one record a layer, of numbers and words alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import throughtime as tt
from examples.atlas.networks import Network
from throughtime.flow import LayerFlow

LEVELS = (0.1, 0.01, 0.001)
FAR = (10, 100)
LESS = {"demand": False, "hops": False, "signal_to_noise": False, "origin_step": False}


def records(network: Network) -> list[dict[str, Any]]:
    """One a layer, of all parts together; `parts` has the gradient horizons of each part alone."""
    whole = layers(network, network.parts)
    alone = [layers(network, [part]) for part in network.parts]
    return [record(network, name, whole[name], [each[name] for each in alone]) for name in network.layers]


def layers(network: Network, parts: list[Any]) -> dict[str, LayerFlow]:
    """The flows of some parts together."""
    return dict(tt.diagnose(network.model, parts, network.loss, layers=list(network.layers), **LESS).flow.layers)


def record(network: Network, name: str, layer: LayerFlow, alone: list[LayerFlow]) -> dict[str, Any]:
    """See `records`. arriving: log10 by lag, of the total adjoint (of an LSTM, that of its cell); half-lives in steps."""
    return {
        "network": network.name, "licence": network.licence, "layer": name, "cell": layer.cell,
        "units": layer.hidden_size, "step": network.step, "seconds": network.seconds, "decision": network.decision,
        "steps": layer.steps, "error": layer.error,
        "horizon": {f"{level:g}": layer.horizon[level] for level in LEVELS},
        "parts": {f"{level:g}": [each.horizon[level] for each in alone] for level in LEVELS},
        "beyond": {str(lag): finite(layer.bias[lag]) if lag < layer.steps - 1 else None for lag in FAR},
        "arriving": [finite(value) for value in layer.adjoint.log10_arriving_total],
        "half_lives": [finite(unit.half_life) for unit in layer.units],
        "gate_half_lives": [finite(math.log(2) * unit.timescale) for unit in layer.units],
    }  # fmt: skip


def finite(value: float) -> float | None:
    """Five digits; None for what is not a number or infinite."""
    return float(f"{value:.5g}") if np.isfinite(value) else None
