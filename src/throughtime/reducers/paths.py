"""By which port of the cell the adjoint goes back: the shares of the paths."""

from __future__ import annotations

from functools import reduce

import numpy as np
import torch
from torch import Tensor

from throughtime.block import Block, contiguous
from throughtime.linearize import Linearization
from throughtime.reducers.reducer import Reducer
from throughtime.scaled import Scaled


class Paths(Reducer):
    """Share of path p at lag τ ≥ 1: Σ⟨λ_p, λ⟩ / Σ⟨λ, λ⟩ over origins and sequences, λ = Σ_p λ_p. Lag 0 has none."""

    paths = True

    def __init__(self, linearization: Linearization) -> None:
        super().__init__(linearization)
        steps = linearization.trace.steps
        self.ports = linearization.cell.ports
        self.last = max(linearization.trace.origins(), default=0)
        self.sums = {"paths": Scaled.zeros(len(self.ports), steps), "whole": Scaled.zeros(steps)}

    def update(self, block: Block) -> None:
        assert block.lags is not None
        cell, window, paths = self.linearization.cell, block.window, block.paths
        landing = block.steps - 1
        inside, passed = landing >= 0, 0
        if len(landing) == 1:  # origins are ascending: those that land before the first step stand first
            passed = int((~inside).sum())
            landing, paths = landing[:, passed:], {port: path[:, passed:] for port, path in paths.items()}
        elif not inside.all():
            there = (
                (block.at > 0).view(inside.shape) if isinstance(block.at, Tensor) else inside.to(block.common.device)
            )
            paths = {port: path * there[..., None, None] for port, path in paths.items()}
        # A path ends one step earlier than the window's steps.
        factors, earlier = {}, max(0, window.first - 1)
        for name in cell.landing if landing.numel() else ():
            here = window.factors[name]
            if window.steps is not None:  # which hold those before them too
                factors[name] = here[window.at(landing.clamp_min(0).flatten())].unflatten(0, landing.shape)
                continue
            if window.first:
                here = torch.cat((block.linearization.window(earlier, window.first).factors[name], here))
            at = contiguous((landing - earlier).clamp_min(0))
            if isinstance(at, Tensor):
                back = 0 if window.first else 1  # block.at counts from the window's first step
                at = (block.at[passed:] - back).clamp_min(0) if isinstance(block.at, Tensor) else at.to(here.device)
            factors[name] = here[at].unflatten(0, landing.shape)
        inner = block.adjoint.new_zeros(len(self.ports), len(block.lags))
        size = block.adjoint.new_zeros(len(block.lags))
        if landing.numel():
            weights = self.linearization.trace.weights
            totals = [cell.path_total(weights, port, path, factors) for port, path in paths.items()]
            whole = reduce(torch.add, totals)
            inner = torch.stack([(path * whole).sum((1, 2, 3)) for path in totals])
            size = whole.square().sum((1, 2, 3))
        # Where no origin reaches back so far, there is nothing to tell.
        lags = torch.where(block.lags < self.last, block.lags + 1, self.linearization.trace.steps)
        self.add("paths", block, inner, lags)
        self.add("whole", block, size, lags)

    def finish(self) -> dict[str, np.ndarray]:
        """Port → (T,) shares, NaN at lag 0."""
        paths, whole = self.scaled("paths"), self.scaled("whole")
        return dict(zip(self.ports, paths.over(whole), strict=True))
