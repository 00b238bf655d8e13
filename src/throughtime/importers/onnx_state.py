"""The state at which a recurrent operator of an ONNX graph begins: where it stands in the file, perhaps expanded.

Torch exports a learned state with Expand, to as many sequences as the graph is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from throughtime.importers.onnx_fold import Folder, array

SEQUENCES = 2  # over which Expand is tried: what it expands to is known only when the graph runs
MOST = 1_000  # names that a state is made of
COMPUTED = "a learned initial state that the graph computes, which is not read"


@dataclass
class Expanding(Folder):
    """Expand too, of arrays (N, 1, H) or less, over `SEQUENCES`: how many there are does not matter to a state."""

    def _make(self, maker: Any, scope: Mapping[str, Any], depth: int) -> np.ndarray | None:
        if getattr(maker, "op_type", "") != "Expand":
            return super()._make(maker, scope, depth)
        data = self.value(maker.input[0], scope, depth + 1)
        if data is None or data.ndim > 3:
            return None
        data = data.reshape((1,) * (3 - data.ndim) + data.shape)
        return np.broadcast_to(data, (len(data), SEQUENCES, data.shape[2])) if data.shape[1] == 1 else None


def initial_state(
    name: str, scope: Mapping[str, Any], folder: Folder, directions: int, batch_first: bool
) -> tuple[np.ndarray | None, str]:
    """The state (directions, H) of that name, None for zero or for one that the graph is given; and why not, or "".

    scope: what makes each name. Operators that do not fit raise as of `Folder.value`.
    """
    if not name:
        return None, ""
    made = folder.value(name, scope)
    if made is None and not batch_first:
        made = _expanded(name, scope, folder)
    if made is None:
        return None, COMPUTED if _learned(name, scope) else ""
    if not made.any():
        return None, ""
    state = made.swapaxes(0, 1) if batch_first and made.ndim == 3 else made
    if state.ndim != 3 or len(state) != directions or not state.shape[1]:
        return None, f"an initial state of shape {made.shape}"
    if (state != state[:, :1]).any():
        return None, f"an initial state of its own for each of {state.shape[1]} sequences"
    return state[:, 0].copy(), ""


def _expanded(name: str, scope: Mapping[str, Any], folder: Folder) -> np.ndarray | None:
    trial = Expanding(left=folder.left)
    try:
        return trial.value(name, scope)
    except (ValueError, IndexError):  # operators for another number of sequences
        return None
    finally:
        folder.left = trial.left


def _learned(name: str, scope: Mapping[str, Any]) -> bool:
    """Whether a state is made of numbers in the file alone, other than zero; shapes may come from elsewhere."""
    waiting, seen, leaves = [name], set(), []
    while waiting:
        each = waiting.pop()
        maker = scope.get(each)
        if not each or each in seen:
            continue
        if maker is None or len(seen) == MOST:
            return False  # an input of the graph, or a whole network before it
        seen.add(each)
        if not hasattr(maker, "op_type"):
            leaves.append(maker)
        elif maker.op_type not in ("Shape", "Size"):
            if maker.op_type in ("Constant", "ConstantOfShape"):
                leaves += [part.t for part in maker.attribute if part.HasField("t")]
            waiting += maker.input
    values = (array(leaf) for leaf in leaves)
    return any(value is None or (value.dtype.kind == "f" and bool(value.any())) for value in values)
