"""The flows of a whole that is told in both directions: what comes from the past, and what comes from ahead."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from throughtime.demand import Demand, Method, measure
from throughtime.flow import Adjoint, Array, Horizon, LayerFlow, Missing, Terms
from throughtime.recording.layout import flipped
from throughtime.reducers.ledger import compared, largest
from throughtime.scaled import exponent_of, least, ratio
from throughtime.trace import Trace, ends_of
from throughtime.whole.offsets import TERMS, Offsets
from throughtime.whole.series import Series

COST = 2e11
"""Multiplications above which a whole is told only where it is asked for: about half a minute on one core."""
REVERSE = "_reverse"
FLOOR = -280.0
"""log10 of what is still told: from there on numbers may have left the range of floats."""


def cost(series: list[Series]) -> float:
    """About how many multiplications the whole takes: each origin streams every part."""
    return float(
        sum(
            6 * each.slots.numel() * each.steps * sum(value.numel() for value in part.trace.weights.tensors().values())
            for each in series
            for part in each.parts
        )
    )


def total_of(
    series: list[Series],
    references: Sequence[tuple[Mapping[str, Tensor], str]],
    given: Sequence[Mapping[str, Tensor]],
    levels: tuple[float, ...],
    demand: Method | None,
    progress: Callable[[int, int], None] | None = None,
) -> list[LayerFlow]:
    """The flows of one whole: offsets ≥ 0, and offsets < 0 where there are any.

    series: of each batch. references: G by parameter of each part, all batches together, and why where it is not autograd's;
    given: what autograd gave. levels: of the gradient horizon. demand: its method, or None.
    """
    steps = max(each.steps for each in series)
    weights = sum(value.numel() for reference, _ in references for value in reference.values())
    unit = exponent_of([value for reference, _ in references for value in reference.values()])
    series, given = [_in_units(each, unit) for each in series], [_scaled(each, unit) for each in given]
    whole = [_scaled(reference, unit) for reference, _ in references]
    offsets = Offsets(series[0], whole, steps, (2 * steps - 1) * weights <= TERMS)
    for place, each in enumerate(series):

        def tell(done: int, of: int, place: int = place) -> None:
            if progress:
                progress(place * of + done, len(series) * of)

        offsets.add(each, tell)
    offsets.settle()
    return _Told(series, offsets, [why for _, why in references], given, levels, demand, unit).flows()


def _in_units(series: Series, unit: int) -> Series:
    """What enters, in units of 2^unit: everything that is made of it is near 1, and its squares are numbers of float64."""
    return replace(
        series,
        levels=tuple(
            replace(
                level,
                parts=tuple(replace(part, entering=part.entering.double() * 2.0**-unit) for part in level.parts),
            )
            for level in series.levels
        ),
    )


def _scaled(arrays: Mapping[str, Tensor], unit: int) -> dict[str, Tensor]:
    return {name: value.double() * 2.0**-unit for name, value in arrays.items()}


class _Told:
    """What the sums say, as flows. They are in units of 2^unit."""

    def __init__(
        self,
        series: list[Series],
        offsets: Offsets,
        reasons: list[str],
        given: Sequence[Mapping[str, Tensor]],
        levels: tuple[float, ...],
        demand: Method | None,
        unit: int,
    ) -> None:
        self.series, self.offsets, self.given, self.levels = series, offsets, given, levels
        self.shift = unit * np.log10(2)
        self.small = least(series[0].parts[0].trace.dtype) * 2.0**-unit
        self.method: Method | None = demand
        self.reasons = [why for why in dict.fromkeys(reasons) if why]
        self.steps = offsets.steps
        self.norms = offsets.row_norms()
        self.squares = [block.square().sum((1, 2)).cpu() for sums in offsets.sums for block in sums.blocks]
        self.whole = torch.cat(self.squares).sum()
        self.inner = torch.cat([sums.inner.cpu() for sums in offsets.sums])
        self.vanished = False
        self.residuals: list[float] = []
        self.errors: list[float] = []

    def flows(self) -> list[LayerFlow]:
        first = self.series[0]
        ahead = any(part.trace.reverse for part in first.parts) or bool(self.inner[:, : self.steps - 1].any())
        parameters = self._parameters()
        past = self._flow(first.name, parameters, reverse=False)
        if not ahead:
            return [past]
        reverse = replace(self._flow(first.name + REVERSE, parameters, reverse=True), opposite=first.name)
        return [replace(past, opposite=reverse.name), reverse]

    def _parameters(self) -> dict[str, Terms]:
        """Every parameter by offset, (2T − 1,); the lowest layer's first."""
        out, row = [], 0
        for sums, part, given in zip(self.offsets.sums, self.series[0].parts, self.given, strict=True):
            first, told = row, {}
            for name in dict.fromkeys(entry.parameter for entry in sums.rows):
                at = [place for place, entry in enumerate(sums.rows) if entry.parameter == name]
                own = [
                    (group, block, total)
                    for group, block, total in zip(sums.groups, sums.blocks, sums.totals, strict=True)
                    if group.parameter == name
                ]
                known = name in given
                off, size = 0.0, 0.0
                blocks = {}
                for group, block, total in own:
                    real = group.of(given[name].double()) if known else torch.full_like(block, torch.nan)
                    for place, index in enumerate(group.indices):
                        left, unit = float((real - total)[place].norm()), float(real[place].norm())
                        self.residuals.append(compared(left, unit, self.small) if known else float("nan"))
                        off, size = off + left**2, size + unit**2
                        entry = sums.rows[row - first]
                        if entry.gate is not None:
                            blocks[index] = Terms(
                                names(part.trace, name),
                                entry.gate,
                                self._share([row]),
                                self._norm([row]) + self.shift,
                                self.residuals[-1],
                            )
                        row += 1
                rows = [first + place for place in at]
                norm = self._norm(rows)
                if known and self.norms is not None:
                    self.errors.append(compared(off**0.5, float(np.nansum(10.0**norm)), self.small))
                told[names(part.trace, name)] = Terms(
                    names(part.trace, name),
                    None,
                    self._share(rows),
                    norm + self.shift,
                    compared(off**0.5, size**0.5, self.small) if known else float("nan"),
                    {block.gate: block for _, block in sorted(blocks.items()) if block.gate is not None},
                )
            out.append(told)
        return {name: terms for told in self._lowest_first(out) for name, terms in told.items()}

    def _lowest_first(self, by_part: list[dict[str, Terms]]) -> list[dict[str, Terms]]:
        places, first = [], 0
        for level in self.series[0].levels:
            places.append(range(first, first + len(level.parts)))
            first += len(level.parts)
        return [by_part[place] for level in reversed(places) for place in level]

    def _share(self, rows: list[int]) -> Array:
        squares = torch.cat(self.squares)[rows].sum()
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(self.inner[rows].sum(0).numpy() / squares.numpy())

    def _norm(self, rows: list[int]) -> Array:
        if self.norms is None:
            return np.full(2 * self.steps - 1, np.nan)
        return self._in_range(0.5 * self.norms.rows(rows).total().log10())

    def _in_range(self, log10: Array) -> Array:
        """NaN from the first offset on, to either side, at which a number is too small to be told from zero."""
        out, middle = log10.copy(), self.steps - 1
        known = out[np.isfinite(out)]
        floor = max(FLOOR, known.max() + min(each.range for each in self.series)) if len(known) else FLOOR
        for side in (out[middle:], out[middle::-1]):  # views
            small = np.flatnonzero(np.isfinite(side) & (side < floor))
            if len(small):
                side[small[0] :] = np.nan
                self.vanished = True
        return out

    def _flow(self, name: str, parameters: Mapping[str, Terms], reverse: bool) -> LayerFlow:
        first, steps = self.series[0], self.steps
        traces = [part.trace for part in first.parts]
        everything = list(range(len(self.inner)))
        with np.errstate(divide="ignore", invalid="ignore"):
            count = np.log10(np.where(self.offsets.pairs.numpy() > 0, self.offsets.pairs.double().numpy(), np.nan))
            entered = 0.5 * (np.log10(self.offsets.entered.numpy()) - count)
        adjoint = self._in_range(0.5 * (self.offsets.squares.log10() - count))
        nothing = np.full(steps, np.nan)
        bias, cosine, horizon, cancellation = self._window()
        missing = self._missing(reverse)
        if not reverse and self.norms is not None:
            missing += [
                Missing(f"horizon.{level:g}", f"the bias stays above {level:g} as far as the sequence goes")
                for level, value in horizon.items()
                if value is None
            ]
        demand = self._demand(reverse)
        if demand is None:
            why = "not asked for" if self.method is None else "the sequences stand in different orders in the layers"
            missing.append(Missing("demand", why))
        elif demand.missing:
            missing.append(Missing("demand", demand.missing))
        kinds = {trace.cell.name for trace in traces}
        top = first.levels[0].parts[0].trace.cell
        return LayerFlow(
            name=name,
            cell=kinds.pop() if len(kinds) == 1 else "series",
            convention={**first.kind, **top.convention},
            steps=steps,
            batch=sum(each.batch for each in self.series),
            hidden_size=sum(trace.hidden_size for trace in traces),
            input_size=first.source.shape[-1],
            dtype=str(traces[0].dtype).removeprefix("torch."),
            lag=first.lag,
            loss_steps=self._loss_steps(reverse),
            residual=largest(self.residuals),
            error=largest(self.errors),
            cancellation=cancellation,
            adjoint=Adjoint(self._side(adjoint, reverse) + self.shift, {}, np.zeros((steps, 0))),
            parameters={name: self._terms(terms, reverse) for name, terms in parameters.items()},
            initial_state={},
            demand=demand,
            paths={},
            hops=None,
            signal_to_noise=nothing,
            bias=nothing if reverse else bias,
            cosine=nothing if reverse else cosine,
            horizon=Horizon(dict.fromkeys(self.levels)) if reverse else horizon,
            units=(),
            gates={},
            tail=None,
            origin_step=None,
            missing=tuple(missing),
            share=self._side(self._share(everything), reverse, 0.0),
            entering=self._side(entered, reverse) + self.shift,
            bare=traces[0].bare,
            reverse=reverse,
            module=first.module,
            holds=any(trace.cell.holds for trace in traces),
        )

    def _side(self, values: Array, reverse: bool, at_zero: float | None = None) -> Array:
        """(T,) of one sign of the offset, from (2T − 1,); at_zero: what stands for offset 0 where it counts for the past."""
        middle = self.steps - 1
        if not reverse:
            return values[middle:].copy()
        side = values[middle::-1].copy()
        if at_zero is not None:
            side[0] = at_zero
        return side

    def _terms(self, terms: Terms, reverse: bool) -> Terms:
        return replace(
            terms,
            share=self._side(terms.share, reverse, 0.0),
            log10_norm=self._side(terms.log10_norm, reverse, np.nan),
            gates={name: self._terms(gate, reverse) for name, gate in terms.gates.items()},
        )

    def _window(self) -> tuple[Array, Array, Horizon, float]:
        """Bias and cosine by K of the window |δ| ≤ K, the gradient horizon, and ‖G‖ / Σ_δ ‖G(δ)‖."""
        beyond, size = self.offsets.beyond(), float(self.whole.sqrt())
        if beyond is None or self.norms is None:
            nothing = np.full(self.steps, np.nan)
            return nothing, nothing, Horizon(dict.fromkeys(self.levels)), float("nan")
        with np.errstate(invalid="ignore", divide="ignore"):
            bias = beyond.numpy() / size
            share = self._share(list(range(len(self.inner))))
            past, ahead = self._side(share, False), self._side(share, True, 0.0)
            told = np.cumsum(past + ahead)
            cosine = np.clip(told / np.sqrt(np.maximum(bias**2 + 2 * told - 1, 0)), -1, 1)
        above = {level: np.flatnonzero(bias > level) for level in self.levels}
        horizon = {level: int(found[-1]) + 1 if len(found) else 0 for level, found in above.items()}
        each = self.norms.total()
        return bias, cosine, Horizon(horizon), ratio(size, float(each.value().sqrt().sum()))

    def _loss_steps(self, reverse: bool) -> tuple[int, ...]:
        """Steps at which a gradient enters, in the direction of time that the flow counts in."""
        found: set[int] = set()
        for each in self.series:
            pairs = flipped(each.pairs[..., None], each.lengths)[..., 0] if reverse else each.pairs
            found |= set(pairs.any(1).nonzero().flatten().tolist())
        return tuple(sorted(found))

    def _demand(self, reverse: bool) -> Demand | None:
        """By the whole's own input and output; ahead, with time turned round."""
        outputs = [each.at_output for each in self.series if each.at_output is not None]
        if self.method is None or len(outputs) < len(self.series):
            return None
        at_output, source = _joined(outputs), _joined([each.source for each in self.series])
        lengths = torch.cat([each.lengths for each in self.series])
        if reverse:
            at_output, source = flipped(at_output, lengths), flipped(source, lengths)
        same = bool((lengths == self.steps).all())
        told = measure(at_output, source, method=self.method, lengths=ends_of(at_output, None if same else lengths))
        if not reverse or told.missing:
            return told
        return replace(told, lags=tuple(lag for lag in told.lags if lag))  # lag 0 counts for the past

    def _missing(self, reverse: bool) -> list[Missing]:
        layers = "told for each layer"
        fields = ("initial_state", "paths", "hops", "signal_to_noise", "units", "gates", "adjoint.by_state")
        missing = [Missing(field, layers) for field in fields]
        missing += [Missing("share", why) for why in self.reasons]
        if self.vanished:
            small = "too small to be told from zero in the floats of this step"
            missing += [Missing(field, small) for field in ("adjoint", "parameters")]
        if self.norms is None:
            many = f"the terms of all offsets would be more than {TERMS:.2g} numbers"
            missing += [Missing(field, many) for field in ("error", "cancellation", "parameters")]
            if not reverse:
                missing += [Missing(field, many) for field in ("bias", "cosine", "horizon")]
        if reverse:
            past = self.series[0].name
            missing += [
                Missing(field, f"of the window to both sides: stands in '{past}'")
                for field in ("bias", "cosine", "horizon")
            ]
            missing.append(Missing("parameters", f"offset 0 stands in '{past}'"))
        return missing


def names(trace: Trace, parameter: str) -> str:
    """A parameter's name in the state_dict."""
    return trace.names.get(parameter, parameter)


def _joined(parts: list[Tensor]) -> Tensor:
    """Batches (T, B, W) side by side, the shorter ones with zeros after their ends."""
    steps = max(len(part) for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, 0, 0, 0, 0, steps - len(part))) for part in parts], dim=1)
