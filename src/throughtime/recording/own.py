"""Cells of the user's own: any nn.Module that makes one step, recorded in the user's own loop.

    tt.register_cell(MyCell)                      # forward(x, state) → state: one path, "recurrent"

    @tt.register_cell(MyCell, ports=("carry", "gates"))
    def step(cell, x, at):                        # the same equations, the state read at named ports
        ...

The step is the module's own forward, run again with the recorded weights, or a function of the module, the input and the
state at each port (equal to the forward: this is checked). Every derivative comes from autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from throughtime.cells.cell import Cell, Node, Tensors, Weights, unchanged
from throughtime.errors import InputError, RecordError

Step = Callable[[Any, Tensor, Mapping[str, Any]], Any]
"""(the module, x (N, …), the state at each port) to the new state: a tensor, or a tuple as the module takes it."""

_REGISTRY: dict[type[nn.Module], tuple[tuple[str, ...], Step | None]] = {}
WHOLE = ("recurrent",)


def register_cell(kind: type[nn.Module], ports: tuple[str, ...] = WHOLE) -> Callable[[Step], Step]:
    """Have `tt.record` see modules of this class as recurrent cells.

    kind: a class whose forward(x, state) makes one step, x (sequences, …), and returns the new state, or a pair (output,
    state); the state is a tensor (sequences, …) or a tuple of them. ports: names of the paths, used with the decorated
    function step(module, x, at) → state, which reads the state as at[port]. Without a function the module's forward is the
    step, with the one path "recurrent". Raises InputError for what is no class of modules.
    """
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise InputError(f"{kind!r}", "a class of nn.Module", "register the class, not an instance or a function")
    if not ports or len(set(ports)) < len(ports):
        raise InputError(f"ports {ports}", "one name or more, each once", "name the paths of the derivative")
    _REGISTRY[kind] = WHOLE, None

    def with_step(step: Step) -> Step:
        _REGISTRY[kind] = tuple(ports), step
        return step

    return with_step


def registered(module: nn.Module) -> bool:
    """Whether the module's class, or one that it inherits from, is a registered cell."""
    return any(kind in _REGISTRY for kind in type(module).__mro__)


@dataclass(frozen=True, eq=False)
class OwnCell(Cell):
    """A registered module as a cell. shapes: of the states, without the sequences; x_shape: of the input."""

    module: nn.Module
    buffers: Mapping[str, Tensor]
    shapes_of: tuple[tuple[int, ...], ...]
    x_shape: tuple[int, ...]
    bare: bool
    function: Step | None

    def __post_init__(self) -> None:
        kinds = [kind for kind in type(self.module).__mro__ if kind in _REGISTRY]
        ports, _ = _REGISTRY[kinds[0]]
        many = len(self.shapes_of) > 1
        states = tuple(f"h{place}" for place in range(len(self.shapes_of))) if many else ("h",)
        for field, value in (("name", type(self.module).__name__), ("ports", ports), ("states", states)):
            object.__setattr__(self, field, value)

    @property
    def _sizes(self) -> list[int]:
        return [torch.Size(shape).numel() for shape in self.shapes_of]

    def carry_size(self, w: Weights) -> int:
        return sum(self._sizes)

    def split(self, carry: Tensor) -> tuple[Tensor, ...]:
        return carry.split(self._sizes, dim=-1)

    def read(self, port: str, carry: Tensor) -> Tensor:
        return carry

    def _state(self, carry: Tensor) -> Any:
        """The state (N, …) as the module takes it, from a carry (N, C)."""
        parts = tuple(part.reshape(-1, *shape) for part, shape in zip(self.split(carry), self.shapes_of, strict=True))
        return parts[0] if self.bare else parts

    def step(self, w: Weights, x: Tensor, ports: Mapping[str, Tensor], node: Node = unchanged) -> Tensor:
        lead = x.shape[:-1]
        rows = x.reshape(-1, *self.x_shape)
        at = {port: self._state(value.expand(*lead, -1).reshape(len(rows), -1)) for port, value in ports.items()}
        given = {f"module.{name}": value for name, value in w.tensors().items()}
        given |= {f"module.{name}": value.clone() for name, value in self.buffers.items()}
        runner = _Runner(self.module, self.function)
        with torch.random.fork_rng(devices=[]):
            after = state_of(functional_call(runner, given, (rows, at)), self.bare)
        return torch.cat([part.reshape(*lead, -1) for part in after], dim=-1)

    def check(self, w: Weights, x: Tensor, before: Tensor, after: Tensor, tolerance: float) -> None:
        """Raise RecordError where the step run again is not the one recorded: x (T, B, D), carries (T, B, C)."""
        with torch.no_grad():
            again = self.step(w, x, dict.fromkeys(self.ports, before))
        off = float((again - after).abs().max())
        if not off <= tolerance * max(1.0, float(after.abs().max())):
            raise RecordError(
                f"a step of {self.name} that, run again, misses the recorded state by {off:.1g}",
                "a step that depends on its weights, input and state alone"
                + ("" if self.function is None else ", and a registered function with the same equations"),
                "record it in eval mode where it draws dropout or keeps statistics; compare the function with the forward",
            )


class _Runner(nn.Module):
    """Runs a module's step with other weights, without the hooks of the module itself."""

    def __init__(self, module: nn.Module, function: Step | None) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, x: Tensor, at: Mapping[str, Any]) -> Any:
        if self.function is not None:
            return self.function(self.module, x, at)
        return self.module.forward(x, next(iter(at.values())))


def state_of(result: Any, bare: bool) -> tuple[Tensor, ...]:
    """The states among what a step returned: it, or the second of a pair (output, state)."""
    if bare:
        return (result[1] if isinstance(result, tuple | list) else result,)
    if len(result) == 2 and isinstance(result[1], tuple | list):
        return tuple(result[1])
    return tuple(result)


def cell_of(module: nn.Module, x: Any, state: Any) -> tuple[OwnCell, list[Tensor]]:
    """The cell of a call, and the states that it was given. Raises InputError where it cannot be one."""
    bare = isinstance(state, Tensor)
    states = [state] if bare else list(state) if isinstance(state, tuple | list) else []
    tensors = all(isinstance(each, Tensor) and each.ndim > 1 for each in states)
    if not states or not tensors or not isinstance(x, Tensor) or x.ndim < 2 or not x.is_floating_point():
        raise InputError(
            f"a call of {type(module).__name__} with {type(x).__name__} and {type(state).__name__}",
            "forward(x, state), x and the state floating-point tensors (sequences, …)",
            "give the first step its state too (zeros), and embed tokens outside the cell",
        )
    kinds = [kind for kind in type(module).__mro__ if kind in _REGISTRY]
    buffers = {name: value.detach().clone() for name, value in module.named_buffers()}
    shapes = tuple(tuple(each.shape[1:]) for each in states)
    return OwnCell(module, buffers, shapes, tuple(x.shape[1:]), bare, _REGISTRY[kinds[0]][1]), states


def around(
    module: nn.Module, begin: Callable[[Any, Any], None], end: Callable[[Any], None]
) -> Iterator[RemovableHandle]:
    """Call `begin(x, state)` before and `end(result)` after every step of a module; end(None) after one that raised."""

    def before(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        given = [*args, *kwargs.values(), None, None]
        begin(given[0], given[1])

    def after(_: nn.Module, args: tuple, result: Any) -> None:
        end(result)

    yield module.register_forward_pre_hook(before, with_kwargs=True)
    yield module.register_forward_hook(after, always_call=True)


def weights_of(module: nn.Module) -> Tensors:
    """The parameters of a module by name."""
    return dict(module.named_parameters())
