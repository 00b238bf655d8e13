"""Ground truth for calls in a row: every step has its own copy of the weights (torch.func.functional_call).

autograd's gradient of copy k for the part of the loss at step t is the term at lag t − k.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from throughtime.flow import LayerFlow

CLOSE = {"rtol": 1e-9, "atol": 1e-11}
States = tuple[Tensor, ...]
Call = Callable[[int, Tensor, States], States]
"""(step, input, states) to the new states."""
Sums = dict[tuple[str, int], Tensor]
"""(weight, lag) → G(lag)."""


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stepped(cell: Callable[..., Tensor | States], x: Tensor, states: States) -> States:
    """A step of one of torch's cells, whatever it takes and returns."""
    made = cell(x, states if len(states) > 1 else states[0])
    return made if isinstance(made, tuple) else (made,)


def loss_parts(outputs: list[Tensor], which: str) -> list[Tensor]:
    """One a step, of outputs (B, 2) under drawn weights; of a last loss all others are zero."""
    weights = drawn(len(outputs), *outputs[0].shape, seed=7)
    parts = [(output * weight).sum() for output, weight in zip(outputs, weights, strict=True)]
    return parts if which == "every" else [0 * part for part in parts[:-1]] + parts[-1:]


def copied(cell: nn.RNNCellBase, steps: int) -> tuple[list[dict[str, Tensor]], Call]:
    """The weights of one of torch's cells for each step, by name, and the step with its own."""
    plain = type(cell)(cell.input_size, cell.hidden_size).double()
    copies = [{n: p.detach().clone().requires_grad_() for n, p in cell.named_parameters()} for _ in range(steps)]

    def call(k: int, x: Tensor, states: States) -> States:
        return stepped(lambda *given: functional_call(plain, copies[k], given), x, states)

    return copies, call


def terms(cell: nn.RNNCellBase, steps: int, parts_of: Callable[[Call], list[Tensor]]) -> Sums:
    """The terms of a cell of torch's called `cell`. parts_of: from how a step is called to the loss at each step."""
    copies, call = copied(cell, steps)
    return by_lag(parts_of(call), [{f"cell.{name}": value for name, value in each.items()} for each in copies])


def by_lag(parts: list[Tensor], copies: list[Mapping[str, Tensor]]) -> Sums:
    """The terms of losses at each step, of the copies of each step."""
    sums: Sums = {}
    for t, part in enumerate(parts):
        flat = [(k, name, value) for k in range(t + 1) for name, value in copies[k].items()]
        grads = torch.autograd.grad(part, [value for *_, value in flat], retain_graph=True, allow_unused=True)
        for (k, name, _), grad in zip(flat, grads, strict=True):
            if grad is not None:
                sums[name, t - k] = sums.get((name, t - k), torch.zeros_like(grad)) + grad
    return sums


def compare(layer: LayerFlow, sums: Sums) -> None:
    """Shares and norms of a layer's parameters with these."""
    for name, told in layer.parameters.items():
        whole = torch.stack([value for (parameter, _), value in sums.items() if parameter == name]).sum(0)
        for lag in range(layer.steps):
            term = sums.get((name, lag), torch.zeros_like(whole))
            share = float((term * whole).sum() / whole.square().sum())
            np.testing.assert_allclose(told.share[lag], share, **CLOSE, err_msg=f"{name} {lag}")
            np.testing.assert_allclose(10 ** told.log10_norm[lag], float(term.norm()), **CLOSE, err_msg=f"{name} {lag}")
