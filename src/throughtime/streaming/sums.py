"""What a layer's flow is made of, as sums: of one batch, of many, of many machines. Merging two gives the sums over both.

Everything here is plain numbers: it can be saved, sent and added up in any order, with the same result to rounding. Memory
does not grow with the number of batches: of sequences that have to be seen together (demand, and one curve a sequence) at
most `SEQUENCES` are kept, a random sample; everything else is summed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

from throughtime.errors import InputError
from throughtime.flow import Sequence
from throughtime.gates import GateSums
from throughtime.reducers.lag_terms import Row
from throughtime.reducers.origin_step import Places
from throughtime.scaled import EMPTY, Scaled, scaled_of, tensor_of
from throughtime.streaming.intervals import Block, Blocks, Moments, block_of
from throughtime.trace import Trace
from throughtime.units import together

SEQUENCES = 512  # kept of a data set, for demand and the curves of single sequences


@dataclass(frozen=True)
class About:
    """What does not change from batch to batch. See `throughtime.trace.Trace` and `throughtime.cells.cell.Cell`.

    rows: of the ledger. carry: whether hops are told; gate: whether a gate is on the carry; holds: see the cell. cutting: see
    `throughtime.units.cutting_gate`. noise: whether the cell reads masks or shifts.
    """

    name: str
    cell: str
    convention: dict[str, str]
    hidden_size: int
    input_size: int
    dtype: str
    low: bool
    lag: str
    bare: bool
    reverse: bool
    inner: bool
    module: str
    ports: list[str]
    states: list[str]
    carry: bool
    holds: bool
    gate: bool
    compound: bool
    noise: bool
    cutting: str | None
    rows: list[Row]


@dataclass(frozen=True)
class Sample:
    """Sequences kept as they are: n of them, by batch and place in it. key: of the lottery, the smallest stay.

    lengths: (n,) steps of each. last: (n,) its last step with a loss, counted from 1, or 0. source: (T, n, D), the input that
    demand is told of, or None. at: (R,) steps at which a gradient enters the output, gradient: (R, n, H), or None.
    by_sequence, arriving: (T, n), see `throughtime.flow.Adjoint`.
    """

    batch: Tensor
    place: Tensor
    lengths: Tensor
    last: Tensor
    source: Tensor | None
    at: Tensor
    gradient: Tensor | None
    by_sequence: Tensor
    arriving: Tensor

    def __add__(self, other: Sample) -> Sample:
        steps = max(len(self.by_sequence), len(other.by_sequence))
        at = torch.unique(torch.cat((self.at, other.at)))

        def beside(one: Tensor | None, two: Tensor | None, beyond: float = 0.0) -> Tensor | None:
            if one is None or two is None:
                return None
            return torch.cat([_longer(part, steps, beyond) for part in (one, two)], dim=1)

        def entering(part: Sample) -> Tensor | None:
            if part.gradient is None:
                return None
            spread = part.gradient.new_zeros(len(at), *part.gradient.shape[1:])
            spread[torch.searchsorted(at, part.at)] = part.gradient
            return spread

        gradients = entering(self), entering(other)
        by_sequence = beside(self.by_sequence, other.by_sequence, torch.nan)
        arriving = beside(self.arriving, other.arriving, torch.nan)
        assert by_sequence is not None
        assert arriving is not None
        both = Sample(
            torch.cat((self.batch, other.batch)),
            torch.cat((self.place, other.place)),
            torch.cat((self.lengths, other.lengths)),
            torch.cat((self.last, other.last)),
            beside(self.source, other.source),
            at,
            None if gradients[0] is None or gradients[1] is None else torch.cat((gradients[0], gradients[1]), dim=1),
            by_sequence,
            arriving,
        )
        return both.bounded(SEQUENCES)

    def bounded(self, most: int) -> Sample:
        """At most this many, drawn by lot, in the order of batches."""
        order = np.lexsort((self.place.numpy(), self.batch.numpy()))
        if len(order) > most:
            key = _lot(self.batch.numpy()[order], self.place.numpy()[order])
            order = order[np.sort(np.argsort(key, kind="stable")[:most])]
        chosen = torch.from_numpy(order)
        kept = replace(
            self,
            **{name: getattr(self, name)[chosen] for name in ("batch", "place", "lengths", "last")},
            **{
                name: None if value is None else value[:, chosen]
                for name in ("source", "gradient", "by_sequence", "arriving")
                for value in [getattr(self, name)]
            },
        )
        if kept.gradient is not None:
            enters = (kept.gradient != 0).flatten(1).any(1)
            kept = replace(kept, at=kept.at[enters], gradient=kept.gradient[enters])
        return kept

    def ends(self, steps: int) -> Tensor | None:
        """See `throughtime.trace.Trace.ends`."""
        if not (self.lengths == steps).all():
            return self.lengths
        ends = torch.where(self.last > 0, self.last, steps)
        return None if (ends == ends[0]).all() else ends

    def entering(self, steps: int) -> Tensor:
        """(T, n, H): the gradient at the output of every step."""
        assert self.gradient is not None
        whole = self.gradient.new_zeros(steps, *self.gradient.shape[1:])
        whole[self.at] = self.gradient
        return whole


def sample_of(trace: Trace, by_sequence: np.ndarray, arriving: np.ndarray, batch: int, demand: bool) -> Sample:
    """All sequences of a trace; of copies the first of each, as many as `by_sequence` (T, n) has."""
    n = by_sequence.shape[1]
    enters = trace.pairs().cpu()
    last = (enters * torch.arange(1, trace.steps + 1)[:, None]).amax(0)
    at = (trace.at_output != 0).flatten(1).any(1).nonzero().flatten().cpu()
    source = trace.x if trace.source is None else trace.source
    lengths = torch.full((n,), trace.steps) if trace.lengths is None else trace.lengths[:n].cpu().to(torch.int64)
    return Sample(
        torch.full((n,), batch),
        torch.arange(n),
        lengths,
        last[:n],
        source.cpu() if demand else None,
        at if demand else at[:0],
        trace.at_output[at.to(trace.x.device)].cpu() if demand else None,
        torch.from_numpy(by_sequence),
        torch.from_numpy(arriving),
    )


@dataclass(frozen=True)
class LayerSums:
    """One layer of one or more batches.

    batches: number of each batch → its sequences. told: lags told apart; by_hand: whether `max_lag` or memory set that.
    lacking: parameters of which autograd gave no gradient. sums: what is added as it stands, by name; by lag along the last
    axis, shorter ones padded. terms, tail: see `throughtime.reducers.lag_terms`, None where one sweep's ledger tells all.
    first: the first sequence with a loss, and its batch. blocks: see `throughtime.streaming.intervals`, None of one batch.
    """

    about: About
    weights: dict[str, Tensor]
    batches: dict[int, int]
    steps: int
    told: int
    by_hand: bool
    origins: list[int]
    lacking: list[str]
    sums: dict[str, Scaled | Tensor]
    terms: Scaled | None
    tail: Scaled | None
    sample: Sample
    gates: dict[str, GateSums]
    places: Places | None
    first: Sequence | None
    first_batch: int
    blocks: Blocks | None

    @property
    def sequences(self) -> int:
        return sum(self.batches.values())

    def in_blocks(self) -> Blocks | None:
        """Its blocks of batches; made here of a single one, which holds its terms already."""
        if self.blocks is not None or self.terms is None or self.tail is None:
            return self.blocks
        squares, entering = self.scaled("adjoints.squares"), self.tensor("entering.squares")
        return block_of(next(iter(self.batches)), self.terms, self.tail, squares, entering)

    def part(self, prefix: str) -> dict[str, Any]:
        """The sums whose names begin with this and a dot, without it."""
        return {name.partition(".")[2]: value for name, value in self.sums.items() if name.startswith(f"{prefix}.")}

    def scaled(self, name: str) -> Scaled:
        return scaled_of(self.sums, name)

    def tensor(self, name: str) -> Tensor:
        return tensor_of(self.sums, name)


def merge(one: LayerSums, other: LayerSums) -> LayerSums:
    """The sums over the batches of both, in whatever order they are merged."""
    _check(one, other)
    early, late = (one, other) if min(one.batches) < min(other.batches) else (other, one)
    firsts = sorted((part for part in (one, other) if part.first is not None), key=lambda part: part.first_batch)
    return LayerSums(
        about=early.about,
        weights=early.weights,
        batches=dict(sorted((one.batches | other.batches).items())),
        steps=max(one.steps, other.steps),
        told=one.told,
        by_hand=one.by_hand,
        origins=sorted({*one.origins, *other.origins}),
        lacking=sorted({*one.lacking, *other.lacking}),
        sums=_over_names(early.sums, late.sums, _added),
        terms=_both(early.terms, late.terms, added),
        tail=_both(early.tail, late.tail, added),
        sample=early.sample + late.sample,
        gates={name: gate + late.gates[name] for name, gate in early.gates.items()},
        places=_both(early.places, late.places, lambda a, b: a + b),
        first=firsts[0].first if firsts else None,
        first_batch=firsts[0].first_batch if firsts else -1,
        blocks=_both(early.in_blocks(), late.in_blocks(), lambda a, b: a + b),
    )


def _check(one: LayerSums, other: LayerSums) -> None:
    twice = sorted(one.batches.keys() & other.batches.keys())
    if twice:
        raise InputError(
            f"batch {twice[0]} of layer '{one.about.name}' in both sums", "each batch once", "number batches apart"
        )
    if one.about != other.about:
        differ = [f.name for f in fields(About) if getattr(one.about, f.name) != getattr(other.about, f.name)]
        raise InputError(
            f"layer '{one.about.name}' and '{other.about.name}' that differ in {', '.join(differ)} between batches",
            "the same layer, called in the same way, in every batch",
            "diagnose batches of one kind at a time",
        )
    if not all(torch.equal(value, other.weights[name]) for name, value in one.weights.items()):
        raise InputError(
            f"weights of layer '{one.about.name}' that differ between batches",
            "one and the same model for all of them",
            "diagnose each checkpoint by itself, into a state file of its own",
        )
    if one.told != other.told:
        raise InputError(
            f"{one.told} and {other.told} lags told apart in sums of layer '{one.about.name}'",
            "the same number in both",
            "make both with one max_lag",
        )


def _over_names(
    one: Mapping[str, Any], other: Mapping[str, Any], add: Callable[[str, Any, Any], Any]
) -> dict[str, Any]:
    return {
        name: add(name, one[name], other[name]) if name in one and name in other else one.get(name, other.get(name))
        for name in dict.fromkeys((*one, *other))
    }


def _added(name: str, one: Any, other: Any) -> Any:
    return together(one, other) if name == "units.moments" else added(one, other)


def added(one: Any, other: Any) -> Any:
    """The sum of two Scaled or two tensors, the shorter one padded along its last axis."""
    if isinstance(one, Scaled):
        lags = max(len(one.exponent), len(other.exponent))
        return _wider(one, lags) + _wider(other, lags)
    if one.ndim and one.shape[-1] != other.shape[-1]:
        lags = max(one.shape[-1], other.shape[-1])
        one, other = (torch.nn.functional.pad(part, (0, lags - part.shape[-1])) for part in (one, other))
    return one + other


def _wider(part: Scaled, lags: int) -> Scaled:
    lacking = lags - len(part.exponent)
    if not lacking:
        return part
    exponent = torch.cat((part.exponent, torch.full((lacking,), EMPTY)))
    if part.mantissa.ndim == 2 and not part.mantissa.is_contiguous():  # columns side by side in memory stay so
        return Scaled(torch.nn.functional.pad(part.mantissa.T, (0, 0, 0, lacking)).T, exponent)
    return Scaled(torch.nn.functional.pad(part.mantissa, (0, lacking)), exponent)


def _longer(part: Tensor, steps: int, beyond: float) -> Tensor:
    lacking = steps - len(part)
    return part if not lacking else torch.cat((part, part.new_full((lacking, *part.shape[1:]), beyond)))


def _both(one: Any, other: Any, add: Callable[[Any, Any], Any]) -> Any:
    if one is None or other is None:
        return one if other is None else other
    return add(one, other)


def _lot(batch: np.ndarray, place: np.ndarray) -> np.ndarray:
    """A lottery number for each sequence, the same wherever it is drawn (SplitMix64, Steele, Lea & Flood 2014)."""
    with np.errstate(over="ignore"):
        z = batch.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + place.astype(np.uint64) + np.uint64(1)
        z = z * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


# --- plain numbers, for files and wires ------------------------------------------------------------------------------

KINDS = {
    kind.__name__: kind
    for kind in (About, Block, Blocks, GateSums, LayerSums, Moments, Places, Row, Sample, Scaled, Sequence)
}
KIND, ARRAY = "kind", "array"


def plain(value: Any) -> Any:
    """The same as dicts, lists, numbers, strings and tensors, which torch.load(weights_only=True) reads."""
    if isinstance(value, Scaled):
        return {KIND: "Scaled", "mantissa": value.mantissa, "exponent": value.exponent}
    if is_dataclass(value) and not isinstance(value, type):
        return {KIND: type(value).__name__} | {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, np.ndarray):
        return {KIND: ARRAY, ARRAY: torch.from_numpy(np.ascontiguousarray(value))}
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, np.generic):
        return value.item()
    return value


def from_plain(value: Any) -> Any:
    """What `plain` was given; only the kinds of this module can come out. Raises ValueError where a part is of a wrong type."""
    if isinstance(value, list):
        return [from_plain(each) for each in value]
    if not isinstance(value, dict):
        return value
    if KIND not in value:
        return {name: from_plain(each) for name, each in value.items()}
    if value[KIND] == ARRAY:
        return value[ARRAY].numpy()
    kind = KINDS[value[KIND]]
    parts = {name: from_plain(each) for name, each in value.items() if name != KIND}
    hints = get_type_hints(kind.__init__)
    for name, part in parts.items():
        if not fits(part, hints[name]):
            raise ValueError(f"{kind.__name__}.{name} of type {type(part).__name__}")
    return kind(**parts)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type that a field's annotation says; a tuple comes back as a list."""
    origin, inside = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(fits(value, each) for each in inside)
    if origin in (list, tuple):
        return isinstance(value, list) and all(fits(each, inside[0]) for each in value)
    if origin in (dict, Mapping):
        return isinstance(value, dict) and all(fits(k, inside[0]) and fits(v, inside[1]) for k, v in value.items())
    if hint in (int, float):
        return isinstance(value, int | hint) and not isinstance(value, bool)
    return isinstance(value, origin or hint)
