"""What everything is timed on: a GRU, one batch and its training step; and the register of what is timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

import throughtime as tt
from throughtime.linearize import Linearization
from throughtime.sweep import sweep
from throughtime.trace import Trace

INPUTS = 32


@dataclass(frozen=True)
class Scene:
    """An nn.GRU and one batch. every: a loss at every step, else at the last. chrono: its max_lag, 0: default weights."""

    hidden: int
    steps: int
    batch: int = 16
    every: bool = False
    chrono: int = 0
    device: str = "cpu"

    @cached_property
    def layer(self) -> nn.GRU:
        torch.manual_seed(0)
        layer = nn.GRU(INPUTS, self.hidden)
        if self.chrono:
            tt.init.chrono_(layer, self.chrono)
        return layer.to(self.device)

    def _drawn(self, seed: int, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(self.device)

    @cached_property
    def x(self) -> Tensor:
        return self._drawn(1, self.steps, self.batch, INPUTS)

    @cached_property
    def target(self) -> Tensor:
        return self._drawn(2, self.batch, self.hidden)

    def losses(self, outputs: Tensor) -> Tensor:
        """(T,) the loss that enters at each step, from outputs (T, B, H)."""
        return (outputs * self.target).sum((1, 2))

    def loss(self, outputs: Tensor) -> Tensor:
        return self.losses(outputs if self.every else outputs[-1:]).sum()

    def step(self) -> None:
        """The training step: fused forward, loss, backward."""
        self.layer.zero_grad()
        self.loss(self.layer(self.x)[0]).backward()

    @cached_property
    def traces(self) -> list[Trace]:
        with tt.record(self.layer) as record:
            self.step()
        return record.traces()

    @cached_property
    def lags(self) -> int:
        """How many lags the sweep tells apart by default."""
        first = sweep(Linearization(self.traces[0]), [])
        return self.steps if first is None else first


@dataclass(frozen=True)
class Work:
    """Something that is timed. label: its name in the table; recorded: it starts from traces, recorded before; peak:
    whether its memory says anything."""

    label: str
    run: Callable[[Scene], object]
    recorded: bool
    peak: bool


WORKS: dict[str, Work] = {}


def work(
    label: str, recorded: bool = False, peak: bool = True
) -> Callable[[Callable[[Scene], object]], Callable[[Scene], object]]:
    """Put a function of a scene into the register, under its own name."""

    def put(function: Callable[[Scene], object]) -> Callable[[Scene], object]:
        WORKS[function.__name__] = Work(label, function, recorded, peak)
        return function

    return put
