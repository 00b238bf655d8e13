"""One-step Jacobians of a trace, and how much the last state depends on each state before it: no loss needed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from throughtime.linearize import Linearization
from throughtime.scaled import march, power_of_two
from throughtime.trace import Trace

ENTRIES = 2**21  # numbers of the Jacobians that are made at once while products are taken


def jacobians(trace: Trace, first: int = 0, last: int | None = None) -> Tensor:
    """J_k = ∂s_k/∂s_{k−1} of the steps first … last − 1 (0-based): (steps, B, N, N), N numbers of the carry.

    Rows are outputs: the adjoint goes back as λ_{k−1} = λ_k J_k.
    """
    with torch.no_grad():
        window = Linearization(trace).window(first, trace.steps if last is None else last)
        return trace.cell.jacobian(trace.weights, window.factors)


def log10_state_norms(trace: Trace) -> np.ndarray:
    """log10 ‖∂s_T/∂s_{T−τ}‖_F of each sequence, (T + 1, B) by lag τ: exact, over every direction.

    The last row is the initial state's. −inf where the norm is zero; numbers far outside of floats are told too.
    """
    steps, batch, size = trace.steps, trace.batch, trace.carries.shape[-1]
    rows = torch.eye(size, dtype=trace.x.dtype, device=trace.x.device).expand(batch, -1, -1)
    exponent = torch.zeros(rows.shape[:2], dtype=torch.int64, device=rows.device)
    room, out, last = max(1, ENTRIES // rows.numel()), [], steps
    with torch.no_grad():
        while last > 0:
            first = max(0, last - room)
            ahead = jacobians(trace, first, last).flip(0)
            passed, powers, _, rows, exponent = march(
                lambda turn, rows, ahead=ahead: (rows @ ahead[turn], None), rows, exponent, last - first
            )
            out.append(_log10_norms(torch.stack(passed), torch.stack(powers)))
            last = first
        out.append(_log10_norms(rows[None], exponent[None]))
    return np.concatenate(out)


def _log10_norms(rows: Tensor, exponent: Tensor) -> np.ndarray:
    """log10 of the root of the sum over directions of ‖rows (L, B, N, N)‖², each row times 2^exponent (L, B, N)."""
    top = exponent.amax(-1, keepdim=True)
    squares = torch.linalg.vector_norm(rows, dim=-1).double().square() * power_of_two(2 * (exponent - top))
    return (0.5 * torch.log10(squares.sum(-1)) + top.squeeze(-1).double() * np.log10(2)).cpu().numpy()
