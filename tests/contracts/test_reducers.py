"""What holds for every reducer: a batch swept in parts and merged says what the whole batch says."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from dataclasses import asdict, is_dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import throughtime.reducers as package
from reference import drawn
from throughtime.cells import REGISTRY, Weights
from throughtime.linearize import Linearization
from throughtime.reducers.initial_state import InitialState
from throughtime.reducers.ledger import Ledger
from throughtime.reducers.reducer import Reducer
from throughtime.reducers.shares import Shares
from throughtime.reducers.signal_to_noise import SignalToNoise
from throughtime.sweep import sweep
from throughtime.trace import Trace


def reducers() -> list[type[Reducer]]:
    """Every subclass of Reducer in the package."""
    modules = [
        importlib.import_module(f"{package.__name__}.{info.name}") for info in pkgutil.iter_modules(package.__path__)
    ]
    found = {value for module in modules for _, value in inspect.getmembers(module, inspect.isclass)}
    return sorted(
        (each for each in found if issubclass(each, Reducer) and each is not Reducer), key=lambda c: c.__name__
    )


every_reducer = pytest.mark.parametrize("kind", reducers())


def direct(pattern: str, output: Tensor) -> Tensor:
    """What enters at the output: (T, B, H)."""
    steps, batch, _ = output.shape
    g = torch.cos(3 * output)
    on = torch.zeros(steps, batch, 1, dtype=output.dtype)
    if pattern == "last":
        on[-1] = 1
    elif pattern == "every":
        on[:] = 1
    elif pattern == "one sequence without":
        on[1::2] = 1
        on[:, 3] = 0
    elif pattern == "ragged":  # no two sequences have the same steps of loss
        for b in range(batch):
            on[b :: b + 2, b] = 1
    elif pattern == "ends early":  # the first sequences have loss on the first steps only
        on[:2, :2], on[4:, 2:] = 1, 1
    elif pattern == "half without":
        on[2:, 2:] = 1
    return g * on


PATTERNS = ["last", "every", "one sequence without", "ragged", "ends early", "half without"]


@functools.cache
def trace_of(key: str, pattern: str, steps: int = 7, batch: int = 5, dtype: torch.dtype = torch.float64) -> Trace:
    """A run of a cell and, by autograd, what it gives the weights and the initial state."""
    cell, hidden, inputs = REGISTRY[key], 3, 2
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    weights = Weights(**drawn(cell, inputs, hidden, normal))
    x, initial = normal(steps, batch, inputs).detach(), normal(batch, cell.carry_size(weights))
    carries = [initial]
    for now in x:
        carries.append(cell.step(weights, now, dict.fromkeys(cell.ports, carries[-1])))
    output = torch.stack([cell.output(carry) for carry in carries[1:]])
    g = direct(pattern, output.detach())
    value = (g * output).sum()
    gradient = torch.cat((g, g.new_zeros(*g.shape[:2], initial.shape[-1] - hidden)), dim=-1)
    if len(cell.states) > 1 and pattern == "last":
        last = carries[-1][:, hidden:]
        gradient[-1, :, hidden:] = torch.sin(last).detach()
        value = value + (gradient[-1, :, hidden:] * last).sum()
    tensors = weights.tensors()
    *grads, at_start = torch.autograd.grad(value, [*tensors.values(), initial])
    plain = Weights(**{name: tensor.detach() for name, tensor in tensors.items()})
    given = dict(zip(tensors, grads, strict=True))
    return Trace("rnn", cell, plain, x, torch.stack(carries).detach(), gradient, given, at_start, dtype)


def part(trace: Trace, at: slice) -> Trace:
    """Some sequences of a trace."""
    return replace(
        trace,
        x=trace.x[:, at],
        carries=trace.carries[:, at],
        gradient=trace.gradient[:, at],
        initial_gradient=None if trace.initial_gradient is None else trace.initial_gradient[at],
    )


def swept(kind: type[Reducer], trace: Trace, whole: Trace, **options: Any) -> list[Reducer]:
    """The reducer, and a ledger beside it, after the sweep of a part."""
    lin = Linearization(trace)
    ledger = Ledger(lin, whole.weight_gradients, keep_terms=True)
    own = ledger if kind is Ledger else kind(lin, whole.weight_gradients) if kind is Shares else kind(lin)
    sweep(lin, [ledger] if own is ledger else [own, ledger], **options)
    return [own, ledger]


def told(reducer: Reducer, ledger: Reducer, whole: Trace, first: int | None) -> dict[str, np.ndarray]:
    """What a reducer says, as arrays by name."""
    assert isinstance(ledger, Ledger)
    if isinstance(reducer, Ledger):
        parameters, residual, error = reducer.terms(whole.weight_gradients, first)
        said: Any = {
            "parameters": parameters,
            "errors": np.array([residual, error]) < 1e-9,
            "bias": reducer.bias(),
            "cosine": reducer.cosine(),
            "share": reducer.share(),
            "horizon": {str(level): np.array(K, dtype=float) for level, K in reducer.horizon().items()},
            "tail": np.array([reducer.tail_share, reducer.tail_norm]),
            "norms": reducer.norms.log10(),
            **{f"total {name}": value.numpy() for name, value in reducer.total().items()},
        }
    elif isinstance(reducer, InitialState):
        terms, residual = reducer.finish(whole.initial_gradient, first)
        said = {"terms": terms, "residual": np.array(residual) < 1e-9}
    elif isinstance(reducer, SignalToNoise):
        said = reducer.finish(ledger.norms)
    else:
        said = reducer.finish()  # type: ignore[attr-defined]
    out = dict(flat("", said))
    if hasattr(reducer, "units"):
        out["units"] = reducer.units()  # type: ignore[attr-defined]
    return {name: value for name, value in out.items() if "residual" not in name or value.dtype == bool}


def flat(name: str, value: Any) -> list[tuple[str, np.ndarray]]:
    """All numbers in a result."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return [pair for key, inner in value.items() for pair in flat(f"{name} {key}", inner)]
    return [(name, np.asarray(value))] if isinstance(value, np.ndarray | float) else []


def applies(kind: type[Reducer], key: str) -> bool:
    return kind.__name__ != "Hops" or REGISTRY[key].diagonal


def check_merge(kind: type[Reducer], whole: Trace, cuts: list[slice], rtol: float = 1e-9, **options: Any) -> None:
    alone, beside = swept(kind, whole, whole, **options)
    parts = [swept(kind, part(whole, at), whole, **options) for at in cuts]
    # Told before they are merged, as a monitor would: merging changes neither of the two.
    before = [told(own, ledger, part(whole, at), None) for (own, ledger), at in zip(parts, cuts, strict=True)]
    merged = functools.reduce(lambda a, b: a.merge(b), (own for own, _ in parts))
    ledger = functools.reduce(lambda a, b: a.merge(b), (ledger for _, ledger in parts))
    first = None if options.get("max_lag") is None else options["max_lag"] + 1
    wanted, got = told(alone, beside, whole, first), told(merged, ledger, whole, first)
    assert got.keys() == wanted.keys()
    assert first is not None or any(np.isfinite(value).any() for value in wanted.values())
    for name, value in wanted.items():
        finite = np.abs(value[np.isfinite(value)]) if value.dtype != bool else np.ones(1)
        scale = max(1.0, finite.max()) if finite.size else 1.0
        np.testing.assert_allclose(got[name], value, rtol=rtol, atol=rtol * scale, err_msg=name)
    for (own, ledger), at, said in zip(parts, cuts, before, strict=True):
        for name, value in told(own, ledger, part(whole, at), None).items():
            np.testing.assert_array_equal(value, said[name], err_msg=name)


HALVES = [slice(0, 2), slice(2, 5)]


def test_reducers_are_found():
    assert {"Adjoints", "Hops", "InitialState", "Ledger", "OriginSteps", "Paths", "Shares", "SignalToNoise"} <= {
        each.__name__ for each in reducers()
    }


@every_reducer
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("key", ["gru", "lstm"])
def test_two_halves_make_the_whole(kind, pattern, key):
    if applies(kind, key):
        check_merge(kind, trace_of(key, pattern), HALVES, tolerance=0)


@every_reducer
@pytest.mark.parametrize("key", ["gru-reset-before", "lstm", "rnn-tanh"])
def test_sequences_one_by_one_make_the_whole(kind, key):
    if applies(kind, key):
        check_merge(kind, trace_of(key, "ragged"), [slice(b, b + 1) for b in range(5)], tolerance=0)


@every_reducer
@pytest.mark.parametrize("pattern", ["every", "ragged", "last", "ends early"])
@pytest.mark.parametrize("max_lag", [0, 2])
def test_halves_with_a_tail_make_the_whole(kind, pattern, max_lag):
    check_merge(kind, trace_of("lstm", pattern), HALVES, tolerance=0, max_lag=max_lag)


@every_reducer
@pytest.mark.parametrize("pattern", ["last", "ragged"])
@pytest.mark.parametrize("entries", [16, 64])
def test_long_sequences_and_small_blocks(kind, pattern, entries, monkeypatch):
    monkeypatch.setattr("throughtime.sweep.BLOCK_ENTRIES", entries)
    check_merge(kind, trace_of("gru", pattern, steps=40), HALVES, tolerance=0)


@every_reducer
def test_halves_in_float32(kind):
    check_merge(kind, trace_of("gru", "every", dtype=torch.float32), HALVES, rtol=3e-4, tolerance=0)


def test_ledgers_without_terms_do_not_merge():
    trace = trace_of("gru", "last")
    ledger = Ledger(Linearization(trace), trace.weight_gradients)
    with pytest.raises(TypeError, match="keep_terms"):
        ledger.merge(ledger)
