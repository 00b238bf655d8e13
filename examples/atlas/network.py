"""What a network of the atlas is: a model of layers that `tt.load` read, and its own decisions on its own input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

STRETCHES = 12
"""In which one long sequence is cut, to see how much the result rests on any of them."""


@dataclass(frozen=True)
class Network:
    """decisions(model): (N,) one number a unit of the input, added up to the loss; of a batch, one a sequence.

    job: what it is for. layers: what each is called, by its name in the flow. step: what one step is; seconds: its length, or
    None. decision: where the loss is, source: the input, units: what the input is a sample of, all in words. cuts: of one long
    sequence, the steps at which its stretches begin, and the end. note: what a reader must know of these rows.
    """

    name: str
    licence: str
    job: str
    layers: Mapping[str, str]
    step: str
    seconds: float | None
    decision: str
    source: str
    units: str
    model: nn.Module
    decisions: Callable[[nn.Module], Tensor]
    cuts: tuple[int, ...] = ()
    note: str = ""

    def loss(self, model: nn.Module, _: object = None) -> Tensor:
        """All decisions added up."""
        return self.decisions(model).sum()


def ahead(logits: Tensor) -> Tensor:
    """(…, classes) to (…): the log-odds of the class chosen over the next best, in nats."""
    best = logits.topk(2).values
    return best[..., 0] - best[..., 1]


def edges(steps: int) -> tuple[int, ...]:
    """Where `STRETCHES` stretches of equal length begin, and the end."""
    return tuple(round(steps * place / STRETCHES) for place in range(STRETCHES + 1))


def stretches(values: Tensor, cuts: tuple[int, ...]) -> Tensor:
    """(T,) added up between the cuts: (stretches,)."""
    return torch.stack([part.sum() for part in values[: cuts[-1]].tensor_split(cuts[1:-1])])
