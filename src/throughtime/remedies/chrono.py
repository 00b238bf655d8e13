"""Chrono initialisation, for a gradient that vanishes before the lag the task needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from throughtime.init import MIN_MAX_LAG, chrono_
from throughtime.remedies.remedy import Remedy, access


@dataclass(frozen=True)
class Chrono(Remedy):
    """Give every unit a memory of its own length, spread evenly up to the needed lag, before training begins.

    Prescribed when the gradient horizon lies far below the needed lag and the gates keep about half at every step, as
    they do under the default initialisation: then what arrives at lag τ falls like .5^τ. It changes initial values
    only, so it is of use before training, not on trained weights.

    Evidence: needed_lag, the farthest lag the loss asks for (measured by demand, or said by the user), in steps;
    T_max is one more: the number of steps from that input to the loss, both counted. `generator`, a torch.Generator,
    may be passed too.
    """

    name = "chrono"
    treats = ("TT101",)
    safe = True
    formula = (
        "keep bias = ln u, u ~ U(1, T_max − 1), T_max one more than the farthest needed lag; GRU: b_z = ln u; "
        "LSTM: b_f = ln u, b_i = −ln u; in one of torch's two biases, zero in the other"
    )
    evidence = ("needed_lag",)
    references = ("Tallec & Ollivier 2018, Can recurrent neural networks warp time?, ICLR, arXiv:1804.11188",)

    def precondition(self, module: nn.Module) -> str | None:
        """Needs gates with biases."""
        kind = type(module).__name__
        if not isinstance(module, nn.GRU | nn.GRUCell | nn.LSTM | nn.LSTMCell):
            return f"an nn.{kind}, which has no gate whose bias could be set"
        if not module.bias:
            return f"an nn.{kind} with bias=False"
        return None

    def lines(self, layer_name: str, **evidence: Any) -> str:
        """Two lines, to stand where the model is built."""
        return f"import throughtime as tt\ntt.init.chrono_({access(layer_name)}, max_lag={_max_lag(evidence)})"

    def treat_(self, layer: nn.Module, **evidence: Any) -> nn.Module:
        """In place: see `throughtime.init.chrono_`."""
        return chrono_(layer, _max_lag(evidence), evidence.get("generator"))


def _max_lag(evidence: dict[str, Any]) -> int:
    # A needed lag of 1 or 2 is asked for by a user's rule, not by a task: the least interval serves it.
    return max(int(evidence["needed_lag"]) + 1, MIN_MAX_LAG)
