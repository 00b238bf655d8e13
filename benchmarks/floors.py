"""What no decomposition of this kind can be below: its matrix products alone, and its arrays moved once.

The products are made in the layout in which they are fastest: one for each lag (or step), of arrays in one piece.
"""

from __future__ import annotations

import torch

from benchmarks.scene import INPUTS, Scene, work


def _every_origin(scene: Scene, lags: int) -> None:
    """For each lag the rows of all its origins: pulled one step back, and G(τ) of both weights."""
    hidden, most, device = scene.hidden, scene.steps * scene.batch, scene.device
    pre, operand = (torch.ones(most, width, device=device) for width in (3 * hidden, hidden + INPUTS))
    weight, rows = torch.ones(3 * hidden, hidden, device=device), torch.ones(most, hidden, device=device)
    term = torch.ones(3 * hidden, hidden + INPUTS, device=device)
    for lag in range(lags):
        count = (scene.steps - lag) * scene.batch
        torch.mm(pre[:count], weight, out=rows[:count])
        torch.mm(pre[:count].T, operand[:count], out=term)


@work("its matrix products alone, of the lags told apart", recorded=True, peak=False)
def products(scene: Scene) -> None:
    _every_origin(scene, scene.lags)


@work("its matrix products alone", peak=False)
def products_of_all_lags(scene: Scene) -> None:
    _every_origin(scene, scene.steps)


@work("its matrix products alone: gates, sweep, h Gᵀ, p hᵀ", peak=False)
def single_products(scene: Scene) -> None:
    """Of one loss at the last step: three large ones, and one of the batch's rows for each step."""
    hidden, most, device = scene.hidden, scene.steps * scene.batch, scene.device
    pre, operand = (torch.ones(most, width, device=device) for width in (3 * hidden, hidden + INPUTS))
    weight, whole = (
        torch.ones(3 * hidden, hidden, device=device),
        torch.ones(3 * hidden, hidden + INPUTS, device=device),
    )
    torch.mm(operand, whole.T)
    torch.mm(operand, whole.T)
    torch.mm(pre.T, operand)
    row = torch.empty(scene.batch, hidden, device=device)
    for step in pre.split(scene.batch):
        torch.mm(step, weight, out=row)


@work("its arrays alone: factors written and read, adjoints written", peak=False)
def bytes_moved(scene: Scene) -> None:
    """Five factors a unit (keep, r, z, m, n), the adjoint and those of four pre-activations, once each."""
    factors = torch.ones(5, scene.steps * scene.batch * scene.hidden, device=scene.device)
    torch.empty_like(factors).copy_(factors)
