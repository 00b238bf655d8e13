"""Unit by unit: what the update gate says of a unit's memory, and how long the gradient at it really lives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor, nn

import throughtime as tt
from throughtime.trace import Trace

Array = NDArray[np.float64]
DRAWS = 2000  # of the bootstrap over units


@dataclass(frozen=True)
class Units:
    """One trained GRU layer, unit by unit, (H,) each; half-lives in steps, NaN where not reached within the sequence.

    by_gate: ln 2 · −1/⟨ln z⟩. carried: of ∏ z, RMS over the same origins and sequences as the adjoint's: the carry path alone.
    measured: of the adjoint. reset: the mean reset gate. stayed: share of the adjoint that never left the carry path, by lag.
    """

    name: str
    steps: int
    by_gate: Array
    carried: Array
    measured: Array
    reset: Array
    stayed: Array

    @property
    def gate_steps(self) -> Array:
        """(H,): the first whole step at which the gate alone would have halved it, as `measured` and `carried` are whole."""
        return np.ceil(self.by_gate)

    @property
    def reached(self) -> NDArray[np.bool_]:
        """(H,): where the measured half-life was reached."""
        return np.isfinite(self.measured)


def units(name: str, model: nn.Module, layer: str, inputs: Tensor, loss: Callable[[Tensor], Tensor]) -> Units:
    """Record `loss(model(inputs))` and read the units of one GRU layer."""
    with tt.record(model, layers=[layer]) as rec:
        loss(model(inputs)).backward()
    told = rec.flow(demand=False, hops=True).layers[layer]
    trace = rec.traces()[0]
    gates = trace.cell.pre_activations(trace.weights, trace.x, trace.carries[:-1])
    assert told.hops is not None
    return Units(
        name,
        told.steps,
        by_gate=np.log(2) * np.array([unit.timescale for unit in told.units]),
        carried=carried(trace, gates["z"]),
        measured=np.array([unit.half_life for unit in told.units]),
        reset=torch.sigmoid(gates["r"]).mean((0, 1)).double().numpy(),
        stayed=told.hops["0"],
    )


def carried(trace: Trace, logits: Tensor) -> Array:
    """(H,): the first lag at which the RMS of g_t ∏_{i=k+1..t} z_i, over the RMS of g_t at the same origins, is ½ or less."""
    log_z = torch.nn.functional.logsigmoid(logits.double())
    summed = torch.cat([torch.zeros_like(log_z[:1]), log_z.cumsum(0)])  # of the steps before each
    entering = trace.gradient.double().square()
    lives = np.full(log_z.shape[-1], np.nan)
    for lag in range(1, trace.steps):
        kept = torch.exp(2 * (summed[lag + 1 :] - summed[1:-lag]))
        part = (entering[lag:] * kept).sum((0, 1)) / entering[lag:].sum((0, 1))
        lives[np.isnan(lives) & (part.sqrt() <= 0.5).numpy()] = lag
        if not np.isnan(lives).any():
            break
    return lives


def rank_correlation(a: Array, b: Array) -> tuple[float, float, float]:
    """Spearman's, and its 95 % bootstrap interval over units."""
    drawn = np.random.default_rng(0).integers(0, len(a), (DRAWS, len(a)))
    spread = [spearmanr(a[places], b[places]).statistic for places in drawn]
    return spearmanr(a, b).statistic, *np.nanquantile(spread, (0.025, 0.975))


def median(values: Array) -> tuple[float, float, float]:
    """The median, and its 95 % bootstrap interval over units."""
    drawn = np.random.default_rng(0).integers(0, len(values), (DRAWS, len(values)))
    return float(np.median(values)), *np.quantile(np.median(values[drawn], axis=1), (0.025, 0.975))
