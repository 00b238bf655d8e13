"""Reading a FLOW.json for the page. The file is untrusted: what does not fit the published schema never reaches a page."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from throughtime.errors import InputError
from throughtime.flow import QUANTILES
from throughtime.report.json import SCHEMA, schema

GATES = {"gru": 3, "lstm": 4, "rnn": 1}
CONVENTIONS = {
    "gru": {"reset": ("before", "after"), "z": ("keeps", "takes")},
    "lstm": {},
    "rnn": {"activation": ("tanh", "relu")},
}
KEPT = [
    "name",
    "cell",
    "convention",
    "steps",
    "batch",
    "hidden_size",
    "input_size",
    "loss_steps",
    "adjoint",
    "parameters",
    "demand",
    "paths",
    "horizon",
    "units",
    "gates",
    "residual",
    "network",
]
LARGEST = 4_000_000  # recurrent weights: beyond, one frame of the page takes seconds
LONGEST, WIDEST = 50_000, 20_000  # steps and units: beyond, a chart cannot show them and a browser runs out of stack
ROWS = 150_000_000  # floats that one frame of a recorded network keeps: beyond, a browser runs out of memory
PRE = {"gru": 4, "lstm": 4, "rnn": 1}  # pre-activations that the page keeps of each unit and pair (loss step, step)
_MAKE = "make the file with `throughtime diagnose … --format json` or flow.to_json()"
_KINDS: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}


def read(path: Path) -> dict[str, Any]:
    """The layers of the document, as the page carries them.

    Raises InputError: no such file, no JSON, not of schema throughtime/1, lists that do not fit each other, or a network
    whose arrays do not fit its cell.
    """
    try:
        document = json.loads(path.read_bytes(), parse_constant=_refused)  # told by its bytes: UTF-8, 16 or 32
    except OSError as error:
        raise InputError(f"{path}, which cannot be read ({error.strerror or error})", "a FLOW.json", _MAKE) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}, which is no JSON ({error})", "a document of schema throughtime/1", _MAKE) from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        told = document.get("schema") if isinstance(document, dict) else type(document).__name__
        raise InputError(f"{path} with schema {_shown(told)}", f"schema {SCHEMA!r}", _MAKE)
    _check_sizes(document.get("layers"), path)
    _check(document, schema(), "", path)
    if not document["layers"]:
        raise InputError(f"{path} without layers", "at least one recurrent layer", _MAKE)
    # A whole of several layers has no units of its own: its layers are shown, one by one.
    layers = [(i, layer) for i, layer in enumerate(document["layers"])]
    shown = [(i, layer) for i, layer in layers if layer["units"]] or layers
    return {"layers": [_layer(layer, f"layers[{i}]", path) for i, layer in shown]}


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _check_sizes(layers: Any, path: Path) -> None:
    """What no page can show is refused before each of its numbers is looked at; all else is for `_check`."""
    for i, layer in enumerate(layers if isinstance(layers, list) else ()):
        for name, most in (("steps", LONGEST), ("hidden_size", WIDEST)):
            got = layer.get(name) if isinstance(layer, dict) else None
            if isinstance(got, int) and got > most:
                at = f"layers[{i}].{name} = {_shown(got)}"
                raise InputError(f"{at} in {path}", f"at most {most}, which a page can show", "measure a smaller one")


def _check(value: Any, wanted: dict[str, Any], at: str, path: Path) -> None:
    """Against the part of JSON Schema that schema.json uses."""
    known = {
        "$schema", "$id", "$defs", "title", "description", "type", "enum", "const", "properties", "required",
        "additionalProperties", "items", "anyOf", "minimum", "pattern",
    }  # fmt: skip
    assert set(wanted) <= known, f"schema.json has keywords that are not read here: {set(wanted) - known}"
    if "anyOf" in wanted:
        fits = [each for each in wanted["anyOf"] if _is_kind(value, each.get("type"))]
        if not fits:
            raise _misfit(at, value, "one of the kinds of the schema", path)
        _check(value, fits[0], at, path)
    if not _is_kind(value, wanted.get("type")):
        raise _misfit(at, value, f"{wanted['type']}", path)
    if "const" in wanted and value != wanted["const"]:
        raise _misfit(at, value, repr(wanted["const"]), path)
    if "pattern" in wanted and isinstance(value, str) and not re.search(wanted["pattern"], value):
        raise _misfit(at, value, f"text like {wanted['pattern']}", path)
    if "enum" in wanted and value not in wanted["enum"]:
        raise _misfit(at, value, f"one of {wanted['enum']}", path)
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) <= sys.float_info.max:  # NaN, infinite, or a whole number no float can hold
            raise _misfit(at, value, "a finite number", path)
        if "minimum" in wanted and value < wanted["minimum"]:
            raise _misfit(at, value, f"at least {wanted['minimum']}", path)
    if isinstance(value, dict):
        properties, others = wanted.get("properties", {}), wanted.get("additionalProperties", True)
        lacking = [key for key in wanted.get("required", ()) if key not in value]
        if lacking:
            raise InputError(f"{path} without {at}.{lacking[0]}".replace(" .", " "), f"schema {SCHEMA}", _MAKE)
        for key, item in value.items():
            if key in properties:
                _check(item, properties[key], f"{at}.{key}".lstrip("."), path)
            elif others is False:
                raise InputError(
                    f"{path} with an unknown {at}.{key[:60]}".replace(" .", " "), f"schema {SCHEMA}", _MAKE
                )
            elif isinstance(others, dict):
                _check(item, others, f"{at}.{key[:60]}".lstrip("."), path)
    if isinstance(value, list) and "items" in wanted:
        for i, item in enumerate(value):
            _check(item, wanted["items"], f"{at}[{i}]", path)


def _is_kind(value: Any, kinds: str | list[str] | None) -> bool:
    if kinds is None:
        return True
    for kind in [kinds] if isinstance(kinds, str) else kinds:
        if isinstance(value, _KINDS[kind]) and (kind == "boolean" or not isinstance(value, bool)):
            return True
    return False


def _shown(value: Any) -> str:
    """A text in quotes, anything else as JSON writes it; not all of what is long."""
    return repr(value[:60]) if isinstance(value, str) else json.dumps(value)[:60]


def _misfit(at: str, value: Any, expected: str, path: Path) -> InputError:
    return InputError(f"{at or 'a document'} = {_shown(value)} in {path}", expected, _MAKE)


def _layer(layer: dict[str, Any], at: str, path: Path) -> dict[str, Any]:
    """What the page needs of a layer, its lists and arrays checked against its sizes."""
    cell, steps, units = layer["cell"], layer["steps"], layer["hidden_size"]
    if cell not in GATES:
        raise _misfit(f"{at}.cell", cell, f"one of {sorted(GATES)}", path)
    for key, values in CONVENTIONS[cell].items():
        if layer["convention"].get(key) not in values:
            raise _misfit(f"{at}.convention.{key}", layer["convention"].get(key), f"one of {values}", path)
    unknown = {"gate", "activation", "output_activation"} & set(layer["convention"]) - set(CONVENTIONS[cell])
    if unknown:
        key = min(unknown)
        raise _misfit(f"{at}.convention.{key}", layer["convention"][key], "gates of σ and candidates of tanh", path)
    if steps < 1 or units < 1 or layer["input_size"] < 1 or not layer["loss_steps"]:
        raise InputError(f"{at} in {path} without steps, units, inputs or loss", "at least one of each", _MAKE)
    inside = {"loss_steps": layer["loss_steps"], "demand.lags": (layer["demand"] or {}).get("lags", [])}
    for name, places in inside.items():
        outside = [place for place in places if not 0 <= place < steps]
        if outside or len(places) > steps:
            raise _misfit(f"{at}.{name}", (outside or places)[0], f"steps of the layer's {steps}, each once", path)
    lists = {"adjoint.log10_norm": layer["adjoint"]["log10_norm"]}
    lists |= {f"adjoint.by_state.{name}": values for name, values in layer["adjoint"]["by_state"].items()}
    if "log10_arriving_total" in layer["adjoint"]:
        lists["adjoint.log10_arriving_total"] = layer["adjoint"]["log10_arriving_total"]
    lists |= {f"paths.{name}": values for name, values in layer["paths"].items()}
    lists |= {f"parameters[{i}].log10_norm": row["log10_norm"] for i, row in enumerate(layer["parameters"])}
    lists |= {f"parameters[{i}].share": row["share"] for i, row in enumerate(layer["parameters"])}
    if layer["demand"]:
        lists["demand.z"] = layer["demand"]["z"]
        if layer["demand"]["threshold"] is None:
            raise _misfit(f"{at}.demand.threshold", None, "a number", path)
    for name, values in lists.items():
        _fits(f"{at}.{name}", values, (steps,), path)
    _fits(f"{at}.units", layer["units"], (units,), path)
    for name, gate in layer["gates"].items():
        if gate["levels"] != list(QUANTILES):
            raise _misfit(f"{at}.gates.{name}.levels", gate["levels"], f"{list(QUANTILES)}", path)
        _fits(f"{at}.gates.{name}.logit_quantiles", gate["logit_quantiles"], (len(QUANTILES),), path)
        if None in gate["logit_quantiles"]:
            raise _misfit(f"{at}.gates.{name}.logit_quantiles", None, "numbers", path)
    if "network" in layer:
        _network(layer, f"{at}.network", path)
    return {key: layer[key] for key in KEPT if key in layer}


def _network(layer: dict[str, Any], at: str, path: Path) -> None:
    steps, units, inputs = layer["steps"], layer["hidden_size"], layer["input_size"]
    rows, states = GATES[layer["cell"]] * units, 2 if layer["cell"] == "lstm" else 1
    weights, sequence = layer["network"]["weights"], layer["network"]["sequence"]
    if rows * units > LARGEST:
        raise InputError(
            f"{rows * units} recurrent weights at {at} in {path}",
            f"at most {LARGEST}, which a browser can move",
            "make the file without --network: the page then shows what was measured",
        )
    shapes = {"weight_ih": (rows, inputs), "weight_hh": (rows, units), "bias_ih": (rows,), "bias_hh": (rows,)}
    for name, values in weights.items():
        _fits(f"{at}.weights.{name}", values, shapes[name], path)
    shapes = {
        "inputs": (steps, inputs),
        "initial": (states * units,),
        "gradient": (steps, units),
        "cell_gradient": ((states - 1) * units,),
        "log10_norm": (steps,),
        "log10_arriving_total": (steps,),
    }
    for name, shape in shapes.items():
        if sequence.get(name) is not None:
            _fits(f"{at}.sequence.{name}", sequence[name], shape, path)
    if not any(map(any, sequence["gradient"])) and not any(sequence["cell_gradient"] or ()):
        raise InputError(f"{at}.sequence of {path} into which no gradient enters", "a loss that reaches it", _MAKE)
    pairs = sum(t for t, row in enumerate(sequence["gradient"], 1) if any(row))
    if pairs * units * PRE[layer["cell"]] > ROWS:
        raise InputError(
            f"a loss at so many steps at {at} in {path} that the page had to keep {pairs * units * PRE[layer['cell']]} numbers",
            f"at most {ROWS}",
            "make the file without --network, of fewer steps, or with a loss at fewer steps",
        )


def _fits(at: str, values: list, shape: tuple[int, ...], path: Path) -> None:
    got: list[int] = [len(values)]
    if len(shape) > 1:
        lengths = {len(row) for row in values}
        got.append(lengths.pop() if len(lengths) == 1 else -1)
    if tuple(got) != shape:
        raise InputError(
            f"{at} of shape {tuple(got)} in {path}".replace("-1", "ragged"),
            f"shape {shape}, from the layer's sizes",
            _MAKE,
        )
