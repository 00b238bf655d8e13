"""The explorer's arithmetic, run in a real browser, against the library and against a copy of the parameters for every step."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import throughtime as tt
from reference import Reference
from throughtime.cells import REGISTRY, Weights
from throughtime.explorer.page import maths
from throughtime.flow import LayerFlow
from throughtime.recurrent import Recurrent

pytestmark = pytest.mark.browser

TABLE = re.search(r"^const CELLS = \{(.*?)^\};", maths(), re.MULTILINE | re.DOTALL)
CELLS = re.findall(r'^  "?([\w-]+)"?: \w+\(', TABLE[1] if TABLE else "", re.MULTILINE)
EXACT = 1e-9  # relative, in float64
FLOOR = 1e-12  # of a share: shares are ratios to the largest sums, what is smaller than their rounding is rounding
STEPS, UNITS, INPUTS = 30, 5, 2
PLACES = {"last": (STEPS - 1,), "one": (STEPS // 2,), "every": tuple(range(STEPS))}

ANALYSE = """({key, network, g, gc}) => {
  const floats = (values) => values && Float64Array.from(values);
  for (const name of ["x", "initial", "weight_ih", "weight_hh", "bias_ih", "bias_hh"]) network[name] = floats(network[name]);
  const cell = CELLS[key], trace = cell.run({...network, drive: null}), swept = sweep(trace, floats(g), floats(gc));
  const list = (values) => Array.from(values, (value) =>
    Number.isNaN(value) ? "nan" : value === -Infinity ? "-inf" : value === Infinity ? "inf" : value);
  const blocks = {};
  for (const parameter of Object.keys(cell.products)) for (const gate of [null, ...cell.gates]) {
    const found = terms(swept, parameter, gate);
    blocks[`${parameter} ${gate}`] = {log10_norm: list(found.log10_norm), share: list(found.share)};
  }
  const lists = (object) => Object.fromEntries(Object.entries(object).map(([name, values]) => [name, list(values)]));
  return {carries: list(trace.carries), logits: lists(trace.logits), values: lists(trace.values),
    adjoint: list(log10Adjoint(swept)), arriving: list(log10Arriving(swept)),
    total: list(log10ArrivingTotal(swept)), paths: lists(swept.paths), blocks,
    timescales: list(timescales(trace)), halfLives: list(halfLives(swept)),
    jacobian: Object.fromEntries([...Array(network.T).keys()].map((k) => [k, lists(jacobianPaths(trace, k))]))};
}"""


def test_cells_of_the_page_are_the_librarys() -> None:
    assert {"gru-reset-before", "gru", "lstm", "rnn-tanh"} <= set(CELLS) <= set(REGISTRY)


@pytest.fixture(scope="module")
def page(chromium: Any) -> Iterator[Any]:
    opened = chromium.new_page()
    opened.add_script_tag(content=maths())
    yield opened
    opened.close()


def network(key: str, seed: int, bias: float, gain: float = 1.0, steps: int = STEPS) -> tuple[Recurrent, Tensor, list]:
    """A layer whose gates' logits stand near `bias`, its input (T, 1, D) and its initial states, (1, H) each."""
    cell, draw = REGISTRY[key], torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    rows = len(cell.gates) * UNITS
    biases = normal(rows)
    for place, gate in enumerate(cell.gates):
        if gate in cell.sigmoids:
            biases[place * UNITS : (place + 1) * UNITS] += bias
    weights = Weights(normal(rows, INPUTS), gain * normal(rows, UNITS) / UNITS**0.5, biases, 0.1 * normal(rows))
    initial = [0.5 * normal(1, UNITS) for _ in cell.states]
    return Recurrent(cell, weights).double(), normal(steps, 1, INPUTS), initial


def probe(output: Tensor, finals: list[Tensor], places: tuple[int, ...], both: bool) -> Tensor:
    """⟨v, h_t⟩ summed over `places`, v another one at every step; with both, of the last cell state of an LSTM too."""
    v = torch.randn(output.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    read = (output * v)[list(places)].sum()
    return read + (finals[-1] * v[0]).sum() if both else read


def measured(layer: Recurrent, x: Tensor, initial: list, places: tuple[int, ...], both: bool) -> tuple[LayerFlow, Any]:
    with tt.record(layer) as record:
        output, last = layer(x, tuple(initial) if len(initial) > 1 else initial[0])
        finals = [state.reshape(1, UNITS) for state in (last if isinstance(last, tuple) else (last,))]
        probe(output, finals, places, both).backward()
    trace = record.traces()[0]
    return record.flow(demand=False, hops=False, tolerance=0.0).layers["rnn"], trace


def analysed(page: Any, key: str, trace: Any) -> dict[str, Any]:
    weights = {name: value.detach().flatten().tolist() for name, value in trace.weights.tensors().items()}
    steps, hidden = trace.steps, trace.hidden_size
    at_c = trace.gradient[-1, :, hidden:]
    gc = at_c.flatten().tolist() if at_c.any() else None
    given = {"T": steps, "D": trace.x.shape[-1], "H": hidden, "x": trace.x.flatten().tolist()}
    given |= {"initial": trace.carries[0].flatten().tolist()} | weights
    return page.evaluate(
        ANALYSE, {"key": key, "network": given, "g": trace.at_output.detach().flatten().tolist(), "gc": gc}
    )


def array(values: list) -> np.ndarray:
    return np.array([float(value) for value in values])


def same_log10(got: list, expected: np.ndarray) -> None:
    """Equal up to EXACT in the numbers themselves; −inf and NaN at the same places."""
    got_array, expected = array(got), np.asarray(expected)
    np.testing.assert_array_equal(np.isnan(got_array), np.isnan(expected))
    np.testing.assert_array_equal(np.isinf(got_array), np.isinf(expected))
    at = np.isfinite(expected)
    np.testing.assert_allclose(got_array[at], expected[at], rtol=1e-14, atol=EXACT / np.log(10))


def same(got: list, expected: np.ndarray, floor: float = FLOOR) -> None:
    np.testing.assert_allclose(array(got), np.asarray(expected).ravel(), rtol=EXACT, atol=floor)


def supply_on_the_total_adjoint(layer: LayerFlow, trace: Any) -> np.ndarray:
    """By lag, from the library's norms and, of an LSTM, d[t, t] = g_t∘o_t∘tanh′(c_t) written out; log10."""
    g = trace.at_output.detach()[:, 0]
    if trace.cell.name == "lstm":
        w, h, c = trace.weights, *trace.carries.detach()[:, 0].split(UNITS, dim=-1)
        o = torch.sigmoid(trace.x[:, 0] @ w.weight_ih.T + h[:-1] @ w.weight_hh.T + w.bias_ih + w.bias_hh)[:, -UNITS:]
        g = g * o * (1 - torch.tanh(c[1:]) ** 2)
        g[-1] += trace.gradient[-1, 0, UNITS:]
    squares = g.detach().square().sum(-1)
    mean = [squares[lag:].sum() / max(1, int((squares[lag:] > 0).sum())) for lag in range(trace.steps)]
    norms = layer.adjoint.by_state.get("d", layer.adjoint.log10_norm)
    with np.errstate(divide="ignore", invalid="ignore"):
        return norms - 0.5 * np.log10(np.asarray(mean))


CASES = [
    *itertools.product(CELLS, [0], PLACES, [0.0]),
    *itertools.product(CELLS, [1], ["last"], [-4.0, 4.0]),
    *itertools.product(CELLS, [2], ["every"], [-2.0, 2.0]),
]


@pytest.mark.parametrize(("key", "seed", "place", "bias"), CASES)
def test_equals_the_library(page: Any, key: str, seed: int, place: str, bias: float) -> None:
    layer, trace = measured(*network(key, seed, bias), PLACES[place], both=place != "one")
    got = analysed(page, key, trace)
    same(got["carries"], trace.carries.detach())
    from throughtime.linearize import Linearization

    with torch.no_grad():
        pre = Linearization(trace).pre_activations(0, trace.steps)
    for name in trace.cell.sigmoids:
        same(got["logits"][name], pre[name])
        same(got["values"][name], torch.sigmoid(pre[name]))
    same_log10(got["adjoint"], layer.adjoint.log10_norm)
    same_log10(got["arriving"], layer.log10_arriving)
    same_log10(got["total"], layer.adjoint.log10_arriving_total)
    same_log10(got["total"], supply_on_the_total_adjoint(layer, trace))
    for port, share in layer.paths.items():
        same(got["paths"][port], share)
    for name, row in layer.parameters.items():
        short = name.removeprefix("rnn.").removesuffix("_l0")
        for gate, terms in {None: row, **row.gates}.items():
            block = got["blocks"][f"{short} {gate or 'null'}"]
            same_log10(block["log10_norm"], terms.log10_norm)
            same(block["share"], terms.share)
    if trace.cell.keep:
        same(got["timescales"], [unit.timescale for unit in layer.units])
    same(got["halfLives"], [unit.half_life for unit in layer.units])


@pytest.mark.parametrize("key", CELLS)
def test_paths_of_the_jacobian_add_up_to_autograds(page: Any, key: str) -> None:
    _, trace = measured(*network(key, 3, 0.5, steps=4), (3,), both=False)
    got, cell = analysed(page, key, trace), trace.cell
    size, states = UNITS * len(cell.states), len(cell.states)
    for k in range(trace.steps):
        whole = np.zeros((size, states, UNITS))
        for port in cell.ports:
            at = cell.states.index(cell.port_state.get(port, cell.states[0]))
            whole[:, at] += array(got["jacobian"][str(k)][port]).reshape(size, UNITS)
        before = trace.carries[k, 0].detach()

        def after(carry: Tensor, k: int = k) -> Tensor:
            return cell.step(trace.weights, trace.x[k, 0], dict.fromkeys(cell.ports, carry))

        expected = torch.autograd.functional.jacobian(after, before)
        np.testing.assert_allclose(whole.reshape(size, size), expected, rtol=EXACT, atol=1e-14)


@pytest.mark.parametrize("key", ["gru-reset-before", "lstm"])
def test_equals_a_copy_of_the_parameters_for_every_step(page: Any, key: str) -> None:
    layer, x, initial = network(key, 4, 0.3, steps=7)
    places = (2, 6)
    _, trace = measured(layer, x, initial, places, both=False)
    got = analysed(page, key, trace)
    parameters = {name: value.detach() for name, value in trace.weights.tensors().items()}
    truth = Reference(key, trace.cell, parameters, x, initial, lambda out, last: probe(out, last, places, False))
    for name, gate in itertools.product(parameters, (None, *trace.cell.gates)):
        block = got["blocks"][f"{name} {gate or 'null'}"]
        with np.errstate(divide="ignore"):
            same_log10(block["log10_norm"], np.log10(truth.norm(name, gate)))
        same(block["share"], truth.share(name, gate))


def test_numbers_below_the_range_of_floats(page: Any) -> None:
    """400 steps at z = r = σ(−9): adjoints fall to 1e-1500, which only their logarithms can hold."""
    layer, trace = measured(*network("gru-reset-before", 5, -9.0, steps=400), (399,), both=False)
    got = analysed(page, "gru-reset-before", trace)
    assert layer.adjoint.log10_norm[-1] < -1000
    np.testing.assert_allclose(array(got["adjoint"]), layer.adjoint.log10_norm, rtol=EXACT, atol=1e-9)
    for gate, terms in layer.parameters["rnn.weight_ih_l0"].gates.items():
        np.testing.assert_allclose(
            array(got["blocks"][f"weight_ih {gate}"]["log10_norm"]), terms.log10_norm, rtol=EXACT
        )
