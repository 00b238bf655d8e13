"""Small measured layers on which rules show themselves: a fresh network on a synthetic task, recorded once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from throughtime.flow import LayerFlow


@cache
def measured(
    kind: str = "GRU",
    prepare: Callable[[Any], Any] | None = None,
    *,
    steps: int = 40,
    lag: int = 30,
    batch: int = 64,
    hidden: int = 16,
    loss_steps: int = 1,
    heavy_step: int | None = None,
    centred: bool = False,
    seed: int = 0,
    **options: Any,
) -> LayerFlow:
    """The layer of a fresh torch.nn.<kind> that is to repeat its input of `lag` steps before.

    prepare: changes the layer in place before it runs. loss_steps: how many of the last steps carry a loss.
    heavy_step: one of them that weighs a hundredfold. centred: the linear reading begins at zero error on average.
    options: further arguments of the layer. Random numbers of the caller are left alone.
    """
    import torch

    from throughtime.recording.recorder import record

    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        layer = getattr(torch.nn, kind)(1, hidden, **options)
        head = torch.nn.Linear(hidden, 1)
        with torch.no_grad():
            if prepare is not None:
                prepare(layer)
        x = torch.randn(steps, batch, 1)
        wanted = x.roll(lag, 0)
        with record(layer) as recorded:
            error = head(layer(x)[0]) - wanted
            if centred:
                error = error - error.mean(1, keepdim=True).detach()
            weight = torch.ones(steps, 1, 1)
            if heavy_step is not None:
                weight[heavy_step] = 100
            (weight * error.square())[-loss_steps:].mean().backward()
    flow = recorded.flow(bias="horizon", hops=False)
    return next(iter(flow.layers.values()))
