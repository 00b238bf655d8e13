"""Where there is no loss: how far back the last state of a layer depends on the states before it, ‖∂s_T/∂s_k‖.

Each layer is probed alone, by losses ⟨v, s_T⟩ of its own last state (h; for an LSTM h and c). Where sequences times
directions are few, v runs through ± every unit vector, so that the root mean square over v is the Frobenius norm exactly,
divided by the root of the state's size; else through random directions, whose mean square estimates the same.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from throughtime.diagnosis.diagnose import measure
from throughtime.errors import InputError
from throughtime.flow import Flow, LayerFlow, Missing
from throughtime.progress import Tell, quiet
from throughtime.recorder import record
from throughtime.training_step import untouched

EXACT = 256  # sequences times directions up to which every direction is taken
RANDOM = 64  # random directions in all sequences together, at least: their mean square is then within some 20 %
SEED = 0  # of signs and random directions, in an own generator


def probe(
    model: nn.Module, batches: list[Any], layers: list[str] | None = None, progress: Tell = quiet, **options: Any
) -> Flow:
    """The flow of each layer's last state, without touching the model. Demand needs a loss and is missing.

    `batch` and `by_sequence` are of the sequences given, not of their copies, one a direction. options: those of
    `throughtime.explain.explain`.
    """
    options = {"signal_to_noise": False} | options | {"demand": False}
    flows = [
        _probed(model, name, layer, batches, progress, options) for name, layer in record(model, layers).layers.items()
    ]
    return replace(flows[0], layers={name: layer for flow in flows for name, layer in flow.layers.items()})


def _probed(
    model: nn.Module, name: str, layer: nn.Module, batches: list[Any], progress: Tell, options: dict[str, Any]
) -> Flow:
    with untouched(model), torch.no_grad():
        size, sequences = _last_state(model, layer, batches[0]).shape[::-1]
    exact = size * sequences * len(batches) <= EXACT
    count = size if exact else math.ceil(RANDOM / (sequences * len(batches)))
    generator = torch.Generator().manual_seed(SEED)

    def step(model: nn.Module, given: tuple[int, Any]) -> Tensor:
        place, batch = given
        state = _last_state(model, layer, batch)
        directions = torch.randn(state.shape, generator=generator, dtype=torch.float64)
        if exact:
            directions = directions.sign() * (torch.arange(size) == place)
        return (state * directions.to(state)).sum()

    copies = [(place, batch) for place in range(count) for batch in batches]
    flow = measure(model, copies, step, [name], progress, **options)
    told = f"along {f'all {count}' if exact else f'{count} random'} direction(s) for each sequence"
    reasons = {
        "demand": f"no loss was given: the last state was probed {told}",
        "signal_to_noise": "no loss was given: directions of a probe are no sample",
    }
    noise = bool(options["signal_to_noise"])
    return replace(flow, layers={part: _merged(told, count, reasons, noise) for part, told in flow.layers.items()})


def _merged(layer: LayerFlow, count: int, reasons: dict[str, str], noise: bool) -> LayerFlow:
    """Directions brought together again by sequence, and the reasons of a probe in place of "not asked for"."""
    width = layer.adjoint.by_sequence.shape[1] // count
    by_sequence = layer.adjoint.by_sequence.reshape(layer.steps, count, width)
    top = np.max(np.where(np.isfinite(by_sequence), by_sequence, -np.inf), axis=1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        merged = top[:, 0] + 0.5 * np.log10(np.mean(10.0 ** (2 * (by_sequence - top)), axis=1))
    told = {field: reason for field, reason in reasons.items() if not (noise and field == "signal_to_noise")}
    kept = tuple(each for each in layer.missing if each.field not in told)
    return replace(
        layer,
        batch=layer.batch // count,
        adjoint=replace(layer.adjoint, by_sequence=merged, arriving_by_sequence=np.zeros((0, 0))),
        missing=(*kept, *(Missing(field, reason) for field, reason in told.items())),
    )


def _last_state(model: nn.Module, layer: nn.Module, batch: Any) -> Tensor:
    """(sequences, state size): the layer's last states, side by side, of a forward pass of the model."""
    found: list[Tensor] = []

    def keep(_: nn.Module, __: Any, result: Any) -> None:
        last = result if isinstance(layer, nn.RNNCellBase) else result[1]
        found.append(torch.cat([_by_sequence(part) for part in (last if isinstance(last, tuple) else (last,))], dim=-1))

    x = batch[0] if isinstance(batch, tuple | list) else batch
    if model is layer:
        _check_kind(layer, x)
    handle = layer.register_forward_hook(keep)
    try:
        model(x)
    finally:
        handle.remove()
    if not found:
        raise InputError(
            "a forward pass that did not call the recurrent layer",
            "model(x), or model(first part of the batch), to run it",
            "pass loss=fn(model, batch) where the model is called in another way",
        )
    return found[-1]


def _by_sequence(state: Tensor) -> Tensor:
    """A state of every layer and direction (N, sequences, H) as (sequences, N·H); of a cell, (sequences, H) as it is."""
    return state.reshape(-1, state.shape[-1]) if state.ndim < 3 else state.transpose(0, 1).flatten(1)


def _check_kind(layer: nn.Module, x: Any) -> None:
    """A bare layer's own errors do not say what to do about the data."""
    weight = next(layer.parameters())
    if not isinstance(x, Tensor):
        raise InputError(f"data of type {type(x).__name__} for a bare layer", "a tensor", "pass x, or batches (x, …)")
    for what, got, expected in (("dtype", x.dtype, weight.dtype), ("device", x.device, weight.device)):
        if got != expected:
            raise InputError(
                f"data of {what} {got} for weights of {what} {expected}".replace("torch.", ""),
                f"one {what}",
                "convert the data, x.to(weight)",
            )
