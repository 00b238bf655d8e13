"""The one-step derivatives of all steps, from the trace: closed form, computed a window of steps at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from throughtime.cells.cell import Pulled, Tensors, pull_by_autograd
from throughtime.trace import Trace

Pick = Callable[[Tensor], Tensor]


class Window:
    """The factors of the steps first … last − 1, computed when they are first asked for."""

    def __init__(self, trace: Trace, first: int, last: int) -> None:
        self.trace, self.first, self.last = trace, first, last
        self.x = trace.x[first:last]
        self.before = trace.carries[first:last]
        self.after = trace.carries[first + 1 : last + 1]

    @cached_property
    def factors(self) -> Tensors:
        """(steps, B, …) by name."""
        return self.trace.cell.factors(self.trace.weights, self.x, self.before, self.after)

    @cached_property
    def operands(self) -> Tensors:
        """(steps, B, width) by name: what the parameters multiply."""
        return self.trace.cell.operands(self.factors, self.x, self.before)


class Linearization:
    """The one-step derivatives of a trace. derivative: "closed" (the default) or "autograd", which needs no closed form."""

    def __init__(self, trace: Trace, derivative: str = "closed") -> None:
        if derivative not in ("closed", "autograd"):
            raise ValueError(f"derivative: got {derivative!r}; expected 'closed' or 'autograd'")
        self.trace, self.cell, self.derivative = trace, trace.cell, derivative

    @cached_property
    def whole(self) -> Window:
        """All steps, kept: for many origins, which pass through every step at every lag."""
        return Window(self.trace, 0, self.trace.steps)

    def window(self, first: int, last: int) -> Window:
        """The steps first … last − 1."""
        return Window(self.trace, first, last)

    def pull(self, window: Window, pick: Pick, adjoint: Tensor, paths: bool) -> Pulled:
        """Pull adjoints (..., S·H) back through the steps that `pick` takes out of the window's arrays."""
        weights = self.trace.weights
        if self.derivative == "autograd":
            return pull_by_autograd(self.cell, weights, pick(window.x), pick(window.before), adjoint)
        picked = {name: pick(value) for name, value in window.factors.items()}
        return self.cell.pull(weights, picked, adjoint, paths)


def log_keep(trace: Trace) -> Tensor | None:
    """ln of the gate that multiplies the old carry, (T, B, H), from its logits; None for a cell without a carry port."""
    if trace.cell.keep is None:
        return None
    name, sign = trace.cell.keep
    logits = trace.cell.pre_activations(trace.weights, trace.x, trace.carries[:-1])[name]
    return torch.nn.functional.logsigmoid(sign * logits)
