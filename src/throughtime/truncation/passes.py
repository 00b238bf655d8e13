"""Really truncated passes: the recurrent layer alone, run window by window on its recorded input and gradient.

For each window the state is detached where truncated BPTT detaches it, and autograd goes back through the window only. What
is kept for the backward pass is counted as autograd saves it, and the time is the clock's.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from throughtime.cells.between import Between
from throughtime.cells.cell import Tensors
from throughtime.progress import quiet
from throughtime.recording import own
from throughtime.recurrent import Recurrent
from throughtime.trace import Trace
from throughtime.truncation.gradient import Window

States = tuple[Tensor, ...]
_KINDS = (nn.GRU, nn.LSTM, nn.RNN, nn.GRUCell, nn.LSTMCell, nn.RNNCell)
ROUNDS = (3, 15)  # at least, at most: each round runs every window once
SECONDS = 6.0  # that the rounds between these may take in all


@dataclass(frozen=True)
class Cost:
    """Of one window, measured on the recurrent layers alone, with the first batch.

    memory: bytes that autograd keeps of the longest pass, without weights and input. time: seconds for the batch over those of
    one pass over everything, the median of `rounds` pairs that were run in turn; low, high: the least and the largest of them.
    residual: how far the gradient of these passes is from the one computed, relative to the whole gradient; NaN where they
    cannot be compared.
    """

    memory: int
    time: float
    low: float
    high: float
    rounds: int
    residual: float = float("nan")


class Layer(ABC):
    """A copy of a recurrent layer that can be run from any step: x (T, B, D), states as the module takes them.

    gradient: (T, B, C), what enters; comparable: whether a pass gives the gradient of the recorded run.
    """

    def __init__(self, module: nn.Module, trace: Trace, lowest: Trace) -> None:
        self.module, self.trace = _fresh(module).to(trace.x), trace
        self.steps, self.x, self.gradient = trace.steps, lowest.x, trace.gradient
        start = f"{trace.module or trace.name}."
        self.weights = {name: trace.names.get(name, name).removeprefix(start) for name in trace.weights.tensors()}
        own_weights = dict(self.module.named_parameters())
        with torch.no_grad():
            for name, value in trace.weights.tensors().items():
                own_weights[self.weights[name]].copy_(value)
        self.module.requires_grad_(True)
        self.comparable = not isinstance(trace.cell, Between)

    def initial(self) -> States:
        """The states before the first step."""
        return self.trace.cell.split(self.trace.carries[0])

    @abstractmethod
    def run(self, first: int, last: int, states: States) -> tuple[list[Tensor], States]:
        """The steps first … last − 1: what the gradients enter at, and the states after them."""

    @abstractmethod
    def entering(self, first: int, last: int) -> list[Tensor]:
        """The gradients that enter at what `run` returns."""

    def gradients(self) -> Tensors:
        """What the passes gave, by the trace's names."""
        found = dict(self.module.named_parameters())
        return {
            name: torch.zeros_like(value) if (grad := found[self.weights[name]].grad) is None else grad.clone()
            for name, value in self.trace.weights.tensors().items()
        }


class Fused(Layer):
    """nn.GRU, nn.LSTM, nn.RNN of any number of layers in one direction, and `Recurrent`."""

    def __init__(self, module: nn.Module, trace: Trace, lowest: Trace) -> None:
        super().__init__(module, trace, lowest)
        cell, states = trace.cell, trace.cell.split(self.gradient)
        self.layers = getattr(module, "num_layers", 1)
        top = cell.output(self.gradient)
        self.output = top
        self.last = tuple(state[-1] for state in states)
        place = len(states) - len(states) // self.layers  # of the top layer's output among the states
        others = [state[:-1] for k, state in enumerate(states) if k != place]
        self.comparable &= not any(bool(state.any()) for state in others) and not getattr(module, "dropout", 0.0)
        self.last = tuple(state * (k != place) for k, state in enumerate(self.last))

    def _stacked(self, states: States) -> Any:
        """States layer by layer, as torch takes them."""
        kinds = len(states) // self.layers
        parts = tuple(torch.stack(states[kind::kinds]) for kind in range(kinds))
        return parts if kinds > 1 else parts[0]

    def run(self, first: int, last: int, states: States) -> tuple[list[Tensor], States]:
        output, after = self.module(self.x[first:last], self._stacked(states))
        kinds = after if isinstance(after, tuple) else (after,)
        told = tuple(kind[k] for k in range(self.layers) for kind in kinds)
        return [output, *(told if last == self.steps else ())], told

    def entering(self, first: int, last: int) -> list[Tensor]:
        return [self.output[first:last], *(self.last if last == self.steps else ())]


class Stepped(Layer):
    """torch's cells and registered ones, in a loop."""

    def __init__(self, module: nn.Module, trace: Trace, lowest: Trace) -> None:
        super().__init__(module, trace, lowest)
        self.comparable = True
        self.cell = trace.cell.cell if isinstance(trace.cell, Between) else trace.cell

    def _step(self, x: Tensor, states: States) -> States:
        if not isinstance(self.cell, own.OwnCell):
            after = self.module(x, states if len(states) > 1 else next(iter(states)))
            return after if isinstance(after, tuple) else (after,)
        shaped = tuple(s.reshape(len(s), *shape) for s, shape in zip(states, self.cell.shapes_of, strict=True))
        after = self.module(x.reshape(len(x), *self.cell.x_shape), shaped[0] if self.cell.bare else shaped)
        return tuple(state.flatten(1) for state in own.state_of(after, self.cell.bare))

    def run(self, first: int, last: int, states: States) -> tuple[list[Tensor], States]:
        noise = self.trace.noise if isinstance(self.trace.cell, Between) else None
        passed = []
        for k in range(first, last):
            if noise is not None:
                mask, shift = (self.cell.split(part) for part in noise[k].chunk(2, dim=-1))
                states = tuple(m * s + a for m, s, a in zip(mask, states, shift, strict=True))
            states = self._step(self.x[k], states)
            passed.append(torch.cat(states, dim=-1))
        return [torch.stack(passed)], states

    def entering(self, first: int, last: int) -> list[Tensor]:
        return [self.gradient[first:last]]


def layer_of(module: nn.Module, trace: Trace, lowest: Trace) -> Layer:
    """A copy of the module with the recorded weights. trace: of the whole of it; lowest: of its lowest layer, which has x."""
    fused = isinstance(module, nn.RNNBase | Recurrent) and not own.registered(module)
    return (Fused if fused else Stepped)(module, trace, lowest)


def _fresh(module: nn.Module) -> nn.Module:
    """A module of the same kind with nothing hung on it; a fused layer reads time first."""
    if not isinstance(module, nn.RNNBase | nn.RNNCellBase) or own.registered(module):
        made = copy.deepcopy(module)
        for each in made.modules():
            for hooks in (each._forward_hooks, each._forward_pre_hooks, each._backward_hooks, each._backward_pre_hooks):
                hooks.clear()
        return made
    kind: Any = next(each for each in _KINDS if isinstance(module, each))
    options = {
        name: value for name in ("dropout", "proj_size", "nonlinearity") if (value := getattr(module, name, None))
    }
    layers = () if isinstance(module, nn.RNNCellBase) else (module.num_layers,)
    return kind(module.input_size, module.hidden_size, *layers, bias=module.bias, **options).train(module.training)


def run(layer: Layer, window: Window, count: bool = False) -> list[int]:
    """The truncated passes over the whole sequence; their gradients stand in the copy's weights.

    Steps that no pass goes back over run without gradients. Returns the bytes that autograd kept of each pass, if counted.
    """
    kept: list[int] = []
    passes = [each for each in window.passes(layer.steps) if bool(layer.gradient[each[1] : each[2]].any())]
    starts = [first for first, _, _ in passes]
    states, at = layer.initial(), 0
    for (first, own_first, end), following in zip(passes, [*starts[1:], layer.steps], strict=True):
        if at < first:
            with torch.no_grad():
                _, states = layer.run(at, first, states)
        states = tuple(state.detach() for state in states)
        middle = min(following, end)  # where the next pass begins: its state is taken there
        with _counted(layer, kept) if count else nullcontext():
            outputs, gradients, after = [], [], states
            for a, b in ((first, middle), (middle, end)):
                if a < b:
                    made, after = layer.run(a, b, after)
                    outputs += made
                    gradients += _own(layer.entering(a, b), own_first - a)
                if b == middle:
                    states = after
            torch.autograd.backward(outputs, gradients)
        at = middle
    return kept


def _own(entering: list[Tensor], before: int) -> list[Tensor]:
    """What enters at the steps that are the pass's own: the first `before` are an earlier pass's."""
    if before <= 0:
        return entering
    by_step = entering[0].clone()
    by_step[:before] = 0
    return [by_step, *entering[1:]]


@contextmanager
def _counted(layer: Layer, told: list[int]) -> Iterator[None]:
    """Count the bytes that autograd keeps, each storage once, but for the weights and the input."""
    seen = {each.untyped_storage().data_ptr() for each in (layer.x, *layer.module.parameters())}
    kept = []

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            kept.append(storage.nbytes())
        return value

    with saved_tensors_hooks(pack, lambda value: value):
        yield
    told.append(sum(kept))


def measure(
    layers: Sequence[Layer],
    windows: Sequence[Window],
    computed: Callable[[Layer, Window], Tensors],
    progress: Callable[[int, int, str], None] = quiet,
) -> tuple[Cost, dict[Window, Cost]]:
    """The cost of a pass over everything, and that of each window.

    computed: the gradient that a pass must give, by the trace's names: the residual is told against it.
    """
    steps = max(layer.steps for layer in layers)
    full = Window(steps, steps)
    order = list(dict.fromkeys([full, *windows]))
    wanted = [computed(layer, full) if layer.comparable else {} for layer in layers]
    size = sum(float(value.double().square().sum()) for each in wanted for value in each.values())
    memory, residual, once = {}, {}, 0.0
    _timed(layers, full)  # whatever is made at the first run only
    for done, window in enumerate(order):
        progress(done, len(order), "truncated passes")
        for layer in layers:
            layer.module.zero_grad()
        begun = perf_counter()
        memory[window] = sum(max(run(layer, window, count=True), default=0) for layer in layers)
        once += perf_counter() - begun
        off = 0.0
        for layer in layers:
            got = layer.gradients()
            for name, value in (computed(layer, window) if layer.comparable else {}).items():
                off += float((got[name] - value).double().square().sum())
        comparable = size > 0 and all(layer.comparable for layer in layers)
        residual[window] = float(np.sqrt(off / size)) if comparable else float("nan")
    rounds = int(np.clip(SECONDS / max(2 * once, 1e-9), *ROUNDS))
    ratios: dict[Window, list[float]] = {window: [] for window in order}
    for done in range(rounds):
        progress(done, rounds, "time of truncated passes")
        for window in order:
            # Side by side, so that what else the machine does falls on both; the order changes from round to round.
            pair = [window, full] if done % 2 else [full, window]
            seconds = {each: _timed(layers, each) for each in pair}
            ratios[window].append(seconds[window] / seconds[full])
    out = {}
    for window, told in ratios.items():
        out[window] = Cost(memory[window], float(np.median(told)), min(told), max(told), rounds, residual[window])
    return out[full], out


def _timed(layers: Sequence[Layer], window: Window) -> float:
    for layer in layers:
        layer.module.zero_grad()
    cuda = layers[0].x.is_cuda
    if cuda:
        torch.cuda.synchronize()
    begun = perf_counter()
    for layer in layers:
        run(layer, window)
    if cuda:
        torch.cuda.synchronize()
    return perf_counter() - begun
