"""The calls of torch that run a recurrent layer or one step of it, and what they were given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from throughtime.cells import GRU, LSTM, RNN
from throughtime.cells.cell import Cell, Tensors
from throughtime.cells.lstm_projected import LSTMProjected
from throughtime.errors import InputError, UnsupportedError
from throughtime.recording.calls import Form
from throughtime.recording.hooks import Edges
from throughtime.recording.layers import LEAVE_OUT
from throughtime.recurrent import scan

FUSED: dict[Any, Cell] = {
    torch.gru: GRU(),
    torch.lstm: LSTM(),
    torch.rnn_tanh: RNN("tanh"),
    torch.rnn_relu: RNN("relu"),
}
SINGLE: dict[Any, Cell] = {
    torch.gru_cell: GRU(),
    torch.lstm_cell: LSTM(),
    torch.rnn_tanh_cell: RNN("tanh"),
    torch.rnn_relu_cell: RNN("relu"),
}


def arguments(func: Callable, args: tuple, layer: str, edges: Edges) -> tuple[Form, Tensor, list[Tensor], Tensors]:
    """The form, input, initial states (as given) and weights, by their names in the module, of a fused call."""
    if func is scan:
        owner, x, initial, given, *sizes = args
        form = Form(owner.cell, batch_sizes=sizes[0] if sizes else None)
        states, weights = list(initial), {form.name(name): value for name, value in given.tensors().items()}
    elif func in SINGLE:
        form = Form(SINGLE[func], single=True)
        x, state, *given = args
        states = list(state) if isinstance(state, list | tuple) else [state]
        kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        weights = {name: value for name, value in zip(kinds, given, strict=False) if value is not None}
    else:
        packed = isinstance(args[3], list | tuple)  # then the batch sizes stand before the state
        x, state, flat, bias, layers, _, _, both, *_ = args if not packed else (args[0], *args[2:])
        states = list(state) if isinstance(state, list | tuple) else [state]
        directions = 2 if both else 1
        kinds = ["weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if bias else ())]
        cell = FUSED[func]
        if len(flat) > len(kinds) * layers * directions:
            kinds.append("weight_hr")
            cell = LSTMProjected(projected=states[0].shape[-1])
        form = Form(cell, layers, directions, not packed and bool(args[8]), args[1] if packed else None, function=func)
        places = [(k, d) for k in range(layers) for d in range(directions)]
        weights = dict(zip((form.name(kind, k, d) for k, d in places for kind in kinds), flat, strict=True))
    if torch._C._are_functorch_transforms_active():
        raise UnsupportedError(
            f"a call of layer '{layer}' under torch.func (grad, vmap, vjp, …)",
            "autograd's own backward pass",
            "use loss.backward() or torch.autograd.grad in the recorded step; functional_call alone is fine",
        )
    if x.is_meta:
        raise InputError(
            f"an input of layer '{layer}' on the meta device", "tensors with data", "move model and data to cpu or cuda"
        )
    given = list(edges.of(weights).items())
    for place, (name, edge) in enumerate(given):
        for other, same in given[:place]:
            if edge == same:
                raise UnsupportedError(
                    f"one tensor as both {other} and {name} of layer '{layer}'",
                    "a tensor for each: their gradients cannot be told apart",
                    f"give the layer two parameters (ties between layers are fine), or {LEAVE_OUT}",
                )
    return form, x, states, weights


class Masks(TorchDispatchMode):
    """Keeps the masks of the dropout between the layers of a fused call, as the call draws and scales them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.bernoulli_.float:
            self.seen.append(out)  # is scaled in place afterwards
        elif func is torch.ops.aten.native_dropout.default:
            self.seen.append(out[1] / (1 - args[1]))
        return out
