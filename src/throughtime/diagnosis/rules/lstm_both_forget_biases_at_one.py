"""TT402."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from throughtime.diagnosis.example import measured
from throughtime.diagnosis.finding import Finding, Severity
from throughtime.diagnosis.report import Needed
from throughtime.diagnosis.rule import History, Rule
from throughtime.flow import LayerFlow
from throughtime.report.notation import number

MEANT = 1.0
"""The forget bias that is meant: Jozefowicz et al. 2015."""
EXACT = 1e-6
"""A bias that was filled with 1 is 1 to the last bit; one that was trained is not."""


class LstmBothForgetBiasesAtOne(Rule):
    """Both biases of the forget gate were set to 1, so the gate begins at a bias of 2.

    ## What

    torch adds two biases before each gate, `bias_ih` and `bias_hh`. The rule fires where the forget block of both is 1
    throughout. The value is their sum. A set-up at initialisation: it is gone after some training.

    ## Why

    The advice is a forget bias of 1: σ(1) = .73 of the cell is kept at each step, a timescale of 3.2 steps. A loop
    over all parameters with "bias" in their name sets both: σ(2) = .88, 7.9 steps. That is no harm by itself, and may
    even help; but it is not what was meant, and results cannot be compared with those of the one bias.

    ## Example

        for name, p in lstm.named_parameters():
            if "bias" in name: p.data[H : 2 * H] = 1

    ## Remedy

    One of the two at b_f, zero in the other: b_f = b_ih + b_hh = 1. Where a longer memory is wanted, say so: a
    timescale of τ steps is b_f = ln(τ − 1), or chrono initialisation for a spread of them.

    ## References

    - Gers, Schmidhuber & Cummins 2000, Learning to forget: continual prediction with LSTM, Neural Computation 12(10)
    - Jozefowicz, Zaremba & Sutskever 2015, An empirical exploration of recurrent network architectures, ICML
    """

    code: ClassVar[str] = "TT402"
    name: ClassVar[str] = "lstm-both-forget-biases-at-one"
    severity: ClassVar[Severity] = "info"
    static: ClassVar[bool] = True

    def check(self, layer: LayerFlow, needed: Needed, history: History | None) -> Finding | None:
        found = {
            name: block for name, terms in layer.parameters.items() if (block := _forget(layer, name, terms.gates))
        }
        if len(found) < 2 or not all(np.abs(np.array(block) - MEANT).max() <= EXACT for block in found.values()):
            return None
        from throughtime.remedies.remedy import access  # loads torch, which `explain` does without

        names = list(found)
        second = f"{access(layer.attribute)}.{names[-1].rpartition('.')[2]}"
        return self.finding(
            layer,
            sum(float(np.mean(block)) for block in found.values()),
            MEANT,
            f"The forget blocks of {' and '.join(names)} are both 1: torch adds them, and the gate begins at a bias of 2 "
            f"({number(1 / (1 + np.exp(-2.0)), 2)} kept at each step) instead of 1 "
            f"({number(1 / (1 + np.exp(-1.0)), 2)}).",
            f"Keep one, b_f = 1, and zero the other: `{second}.data[{layer.hidden_size}:{2 * layer.hidden_size}] = 0`",
        )

    def fires(self) -> tuple[LayerFlow, Needed, History | None]:
        layer = measured("LSTM", _both)
        return layer, Needed(layer.name, (), "unknown"), None

    def silent(self) -> tuple[LayerFlow, Needed, History | None]:
        layer = measured("LSTM", _one)
        return layer, Needed(layer.name, (), "unknown"), None


def _forget(layer: LayerFlow, name: str, gates: Any) -> list[float]:
    """The forget block of a bias; empty for anything else."""
    values = layer.weights.get(name)
    if values is None or values.ndim != 1 or "f" not in gates:
        return []
    place = list(gates).index("f")
    return values.reshape(len(gates), -1)[place].tolist()


def _both(layer: Any) -> None:
    size = layer.hidden_size
    layer.bias_ih_l0[size : 2 * size] = 1
    layer.bias_hh_l0[size : 2 * size] = 1


def _one(layer: Any) -> None:
    _both(layer)
    size = layer.hidden_size
    layer.bias_hh_l0[size : 2 * size] = 0
