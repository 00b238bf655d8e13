"""Some of the origins for all of them: estimates without bias, and their standard errors.

Origins are drawn at random without replacement and dealt into groups of n. A group's gradient, times R/n, stands for that of
all R origins: what is linear in the gradient (the shares) is estimated without bias by the mean over groups, and its error
is told by their spread (Cochran 1977, ch. 2). A square, ‖G(τ)‖² or ‖G − Σ_{τ ≤ K} G(τ)‖², would come out too large by the
spread itself. With g_t what origin t gives, A_a the sum of a group times R/n, a ≠ b two groups:

    E⟨A_a, A_b⟩ = R/(R − 1) (‖Σ g_t‖² − Σ‖g_t‖²)         E‖A_a‖² = R/n Σ‖g_t‖² + (n − 1)/n E⟨A_a, A_b⟩

so that both sums follow from the two means; the error of the result is the jackknife's over groups.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Integral

import torch
from torch import Tensor

from throughtime.asked import Asked
from throughtime.errors import InputError
from throughtime.flow import Array
from throughtime.linearize import Linearization
from throughtime.reducers.lag_terms import LagTerms, flat, rows_of
from throughtime.scaled import exponent_of
from throughtime.sweep import sweep
from throughtime.trace import Trace

MEMORY = 2**31  # bytes that the terms of all groups may take


@dataclass(frozen=True)
class Sampled:
    """What `drawn` of `of` origins say of one layer, by lag τ or by K, each with its standard error.

    share: ⟨G(τ), G⟩ / ⟨G, G⟩ with autograd's G. beyond: the share that lies beyond lag K. squared_norm: ‖G(τ)‖², and
    squared_bias: ‖G − Σ_{τ ≤ K} G(τ)‖² / ‖G‖²: without bias, so that what is small may come out below zero.
    The arrays are as long as lags were told apart.
    """

    name: str
    drawn: int
    of: int
    share: Array
    share_error: Array
    beyond: Array
    beyond_error: Array
    squared_norm: Array
    squared_norm_error: Array
    squared_bias: Array
    squared_bias_error: Array


def sample(
    trace: Trace, origins: int, groups: int = 8, max_lag: int | None = None, tolerance: float = 1e-12, seed: int = 0
) -> Sampled:
    """Estimate a layer's terms from some of its origins. Costs as many sweeps as a flow of `origins` losses.

    origins: how many are drawn, in `groups` of one size: what is left over is not drawn. max_lag, tolerance: see
    `throughtime.sweep.sweep`. Raises InputError where there are fewer origins than asked for, and with fewer than two groups,
    which have no spread.
    """
    Asked(tolerance=tolerance, max_lag=max_lag)
    there = trace.origins()
    for name, value in (("origins", origins), ("groups", groups)):
        if not isinstance(value, Integral):
            raise InputError(f"{name}={value!r}", "a whole number", "write sample(100, groups=8)")
    size = origins // max(1, groups)
    if origins > len(there) or groups < 2 or size < 1:
        raise InputError(
            f"origins={origins} in {groups} groups, of the {len(there)} at layer '{trace.name}'",
            "at least two groups, and no more origins than there are steps with a loss",
            "use flow() where the origins are few",
        )
    order = torch.randperm(len(there), generator=torch.Generator().manual_seed(seed))[: size * groups]
    parts = [_of(trace, [there[place] for place in part.tolist()]) for part in order.split(size)]
    told = _told(parts, max_lag, tolerance, trace)
    with torch.no_grad(), torch.autocast(trace.x.device.type, enabled=False):
        lin = Linearization(trace)
        given = flat(lin, dict(trace.weight_gradients))
        unit = exponent_of([given])  # from here on in units of 2^unit: squares of 1e-200 leave float64
        given *= 2.0**-unit
        kept = given.new_empty(told, groups, len(given))  # G(τ) by group
        left = given.new_empty(groups, len(given))  # beyond the last lag
        for group, part in enumerate(parts):
            kept[:, group], left[group] = _terms(part, told, unit)
    scale = len(there) / size
    kept *= scale
    left *= scale
    square = given.square().sum()
    rest = 1 - size * groups / len(there)
    share, share_error = _mean((kept @ given).mT / square, rest)
    squared, squared_error = square_of_sum(kept.permute(1, 2, 0), len(there), size)
    for lag in reversed(range(told)):  # in its place: what lies beyond K
        own = kept[lag].clone()
        kept[lag] = left
        left += own
    beyond, beyond_error = _mean((kept @ given).mT / square, rest)
    bias, bias_error = square_of_sum(kept.permute(1, 2, 0), len(there), size)
    return Sampled(
        name=trace.name,
        drawn=size * groups,
        of=len(there),
        share=share,
        share_error=share_error,
        beyond=beyond,
        beyond_error=beyond_error,
        squared_norm=(squared * 2.0**unit * 2.0**unit).numpy(),
        squared_norm_error=(squared_error * rest**0.5 * 2.0**unit * 2.0**unit).numpy(),
        squared_bias=(bias / square).numpy(),
        squared_bias_error=(bias_error * rest**0.5 / square).numpy(),
    )


def _of(trace: Trace, origins: list[int]) -> Trace:
    """The trace with a loss at these steps alone."""
    gradient = torch.zeros_like(trace.gradient)
    gradient[origins] = trace.gradient[origins]
    return replace(trace, gradient=gradient)


def _told(parts: list[Trace], max_lag: int | None, tolerance: float, trace: Trace) -> int:
    """How many lags to tell apart: as far as any group's adjoints reach, within `MEMORY`."""
    weights = sum(row.size for row in rows_of(Linearization(trace)))
    held = len(parts) + 4  # the groups', and copies of one's
    most = min(trace.steps, max(1, MEMORY // (8 * weights * held)))
    if max_lag is not None:
        return min(max_lag + 1, most)
    with torch.no_grad():
        tails = [sweep(Linearization(part), [], tolerance) or trace.steps for part in parts]
    return min(most, *tails)


def _terms(part: Trace, told: int, unit: int) -> tuple[Tensor, Tensor]:
    """G(τ) of one group (told, W), and what lies beyond (W,), in units of 2^unit."""
    kept = LagTerms(Linearization(part), told)
    sweep(kept.linearization, [kept], 0, told - 1)
    terms, tail = (kept.scaled(name).in_units(unit).value() for name in ("terms", "tail"))
    return terms.T, tail[:, 0]


def _mean(values: Tensor, rest: float) -> tuple[Array, Array]:
    """The mean of (M, L) over groups and its standard error; rest: the fraction of origins that were not drawn."""
    return values.mean(0).numpy(), (values.var(0) * rest / len(values)).sqrt().numpy()


def square_of_sum(values: Tensor, of: int, size: int) -> tuple[Tensor, Tensor]:
    """‖Σ_t g_t‖² from groups (M, W, L), each the sum of `size` of the `of` terms times of / size, by the module's equations.

    Returns the estimate (L,) and its jackknife standard error over groups, as if they were drawn from infinitely many terms.
    """
    by_lag = values.permute(2, 0, 1)
    inner = (by_lag @ by_lag.mT).permute(1, 2, 0)
    own, whole, groups = inner.diagonal(dim1=0, dim2=1).mT, inner.sum((0, 1)), len(values)

    def estimate(whole: Tensor, each: Tensor, groups: int) -> Tensor:
        cross = (whole - each) / (groups * (groups - 1))
        squares = (each / groups - (size - 1) / size * cross) * size / of
        return squares + cross * (of - 1) / of

    square = estimate(whole, own.sum(0), groups)
    if groups < 3:
        return square, torch.full_like(square, torch.nan)
    without = torch.stack(
        [estimate(whole - 2 * inner[m].sum(0) + own[m], own.sum(0) - own[m], groups - 1) for m in range(groups)]
    )
    return square, ((groups - 1) / groups * (without - without.mean(0)).square().sum(0)).sqrt()
