"""TT401."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from throughtime.diagnosis.example import measured
from throughtime.diagnosis.finding import Finding, Severity
from throughtime.diagnosis.report import Needed
from throughtime.diagnosis.rule import History, Rule
from throughtime.flow import LayerFlow
from throughtime.report.notation import number

EXACT = 1e-3
"""Largest entry of WᵀW / c² − I that counts as rounding: float32 orthogonal matrices have 1e-6, random ones .1 and
more."""


class RecurrentMatrixOrthogonalAsAStack(Rule):
    """The gates' recurrent matrices were initialised as one tall orthogonal matrix, so none of them is orthogonal.

    ## What

    torch keeps the recurrent matrices of all gates in one array, (G·H, H). The rule fires where the columns of that
    stack are orthonormal, WᵀW = c² I to rounding, while the H × H block of some gate is not a multiple of an
    orthogonal matrix. The value is the largest entry of W_gᵀW_g / c_g² − I over the gates g. A set-up at
    initialisation: it is gone after some training.

    ## Why

    Orthogonal initialisation is meant to give every recurrent matrix singular values of 1. `orthogonal_(weight_hh)`
    acts on the stack: each block then has singular values spread between 0 and 1, of root mean square 1/√G: .58 for a
    GRU, .5 for an LSTM.

    ## Example

        for name, p in gru.named_parameters():
            if "weight" in name: torch.nn.init.orthogonal_(p)

    ## Remedy

    One orthogonal matrix for each gate, W_gᵀ W_g = I:

        for block in model.rnn.weight_hh_l0.data.chunk(G): torch.nn.init.orthogonal_(block)

    ## References

    - Saxe, McClelland & Ganguli 2014, Exact solutions to the nonlinear dynamics of learning in deep linear neural
      networks, ICLR, https://arxiv.org/abs/1312.6120
    - https://github.com/pytorch/pytorch/issues/750
    - https://github.com/vwxyzjn/cleanrl/issues/358
    """

    code: ClassVar[str] = "TT401"
    name: ClassVar[str] = "recurrent-matrix-orthogonal-as-a-stack"
    severity: ClassVar[Severity] = "warning"
    static: ClassVar[bool] = True

    def check(self, layer: LayerFlow, needed: Needed, history: History | None) -> Finding | None:
        from throughtime.remedies.remedy import access  # loads torch, which `explain` does without

        for name, stack in layer.weights.items():
            if stack.ndim != 2 or ".weight_hh" not in name or stack.shape[0] == stack.shape[1]:
                continue
            blocks = stack.reshape(-1, stack.shape[1], stack.shape[1])
            off = max(_off_orthogonal(block) for block in blocks)
            if _off_orthogonal(stack) > EXACT or off <= EXACT:
                continue
            gains = np.linalg.svd(blocks, compute_uv=False)
            size = float(np.sqrt((gains**2).mean()))
            return self.finding(
                layer,
                off,
                EXACT,
                f"{name} is orthogonal as a stack of {len(blocks)} gates, and no gate's matrix is: their singular values lie "
                f"between {number(gains.min(), 2)} and {number(gains.max(), 2)}, root mean square {number(size, 2)}.",
                "Before training, one orthogonal matrix for each gate, W_gᵀ W_g = I: "
                f"`for block in {access(layer.attribute)}.{name.rpartition('.')[2]}.data.chunk({len(blocks)}): "
                "torch.nn.init.orthogonal_(block)`",
            )
        return None

    def fires(self) -> tuple[LayerFlow, Needed, History | None]:
        layer = measured("GRU", _stacked)
        return layer, Needed(layer.name, (), "unknown"), None

    def silent(self) -> tuple[LayerFlow, Needed, History | None]:
        layer = measured("GRU", _by_gate)
        return layer, Needed(layer.name, (), "unknown"), None


def _off_orthogonal(matrix: NDArray[np.float64]) -> float:
    """Largest entry of WᵀW / c² − I, with c² the mean square of the columns' lengths; of a zero matrix, 1."""
    gram = matrix.astype(np.float64).T @ matrix
    square = np.trace(gram) / len(gram)
    return float(np.abs(gram / square - np.eye(len(gram))).max()) if square else 1.0


def _stacked(layer: Any) -> None:
    from torch.nn.init import orthogonal_

    orthogonal_(layer.weight_hh_l0)


def _by_gate(layer: Any) -> None:
    from torch.nn.init import orthogonal_

    for block in layer.weight_hh_l0.chunk(3):
        orthogonal_(block)
