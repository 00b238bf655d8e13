"""By which port of the cell the adjoint goes back: the shares of the paths."""

from __future__ import annotations

from functools import reduce

import numpy as np
import torch

from throughtime.linearize import Linearization
from throughtime.reducers.reducer import Reducer
from throughtime.scaled import Scaled
from throughtime.sweep import Block


class Paths(Reducer):
    """Share of path p at lag τ ≥ 1: Σ⟨λ_p, λ⟩ / Σ⟨λ, λ⟩ over origins and sequences, λ = Σ_p λ_p. Lag 0 has none."""

    paths = True

    def __init__(self, linearization: Linearization) -> None:
        super().__init__(linearization)
        steps = linearization.trace.steps
        self.ports = linearization.cell.ports
        self.sums = {"paths": Scaled.zeros(len(self.ports), steps), "whole": Scaled.zeros(steps)}

    def update(self, block: Block) -> None:
        assert block.lags is not None
        cell, window = self.linearization.cell, block.window
        landing = block.steps - 1
        inside = landing >= 0
        if not inside.any():
            return
        # A path ends one step earlier than the window's steps.
        factors, at = {}, (landing - max(0, window.first - 1)).clamp_min(0)
        for name in cell.landing:
            here = window.factors[name]
            if window.first:
                earlier = self.linearization.window(window.first - 1, window.first).factors[name]
                here = torch.cat((earlier, here))
            factors[name] = here[at]
        weights = self.linearization.trace.weights
        paths = [cell.path_total(weights, port, path, factors) for port, path in block.paths.items()]
        if not inside.all():
            paths = [path * inside[..., None, None] for path in paths]
        whole = reduce(torch.add, paths)
        inner = torch.stack([(path * whole).sum((1, 2, 3)) for path in paths])
        lands = inside.any(1)
        lags, exponent = block.lags[lands] + 1, 2 * block.common[lands]
        self._add("paths", lags, inner[:, lands], exponent)
        self._add("whole", lags, whole.square().sum((1, 2, 3))[lands], exponent)

    def _add(self, name: str, lags: torch.Tensor, value: torch.Tensor, exponent: torch.Tensor) -> None:
        sums = self.scaled(name)
        told = lags < self.linearization.trace.steps
        sums.add_at(lags[told], value[..., told], exponent[told])

    def finish(self) -> dict[str, np.ndarray]:
        """Port → (T,) shares, NaN at lag 0."""
        paths, whole = self.scaled("paths"), self.scaled("whole")
        return dict(zip(self.ports, paths.over(whole), strict=True))
