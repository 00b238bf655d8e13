"""One-step Jacobians and norms of the last state's dependence, against autograd through the cell's equations."""

import numpy as np
import pytest
import torch
from torch import Tensor

from reference import drawn
from throughtime.cells import REGISTRY, Weights
from throughtime.jacobians import jacobians, log10_state_norms
from throughtime.trace import Trace

every_cell = pytest.mark.parametrize("key", REGISTRY)


def scene(key: str, steps: int = 5, batch: int = 2, hidden: int = 3, scale: float = 1.0) -> Trace:
    cell, inputs = REGISTRY[key], 2
    torch.manual_seed(0)
    w = Weights(**drawn(cell, inputs, hidden, lambda *shape: scale * torch.randn(*shape, dtype=torch.float64)))
    x, carry = torch.randn(steps, batch, inputs).double(), torch.randn(batch, cell.carry_size(w)).double()
    carries = [carry]
    for step in x:
        carries.append(cell.step(w, step, dict.fromkeys(cell.ports, carries[-1])))
    gradient = torch.zeros(steps, batch, carry.shape[-1], dtype=torch.float64)
    return Trace("rnn", cell, w, x, torch.stack(carries), gradient, {}, None, torch.float64)


def truth(trace: Trace, first: int, last: int) -> Tensor:
    """∂s_last/∂s_first (B, N, N) by autograd, sequence by sequence."""

    def run(carry: Tensor, b: int) -> Tensor:
        for step in trace.x[first:last, b]:
            carry = trace.cell.step(trace.weights, step, dict.fromkeys(trace.cell.ports, carry))
        return carry

    return torch.stack(
        [
            torch.autograd.functional.jacobian(lambda carry, b=b: run(carry, b), trace.carries[first, b])
            for b in range(trace.batch)
        ]
    )


@every_cell
def test_jacobians_are_autograds(key):
    trace = scene(key)
    made = jacobians(trace)
    for k in range(trace.steps):
        torch.testing.assert_close(made[k], truth(trace, k, k + 1), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(jacobians(trace, 1, 3), made[1:3])


@every_cell
def test_state_norms_are_those_of_the_products(key):
    trace = scene(key)
    products = [truth(trace, k, trace.steps) for k in range(trace.steps, -1, -1)]
    wanted = torch.stack([torch.log10(product.flatten(1).norm(dim=1)) for product in products])
    np.testing.assert_allclose(log10_state_norms(trace), wanted.numpy(), rtol=1e-10, atol=1e-10)


def test_state_norms_far_outside_of_floats():
    trace = scene("gru", steps=600, scale=0.1)
    told = log10_state_norms(trace)
    product, exponent = torch.eye(3, dtype=torch.float64).expand(2, -1, -1), np.zeros(2)
    for step in jacobians(trace).flip(0):
        product = product @ step
        size = product.flatten(1).norm(dim=1)
        product, exponent = product / size[:, None, None], exponent + np.log10(size.numpy())
    assert exponent.max() < -100
    np.testing.assert_allclose(told[-1], exponent, rtol=1e-10)
