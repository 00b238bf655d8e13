"""Compiled chunks of steps: the numbers of the sweep that takes its steps one by one, and that sweep where they cannot be."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from reference import drawn
from throughtime import compiled
from throughtime.cells import GRU, REGISTRY, Cell, Pulled, Weights
from throughtime.cells.stack import Stack
from throughtime.explain import explain
from throughtime.trace import Trace

STEPS = 41  # no whole number of chunks


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing compiled and nothing refused by another test; small chunks, which are compiled sooner."""
    monkeypatch.setattr(compiled, "STEPS", 3)
    monkeypatch.setattr(compiled, "_failed", set())
    monkeypatch.setattr(compiled, "_said", set())
    compiled._back.cache_clear()
    yield
    compiled._back.cache_clear()


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Without the compiler: chunks as they stand, and how many were taken."""
    counted = []

    def counting(function: Any, **_: Any) -> Any:
        def run(*args: Any) -> Any:
            counted.append(1)
            return function(*args)

        return run

    monkeypatch.setattr(torch, "compile", counting)
    return counted


def numbers(value: Any, name: str = "") -> dict[str, np.ndarray]:
    """All numbers in a result, by where they stand."""
    if is_dataclass(value):
        value = {each.name: getattr(value, each.name) for each in fields(value)}
    if isinstance(value, (list, tuple)) and value and not isinstance(value[0], (int, float, str)):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        return {k: v for key, each in value.items() for k, v in numbers(each, f"{name}.{key}").items()}
    array = np.asarray(value)
    return {name: array.astype(float)} if array.dtype.kind in "fiub" else {}


def same(trace: Trace, rtol: float = 1e-9, **options: Any) -> None:
    """The flow of a trace is the same with compiled chunks and without."""
    plain, chunked = (numbers(explain([trace], compile=on, **options)) for on in (False, True))
    assert plain.keys() == chunked.keys()
    for name, value in plain.items():
        if not name.endswith(("residual", "error")):  # they are rounding themselves
            scale = np.abs(value[np.isfinite(value)]).max(initial=0)
            np.testing.assert_allclose(chunked[name], value, rtol=rtol, atol=1e-12 * scale, err_msg=name)


def trace_of(key: str, losses: int, batch: int = 2) -> Trace:
    """A run of a cell, with losses at the last steps."""
    cell, generator = REGISTRY[key], torch.Generator().manual_seed(5)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    weights = Weights(**drawn(cell, 2, 4, normal))
    carries, x = [normal(batch, cell.carry_size(weights))], normal(STEPS, batch, 2).detach()
    for now in x:
        carries.append(cell.step(weights, now, dict.fromkeys(cell.ports, carries[-1])))
    tensors, outputs = weights.tensors(), [cell.output(carry) for carry in carries[1:]]
    loss = torch.stack([output.square().sum() for output in outputs[-losses:]]).sum()
    *given, initial = torch.autograd.grad(loss, [*tensors.values(), carries[0]], retain_graph=True)
    after = torch.stack(carries).detach().requires_grad_()
    direct = torch.autograd.grad(cell.output(after[1:])[-losses:].square().sum(), after)[0][1:]
    plain = Weights(**{name: value.detach() for name, value in tensors.items()})
    by_name = dict(zip(tensors, given, strict=True))
    return Trace("rnn", cell, plain, x, after.detach(), direct, by_name, initial, torch.float64)


def both(trace: Trace) -> None:
    """One loss, or the tail of many, into whose stream rows enter."""
    same(trace, max_lag=None if len(trace.origins()) == 1 else 4)


@pytest.mark.parametrize("losses", [1, 30])
@pytest.mark.parametrize("key", REGISTRY)
def test_chunks_say_what_single_steps_say(key, losses, taken):
    if type(REGISTRY[key]).pull is Cell.pull:
        with pytest.warns(UserWarning, match=f"got cell '{key}', whose pullback is autograd's"):
            both(trace_of(key, losses))
        assert not taken
        return
    both(trace_of(key, losses))
    assert len(taken) >= STEPS // compiled.STEPS - 3


def fixed_point(factor: float, losses: int = 1) -> Trace:
    """A tanh net at its fixed point 0: its adjoints grow or fall by about `factor` at each step."""
    generator = torch.Generator().manual_seed(2)
    hidden, steps = 6, 80
    matrix = factor * torch.linalg.qr(torch.randn(hidden, hidden, generator=generator, dtype=torch.float64))[0]
    gradient = torch.zeros(steps, 2, hidden, dtype=torch.float64)
    gradient[-losses:] = torch.randn(losses, 2, hidden, generator=generator, dtype=torch.float64)
    gradient[:, 1] *= 2.0**-40  # a sequence far below the other
    zeros = torch.zeros(steps + 1, 2, hidden, dtype=torch.float64)
    weights = Weights(torch.zeros(hidden, 1, dtype=torch.float64), matrix)
    return Trace("rnn", REGISTRY["rnn-tanh"], weights, zeros[1:, :, :1], zeros, gradient, {}, None, torch.float64)


@pytest.mark.parametrize("losses", [1, 60])
@pytest.mark.parametrize("factor", [60, 4, 1.5, 0.3, 1e-2])
def test_rows_that_leave_the_range_within_a_chunk(factor, losses, taken, monkeypatch):
    monkeypatch.setattr(compiled, "STEPS", 8)
    same(fixed_point(factor, losses), max_lag=None if losses == 1 else 2, strict=False)
    assert taken


def compiled_graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.parametrize(("key", "losses"), [("gru", 1), ("rnn-tanh", 30)])
def test_compiled_once_for_windows_and_sequences_of_any_length(key, losses, monkeypatch):
    trace, before = trace_of(key, losses), compiled_graphs()
    width = trace.carries[0].numel()
    settings = torch._dynamo.config.get_config_copy(), torch._inductor.config.get_config_copy()
    for window in (STEPS, 13, 12):  # of steps whose factors are computed at once; 12 is a whole number of chunks
        monkeypatch.setattr("throughtime.sweep.BLOCK_ENTRIES", width * window)
        both(trace)
    assert compiled_graphs() == before + 1
    assert settings == (torch._dynamo.config.get_config_copy(), torch._inductor.config.get_config_copy())


@pytest.mark.slow
@pytest.mark.parametrize("losses", [1, 30])
@pytest.mark.parametrize("key", [key for key, cell in REGISTRY.items() if type(cell).pull is not Cell.pull])
def test_every_cell_compiled(key, losses):
    before = compiled_graphs()
    both(trace_of(key, losses))
    assert compiled_graphs() == before + 1


@dataclass(frozen=True)
class Looking(GRU):
    """A GRU whose pull looks at a number, which no compiled graph can."""

    def pull(self, w: Weights, factors: dict, adjoint: torch.Tensor, paths: bool = True) -> Pulled:
        assert math.isfinite(float(adjoint.sum()))
        return super().pull(w, factors, adjoint, paths)


def test_a_cell_that_cannot_be_compiled_goes_step_by_step_and_says_so_once():
    trace = replace(trace_of("gru", 1), cell=Looking())
    with pytest.warns(UserWarning, match=r"compile=True: got \w+: .*do this: .*leave compile out") as said:
        both(trace)
    assert len(said) == 1
    both(trace)  # a second warning would be an error


def test_a_cell_made_of_one_without_a_closed_form_is_refused():
    for parts, closed in (((GRU(), GRU()), True), ((GRU(), REGISTRY["s6"]), False)):
        assert compiled._closed(Stack(parts, (4, 4), 2)) == closed


def test_autograd_has_nothing_to_compile():
    with pytest.warns(UserWarning, match="got derivative='autograd'.*do this: leave derivative out") as said:
        same(trace_of("gru", 1), derivative="autograd")
    assert len(said) == 1


def test_without_a_compiler(tmp_path):
    """In a process of its own, for torch remembers which compiler it found."""
    script = """
import sys, warnings
import torch, throughtime as tt
torch.manual_seed(0)
rnn = torch.nn.GRU(2, 3)
with tt.record(rnn) as record:
    rnn(torch.randn(30, 2, 2))[0][-1].sum().backward()
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    shares = [record.flow(compile=on).layers["rnn"].share for on in (False, True, True)]
assert (shares[0] == shares[1]).all() and (shares[0] == shares[2]).all()
print(*[each.message for each in said], sep="\\n")
"""
    environment = os.environ | {"CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    (line,) = done.stdout.strip().splitlines()
    assert "compiler" in line
    assert "install g++ or clang" in line
