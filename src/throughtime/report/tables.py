"""The flow as a pandas DataFrame or xarray Datasets: extras, imported when asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from throughtime.errors import MissingExtraError

if TYPE_CHECKING:
    from throughtime.flow import Flow, LayerFlow


def flow_to_dataframe(flow: Flow) -> Any:
    """Columns layer, parameter, gate (None for the whole tensor), lag, share, log10_norm."""
    pandas = _extra("pandas")
    rows = [
        {
            "layer": layer.name,
            "parameter": row.name,
            "gate": row.gate,
            "lag": lag,
            "share": row.share[lag],
            "log10_norm": row.log10_norm[lag],
        }
        for layer in flow.layers.values()
        for terms in layer.parameters.values()
        for row in (terms, *terms.gates.values())
        for lag in range(layer.steps)
    ]
    return pandas.DataFrame(rows)


def flow_to_xarray(flow: Flow) -> Any:
    """Layer name → xarray.Dataset with dims lag, parameter, gate, path, unit, origin and step."""
    xarray = _extra("xarray")
    return {name: _dataset(xarray, layer) for name, layer in flow.layers.items()}


def _dataset(xarray: Any, layer: LayerFlow) -> Any:
    parameters = list(layer.parameters)
    gates = list(dict.fromkeys(gate for terms in layer.parameters.values() for gate in terms.gates))

    def by_gate(field: str) -> np.ndarray:
        nothing = np.full(layer.steps, np.nan)
        return np.stack(
            [
                np.stack([getattr(terms.gates[gate], field) if gate in terms.gates else nothing for gate in gates])
                for terms in layer.parameters.values()
            ]
        )

    data: dict[str, Any] = {
        "log10_adjoint": ("lag", layer.adjoint.log10_norm),
        "share": (("parameter", "lag"), np.stack([terms.share for terms in layer.parameters.values()])),
        "log10_norm": (("parameter", "lag"), np.stack([terms.log10_norm for terms in layer.parameters.values()])),
        "gate_share": (("parameter", "gate", "lag"), by_gate("share")),
        "gate_log10_norm": (("parameter", "gate", "lag"), by_gate("log10_norm")),
        "path_share": (("path", "lag"), np.array(list(layer.paths.values())).reshape(-1, layer.steps)),
        "bias": ("lag", layer.bias),
        "cosine": ("lag", layer.cosine),
        "signal_to_noise": ("lag", layer.signal_to_noise),
    }
    if layer.units:
        data["timescale"] = ("unit", np.array([unit.timescale for unit in layer.units]))
        data["half_life"] = ("unit", np.array([unit.half_life for unit in layer.units]))
    if layer.demand is not None:
        data["demand_z"] = ("lag", layer.demand.z)
    coords: dict[str, Any] = {
        "lag": np.arange(layer.steps),
        "parameter": parameters,
        "gate": gates,
        "path": list(layer.paths),
        "unit": np.arange(layer.hidden_size),
    }
    if layer.origin_step is not None:
        data["log10_origin_step"] = (("origin", "step"), layer.origin_step.log10_norm)
        coords |= {"origin": layer.origin_step.origins, "step": layer.origin_step.steps}
    attrs = {"cell": layer.cell, "residual": layer.residual, "lag": layer.lag, "dtype": layer.dtype}
    return xarray.Dataset(data, coords, attrs)


def _extra(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"no module {name}", f"the extra [{name}]", f"pip install 'throughtime[{name}]'"
        ) from error
