"""What throughtime makes of a training step, whole and part by part."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

import throughtime as tt
from benchmarks.scene import Scene, work
from throughtime.explain import LEVELS, explain
from throughtime.jacobians import jacobians, log10_state_norms
from throughtime.linearize import Linearization
from throughtime.reducers.adjoints import Adjoints
from throughtime.reducers.ledger import Ledger
from throughtime.reducers.shares import Shares
from throughtime.reducers.signal_to_noise import SignalToNoise
from throughtime.sweep import Consumer, sweep

LEDGER = {"bias": "horizon", "hops": False, "signal_to_noise": False, "demand": False, "origin_step": False}
EVERY_K = LEDGER | {"bias": "all", "hops": True}


@work("plain forward + backward")
def plain(scene: Scene) -> None:
    scene.step()


@work("the same step, recorded")
def recorded(scene: Scene) -> None:
    with tt.record(scene.layer):
        scene.step()


@work("decomposition", recorded=True)
def ledger(scene: Scene) -> object:
    return explain(scene.traces, **LEDGER)


@work("decomposition, memory='250MiB'", recorded=True)
def within_250(scene: Scene) -> object:
    return explain(scene.traces, memory="250MiB", **LEDGER)


@work("decomposition, memory='100MiB'", recorded=True)
def within_100(scene: Scene) -> object:
    return explain(scene.traces, memory="100MiB", **LEDGER)


@work("decomposition, compile=True", recorded=True, peak=False)
def ledger_compiled(scene: Scene) -> object:
    return explain(scene.traces, compile=True, **LEDGER)


@work("decomposition, chrono_(max_lag=100)", recorded=True)
def ledger_chrono(scene: Scene) -> object:
    return ledger(scene)


@work("decomposition, bias at every K, hops", recorded=True)
def every_k(scene: Scene) -> object:
    return explain(scene.traces, **EVERY_K)


@work("all one-step Jacobians", recorded=True)
def one_step_jacobians(scene: Scene) -> Tensor:
    return jacobians(scene.traces[0])


@work("‖∂h_T/∂h_k‖ for all k", recorded=True)
def state_norms(scene: Scene) -> Tensor:
    return torch.from_numpy(log10_state_norms(scene.traces[0]))


# The sweep with some of its reducers. Each time the derivative of the steps is computed anew.


def _swept(scene: Scene, *kinds: str, tolerance: float = 1e-12) -> list[Consumer]:
    lin = Linearization(scene.traces[0])
    given = scene.traces[0].weight_gradients
    make = {
        "adjoints": lambda: Adjoints(lin),
        "shares": lambda: Shares(lin, given),
        "every K": lambda: Ledger(lin, given, "all", LEVELS),
        "terms": lambda: Ledger(lin, given, keep_terms=True),
        "noise": lambda: SignalToNoise(lin),
    }
    consumers: list[Consumer] = [make[kind]() for kind in kinds]
    sweep(lin, consumers, tolerance)
    return consumers


@work("sweep, adjoints alone", recorded=True)
def adjoints_alone(scene: Scene) -> object:
    return _swept(scene)


@work("sweep + norms of adjoints", recorded=True)
def adjoint_norms(scene: Scene) -> object:
    return _swept(scene, "adjoints")


@work("sweep + shares", recorded=True)
def shares(scene: Scene) -> object:
    return _swept(scene, "shares")


@work("sweep + shares, norms, bias at every K", recorded=True)
def norm_and_bias(scene: Scene) -> object:
    return _swept(scene, "every K")


@work("sweep + shares, norms, bias at every K, signal-to-noise", recorded=True)
def signal_to_noise(scene: Scene) -> object:
    return _swept(scene, "noise", "every K")


@work("sweep + shares, norms, bias at every K, tolerance 0", recorded=True)
def all_lags(scene: Scene) -> object:
    return _swept(scene, "every K", tolerance=0)


@work("every parameter's terms by lag", recorded=True)
def terms_by_lag(scene: Scene) -> Tensor:
    """G(τ) of all parameters, (T, numbers of the parameters), each in the order of the ledger's rows."""
    (made,) = _swept(scene, "terms")
    assert isinstance(made, Ledger)
    return made.tensor("terms") * 2.0**made.unit


@work("every parameter's terms by lag, tolerance 0", recorded=True)
def terms_of_all_lags(scene: Scene) -> Tensor:
    (made,) = _swept(scene, "terms", tolerance=0)
    assert isinstance(made, Ledger)
    return made.tensor("terms") * 2.0**made.unit


# The same sweep without powers of two: only for adjoints that stay within floats, as those of a chrono layer do.


@contextmanager
def _without_scaling() -> Iterator[None]:
    def march(step, rows, exponent, count, entering=None, chunk=None):  # type: ignore[no-untyped-def]
        assert entering is None
        assert chunk is None
        passed, told = [], []
        for turn in range(count):
            passed.append(rows)
            rows, kept = step(turn, rows)
            told.append(kept)
        return passed, [exponent] * count, told, rows, exponent

    module = sys.modules["throughtime.sweep"]
    kept = module.march, module.shifts
    module.march, module.shifts = march, lambda *_: None
    try:
        yield
    finally:
        module.march, module.shifts = kept


@work("sweep with powers of two, adjoints alone", recorded=True)
def scaled_sweep(scene: Scene) -> object:
    return _swept(scene)


@work("the same without powers of two", recorded=True)
def unscaled_sweep(scene: Scene) -> object:
    with _without_scaling():
        return _swept(scene)


def shares_both_ways(scene: Scene) -> tuple[Tensor, Tensor]:
    """(T,) shares from a sweep with and from one without powers of two."""
    scaled = shares(scene)
    with _without_scaling():
        both = scaled, shares(scene)
    return tuple(torch.from_numpy(made.share()) for (made,) in both)
