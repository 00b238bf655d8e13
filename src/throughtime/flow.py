"""The frozen result: what one backward pass did in each recurrent layer, told apart by lag.

Index i of every array "by lag" is lag i (of the initial state: lag i + 1); NaN stands where a number does not exist or
was not asked for, and `missing` says why. Definitions: docs/definitions.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from throughtime.demand import Demand
    from throughtime.diagnosis.report import Report

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Missing:
    """A number that is null in the JSON, and why."""

    field: str
    reason: str


@dataclass(frozen=True)
class Terms:
    """One row of the ledger: a parameter, a gate block of it, or an initial state.

    share: ⟨G(τ), G⟩ / ⟨G, G⟩ by lag, signed, adding up to 1 with the tail.
    log10_norm: log10 ‖G(τ)‖_F by lag.
    residual: ‖Σ_τ G(τ) − G‖ / ‖G‖, NaN where autograd gave this weight no gradient to compare with.
    gates: the blocks of a stacked weight by gate name, empty for a block itself.
    """

    name: str
    gate: str | None
    share: Array
    log10_norm: Array
    residual: float
    gates: Mapping[str, Terms] = field(default_factory=dict)


@dataclass(frozen=True)
class Adjoint:
    """log10 of the root mean square of ‖λ[t, t−τ]‖ over the pairs (t, b) with g ≠ 0 and t > τ, by lag.

    by_state: the same for each part of the carry (h; for an LSTM h, c and d, the total cell adjoint).
    by_sequence: (lag, sequence), the same for every sequence alone.
    log10_arriving_total: the fraction that arrives, told on the total adjoint (of an LSTM d, else λ itself) and over what
    entered at the same pairs; arriving_by_sequence: (lag, sequence), the same for every sequence alone.
    """

    log10_norm: Array
    by_state: Mapping[str, Array]
    by_sequence: Array
    log10_arriving_total: Array = field(default_factory=lambda: np.zeros(0))
    arriving_by_sequence: Array = field(default_factory=lambda: np.zeros((0, 0)))


@dataclass(frozen=True)
class OriginStep:
    """log10 RMS over the batch of ‖λ[t, k]‖: rows origins t, columns steps k, both 0-based and at most 512 a side.

    Where the sequence is longer, a cell is the RMS over a block of (t, k); `origins` and `steps` hold the first index
    of each row and column. NaN where k > t, where t carries no loss, and beyond the tail's first lag.
    """

    origins: NDArray[np.int64]
    steps: NDArray[np.int64]
    log10_norm: Array


@dataclass(frozen=True)
class Tail:
    """The lags from `first_lag` on, that were swept as one stream: exact in sum, not told apart.

    tolerance: the fraction of the largest adjoint under which all had fallen there; None where `max_lag` set the limit.
    bound: what the terms of the tail add up to in norm where none cancels another, in units of ‖G‖: no share and no bias
    beyond could be off by more, but for origins that meet at a step and cancel there. A parameter whose terms come from
    autograd counts with what its batch gives at a step.
    """

    first_lag: int
    share: float
    log10_norm: float
    tolerance: float | None = None
    bound: float = float("nan")


@dataclass(frozen=True)
class Unit:
    """One unit: its gate timescale −1/⟨ln carry⟩, the measured half-life of its adjoint (both in steps), and its class.

    kind: "long-term", "short-term", "resetting" or "dead"; rule: the words of the rule that made it so.
    """

    unit: int
    timescale: float
    half_life: float
    kind: str
    rule: str


@dataclass(frozen=True)
class Gate:
    """A sigmoid gate over all steps, sequences and units, read on its logits (in float32 σ(17) = 1 exactly).

    mean: of the gate's value; below, above: fraction of values under .1 and over .9; saturated: fraction of |logit| > 6,
    or, of a hard sigmoid, of gates that are 0 or 1.
    logit_quantiles: at the levels of `QUANTILES`; histogram: counts of gate values in 20 equal bins of [0, 1].
    """

    mean: float
    below: float
    above: float
    saturated: float
    logit_quantiles: Array
    histogram: NDArray[np.int64]


QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


class Horizon(dict[float, int | None]):
    """ε → K. Keys are floats; their text, as JSON has it ("0.01"), finds the same."""

    def __missing__(self, key: object) -> int | None:
        if isinstance(key, str):
            return self[float(key)]
        raise KeyError(key)


@dataclass(frozen=True)
class Sequence:
    """One recorded sequence of a layer, kept so that the layer can be run again: T steps, D inputs, H units, S carries.

    index: its place in the batch. inputs: (T, D). initial: (S·H,). gradient: (T, H), what entered at each step's output.
    cell_gradient: ((S − 1)·H,), what entered at c_n, or None. log10_norm: (T,) log10 of ‖λ‖ by lag, of this sequence alone;
    log10_arriving_total: (T,) see `Adjoint`, of this sequence alone.
    """

    index: int
    inputs: Array
    initial: Array
    gradient: Array
    cell_gradient: Array | None
    log10_norm: Array
    log10_arriving_total: Array = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True)
class Intervals:
    """Confidence intervals over batches, widened to the measured value where that lies outside.

    See `throughtime.streaming.intervals`.

    level: .95. blocks: how many, of so many `batches` each, the spread was taken over. horizon: ε → (K, K), None where no K is
    named. bias, share, log10_arriving: (2, steps) by lag, lower and upper.
    """

    level: float
    blocks: int
    batches: int
    horizon: Mapping[float, tuple[int | None, int | None]]
    bias: Array
    share: Array
    log10_arriving: Array


@dataclass(frozen=True)
class LayerFlow:
    """The ledger of one recurrent layer. Arrays by lag have shape (steps,).

    share: of all parameters together. residual: the largest over parameters and gate blocks; error: the largest over
    parameters of ‖Σ_τ G(τ) − G‖ / Σ_τ‖G(τ)‖, to which the contract applies; cancellation: ‖G‖ / Σ_τ‖G(τ)‖. bias, cosine: by
    K. horizon: ε → K. weights: copies of the layer's arrays by state_dict name. entering: log10 RMS of ‖λ[t, t]‖ over the pairs
    that reach back to each lag. bare: whether the model is this layer itself.
    sequence: the first recorded one with a loss. reverse: time runs backwards in it, so that a lag is a number of steps ahead.
    external: share of G that entered at states through what feeds later inputs of the layer (attention, an output fed back),
    None where nothing does; external_by_lag: the same by lag, counted from where it enters again, NaN beyond the tail's first.
    opposite: of a whole told in both directions, the flow that holds the other sign of the offset, None elsewhere; index i of
    the reverse one is i steps ahead, and its index 0 is empty but for the adjoints.
    module: the module that it is part of. inner: whether demand is told for the whole stack and not here.
    batches: that were added up. intervals: over them, None where they were too few.
    holds: whether it, or a part of it, has a path on which a state goes over past the matrix products.
    """

    name: str
    cell: str
    convention: Mapping[str, str]
    steps: int
    batch: int
    hidden_size: int
    input_size: int
    dtype: str
    lag: str
    loss_steps: tuple[int, ...]
    residual: float
    error: float
    cancellation: float
    adjoint: Adjoint
    parameters: Mapping[str, Terms]
    initial_state: Mapping[str, Terms]
    demand: Demand | None
    paths: Mapping[str, Array]
    hops: Mapping[str, Array] | None
    signal_to_noise: Array
    bias: Array
    cosine: Array
    horizon: Mapping[float, int | None]
    units: tuple[Unit, ...]
    gates: Mapping[str, Gate]
    tail: Tail | None
    origin_step: OriginStep | None
    missing: tuple[Missing, ...]
    weights: Mapping[str, Array] = field(default_factory=dict, repr=False)
    share: Array = field(default_factory=lambda: np.zeros(0))
    entering: Array | None = None
    bare: bool = False
    reverse: bool = False
    external: float | None = None
    external_by_lag: Array | None = None
    module: str = ""
    inner: bool = False
    holds: bool = False
    opposite: str | None = None
    sequence: Sequence | None = field(default=None, repr=False)
    batches: int = 1
    intervals: Intervals | None = None

    @property
    def arriving(self) -> Array:
        """Fraction of the gradient that arrives at each lag: RMS‖λ[t, t−τ]‖ / RMS‖λ[t, t]‖ over the same pairs (t > τ)."""
        with np.errstate(under="ignore", over="ignore"):
            return 10.0**self.log10_arriving

    @property
    def log10_arriving(self) -> Array:
        """log10 of `arriving`, which does not leave the range of floats."""
        return self.relative(self.adjoint.log10_norm)

    def relative(self, log10_norm: Array) -> Array:
        """Adjoint norms by lag (…, T), as log10, over what entered at the pairs that reach back so far."""
        with np.errstate(invalid="ignore"):
            return log10_norm - (self.adjoint.log10_norm[0] if self.entering is None else self.entering)

    @property
    def horizon_told(self) -> bool:
        """Whether the gradient horizon was measured here; None in `horizon` then means that it lies beyond the last lag."""
        return not any(each.field == "horizon" for each in self.missing)

    @property
    def attribute(self) -> str:
        """The layer's name in the model; "" when the model is the layer itself, or of several modules in series."""
        return "" if self.bare or "modules" in self.convention else self.module or self.name


@dataclass(frozen=True)
class Stream:
    """How far a data set was gone through: batches, and why no further. partial: whether it was interrupted."""

    batches: int
    stopped: str
    partial: bool = False


@dataclass(frozen=True)
class Flow:
    """What `Record.flow()` returns: one `LayerFlow` for each recurrent layer that the backward pass reached.

    missing: recurrent layers of which nothing can be told ("layers.<name>"), and why. stream: of a data set of several batches.
    """

    layers: Mapping[str, LayerFlow]
    throughtime: str
    torch: str
    missing: tuple[Missing, ...] = ()
    stream: Stream | None = None

    @property
    def steps(self) -> int:
        """Length of the longest recorded sequence."""
        return max(layer.steps for layer in self.layers.values())

    @property
    def batch(self) -> int:
        """Sequences in the batch."""
        return max(layer.batch for layer in self.layers.values())

    @property
    def dtype(self) -> str:
        """The dtype in which the first layer ran."""
        return next(iter(self.layers.values())).dtype

    @property
    def residual(self) -> float:
        """The largest residual over layers: how far the terms are from what autograd gave."""
        values = [layer.residual for layer in self.layers.values()]
        return float(np.nanmax(values)) if not np.all(np.isnan(values)) else float("nan")

    def whole_of(self, name: str) -> str | None:
        """The layer that tells the total lag of the whole of which this one is a part (a stack, modules in series), or None."""
        layer = self.layers[name]
        for whole in self.layers.values():
            modules = whole.convention.get("modules", name).split(", ")
            if name not in (whole.name, whole.opposite) and (layer.module == whole.name or layer.module in modules):
                return whole.name
        return None

    def diagnose(self, needed_lag: int | None = None, history: Any = None) -> Report:
        """Judge this flow by the rules. See `throughtime.diagnose`."""
        from throughtime.diagnosis.diagnose import judge

        return judge(self, needed_lag=needed_lag, history=history)

    def to_dict(self, network: bool = False) -> dict[str, Any]:
        """The JSON document (schema throughtime/1) as plain Python. network: see `to_json`."""
        from throughtime.report.json import flow_to_dict

        return flow_to_dict(self, network)

    def to_json(self, indent: int | None = None, network: bool = False) -> str:
        """The JSON document (schema throughtime/1).

        network: add each layer's weights and one recorded sequence, with which `throughtime explore` can move the network.
        """
        from throughtime.report.json import dumps

        return dumps(self.to_dict(network), indent)

    def to_dataframe(self) -> Any:
        """One row a (layer, parameter, gate, lag), as a pandas DataFrame (extra: pandas)."""
        from throughtime.report.tables import flow_to_dataframe

        return flow_to_dataframe(self)

    def to_xarray(self) -> Any:
        """One xarray Dataset a layer, as a dict by layer name (extra: xarray)."""
        from throughtime.report.tables import flow_to_xarray

        return flow_to_xarray(self)

    def __repr__(self) -> str:
        from throughtime.report.text import flow_text

        return flow_text(self)

    def _repr_html_(self) -> str:
        from throughtime.report.html import notebook_html

        return notebook_html(self.diagnose())
