"""Where there is no loss: how far back the last state of a layer depends on the states before it, ‖∂s_T/∂s_k‖.

Each layer is probed alone, by losses ⟨v, s_T⟩ of its own last state (h; for an LSTM h and c). Where sequences times
directions are few, v runs through ± every unit vector, so that the root mean square over v is the Frobenius norm exactly,
divided by the root of the state's size; else through random directions, whose mean square estimates the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from throughtime.asked import Options
from throughtime.diagnosis.measure import flow_by, traces_and_series
from throughtime.errors import InputError
from throughtime.flow import Flow
from throughtime.progress import Tell, quiet
from throughtime.recording.recorder import record
from throughtime.streaming.stream import Streaming
from throughtime.streaming.task import Read
from throughtime.trace import Trace, joined
from throughtime.whole.series import Series

EXACT = 256  # sequences times directions up to which every direction is taken
RANDOM = 64  # random directions in all sequences together, at least: their mean square is then within some 20 %
SEED = 0  # of signs and random directions, in an own generator


def probe(
    model: nn.Module,
    batches: Iterable[Any],
    layers: list[str] | None = None,
    progress: Tell = quiet,
    how: Streaming | None = None,
    count: int | None = None,
    **options: Unpack[Options],
) -> Flow:
    """The flow of each layer's last state, without touching the model. Demand needs a loss and is missing.

    `batch` and `by_sequence` are of the sequences given, not of their copies, one a direction. how, count: see
    `throughtime.diagnosis.measure`. options: see `throughtime.asked.Options`.
    """
    asked = Options(signal_to_noise=False) | options | Options(demand=False)
    reader = ProbeReader(layers, count or 1, asked.get("signal_to_noise", False))
    return flow_by(reader, model, batches, progress, how, count, **asked)


@dataclass(frozen=True)
class ProbeReader:
    """Backward passes of the last state of each layer along directions. batches: how many there are, 1 if not known.

    noise: whether signal to noise was asked for.
    """

    layers: list[str] | None
    batches: int
    noise: bool

    def __call__(self, model: nn.Module, number: int, batch: Any, whole: bool = False) -> Read:
        traces, copies, notes, names, series = [], {}, {}, [], []
        for name, layer in record(model, self.layers).layers.items():
            names.append(name)
            parts, count, exact = self._directions(model, name, layer, number, batch, series if whole else None)
            told = f"along {f'all {count}' if exact else f'{count} random'} direction(s) for each sequence"
            reasons = {"demand": f"no loss was given: the last state was probed {told}"}
            if not self.noise:
                reasons["signal_to_noise"] = "no loss was given: directions of a probe are no sample"
            for part, each in parts.items():
                traces.append(joined(each))
                copies[part], notes[part] = count, reasons
        return Read(traces, names, names, copies, notes, series)

    def _directions(
        self, model: nn.Module, name: str, layer: nn.Module, number: int, batch: Any, series: list[Series] | None
    ) -> tuple[dict[str, list[Trace]], int, bool]:
        """The traces of every direction, by name; how many there are, and whether these are all."""
        buffers, rng = [value.clone() for value in model.buffers()], torch.get_rng_state()

        def state() -> Tensor:
            """Each direction finds the model and random numbers as they were."""
            torch.set_rng_state(rng)
            with torch.no_grad():
                for value, before in zip(model.buffers(), buffers, strict=True):
                    value.copy_(before)
            return _last_state(model, layer, batch)

        with torch.no_grad():
            size, sequences = state().shape[::-1]
        exact = size * sequences * self.batches <= EXACT
        count = size if exact else math.ceil(RANDOM / (sequences * self.batches))
        generator = torch.Generator().manual_seed(SEED + number)
        found: dict[str, list[Trace]] = {}

        def along(direction: Tensor) -> Tensor:
            last = state()
            return (last * direction.to(last)).sum()

        for place in range(count):
            directions = torch.randn(sequences, size, generator=generator, dtype=torch.float64)
            if exact:
                directions = directions.sign() * (torch.arange(size) == place)

            found_here, wholes = traces_and_series(model, partial(along, directions), [name], series is not None)
            if series is not None:
                series += wholes
            for trace in found_here:
                found.setdefault(trace.name, []).append(trace)
        return found, count, exact


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
