"""The JSON document is what DESIGN's contract and the published schema say, and says why whatever is null is null."""

import dataclasses
import json
from collections.abc import Iterator

import jsonschema
import pytest
import torch
from torch import nn

import throughtime as tt
from reference import drawn
from throughtime.cells import REGISTRY, GRUResetBefore, Weights
from throughtime.recurrent import Recurrent
from throughtime.report.json import schema
from throughtime.report.missing import UNDEFINED

STEPS, BATCH, UNITS, INPUTS = 15, 6, 4, 3
PATHS = {
    "GRU": {"carry", "update", "candidate", "reset"},
    "LSTM": {"carry", "input", "forget", "candidate", "output"},
    "RNN": {"recurrent"},
    "before": {"carry", "update", "candidate", "reset"},
}
GATES = {"GRU": {"r", "z"}, "LSTM": {"i", "f", "o"}, "RNN": set(), "before": {"r", "z"}}
BLOCKS = {"GRU": {"r", "z", "n"}, "LSTM": {"i", "f", "g", "o"}, "RNN": {"a"}, "before": {"r", "z", "n"}}
QUICK = {"bias": "horizon", "hops": False, "signal_to_noise": False, "demand": False, "origin_step": False}


def recurrent(kind: str) -> nn.Module:
    if kind != "before":
        return getattr(nn, kind)(INPUTS, UNITS)
    rows = 3 * UNITS
    return Recurrent(GRUResetBefore(), Weights(torch.randn(rows, INPUTS), torch.randn(rows, UNITS), torch.randn(rows)))


def flow(kind="GRU", steps=STEPS, batch=BATCH, loss=lambda out: out[-1].square().sum(), **case):
    """A recorded step; case: a state that takes a gradient, autocast, frozen, or options of the flow."""
    torch.manual_seed(0)
    layer = recurrent(kind)
    state = torch.zeros(1, batch, UNITS, requires_grad=True) if case.pop("state", False) else None
    layer.weight_hh_l0.requires_grad_(not case.pop("frozen", False))
    with tt.record(layer) as rec, torch.autocast("cpu", torch.bfloat16, enabled=case.pop("low", False)):
        loss(layer(torch.randn(steps, batch, INPUTS), state)[0]).backward()
    return rec.flow(**case)


CASES = {
    "gru": {},
    "lstm": {"kind": "LSTM"},
    "rnn": {"kind": "RNN"},
    "reset before": {"kind": "before"},
    "every step": {"loss": lambda out: out.square().sum()},
    "early loss": {"loss": lambda out: out[4].sum()},
    "early loss, lstm": {"kind": "LSTM", "loss": lambda out: out[4].square().sum()},
    "one unit": {"loss": lambda out: out[-1, :, 0].square().sum()},
    "one step": {"steps": 1},
    "one sequence": {"batch": 1},
    "tail": {"max_lag": 4},
    "tail of every step": {"max_lag": 4, "loss": lambda out: out.square().sum()},
    "frozen": {"frozen": True},
    "bfloat16": {"low": True},
    "quick": QUICK,
    "initial state": {"state": True},
}


@pytest.fixture(params=CASES, ids=CASES)
def document(request) -> dict:
    """Read back from its text, where a bare NaN would raise."""
    text = flow(**CASES[request.param]).diagnose().to_json()
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"a bare {word}"))


def nulls(value, at: str = "") -> Iterator[str]:
    """Where nulls are, as "missing" names them; a null that is no number (gate, note) says itself what it means."""
    if value is None:
        yield at
    elif isinstance(value, dict):
        for key, part in value.items():
            if key not in ("gate", "note", "missing"):
                yield from nulls(part, f"{at}.{key}" if at else key)
    elif isinstance(value, list):
        for part in value:
            rows = at in ("parameters", "initial_state")
            name = ".".join(filter(None, (at, part["name"], part["gate"]))) if rows else at
            yield from nulls(part, name)


def explained(where: str, rows: list[dict]) -> bool:
    return any(where == row["field"] or where.startswith(row["field"] + ".") for row in rows)


def test_it_is_as_the_schema_says(document):
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(document, schema())


def test_every_null_has_a_reason(document):
    for layer in document["layers"]:
        unexplained = {where for where in nulls(layer) if not explained(where, layer["missing"])}
        assert not unexplained
    outside = {key: value for key, value in document.items() if key != "layers"}
    assert not {where for where in nulls(outside) if not explained(where, document["missing"])}


def test_every_reason_has_a_null(document):
    """No reason for what is there; `bias` may be told in part, `share` of something else than autograd's sum."""
    for layer in document["layers"]:
        places = set(nulls(layer))
        for row in layer["missing"]:
            told = [place for place in places if explained(place, [row])]
            assert told or row["field"] in ("bias", "cosine", "share", "residual"), row
            assert len(row["reason"]) > 8


def test_reasons_are_those_of_the_place():
    (layer,) = flow().to_dict()["layers"]
    reasons = {row["field"]: row["reason"] for row in layer["missing"]}
    assert reasons["parameters"] == "exactly zero, which has no logarithm"  # of weight_hh: h_0 = 0
    assert reasons["initial_state"] == "no step with a loss stands so many steps after the initial state"
    assert reasons["initial_state.rnn.h_0.residual"] == UNDEFINED["residual"]
    (layer,) = flow(max_lag=4).to_dict()["layers"]
    assert {row["reason"] for row in layer["missing"] if row["field"] in ("share", "bias")} == {
        "lags from 5 on are not told apart: they were swept as one stream, exact in sum (tail)"
    }


def test_lists_are_as_long_as_the_sequence(document):
    for layer in document["layers"]:
        lists = [
            layer["share"],
            layer["adjoint"]["log10_norm"],
            layer["signal_to_noise"],
            layer["bias"],
            layer["cosine"],
        ]
        lists += layer["adjoint"]["by_state"].values()
        lists += [row[key] for row in layer["parameters"] + layer["initial_state"] for key in ("share", "log10_norm")]
        lists += layer["paths"].values()
        lists += (layer["hops"] or {}).values()
        lists += [layer["demand"]["z"]] if layer["demand"] else []
        assert {len(each) for each in lists} == {document["steps"]} == {layer["steps"]}


@pytest.mark.parametrize("kind", PATHS)
def test_the_names_of_the_contract(kind):
    document = flow(kind).diagnose(needed_lag=9).to_dict()
    assert {"schema", "throughtime", "torch", "steps", "batch", "dtype", "layers", "findings"} <= set(document)
    assert document["schema"] == "throughtime/1"
    assert (document["throughtime"], document["torch"]) == (tt.__version__, torch.__version__)
    assert (document["steps"], document["batch"], document["dtype"]) == (STEPS, BATCH, "float32")
    (layer,) = document["layers"]
    assert (layer["name"], layer["lag"], layer["hidden_size"]) == ("rnn", "total", UNITS)
    assert 0 <= layer["residual"] < 1e-4
    assert 0 < layer["cancellation"] <= 1 + 1e-6

    whole = {row["name"] for row in layer["parameters"] if row["gate"] is None}
    assert whole == {f"rnn.{name}" for name, _ in recurrent(kind).named_parameters()}
    assert {row["gate"] for row in layer["parameters"]} - {None} == BLOCKS[kind]
    assert sum(filter(None, layer["share"])) == pytest.approx(1, abs=1e-4)

    assert set(layer["paths"]) == PATHS[kind]
    assert all(shares[0] is None for shares in layer["paths"].values())
    for lag in range(1, STEPS):
        assert sum(shares[lag] for shares in layer["paths"].values()) == pytest.approx(1, abs=1e-4)
    assert layer["hops"] is None if kind == "RNN" else set(layer["hops"]) == {"0", "rest"}

    assert set(layer["demand"]) >= {"z", "threshold", "lags", "sequences"}
    assert layer["demand"]["sequences"] == BATCH
    assert set(layer["horizon"]) == {"0.1", "0.01", "0.001"}
    assert [unit["unit"] for unit in layer["units"]] == list(range(UNITS))
    assert all({"timescale", "half_life", "kind"} <= set(unit) for unit in layer["units"])
    assert set(layer["gates"]) == GATES[kind]
    assert all({"mean", "below", "above", "logit_quantiles"} <= set(gate) for gate in layer["gates"].values())


def test_what_python_calls_it_the_document_calls_it():
    result = flow(loss=lambda out: out.square().sum())
    layer, written = result.layers["rnn"], result.to_dict()["layers"][0]
    row = next(row for row in written["parameters"] if row["name"] == "rnn.weight_ih_l0" and row["gate"] is None)
    assert row["share"] == layer.parameters["rnn.weight_ih_l0"].share.tolist()
    assert written["adjoint"]["log10_norm"] == layer.adjoint.log10_norm.tolist()
    assert written["horizon"] == {f"{level:g}": lag for level, lag in layer.horizon.items()}
    assert written["bias"] == layer.bias.tolist()


def test_findings_carry_everything():
    torch.manual_seed(0)
    layer = nn.GRU(INPUTS, UNITS)
    with tt.record(layer) as rec:
        layer(torch.randn(100, BATCH, INPUTS))[0][-1].sum().backward()
    document = rec.flow().diagnose(needed_lag=95).to_dict()
    jsonschema.validate(document, schema())
    finding = next(each for each in document["findings"] if each["code"] == "TT101")
    assert set(finding) == {field.name for field in dataclasses.fields(tt.Finding)}
    assert (finding["severity"], finding["preview"], finding["layer"]) == ("warning", False, "rnn")
    assert document["needed"] == [{"layer": "rnn", "lags": [95], "source": "user"}]


def test_layers_that_feed_each_other_have_lags_of_their_own():
    torch.manual_seed(0)
    model = nn.ModuleDict({"low": nn.GRU(INPUTS, UNITS), "high": nn.LSTM(UNITS, UNITS)})
    with tt.record(model) as rec:
        model["high"](model["low"](torch.randn(STEPS, BATCH, INPUTS))[0])[0][-1].sum().backward()
    document = rec.flow().to_dict()
    assert [(layer["name"], layer["lag"]) for layer in document["layers"]] == [
        ("series", "total"),  # nothing lies between: the graph need not be kept
        ("low", "within-layer"),
        ("high", "within-layer"),
    ]
    assert {row["name"] for row in document["layers"][2]["parameters"]} >= {"high.weight_ih_l0", "high.bias_hh_l0"}


@pytest.mark.parametrize("key", REGISTRY)
def test_every_cell_is_told(key):
    """As a document that fits the schema, and as text; a network only where the page could run its arrays."""
    cell, generator = REGISTRY[key], torch.Generator().manual_seed(0)
    weights = drawn(cell, INPUTS, UNITS, lambda *shape: 0.4 * torch.randn(*shape, generator=generator))
    layer = Recurrent(cell, Weights(**weights))
    with tt.record(layer) as rec:
        layer(torch.randn(STEPS, BATCH, INPUTS, generator=generator))[0][-1].sum().backward()
    found = rec.flow(**QUICK)
    found.diagnose()
    document = json.loads(found.to_json(network=True))
    jsonschema.validate(document, schema())
    (told,) = document["layers"]
    assert told["cell"] == cell.name
    assert set(told["paths"]) == set(cell.ports)
    torchs = {"weight_ih", "weight_hh", "bias_ih", "bias_hh"}
    assert ("network" in told) == (set(weights) == torchs)
    assert "rnn" in repr(found)
