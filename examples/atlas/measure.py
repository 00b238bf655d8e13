"""What is measured of a network: one record a layer, of numbers and words alone."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import throughtime as tt
from examples.atlas import intervals
from examples.atlas.fetching import FILES, FetchError
from examples.atlas.network import Network
from examples.atlas.networks import NETWORKS
from throughtime.flow import LayerFlow
from throughtime.report.files import write_whole
from throughtime.trace import Trace

LEVELS = (0.1, 0.01, 0.001)
FAR = (10, 100)
LESS = {"demand": False, "hops": False, "signal_to_noise": False, "origin_step": False, "bias": "horizon"}


def measured(name: str) -> str:
    """Measure a network of `NETWORKS` and keep its records in build/atlas; why it is left out, or ""."""
    torch.set_num_threads(1)
    try:
        write_whole(FILES / f"{name}.json", json.dumps(records(NETWORKS[name]())))
    except FetchError as error:
        return str(error)
    return ""


def records(network: Network) -> list[dict[str, Any]]:
    """One a layer."""
    flow = tt.diagnose(network.model, [None], network.loss, layers=layers(network), **LESS).flow
    gradients, made = by_unit(network), []
    for trace in recorded(network):
        grams = intervals.grams(trace, intervals.units_of(trace, network.cuts), of_layer(trace, gradients))
        made.append(record(network, network.layers[trace.name], flow.layers[trace.name], grams))
    return made


def layers(network: Network) -> list[str]:
    """The modules of its layers: "lstm" of "lstm.l0"."""
    return list(dict.fromkeys(name.partition(".")[0] for name in network.layers))


def recorded(network: Network) -> list[Trace]:
    """The traces of one backward pass of all decisions together."""
    with tt.record(network.model, layers(network)) as rec:
        loss = network.loss(network.model)
        torch.autograd.grad(loss, [each for each in network.model.parameters() if each.requires_grad])
    return rec.traces()


def by_unit(network: Network) -> dict[str, torch.Tensor]:
    """Autograd's gradient of each decision alone: (N, …) by parameter."""
    named = dict(network.model.named_parameters())
    made = [
        torch.autograd.grad(each, list(named.values()), retain_graph=True, materialize_grads=True, allow_unused=True)
        for each in network.decisions(network.model)
    ]
    return {name: torch.stack(parts) for name, parts in zip(named, zip(*made, strict=True), strict=True)}


def of_layer(trace: Trace, gradients: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those of a trace's weights, by the cell's names."""
    return {name: gradients[told] for name, told in trace.names.items()}


def record(network: Network, label: str, layer: LayerFlow, grams: NDArray[np.float64]) -> dict[str, Any]:
    """See `records`. arriving: log10 by lag, of the total adjoint (of an LSTM, that of its cell); half-lives in steps.

    interval: 95 % of the horizon over units drawn anew. farthest: the lag from the last step with a loss to the first step.
    """
    bias = intervals.bias(grams)
    return {
        "network": network.name, "licence": network.licence, "job": network.job, "layer": label,
        "cell": layer.cell, "hidden": layer.hidden_size, "step": network.step, "seconds": network.seconds,
        "decision": network.decision, "source": network.source, "units": network.units, "count": grams.shape[-1],
        "note": network.note, "farthest": max(layer.loss_steps), "error": layer.error,
        "horizon": {f"{level:g}": layer.horizon[level] for level in LEVELS},
        "interval": {f"{level:g}": intervals.interval(grams, level) for level in LEVELS},
        "beyond": {str(lag): finite(bias[lag]) if lag < max(layer.loss_steps) else None for lag in FAR},
        "arriving": [finite(value) for value in layer.adjoint.log10_arriving_total],
        "half_lives": [finite(unit.half_life) for unit in layer.units],
        "gate_half_lives": [finite(math.log(2) * unit.timescale) for unit in layer.units],
    }  # fmt: skip


def finite(value: float) -> float | None:
    """Five digits; None for what is not a number or infinite."""
    return float(f"{value:.5g}") if np.isfinite(value) else None
