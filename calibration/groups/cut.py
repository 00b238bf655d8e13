"""An exact zero, by construction; and its neighbours, tiny and alive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from calibration.case import Case, case_of, network_of
from calibration.networks import Network
from calibration.tasks import TASKS, Task
from calibration.training import measured
from throughtime.diagnosis.report import Needed


def cut(kind: str, seed: int) -> list[Case]:
    """The label is float64 autograd's: whether the gradient at the state of the needed lag is exactly zero."""
    name, way, change, scale, options = CUTS[kind]
    task = TASKS["cue 20"]()
    network = network_of(task, name, way, seed, **options)
    with torch.no_grad():
        change(network.rnn)
    layer = measured(network, task, seed, demand=False, scale=scale)
    zero = not float(_state_gradient(network, task, seed, scale).abs().max()) > 0
    needed = Needed(layer.name, (task.lag,), "user")
    truth = {"TT103": zero, "TT102": False} | ({"TT101": False} if zero else {})
    return [Case("cut" if zero else "tiny and alive", kind, seed, "before", layer, needed, None, truth)]


def short_window(task_name: str, cell: str, short: int, seed: int) -> list[Case]:
    """Windows of `short` steps out of a task that needs more: the user says which lag."""
    task = TASKS[task_name]()
    x, y = task.draw(64, torch.Generator().manual_seed(seed))
    window = Task(task.inputs, task.outputs, task.lag, lambda *_: (x[-short:], y), task.loss, task.chance, told=True)
    network = network_of(task, cell, "default", seed)
    layer = measured(network, window, seed, demand=False)
    fault = short <= task.lag
    truth = {"TT103": fault, "TT190": False, "TT102": False} | ({"TT101": False} if fault else {})
    family = "wrong window" if fault else "window long enough"
    return [case_of(family, f"{task_name}, {cell}, {short} steps", seed, "before", layer, window, None, truth)]


def _nothing(layer: Any) -> None:
    pass


def _relu_off(layer: Any) -> None:
    layer.bias_ih_l0.fill_(-8.0)


def _gates_shut(layer: Any) -> None:
    layer.bias_ih_l0[: 2 * layer.hidden_size] = -1000.0


def _gates_nearly_shut(layer: Any) -> None:
    layer.bias_ih_l0[: 2 * layer.hidden_size] = -9.0


CUTS: dict[str, tuple[str, str, Callable[[Any], None], float, dict[str, Any]]] = {
    "relu units all off": ("RNN", "default", _relu_off, 1.0, {"nonlinearity": "relu"}),
    "relu units": ("RNN", "default", _nothing, 1.0, {"nonlinearity": "relu"}),
    "inputs in thousands, tanh": ("RNN", "default", _nothing, 3e4, {}),
    "inputs of 3, tanh": ("RNN", "default", _nothing, 3.0, {}),
    "keep and reset gates at -1000": ("GRU", "default", _gates_shut, 1.0, {}),
    "keep and reset gates at -9": ("GRU", "default", _gates_nearly_shut, 1.0, {}),
    "input and forget gates at -1000": ("LSTM", "default", _gates_shut, 1.0, {}),
    "recurrent gain 0.001": ("RNN", "gain 0.001", _nothing, 1.0, {}),
}


def _state_gradient(network: Network, task: Task, seed: int, scale: float) -> Tensor:
    """∂L/∂(state at the needed lag) by float64 autograd, the layer called once for the steps before and once for
    those after."""
    double = Network(
        type(network.rnn).__name__, task.inputs, task.outputs, network.rnn.hidden_size, **_kind(network.rnn)
    )
    double.load_state_dict(network.state_dict())
    double.double()
    x, y = task.draw(128, torch.Generator().manual_seed(10_000 + seed))
    x = scale * x.double()
    until = len(x) - task.lag
    with torch.no_grad():
        state = double.rnn(x[:until])[1]
    leaves = [part.requires_grad_() for part in (state if isinstance(state, tuple) else (state,))]
    output = double.rnn(x[until:], tuple(leaves) if len(leaves) > 1 else leaves[0])[0]
    return torch.cat([g.flatten() for g in torch.autograd.grad(task.loss(double.head(output), y), leaves)])


def _kind(layer: nn.RNNBase) -> dict[str, str]:
    return {"nonlinearity": layer.nonlinearity} if isinstance(layer, nn.RNN) else {}
