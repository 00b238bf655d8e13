"""What is kept of one call of a layer: copies of what it ran with, and what each backward pass gave it.

`throughtime.recording.hooks` reads it at the edges of the call's own part of autograd's graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor, is_legacy_batchedtensor
from torch.autograd import Variable
from torch.utils.hooks import RemovableHandle

from throughtime.cells.cell import Cell, Tensors
from throughtime.errors import InputError, RecordError, UnsupportedError
from throughtime.recording.elementwise import Edge, Factor

INPUT = ""  # the target that stands for a call's input
OUTPUT = -1  # the place of a fused call's output, beside those of its states
HELD = 1000  # added to the place of a state: the tensor made of it and of an older state, see `Held`


@dataclass(frozen=True)
class Form:
    """How a call's arrays are laid out. cell: of every layer and direction. batch_sizes: of a packed batch, by step.

    single: the call is one step, x (B, D), and its results are the new states. function: of torch, with which a layer of
    a stack can be run again.
    """

    cell: Cell
    layers: int = 1
    directions: int = 1
    batch_first: bool = False
    batch_sizes: Tensor | None = None
    single: bool = False
    function: Any = None

    def steps(self, x: Tensor) -> int:
        """Steps of all layers and directions of a call on this input."""
        each = 1 if self.single else x.shape[1 if self.batch_first else 0]
        if self.batch_sizes is not None:
            each = len(self.batch_sizes)
        return each * self.layers * self.directions

    def name(self, parameter: str, layer: int = 0, direction: int = 0) -> str:
        """A weight's name in the module's state_dict."""
        return parameter if self.single else f"{parameter}_l{layer}{'_reverse' if direction else ''}"

    def weights(self, given: Tensors, layer: int = 0, direction: int = 0) -> Tensors:
        """Those of one layer and direction, by the cell's own names."""
        end = self.name("", layer, direction)
        return {name.removesuffix(end): value for name, value in given.items() if name.endswith(end)}


@dataclass
class Shared:
    """What calls of one layer have in common: copies of the weights, and what each backward pass gave them in all."""

    weights: Tensors
    sums: dict[int, Tensors] = field(default_factory=dict)


@dataclass(slots=True)
class Pass:
    """What one backward pass gave a call: by place of the result, and by place of the initial state.

    inner: by place of a result, what another result of the same call sends to it (in an LSTM's step h is made of c).
    held: by place of a state, the gradient at its `Held`.
    """

    outputs: dict[int, Tensor] = field(default_factory=dict)
    inner: dict[int, Tensor] = field(default_factory=dict)
    initial: dict[int, Tensor] = field(default_factory=dict)
    held: dict[int, Tensor] = field(default_factory=dict)
    second_order: bool = False
    batched: bool = False
    finished: bool = False

    def finish(self) -> None:
        self.finished = True


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor that the user made of a new state and of the one before: take∘new + hold∘old + what has no gradient.

    heard: the hook that keeps the gradient at it, in `Pass.held`.
    """

    take: Factor
    hold: Tensor
    heard: RemovableHandle


@dataclass(eq=False, slots=True, weakref_slot=True)
class Call:
    """One call of one layer: copies of what it ran with, and the passes that came back to it.

    x: the layer's own input until the block ends, then a copy. version: that of x when the call was made, None once x
    is a copy. results: copies of the output, or of a single step's states. dtype: the lowest precision it ran in.
    expected: the weights that take a gradient; idle: those that a cell of the user's own did not use.
    masks: of the dropout between layers, in the call's own layout.
    ends: the edges of the states that it made, until the block ends; told: whether the gradients at the given ones can
    be read. follows: the call whose states it was given, and between: for each state, what it was multiplied by on the way.
    external: by place of a state or OUTPUT, the gradient that reaches it through what feeds later inputs of the layer; fed:
    the call and place of the state that is this call's very input, and one of its states too. sent_to_input: is told what
    goes to the input, where it matters.
    """

    layer: str
    form: Form
    x: Tensor
    version: int | None
    initial: list[Tensor]
    shared: Shared
    results: list[Tensor]
    dtype: torch.dtype
    expected: list[str]
    idle: list[str] = field(default_factory=list)
    masks: list[Tensor] = field(default_factory=list)
    ends: list[Edge] = field(default_factory=list)
    told: bool = True
    follows: Call | None = None
    origins: list[dict[Edge, Factor]] = field(default_factory=list)
    between: list[Factor] = field(default_factory=list)
    held: dict[int, Held] = field(default_factory=dict)
    external: dict[int, Tensor] = field(default_factory=dict)
    fed: tuple[Call, int] | None = None
    sent_to_input: Callable[[Tensor], None] | None = None
    passes: dict[int, Pass] = field(default_factory=dict)

    def receive(self, grad: Tensor) -> Pass | None:
        """The pass that is running now and brings this gradient, None where its gradients cannot be copied."""
        task = torch._C._current_graph_task_id()
        if task not in self.passes:
            self.passes[task] = Pass()
            Variable._execution_engine.queue_callback(self.passes[task].finish)  # not called where a pass raises
        found = self.passes[task]
        found.second_order |= torch.is_grad_enabled()  # on during a backward pass only with create_graph
        found.batched |= is_legacy_batchedtensor(grad) or is_functorch_wrapped_tensor(grad)
        return None if found.batched else found

    def add(self, target: str | int, grad: Tensor) -> None:
        """Note what a node sends to a weight (its name), an initial state (its place), a result (−1 − its place), INPUT."""
        now = self.receive(grad)
        if now is None:
            return
        if target == INPUT:
            if self.sent_to_input is not None:
                self.sent_to_input(grad)
            return
        sums: dict[Any, Tensor] = now.initial
        if isinstance(target, int) and target < 0:
            sums, target = now.inner, -1 - target
        if isinstance(target, str):
            sums = self.shared.sums.setdefault(torch._C._current_graph_task_id(), {})
        if target in sums:
            sums[target] += grad.detach()
        else:
            sums[target] = grad.detach().to(torch.promote_types(grad.dtype, torch.float32), copy=True)

    @property
    def changed(self) -> bool:
        """Whether the input was written to after the call."""
        return self.version is not None and self.x._version != self.version

    def keep_input(self) -> None:
        """Copy the input, so that a buffer used again after the block does not change it."""
        if self.version is not None and not self.changed:
            self.x, self.version = self.x.clone(), None


def check(call: Call) -> None:
    """Raise where no exact decomposition of the call exists."""
    where = f"layer '{call.layer}'"
    if 0 in call.x.shape[:2]:
        raise InputError(
            f"an empty batch {tuple(call.x.shape)} at {where}", "at least one step and one sequence", "check the data"
        )
    if call.changed:
        raise RecordError(
            f"an input of {where} that was changed in place after the call",
            "the input as the layer saw it",
            "replace the in-place operation (x += …, x.relu_(), a reused buffer) by one that makes a new tensor",
        )
    for task, each in call.passes.items():
        if each.second_order:
            raise RecordError(
                f"a backward pass with create_graph=True through {where}",
                "first-order backward passes",
                "leave the gradient penalty or the double backward out of the recorded step",
            )
        if each.batched:
            raise UnsupportedError(
                f"a batch of backward passes at once through {where} (is_grads_batched, vectorize)",
                "one backward pass at a time",
                "leave it out of the recorded step",
            )
        if not each.finished:
            raise RecordError(
                f"a backward pass through {where} that ended with an exception",
                "backward passes that run to their end",
                "record a step that does not raise",
            )
        given = call.shared.sums.get(task, {})
        missing = [name for name in call.expected if name not in given] if each.outputs else ["its output"]
        if missing:
            raise RecordError(
                f"a backward pass that reached {where} but not {', '.join(missing)}",
                "passes that reach the layer's output and all of its weights",
                "use loss.backward(), or name all of the layer's weights in autograd.grad",
            )
