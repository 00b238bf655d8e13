"""What is asked of a decomposition: its options, listed here and handed on as keywords by whatever takes them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from numbers import Integral
from typing import Any, Literal, TypedDict

from throughtime.budget import in_bytes
from throughtime.demand import Method
from throughtime.errors import InputError

Bias = Literal["all", "horizon"]
Derivative = Literal["closed", "autograd"]


class Options(TypedDict, total=False):
    """Keywords of `record.flow`, `throughtime.diagnose` and, but for memory, `throughtime.window`; defaults: `Asked`.

    tolerance, max_lag: when the tail begins, see `throughtime.sweep.sweep`. bias: "all", or "horizon" for only those K near
    which the bias crosses 10, 1 or .1 %. hops, signal_to_noise, demand, origin_step: left out when False. demand_method:
    "covariance" or "distance", see docs/demand.md. derivative: "closed", or "autograd" through the cell's equations. compile:
    whether chunks of steps are compiled, see docs/howto/every-step.md. memory: what the decomposition may add to what is there,
    such as "500 MB" or a number of bytes, see docs/howto/memory.md. strict: raise ResidualError above the contract (1e-10 in
    float64, 1e-4 in float32, 2e-2 below). total: whether the total lag is told where it takes a stream of every origin through
    every layer (`throughtime.whole.series`); None: where this takes less than `throughtime.whole.total.COST`.
    """

    tolerance: float
    max_lag: int | None
    bias: Bias
    hops: bool
    signal_to_noise: bool
    demand: bool
    demand_method: Method
    origin_step: bool
    derivative: Derivative
    compile: bool
    memory: str | float | None
    strict: bool
    total: bool | None


@dataclass(frozen=True)
class Asked:
    """`Options` with their defaults. Raises InputError for values that are none."""

    tolerance: float = 1e-12
    max_lag: int | None = None
    bias: Bias = "all"
    hops: bool = True
    signal_to_noise: bool = True
    demand: bool = True
    demand_method: Method = "covariance"
    origin_step: bool = True
    derivative: Derivative = "closed"
    compile: bool = False
    memory: str | float | None = None
    strict: bool = True
    total: bool | None = None

    def __post_init__(self) -> None:
        most = self.max_lag
        if not 0 <= self.tolerance < 1:
            raise InputError(f"tolerance={self.tolerance}", "0 or more, and below 1", "0 tells every lag apart")
        if most is not None and (not isinstance(most, Integral) or isinstance(most, bool) or most < 0):
            raise InputError(f"max_lag={most}", "a whole number of steps, 0 or more", "leave it out to tell every lag")
        if self.bias not in ("all", "horizon"):
            raise InputError(f"bias={self.bias!r}", "'all' or 'horizon'", "use 'all' for the bias at every K")
        if self.memory is not None:
            if self.total:
                raise InputError(
                    "memory beside total=True", "one of them", "leave memory out: the total lag needs all at once"
                )
            in_bytes(self.memory)

    @property
    def budget(self) -> int | None:
        """`memory` in bytes."""
        return None if self.memory is None else in_bytes(self.memory)

    def questions(self) -> dict[str, Any]:
        """All that changes the answer by more than rounding."""
        return {name: value for name, value in asdict(self).items() if name not in ("memory", "compile")}

    @property
    def method(self) -> Method | None:
        """The test of demand, None where none is asked for."""
        return self.demand_method if self.demand else None
