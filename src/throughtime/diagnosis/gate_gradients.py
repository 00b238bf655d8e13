"""How much of the gradient each gate's recurrent weights get, compared with the other gates."""

from __future__ import annotations

import numpy as np

from throughtime.flow import LayerFlow, Terms


def relative_size(layer: LayerFlow) -> dict[str, float]:
    """Σ_τ ‖G(τ)‖ of each gate over the median of its siblings, in the recurrent weights; empty where there are no
    siblings."""
    for name, terms in layer.parameters.items():
        if ".weight_hh" in name and len(terms.gates) > 1:
            known = [block.log10_norm[np.isfinite(block.log10_norm)] for block in terms.gates.values()]
            peak = max((log10.max() for log10 in known if len(log10)), default=0.0)
            sizes = {gate: _size(block, peak) for gate, block in terms.gates.items()}
            medians = {gate: np.median([size for other, size in sizes.items() if other != gate]) for gate in sizes}
            return {gate: float(sizes[gate] / medians[gate]) for gate in sizes if medians[gate] > 0}
    return {}


def _size(terms: Terms, peak: float) -> float:
    """In units of 10^peak."""
    with np.errstate(under="ignore"):
        return float(np.nansum(10.0 ** (terms.log10_norm - peak)))
