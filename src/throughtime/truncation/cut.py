"""The user's own step with every recurrent state detached every K steps: chunks of truncated BPTT, by autograd alone.

Where gradients go through several recurrent modules, each one's own trace cannot tell what the others cut off on the way. The
states themselves are those of the step as it is, so one forward and backward pass gives the gradient of all chunks together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.cells.cell import Tensors
from throughtime.recording.fused import SINGLE
from throughtime.recording.recorder import Record
from throughtime.recurrent import scan
from throughtime.training_step import Step, untouched


class Cut(Record):
    """In place of a record: runs the step's recurrent calls in chunks of `size` steps."""

    def __init__(self, model: nn.Module, layers: list[str] | None, size: int) -> None:
        super().__init__(model, layers)
        self.size = size
        self.called = dict.fromkeys(self.layers, 0)

    def _see(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        layer = self._layer_of(func, args)
        if layer is None or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        self.called[layer] += 1
        if func in SINGLE:
            x, state, *rest = args
            begins = (self.called[layer] - 1) % self.size == 0 and self.called[layer] > 1
            return func(x, _detached(state) if begins else state, *rest, **kwargs)
        if func is scan:
            owner, x, state, weights = args
            return _chunks(x.split(self.size), state, lambda piece, state: scan(owner, piece, list(state), weights))
        if isinstance(args[3], list | tuple):  # packed: then the batch sizes stand before the state
            return _packed(func, args, kwargs, self.size)
        x, state, *rest = args
        axis = 1 if rest[6] else 0
        return _chunks(x.split(self.size, axis), state, lambda piece, state: func(piece, state, *rest, **kwargs), axis)


def _chunks(pieces: Sequence[Tensor], state: Any, run: Callable[[Tensor, Any], Any], axis: int = 0) -> tuple:
    outputs, after = [], state
    for place, piece in enumerate(pieces):
        output, *last = run(piece, _detached(after) if place else after)
        after = last if isinstance(state, list | tuple) else last[0]
        outputs.append(output)
    return torch.cat(outputs, axis), *(after if isinstance(after, list | tuple) else (after,))


def _packed(func: Callable, args: tuple, kwargs: dict, size: int) -> tuple:
    data, batch_sizes, state, *rest = args
    several = isinstance(state, list | tuple)
    states, outputs = list(state) if several else [state], []
    for place, sizes in enumerate(batch_sizes.split(size)):
        count, alive = int(sizes.sum()), int(sizes[0])
        given = [(each.detach() if place else each)[:, :alive] for each in states]
        output, *last = func(data[:count], sizes, given if several else given[0], *rest, **kwargs)
        data = data[count:]
        outputs.append(output)
        states = [torch.cat((now, each[:, alive:]), dim=1) for now, each in zip(last, states, strict=True)]
    return torch.cat(outputs), *states


def _detached(state: Any) -> Any:
    return [each.detach() for each in state] if isinstance(state, list | tuple) else state.detach()


def cut_gradients(
    model: nn.Module,
    batches: Sequence[Any],
    step: Step,
    layers: list[str] | None,
    steps: Mapping[str, Sequence[int]],
    size: int,
) -> list[Tensors] | None:
    """What each batch gives the recurrent layers' weights, by their names in the model, in chunks of `size` steps.

    steps: of each layer, by batch. None where the step calls a layer in another way than once, or once a step.
    """
    found = []
    with untouched(model):
        for place, batch in enumerate(batches):
            cut = Cut(model, layers, size)
            for module in cut.layers.values():
                module.requires_grad_(True)
            weights = {
                f"{name}.{own}": value
                for name, module in cut.layers.items()
                for own, value in module.named_parameters()
            }
            with cut, torch.enable_grad():
                value = step(model, batch)
                given = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
            for name, module in cut.layers.items():
                if name in steps and cut.called[name] not in _calls(module, steps[name][place]):
                    return None
            found.append(
                {
                    name: torch.zeros_like(value) if grad is None else grad.detach()
                    for (name, value), grad in zip(weights.items(), given, strict=True)
                }
            )
    return found


def _calls(module: nn.Module, steps: int) -> tuple[int, ...]:
    return (steps,) if isinstance(module, nn.RNNCellBase) else (1,)
