"""Demand: the lags at which the error still depends on the input, beyond what nearer inputs tell.

The residual–input cross-correlation test of system identification (Ljung 1999, ch. 16.6), judged by permutations with
the largest statistic over all lags (Westfall & Young 1993), so that the false alarm is that of the whole answer and not
of each lag. Nothing here passes through time, so demand is seen before training and where the gradient has vanished.
Null, power and limits as measured: docs/demand.md.

Letters: T steps, B sequences, H units, D inputs, g the direct gradient of the loss at the layer's output, u the layer's
input, τ the lag, P permutations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from throughtime.errors import InputError
from throughtime.lagged import CHUNK, DISTANCES, GRAMS, PRODUCTS, by_product, by_transform

Method = Literal["covariance", "distance"]

PERMUTATIONS = 199  # with the observed one 200 equally likely orders: 5 % is exactly ten of them
NEARER = 2  # next inputs whose linear part is taken out of an input
OWN_SAMPLES = 25  # sequences a coefficient, from which on that regression is each step's own
POOLED_SAMPLES = 100  # samples a coefficient where it is pooled over steps: local, but without eating the signal
FLOOR = 0.1  # least part of the error counted as left over by nearer inputs: beneath it lies the network's own output
FEW_SEQUENCES = 20  # below this a Demand carries a caution about its power
FEW_STEPS = 8  # up to this many steps with a loss, products lag by lag are cheaper than transforms over time
BUDGET = 1e11  # floating point operations, some seconds: beyond it only leading directions are kept
EXPLAINED = 1e-5  # share of an input's variance that is rounding: with less left, nearer inputs tell all of it
RANK_TOLERANCE = 1e-6  # relative singular value that counts as zero: gradients come in float32 or less


@dataclass(frozen=True)
class Demand:
    """Which lags the error still responds to, in one layer and one batch.

    z: (T,) by lag, (statistic − null mean) / null standard deviation, no unit; NaN where no test exists.
    threshold: the `level` quantile of the largest z over lags under the null; NaN if nothing could be computed.
    lags: those whose z exceeds it. Empty is "not detected", which is never "not needed".
    sequences: B, on which the power depends.  missing: why nothing could be computed.  note: a caution, if one applies.
    """

    z: NDArray[np.float64]
    threshold: float
    lags: tuple[int, ...]
    sequences: int
    level: float = 0.95
    permutations: int = PERMUTATIONS
    method: Method = "covariance"
    missing: str | None = None
    note: str | None = None

    @property
    def farthest(self) -> int | None:
        """The largest lag detected, None if none was."""
        return self.lags[-1] if self.lags else None

    def __repr__(self) -> str:
        if self.missing is not None:
            return f"Demand(not measured: {self.missing})"
        basis = f"threshold {self.threshold:.1f}, B={self.sequences}, {self.method}, {self.permutations} permutations"
        top = int(np.nanargmax(self.z))
        if not self.lags:
            return f"Demand(not detected, which is not 'not needed'; largest z {self.z[top]:.1f} at lag {top}, {basis})"
        from throughtime.report.notation import runs

        span = ", ".join(f"{a}" if a == b else f"{a}–{b}" for a, b in runs(self.lags))
        count = f"{len(self.lags)} of {len(self.z)} lags"
        return f"Demand(lags {span}: {count}; largest z {self.z[top]:.1f} at lag {top}, {basis})"


def measure(
    gradients: Tensor | ArrayLike,
    inputs: Tensor | ArrayLike,
    *,
    permutations: int = PERMUTATIONS,
    level: float = 0.95,
    method: Method = "covariance",
    nearer: int = NEARER,
    lengths: Tensor | ArrayLike | None = None,
    seed: int = 0,
) -> Demand:
    """Test at every lag whether the error depends on the input that many steps back.

    C(τ) = Σ_b Σ_t g̃[t, b] ⊗ ũ[t−τ, b], statistic ‖C(τ)‖². g̃: the gradients, centred over the batch at each step and
    rotated to their rank, which leaves ‖C‖ as it was. ũ: the inputs, centred in the same way, less their linear
    regression on the `nearer` next inputs (none of them later than the step of the loss). With `OWN_SAMPLES` sequences
    a coefficient and few steps with a loss, it is divided by what those inputs leave of ‖g̃‖²: a partial correlation.
    Null: whole sequences of g change places in the batch, so autocorrelation in time, rank and scale of both are kept.

    Args:
        gradients: (T, B, H), ∂L/∂output of the layer, direct part only: zero at steps without a loss.
        inputs: (T, B, D), what the layer read at each step.
        permutations: P; the observed order counts as one more, P + 1 in all.
        level: 1 − the probability that any lag is named where there is no dependence at all.
        method: "covariance" is first-order. "distance" replaces ‖C‖² by the distance covariance of g̃[t] and ũ[t−τ]
            (Székely, Rizzo & Bakirov 2007), summed over the steps t with a loss: it sees every pairwise dependence,
            such as one on x², with less power for the linear one.
        nearer: how many next inputs are taken out; 0 leaves the inputs as they are.
        lengths: (B,), where sequences are padded at the end. Losses at each sequence's own last step: lags are counted
            from there. Losses at other steps: only the steps that all sequences have are used.
        seed: of the permutations, in an own generator.

    Raises:
        InputError: shapes that do not agree, values that are not finite, options out of range.
    """
    gradient, u = _checked("gradients", gradients), _checked("inputs", inputs)
    if gradient.shape[:2] != u.shape[:2]:
        raise InputError(
            f"gradients for (T, B) = {tuple(gradient.shape[:2])} and inputs for {tuple(u.shape[:2])}",
            "the same steps and sequences in both",
            "pass both with time first, as (T, B, H) and (T, B, D)",
        )
    _check_options(permutations, level, method, nearer)
    steps, batch = u.shape[:2]

    def nothing(reason: str) -> Demand:
        z = np.full(steps, np.nan)
        return Demand(z, float("nan"), (), batch, level, permutations, method, missing=reason)

    if batch < 3:
        return nothing(f"only {batch} sequence(s): the test permutes sequences, needs 3 and better {FEW_SEQUENCES}")
    if not gradient.any():
        return nothing("the loss sends no gradient to this layer's output")
    # the user's autocast and default device are none of this function's business
    with torch.no_grad(), torch.device("cpu"), torch.autocast("cpu", enabled=False):
        present = torch.ones(steps, batch, 1, dtype=torch.bool)
        if lengths is not None:
            gradient, u, present = _aligned(gradient, u, _checked_lengths(lengths, steps, batch))
        gradient = _centred(gradient, present)
        origins = gradient.flatten(1).any(1).nonzero().flatten()
        if not len(origins):
            return nothing("the gradients do not differ over the batch, so they cannot depend on the input")
        last = int(origins[-1]) + 1  # later inputs cannot have caused the error
        u = _centred(u[:last], present[:last])
        if not u.any():
            return nothing("the inputs do not differ over the batch at any step up to the last loss")
        generator = torch.Generator().manual_seed(seed)
        u = _rotated(u / u.abs().max(), generator)
        g = _rotated(gradient[origins] / gradient.abs().max(), generator)
        residuals, bases = zip(*(_less_nearer(u, count) for count in range(nearer + 1)), strict=True)
        permuted = [torch.randperm(batch, generator=generator) for _ in range(permutations)]
        orders = torch.stack([torch.arange(batch), *permuted])
        statistics, note = _statistics(g, origins, residuals, bases, orders, method)
        tested = _defined(origins, residuals)
    z, threshold = _judged(statistics.double().numpy(), tested.numpy(), level)
    if np.isnan(z).all():
        return nothing("no permutation changes the statistic at any lag")
    z = np.concatenate([z, np.full(steps - last, np.nan)])
    notes = [note] if note else []
    if batch < FEW_SEQUENCES:
        notes.append(f"only {batch} sequences: little power")
    lags = tuple(int(lag) for lag in np.flatnonzero(z > threshold))
    return Demand(z, threshold, lags, batch, level, permutations, method, note="; ".join(notes) or None)


# --- the two sides ------------------------------------------------------------------------------------------------


def _centred(x: Tensor, present: Tensor) -> Tensor:
    """Less the mean over the sequences present at each step; what differs by rounding only becomes exactly zero."""
    count = present.sum(1, keepdim=True).clamp(min=1)
    centred = (x - (x * present).sum(1, keepdim=True) / count) * present
    scale = (x * present).abs().amax(1, keepdim=True)
    return centred * (centred.abs().amax(1, keepdim=True) > 1e-7 * scale)


def _rotated(x: Tensor, generator: torch.Generator, limit: int = 1024) -> Tensor:
    """x (n, B, D) in the orthonormal basis of its principal directions over (step, sequence), largest variance first.

    Directions without variance are dropped: norms and inner products stay. The basis does not depend on the order of
    the sequences: the permutation test stays exact. Above `limit` dimensions a Gaussian sketch keeps norms on average.
    """
    rows = x.flatten(0, 1)
    if rows.shape[1] > limit:
        sketch = torch.randn(rows.shape[1], limit, generator=generator, dtype=x.dtype)
        rows = rows @ sketch / math.sqrt(limit)
    variance, basis = torch.linalg.eigh(rows.T @ rows)
    kept = variance > RANK_TOLERANCE**2 * variance[-1]
    return (rows @ basis[:, kept].flip(1)).reshape(*x.shape[:2], -1)


def _less_nearer(u: Tensor, count: int) -> tuple[Tensor, Tensor | None]:
    """u (T, B, D) less its linear regression on the `count` next inputs, as many as there are before the end.

    With sequences enough, the regression is each step's own, and what it projects on comes back as the second result:
    (T, B, count·D), orthonormal over the batch. Else the coefficients are pooled over a block of neighbouring steps,
    just long enough to know them well, so that inputs whose statistics change along the sequence (an image, then noise)
    are regressed on their own surroundings; and if the whole sequence is too short for that, only leading principal
    directions of the next inputs are used.
    """
    steps, batch, size = u.shape
    if count == 0:
        return u, u.new_zeros(steps, batch, 1)
    width = max(1, min(size, steps * batch // (OWN_SAMPLES * count)))
    padded = torch.cat([u[..., :width], u.new_zeros(count, batch, width)])
    following = torch.cat([padded[i : i + steps] for i in range(1, count + 1)], dim=-1)
    basis = None
    if batch >= OWN_SAMPLES * count * size:
        basis, singular, _ = torch.linalg.svd(following, full_matrices=False)
        basis = basis * (singular > RANK_TOLERANCE * singular.max()).to(u.dtype)[:, None]
        residual = u - basis @ (basis.mT @ u)
    else:
        residual = u.clone()
        blocks = max(1, steps * batch // (POOLED_SAMPLES * count * width))
        for own, nxt in zip(residual.tensor_split(blocks), following.tensor_split(blocks), strict=True):
            x, y = nxt.flatten(0, 1), own.flatten(0, 1)
            gram = x.T @ x
            ridge = 1e-6 * gram.diagonal().mean()
            if ridge > 0:  # the last step has no next input
                gram.diagonal().add_(ridge)
                own -= (x @ torch.linalg.solve(gram, x.T @ y)).reshape(own.shape)
    left, before = residual.pow(2).sum((1, 2), keepdim=True), u.pow(2).sum((1, 2), keepdim=True)
    return residual * (left > EXPLAINED * before), basis


# --- the statistic at all lags and orders --------------------------------------------------------------------------


def _statistics(
    g: Tensor,
    origins: Tensor,
    residuals: Sequence[Tensor],
    bases: Sequence[Tensor | None],
    orders: Tensor,
    method: Method,
) -> tuple[Tensor, str | None]:
    """(P + 1, T) statistics, row 0 the observed order, and a note if something had to be left out.

    Two forms of the same sum. Over sequences: C itself, then its square. Over pairs of sequences: the Gram (or
    centred distance) matrices of g and u, whose product, entry by entry, sums to it; its price does not grow with H, D.
    Both sides are of unit scale and in float32: the statistic is then right to about 1e-6, which z does not notice.
    """
    note = None
    g, residuals = g.float(), [u.float() for u in residuals]
    (losses, batch, rank), (steps, _, size) = g.shape, residuals[0].shape
    few = losses <= FEW_STEPS
    full_bases = [basis.float() for basis in bases if basis is not None]
    partial = method == "covariance" and few and len(full_bases) == len(bases) > 1
    if method == "distance" or (losses == 1 and batch < rank * size and not partial):
        most = math.isqrt(16 * CHUNK // steps)
        if losses > 1 and batch > most:
            note = f"distances of {most} of the {batch} sequences, to spare memory"
            g, residuals = g[:, :most], [u[:, :most] for u in residuals]
            orders = torch.stack([order[order < most] for order in orders])  # uniform again over all orders of these
        form = DISTANCES if method == "distance" else GRAMS
    else:
        price = len(orders) * steps * (2 * batch * losses if few else 8 * batch + 100)
        g, residuals, note = _leading(g, residuals, max(1, int(BUDGET / price)))
        form = PRODUCTS
    statistics = (
        by_product(g, origins, residuals, orders, form) if few else by_transform(g, origins, residuals, orders, form)
    )
    if partial:
        statistics = statistics / _left_by_nearer(g, origins, full_bases, orders)
    return statistics, note


def _left_by_nearer(g: Tensor, origins: Tensor, bases: Sequence[Tensor], orders: Tensor) -> Tensor:
    """(P + 1, T): Σ_t ‖g[t]‖² less its linear part in the inputs nearer than each lag; at least FLOOR of the whole.

    Dividing by it makes the statistic that of a partial correlation, in every order alike.
    """
    steps = len(bases[0])
    left, whole = g.new_zeros(len(orders), steps), g.new_zeros(steps)
    for i, origin in enumerate(origins):
        whole[: int(origin) + 1] += g[i].pow(2).sum()
        left -= by_product(g[i : i + 1], origin[None], bases, orders, PRODUCTS)
    return torch.maximum(left + whole, FLOOR * whole).clamp(min=torch.finfo(g.dtype).tiny)


def _defined(origins: Tensor, residuals: Sequence[Tensor]) -> Tensor:
    """(T,) bool: lags at which some step with a loss meets an input that differs over the batch."""
    varying = [u.flatten(1).any(1) for u in residuals]
    of = [varying[min(lag, len(varying) - 1)] for lag in range(len(varying[0]))]
    return torch.stack([of[lag][origins[origins >= lag] - lag].any() for lag in range(len(of))])


def _leading(g: Tensor, residuals: list[Tensor], most: int) -> tuple[Tensor, list[Tensor], str | None]:
    """Leading principal directions of both sides, so that there are at most `most` entries in C.

    The choice looks at each side alone and not at their pairing, so the permutation test stays exact.
    """
    of_g, of_u = (x.pow(2).sum((0, 1)) / x.pow(2).sum() for x in (g, residuals[0]))
    rank, size = len(of_g), len(of_u)
    while rank * size > most:
        if size == 1 or (rank > 1 and of_g[rank - 1] < of_u[size - 1]):
            rank -= 1
        else:
            size -= 1
    if rank == len(of_g) and size == len(of_u):
        return g, residuals, None
    note = (
        f"to save time, {of_g[:rank].sum():.0%} of the variance of the gradients ({rank} of {len(of_g)} directions) "
        f"and {of_u[:size].sum():.0%} of that of the inputs ({size} of {len(of_u)})"
    )
    return g[..., :rank], [u[..., :size] for u in residuals], note


# --- the judgement -------------------------------------------------------------------------------------------------


def _judged(
    statistics: NDArray[np.float64], tested: NDArray[np.bool_], level: float
) -> tuple[NDArray[np.float64], float]:
    """z of the observed order (row 0) by lag, and the threshold.

    Every order, the observed one too, is standardised by all the others. So, with no dependence, the P + 1 largest
    values over lags are exchangeable, and the observed one is above their `level` quantile in at most 1 − level of
    cases.
    """
    count = len(statistics)
    mean = statistics.mean(0)
    d = statistics - mean
    total = (d**2).sum(0)
    tested = tested & (total > count * (1e-5 * np.abs(statistics).max(0)) ** 2)
    z = np.full_like(statistics, np.nan)
    d, total = d[:, tested], total[tested]
    others = np.maximum(total - d**2 * count / (count - 1), 1e-12 * total) / (count - 2)
    z[:, tested] = d * count / (count - 1) / np.sqrt(others)
    if not tested.any():
        return z[0], float("nan")
    largest = np.sort(z[:, tested].max(1))
    return z[0], float(largest[math.ceil(level * count - 1e-9) - 1])


# --- the door --------------------------------------------------------------------------------------------------------


def _checked(name: str, values: Tensor | ArrayLike) -> Tensor:
    """As a float64 tensor of three axes on the CPU, without graph."""
    x = torch.as_tensor(values if isinstance(values, Tensor) else np.asarray(values)).detach()
    if x.ndim != 3 or 0 in x.shape:
        raise InputError(
            f"{name} of shape {tuple(x.shape)}",
            "three axes that are not empty: (T, B, H) for gradients, (T, B, D) for inputs",
            "add the missing axis, time first",
        )
    if x.is_complex():
        raise InputError(f"complex {name}", "real numbers", "pass real and imaginary parts as separate units")
    x = x.to("cpu", torch.float64)
    if not x.isfinite().all():
        step = int((~x.isfinite()).flatten(1).any(1).nonzero()[0])
        raise InputError(
            f"NaN or infinity in {name}, first at step {step}", "finite numbers", "look at that batch first"
        )
    return x


def _check_options(permutations: int, level: float, method: str, nearer: int) -> None:
    if not 0 < level < 1:
        raise InputError(f"level={level}", "a number between 0 and 1", "use level=0.95")
    if (permutations + 1) * (1 - level) < 1 - 1e-9:
        least = math.ceil(1 / (1 - level) - 1e-9) - 1
        raise InputError(f"permutations={permutations}", f"at least {least} for level={level}", f"use {PERMUTATIONS}")
    if method not in ("covariance", "distance"):
        raise InputError(f"method={method!r}", '"covariance" or "distance"', 'use "covariance" first')
    if nearer < 0:
        raise InputError(f"nearer={nearer}", "0 or more next inputs", f"use {NEARER}")


def _checked_lengths(lengths: Tensor | ArrayLike, steps: int, batch: int) -> Tensor:
    n = torch.as_tensor(lengths if isinstance(lengths, Tensor) else np.asarray(lengths)).to("cpu", torch.int64)
    if n.shape != (batch,) or int(n.min()) < 1 or int(n.max()) > steps:
        raise InputError(
            f"lengths {n.tolist()}", f"{batch} whole numbers from 1 to {steps}", "pass one length for each sequence"
        )
    return n


def _aligned(gradient: Tensor, u: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Padded sequences made comparable: by their ends if that is where the loss is, else cut to the steps all have."""
    steps, batch = u.shape[:2]
    step = torch.arange(steps)[:, None]
    inside = (step < lengths)[..., None]
    if (gradient * (step < lengths - 1)[..., None]).any():
        common = int(lengths.min())
        cut = gradient.clone()
        cut[common:] = 0
        return cut, u, inside
    source = step - (steps - lengths)  # sequence b moves steps − lengths[b] later
    present = (source >= 0)[..., None]
    moved = [x[source.clamp(min=0), torch.arange(batch)] * present for x in (gradient, u)]
    return moved[0], moved[1], present
