"""What the ledger says of a layer, in one form: from a sweep's own ledger, or from the terms of many batches added up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from throughtime.flow import Array, Terms
from throughtime.reducers.lag_terms import Row
from throughtime.reducers.ledger import Ledger, compared, largest
from throughtime.scaled import EMPTY, Scaled, exponent_of, is_small, ratio


@dataclass(frozen=True)
class Books:
    """See the fields of the same names of `throughtime.flow.LayerFlow`. norms: ‖G(τ)‖² by ledger row (rows, T).

    tail_share, tail_norm, tail_bound: of what lies beyond the lags told apart; 0 where there is nothing.
    """

    parameters: Mapping[str, Terms]
    residual: float
    error: float
    cancellation: float
    share: Array
    bias: Array
    cosine: Array
    horizon: Mapping[float, int | None]
    norms: Scaled
    tail_share: float
    tail_norm: float
    tail_bound: float
    external: float | None = None
    external_by_lag: Array | None = None


def of_ledger(
    ledger: Ledger,
    given: Mapping[str, Tensor],
    tail_from: int | None,
    external: float | None,
    external_by_lag: Array | None,
) -> Books:
    """The books of one sweep. given: what autograd gave, by parameter."""
    parameters, residual, error = ledger.terms(given, tail_from)
    return Books(
        parameters=parameters,
        residual=residual,
        error=error,
        cancellation=ledger.cancellation(),
        share=ledger.share(),
        bias=ledger.bias(),
        cosine=ledger.cosine(),
        horizon=ledger.horizon(),
        norms=ledger.norms,
        tail_share=ledger.tail_share,
        tail_norm=ledger.tail_norm,
        tail_bound=ledger.tail_bound,
        external=external,
        external_by_lag=external_by_lag,
    )


def of_terms(
    rows: Sequence[Row],
    terms: Scaled,
    tail: Scaled,
    tail_sizes: float,
    given: Tensor,
    lacking: Sequence[str],
    low: bool,
    small: float,
    reach: int,
    steps: int,
    told: int,
    levels: Sequence[float],
    outside: tuple[Scaled, Scaled] | None = None,
) -> Books:
    """The books of the terms G(τ) (W, lags) and the tail (W, 1), in the order of `rows`.

    given: (W,) what autograd gave. lacking: parameters of which it gave none. low: whether its rounding is too coarse for a
    reference. small: see `throughtime.scaled.least`. tail_sizes: see `sizes_of_rows`.
    reach: lags that any origin has. told: lags told apart, of `steps`. outside: terms and tail of what came round
    outside the layer.
    """
    low = low or is_small([given], small)
    tail_from = told if told < reach else None
    last = min(told, reach) - 1
    # From here on in units of 2^unit, near the largest number: squares of 1e-200 leave float64.
    unit = max(exponent_of([given]), min(1000, int(terms.exponent.max()), int(tail.exponent.max())))
    terms, tail = terms.in_units(unit), tail.in_units(unit)
    given, tail_sizes, small = given * 2.0**-unit, tail_sizes * 2.0**-unit, small * 2.0**-unit
    outside = outside and (outside[0].in_units(unit), outside[1].in_units(unit))
    bounds = np.cumsum([0, *(row.size for row in rows)])
    rest = tail.value()[:, 0]
    total, inner, squares, left = torch.zeros_like(given), [], [], torch.zeros(last + 1, dtype=torch.float64)
    reference = given.clone()
    sizes, norms = [], []
    for row, a, b in zip(rows, bounds[:-1], bounds[1:], strict=True):
        part = Scaled(terms.mantissa[a:b, : last + 1], terms.exponent[: last + 1])
        value = part.value()
        total[a:b] = value.sum(1) + rest[a:b]
        if low or row.parameter in lacking:
            reference[a:b] = total[a:b]
        whole = reference[a:b]
        inner.append(whole @ value)
        squares.append(whole.square().sum())
        left += (whole[:, None] - value.cumsum(1)).square().sum(0)
        norms.append(part.mantissa.square().sum(0))
        sizes.append(float(rest[a:b].norm()))
    square = torch.stack(squares)
    whole, exponent = square.sum(), terms.exponent[: last + 1]
    of_rows = Scaled(torch.stack(norms), torch.where(exponent == EMPTY, EMPTY, 2 * exponent))
    with np.errstate(invalid="ignore", divide="ignore"):
        by_row = _long(np.asarray(torch.stack(inner).numpy()), steps, 0.0 if tail_from is None else np.nan)
        share = by_row.sum(0) / whole.numpy()
        bias = (left.sqrt() / whole.sqrt()).numpy()
        told_bias = _long(bias, steps, bias[-1] if tail_from is None else np.nan)
        summed = np.cumsum(share)
        cosine = np.clip(summed / np.sqrt(np.maximum(told_bias**2 + 2 * summed - 1, 0)), -1, 1)
    horizon = {}
    for level in levels:
        above = np.flatnonzero(~(bias <= level))  # a bias that is none, for G has no size, lies under no level
        first = int(above[-1]) + 1 if len(above) else 0
        horizon[level] = first if first <= last else None
    rest_norm = float(rest.norm())
    all_sizes = float(of_rows.value().sum(0).sqrt().sum()) + rest_norm
    parameters, residuals, errors = {}, [], []
    told_norms = of_rows.in_units(-2 * unit)
    log10 = [_long(0.5 * told_norms.rows([place]).log10()[0], steps, np.nan) for place in range(len(rows))]
    for parameter in dict.fromkeys(row.parameter for row in rows):
        at = [place for place, row in enumerate(rows) if row.parameter == parameter]
        blocks = {}
        for place in at:
            row, a, b = rows[place], bounds[place], bounds[place + 1]
            lacks = parameter in lacking
            off = float("nan") if lacks else float((given[a:b] - total[a:b]).norm())
            residuals.append(float("nan") if lacks else compared(off, float(given[a:b].norm()), small))
            if row.gate is not None:
                with np.errstate(invalid="ignore", divide="ignore"):
                    own = by_row[place] / float(square[place]) if square[place] else by_row[place] * np.nan
                blocks[row.index] = Terms(row.name, row.gate, own, log10[place], residuals[-1])
        name, residual = rows[at[0]].name, float("nan")
        spans = [slice(bounds[place], bounds[place + 1]) for place in at]
        whole_of = float(square[at].sum())
        together = of_rows.rows(at).total()
        if parameter not in lacking:
            off = _norm([given[span] - total[span] for span in spans])
            scale = float(together.value().sqrt().sum()) + _norm([rest[span] for span in spans])
            errors.append(compared(off, scale, small))
            residual = compared(off, _norm([given[span] for span in spans]), small)
        parameters[name] = Terms(
            name=name,
            gate=None,
            share=by_row[at].sum(0) / whole_of if whole_of else by_row[0] * np.nan,
            log10_norm=_long(0.5 * told_norms.rows(at).total().log10(), steps, np.nan),
            residual=residual,
            gates={block.gate: block for _, block in sorted(blocks.items()) if block.gate is not None},
        )
    return Books(
        parameters=parameters,
        residual=largest(residuals),
        error=largest(errors),
        cancellation=ratio(float(whole.sqrt()), all_sizes),
        share=share,
        bias=told_bias,
        cosine=cosine,
        horizon=horizon,
        norms=Scaled(_wide(told_norms.mantissa, steps, 0.0), _wide(told_norms.exponent, steps, EMPTY)),
        tail_share=float((reference @ rest) / whole) if whole else float("nan"),
        tail_norm=rest_norm * 2.0**unit,
        tail_bound=tail_sizes / float(whole) ** 0.5 if whole else 0.0 if tail_sizes == 0 else float("inf"),
        external=None if outside is None else float(reference @ _whole(*outside) / whole) if whole else float("nan"),
        external_by_lag=None if outside is None else _outside_by_lag(*outside, reference, steps),
    )


def _whole(terms: Scaled, tail: Scaled) -> Tensor:
    return terms.value().sum(1) + tail.value()[:, 0]


def _outside_by_lag(terms: Scaled, tail: Scaled, reference: Tensor, steps: int) -> np.ndarray:
    """(T,) its share of G by lag; NaN beyond the lags told apart where there is something."""
    with np.errstate(invalid="ignore", divide="ignore"):
        share = (reference @ terms.value()).numpy() / float(reference.square().sum())
    return _long(share, steps, np.nan if tail.value().any() else 0.0)


def _norm(parts: Sequence[Tensor]) -> float:
    return float(torch.cat(list(parts)).norm())


def _long(values: np.ndarray, steps: int, beyond: float) -> np.ndarray:
    """(..., lags) to (..., steps)."""
    lacking = steps - values.shape[-1]
    return np.concatenate((values, np.full((*values.shape[:-1], lacking), beyond)), axis=-1)


def _wide(values: Tensor, steps: int, beyond: float) -> Tensor:
    lacking = steps - values.shape[-1]
    return torch.cat((values, torch.full((*values.shape[:-1], lacking), beyond, dtype=values.dtype)), dim=-1)
