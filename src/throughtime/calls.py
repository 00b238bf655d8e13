"""What is kept of one call of a layer: copies of what it ran with, and what each backward pass gave it.

It is read at the edges of the call's own part of autograd's graph: hooks on the nodes that made its results see the
direct gradients, hooks on the nodes with an edge into a weight see this call's contribution to it, before anything is
accumulated, clipped or added from elsewhere. No node is added and no tensor replaced, so gradients are the user's to the
last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor, is_legacy_batchedtensor
from torch.autograd import Variable
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from throughtime.cells.cell import Cell, Tensors
from throughtime.elementwise import Edge, Factor
from throughtime.errors import InputError, RecordError, UnsupportedError

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


@dataclass(eq=False, slots=True)
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


def hear_held(call: Call, edge: Edge, place: int) -> RemovableHandle:
    """Keep the gradient at a tensor that is made of one of the call's states and of an older one."""
    node, output = edge
    assert node is not None

    def before(grads: tuple[Tensor | None, ...]) -> None:
        grad = grads[output]
        now = None if grad is None else call.receive(grad)
        if grad is not None and now is not None:
            now.held[place] = grad.detach().clone()

    return node.register_prehook(before)


def edge_of(tensor: Tensor) -> Edge:
    """Where the tensor's gradient enters the graph: autograd's own answer, by the short way where there is a node."""
    node = tensor.grad_fn
    if node is not None:
        return node, tensor.output_nr
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


class Edges:
    """The edges of weights. Those of leaves are made anew each time that one asks, at some cost, and so are kept."""

    def __init__(self) -> None:
        self._leaves: dict[int, tuple[Tensor, Edge]] = {}

    def of(self, weights: Tensors) -> dict[str, Edge]:
        """By name, of those that take a gradient."""
        return {name: self._of(value) for name, value in weights.items() if value.requires_grad}

    def _of(self, tensor: Tensor) -> Edge:
        if tensor.grad_fn is not None:
            return edge_of(tensor)
        if id(tensor) not in self._leaves:
            self._leaves[id(tensor)] = tensor, edge_of(tensor)
        return self._leaves[id(tensor)][1]

    def clear(self) -> None:
        """Let go of the tensors."""
        self._leaves.clear()


def targets_of(x: Tensor, initial: list[Tensor], weights: dict[str, Edge]) -> tuple[dict[Edge, str | int], bool]:
    """Each edge at which the call's contribution is read, and whether those of the states are among them.

    A state given in two places cannot be told apart.
    """
    states = [edge_of(state) for state in initial if state.requires_grad]
    told = len(states) == len(initial) == len(set(states)) and not (x.requires_grad and edge_of(x) in states)
    targets: dict[Edge, str | int] = {edge: place for place, edge in enumerate(states)} if told else {}
    return targets | {edge: name for name, edge in weights.items()}, told


def hook(
    call: Call, results: tuple[Tensor, ...], targets: dict[Edge, str | int], stops: set[Node | None]
) -> Iterator[RemovableHandle]:
    """Hooks on the nodes that made the results, and on those of the call's own graph with an edge into a target."""
    for place, result in enumerate(results):
        if result.grad_fn is not None:
            yield _hook_result(call, place, result)
    own = {edge_of(result): -1 - place for place, result in enumerate(results) if result.grad_fn is not None}
    used = set()
    for node, edges in _into([result.grad_fn for result in results], own | targets, stops):
        used.update(edges.values())

        def at_node(grads: tuple[Tensor | None, ...], _: Any, edges: dict[int, str | int] = edges) -> None:
            for place, target in edges.items():
                grad = grads[place]
                if grad is not None:
                    call.add(target, grad)

        yield node.register_hook(at_node)
    if call.form.single:
        call.idle = [name for name in call.expected if name not in used]
        call.expected = [name for name in call.expected if name in used]


def _hook_result(call: Call, place: int, result: Tensor) -> RemovableHandle:
    """Read the gradient of a result where it enters the node that made it: after the user's own hooks on the tensor.

    Where the result is a view of what the node made, it is read there: an operation in place on a view takes the
    view's own node out of the graph.
    """
    base = result._base
    source = base if base is not None and base.grad_fn is not None and base.numel() == result.numel() else result
    node, number = edge_of(source)
    assert node is not None
    shape, stride, offset = source.shape, source.stride(), result.storage_offset() - source.storage_offset()
    seen = (result.shape, result.stride(), offset)

    def before(grads: tuple[Tensor | None, ...]) -> None:
        grad = grads[number]
        now = None if grad is None else call.receive(grad)
        if grad is not None and now is not None:
            laid = torch.empty_strided(shape, stride, dtype=grad.dtype, device=grad.device).copy_(grad.detach())
            now.outputs[place] = laid.as_strided(*seen)

    return node.register_prehook(before)


def _into(
    starts: list[Node | None], targets: dict[Edge, str | int], stops: set[Node | None]
) -> Iterator[tuple[Node, dict[int, str | int]]]:
    """The nodes of the graph between the results and the call's arguments that have an edge into a target.

    Autocast's cast of a target counts as the target: it is cached, so that other calls may share it.
    """
    waiting = [node for node in dict.fromkeys(starts) if node is not None]
    seen: set[Node] = set(waiting)
    while waiting:
        node = waiting.pop()
        edges = {}
        for place, (following, number) in enumerate(node.next_functions):
            if following is None:
                continue
            name = targets.get((following, number))
            if name is None and following not in stops and following.name() == "ToCopyBackward0":
                name = targets.get(following.next_functions[0])
            if name is not None:
                edges[place] = name
            elif following not in seen and following not in stops:
                seen.add(following)
                waiting.append(following)
        if edges:
            yield node, edges


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
