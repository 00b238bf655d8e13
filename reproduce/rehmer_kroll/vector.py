"""Random networks whose recurrent gain is swept through the critical one.

Recurrent weights N(0, g²/H) in every block, biases 0, so that all gates stand at ½ where the state is 0. There the state 0
loses its stability at g = 1 (Elman) and g = 2 (GRU of either kind, LSTM): the spectral radius of the one-step Jacobian
is g; ½ + ¼ g; and for an LSTM ½ + ¼ g again.

Two sizes at each gain and seed: the local gradient ‖∂(c·h_T)/∂θ‖, θ all weights and biases of the layer and c a random
unit vector; and the transport ‖∂h_T/∂s_0‖₂, s_0 the whole state before the first step (h, or h and c).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reproduce.rehmer_kroll.replicas import ELMAN, Kind, Parameters, states

UNITS, START = 16, 0.01
"""START: standard deviation of the state before the first step, as in the scalar study."""
INPUT_GAIN = 1.0
"""Standard deviation of the input weights, one input N(0, drive²) a step."""


def critical(kind: Kind) -> float:
    """The gain at which the state 0 becomes unstable, at zero bias and zero input."""
    return 1.0 if kind is ELMAN else 2.0


def random(kind: Kind, gains: Tensor, seeds: Sequence[int], units: int = UNITS) -> Parameters:
    """One replica for each gain and seed, seeds fastest. A seed draws the same matrix, in other size, for every gain."""
    drawn: dict[str, list[Tensor]] = {"w_hh": [], "w_ih": []}
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        block = torch.randn(units, kind.gates * units, generator=generator, dtype=torch.float64) * units**-0.5
        drawn["w_hh"].append(block)
        drawn["w_ih"].append(INPUT_GAIN * torch.randn(1, kind.gates * units, generator=generator, dtype=torch.float64))
    replicas = len(gains) * len(seeds)
    w_hh = (gains.double()[:, None, None, None] * torch.stack(drawn["w_hh"])).flatten(0, 1)
    zero = torch.zeros(replicas, 1, kind.gates * units, dtype=torch.float64)
    w_ih = torch.stack(drawn["w_ih"]).repeat(len(gains), 1, 1)
    return {"w_hh": w_hh, "w_ih": w_ih, "b_ih": zero, "b_hh": zero.clone()}


@dataclass(frozen=True)
class Sizes:
    """gradient: ‖∂(c·h_T)/∂θ‖; transport: ‖∂h_T/∂s_0‖₂; each (R,)."""

    gradient: Tensor
    transport: Tensor


def sizes(kind: Kind, p: Parameters, x: Tensor, start: tuple[Tensor, ...], reading: Tensor) -> Sizes:
    """x (T, R, 1, D), start: each (R, 1, H), reading: c (R, H)."""
    leaves = {name: value.detach().requires_grad_() for name, value in p.items()}
    last = states(kind, leaves, x, start)[-1][:, 0]
    grads = torch.autograd.grad((last * reading).sum(), list(leaves.values()))
    gradient = torch.stack([grad.flatten(1).square().sum(1) for grad in grads]).sum(0).sqrt()
    # Row i of the batch is the same sequence again; only unit i of its last state is read.
    units = p["w_hh"].shape[1]
    wide = tuple(part.expand(-1, units, -1).clone().requires_grad_() for part in start)
    last = states(kind, p, x.expand(-1, -1, units, -1), wide)[-1]
    rows = torch.autograd.grad(last.diagonal(dim1=1, dim2=2).sum(), wide)
    return Sizes(gradient, torch.linalg.matrix_norm(torch.cat(rows, -1), ord=2))


@dataclass(frozen=True)
class Sweep:
    """gains: (G,), in units of the critical one; gradient, transport: (G, seeds)."""

    gains: NDArray[np.float64]
    gradient: NDArray[np.float64]
    transport: NDArray[np.float64]


def sweep(kind: Kind, gains: Sequence[float], seeds: Sequence[int], steps: int, drive: float = 0.0) -> Sweep:
    """The sizes of random networks over the gain. drive: standard deviation of the white input."""
    generator = torch.Generator().manual_seed(1)
    shape = (len(seeds), 1, UNITS)
    start = tuple(START * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(kind.states))
    reading = torch.nn.functional.normalize(torch.randn(len(seeds), UNITS, generator=generator, dtype=torch.float64))
    x = drive * torch.randn(steps, len(seeds), 1, 1, generator=generator, dtype=torch.float64)
    found = []
    for gain in gains:
        p = random(kind, torch.tensor([gain * critical(kind)], dtype=torch.float64), seeds)
        found.append(sizes(kind, p, x, start, reading))
    gradient, transport = (torch.stack([getattr(each, name) for each in found]) for name in ("gradient", "transport"))
    return Sweep(np.asarray(gains, float), gradient.numpy(), transport.numpy())
