"""Unit by unit: what the update gate says of a memory, how long the unit holds its own value, how long the gradient lives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor, nn

import throughtime as tt
from throughtime.jacobians import jacobians
from throughtime.linearize import Linearization
from throughtime.reducers.adjoints import Adjoints
from throughtime.sweep import sweep
from throughtime.trace import Trace

Array = NDArray[np.float64]
DRAWS = 2000  # of the bootstrap over units
ORIGINS = 40  # steps t from which products go back
LONGEST = 300  # steps that they go back at the most


@dataclass(frozen=True)
class Units:
    """One trained GRU layer, unit by unit, (H,) each: half-lives in steps, NaN where not reached.

    average: ln 2 · −1/⟨ln z⟩. product: of ∏ z. own: of ∂h_{t,j}/∂h_{k,j}, by all paths. gradient: of ∂L/∂h_{k,j}. These three
    are RMS over steps and sequences, and end at the first lag with half of what there is at lag 0, or less. often_reset:
    fraction of steps with r < .1. stayed: share ⟨λ⁰, λ⟩ / ⟨λ, λ⟩ of the gradient that never left the carry path, by lag.
    radius: median over steps and sequences of the largest modulus of an eigenvalue of ∂h_i/∂h_{i−1}; keep: of the largest z.
    """

    name: str
    steps: int
    average: Array
    product: Array
    own: Array
    gradient: Array
    often_reset: Array
    stayed: Array
    radius: float
    keep: float


def units(name: str, model: nn.Module, layer: str, inputs: Tensor, loss: Callable[[Tensor], Tensor]) -> Units:
    """Record `loss(model(inputs))` and read the units of one GRU layer."""
    with tt.record(model, layers=[layer]) as rec:
        loss(model(inputs)).backward()
    told = rec.flow(demand=False, hops=True).layers[layer]
    trace = rec.traces()[0]
    gates = trace.cell.pre_activations(trace.weights, trace.x, trace.carries[:-1])
    product, own = held(trace, torch.sigmoid(gates["z"]))
    each_step = trace.cell.jacobian(*_sample(trace))
    assert told.hops is not None
    return Units(
        name,
        told.steps,
        average=np.log(2) * np.array([unit.timescale for unit in told.units]),
        product=half_life(product),
        own=half_life(own),
        gradient=half_life(gradient_by_lag(trace)),
        often_reset=(torch.sigmoid(gates["r"]) < 0.1).double().mean((0, 1)).numpy(),
        stayed=told.hops["0"],
        radius=float(torch.linalg.eigvals(each_step).abs().amax(-1).median()),
        keep=float(torch.sigmoid(gates["z"]).amax(-1).median()),
    )


def held(trace: Trace, z: Tensor) -> tuple[Array, Array]:
    """(lags, H) twice: RMS of ∏_{i=k+1..t} z_{i,j}, and of ∂h_{t,j}/∂h_{k,j}, the diagonal of the product of Jacobians.

    z: (T, B, H). Over `ORIGINS` steps t, evenly spread and the last among them, and all sequences.
    """
    steps, batch, size = z.shape
    origins = torch.linspace(1, steps, min(ORIGINS, steps)).round().long().unique()
    whole = jacobians(trace)
    products = torch.eye(size, dtype=z.dtype).expand(len(origins), batch, size, size)
    kept = torch.ones(len(origins), batch, size, dtype=z.dtype)
    told: list[list[Tensor]] = [[], []]
    for lag in range(min(LONGEST, steps)):
        there = origins > lag
        for rows, values in zip(told, (kept, products.diagonal(dim1=-2, dim2=-1)), strict=True):
            rows.append(values[there].double().square().mean((0, 1)).sqrt())
        at = (origins - 1 - lag).clamp(min=0)  # J_{t−lag} stands at index t − lag − 1
        products, kept = products @ whole[at], kept * z[at]
    product, own = (torch.stack(rows).numpy() for rows in told)
    return product, own


def gradient_by_lag(trace: Trace) -> Array:
    """(T, H): RMS of ∂L/∂h_{k,j} by lag, over the loss's steps and all sequences."""
    linearization = Linearization(trace)
    adjoints = Adjoints(linearization)
    sweep(linearization, [adjoints], tolerance=0)
    return 10.0 ** np.nan_to_num(adjoints.units().T, nan=-np.inf)


def half_life(by_lag: Array) -> Array:
    """(lags, H) to (H,): the first lag at which half of the value at lag 0 is left, or less; NaN if never."""
    under = by_lag <= by_lag[0] / 2
    return np.where(under.any(0), under.argmax(0), np.nan)


def _sample(trace: Trace) -> tuple:
    """Weights and factors of some steps in the middle, for what is asked of single steps."""
    first = trace.steps // 3
    return trace.weights, Linearization(trace).window(first, min(first + 30, trace.steps)).factors


def ratio(over: Array, under: Array) -> tuple[float, float, float]:
    """The median over units of their ratio where both are there, and its 95 % bootstrap interval over units."""
    both = np.isfinite(over) & np.isfinite(under)
    return median(over[both] / under[both])


def rank_correlation(a: Array, b: Array) -> tuple[float, float, float]:
    """Spearman's, and its 95 % bootstrap interval over units; a half-life that was not reached ranks last.

    NaN where one of them is the same for all units.
    """
    a, b = (np.nan_to_num(each, nan=np.inf) for each in (a, b))
    drawn = np.random.default_rng(0).integers(0, len(a), (DRAWS, len(a)))
    if len(np.unique(a)) == 1 or len(np.unique(b)) == 1:
        return (float("nan"),) * 3
    spread = [_spearman(a[places], b[places]) for places in drawn]
    return _spearman(a, b), *np.nanquantile(spread, (0.025, 0.975))


def _spearman(a: Array, b: Array) -> float:
    if len(np.unique(a)) == 1 or len(np.unique(b)) == 1:
        return float("nan")
    return float(spearmanr(a, b).statistic)


def median(values: Array) -> tuple[float, float, float]:
    """The median, and its 95 % bootstrap interval over units."""
    drawn = np.random.default_rng(0).integers(0, len(values), (DRAWS, len(values)))
    return float(np.median(values)), *np.quantile(np.median(values[drawn], axis=1), (0.025, 0.975))
