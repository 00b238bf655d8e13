"""What a layer sends to its input: the gradient that enters the layer below."""

from __future__ import annotations

import torch
from torch import Tensor

from throughtime.block import Block
from throughtime.linearize import Linearization
from throughtime.scaled import power_of_two
from throughtime.sweep import stream
from throughtime.trace import Trace


class _Inputs:
    """Collects what a stream sends to the input of each step."""

    paths = False

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.gradient = torch.zeros_like(trace.x)

    def update(self, block: Block) -> None:
        raise NotImplementedError("a stream has no lags")

    def tail(self, block: Block) -> None:
        sent = self.trace.cell.to_input(self.trace.weights, block.pre)[:, 0]
        self.gradient[block.steps[:, 0]] = sent * power_of_two(block.common, sent.dtype)[:, None, None]

    def initial(self, lag: int | None, adjoint: Tensor, exponent: Tensor) -> None:
        pass


def input_gradient(trace: Trace) -> Tensor:
    """(T, B, D): the gradient at the input of every step, of all that enters the trace."""
    origins, sent = trace.origins(), _Inputs(trace)
    if origins:
        rows = trace.rows(origins)
        exponent = torch.zeros(rows.shape[:2], dtype=torch.int64, device=rows.device)
        with torch.no_grad():
            stream(Linearization(trace), rows, exponent, torch.tensor(origins), [sent])
    return sent.gradient
