"""What is kept of one call of a layer: copies of what it ran with, and what each backward pass gave it.

It is read at the edges of the call's own part of autograd's graph: hooks on the nodes that made its results see the
direct gradients, hooks on the nodes with an edge into a weight see this call's contribution to it, before anything is
accumulated, clipped or added from elsewhere. No node is added and no tensor replaced, so gradients are the user's to the
last bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor, is_legacy_batchedtensor
from torch.autograd import Variable
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from throughtime.cells.cell import Cell, Weights
from throughtime.errors import InputError, RecordError, UnsupportedError
from throughtime.trace import Trace

WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")

Edge = tuple[Node | None, int]


@dataclass
class Pass:
    """What one backward pass gave a call: by output place (the output, then the last states) and by argument."""

    outputs: dict[int, Tensor] = field(default_factory=dict)
    arguments: dict[str, Tensor] = field(default_factory=dict)
    second_order: bool = False
    batched: bool = False
    finished: bool = False

    def finish(self) -> None:
        self.finished = True


@dataclass
class Call:
    """One call of one layer: copies of what it ran with, and the passes that came back to it.

    x: the layer's own input until the block ends, then a copy. version: that of x when the call was made, None once x
    is a copy. dtype: the lowest precision it ran in. expected: the weights that take a gradient.
    """

    layer: str
    cell: Cell
    batch_first: bool
    x: Tensor
    version: int | None
    initial: list[Tensor]
    weights: Weights
    output: Tensor
    dtype: torch.dtype
    expected: list[str]
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

    @property
    def changed(self) -> bool:
        """Whether the input was written to after the call."""
        return self.version is not None and self.x._version != self.version

    def keep_input(self) -> None:
        """Copy the input, so that a buffer used again after the block does not change it."""
        if self.version is not None and not self.changed:
            self.x, self.version = self.x.clone(), None


def edge_of(tensor: Tensor) -> Edge:
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def edges_of(x: Tensor, initial: list[Tensor], weights: Weights) -> dict[Edge, str]:
    """Name of each edge at which the call's contribution is read. A state given in two places cannot be told apart."""
    states = [edge_of(state) for state in initial if state.requires_grad]
    told = len(states) == len(initial) == len(set(states)) and not (x.requires_grad and edge_of(x) in states)
    targets = {edge: f"initial{place}" for place, edge in enumerate(states)} if told else {}
    return targets | {edge_of(value): name for name, value in weights.tensors().items() if value.requires_grad}


def hook(
    call: Call, results: tuple[Tensor, ...], targets: dict[Edge, str], stops: set[Node | None]
) -> Iterator[RemovableHandle]:
    """Hooks on the nodes that made the results, and on those of the call's own graph with an edge into a target."""
    for place, result in enumerate(results):
        if result.grad_fn is not None:
            yield _hook_result(call, place, result)
    for node, edges in _into([result.grad_fn for result in results], targets, stops):

        def at_node(grads: tuple[Tensor | None, ...], _: Any, edges: dict[int, str] = edges) -> None:
            for place, name in edges.items():
                grad = grads[place]
                now = None if grad is None else call.receive(grad)
                if grad is None or now is None:
                    continue
                if name in now.arguments:
                    now.arguments[name] += grad.detach()
                else:
                    wide = torch.promote_types(grad.dtype, torch.float32)
                    now.arguments[name] = grad.detach().to(wide, copy=True)

        yield node.register_hook(at_node)


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
    starts: list[Node | None], targets: dict[Edge, str], stops: set[Node | None]
) -> Iterator[tuple[Node, dict[int, str]]]:
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


def trace_of(call: Call) -> Trace:
    """A trace of the sum of the call's passes, in one layout (time first) and one dtype."""
    _check(call)
    passes = list(call.passes.values())
    working = torch.float64 if call.weights.weight_hh.dtype == torch.float64 else torch.float32

    def time_first(value: Tensor) -> Tensor:
        return (value.transpose(0, 1) if call.batch_first else value).to(working)

    def total(parts: list[dict[Any, Tensor]], key: int | str) -> Tensor:
        return torch.stack([part[key].to(working) for part in parts if key in part]).sum(0)

    x, output = time_first(call.x), time_first(call.output)
    hidden, batch = output.shape[-1], output.shape[1]
    outputs, arguments = [each.outputs for each in passes], [each.arguments for each in passes]
    weights = Weights(**{name: value.to(working) for name, value in call.weights.tensors().items()})
    initial = torch.cat([state.reshape(batch, -1).to(working) for state in call.initial], dim=-1)
    got = {place for part in outputs for place in part}
    gradient = x.new_zeros(*output.shape[:2], initial.shape[-1])
    if 0 in got:
        gradient[..., :hidden] = time_first(total(outputs, 0))
    for place in got - {0}:
        gradient[-1, :, (place - 1) * hidden : place * hidden] += total(outputs, place).reshape(batch, hidden)
    starts = [f"initial{place}" for place in range(len(call.initial))]
    at_start = None
    if all(name in part for part in arguments for name in starts):
        at_start = torch.cat([total(arguments, name).reshape(batch, -1) for name in starts], dim=-1)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        carries = call.cell.carries(weights, x, output, initial)
    trace = Trace(
        name=call.layer,
        cell=call.cell,
        weights=weights,
        x=x.contiguous(),
        carries=carries,
        gradient=gradient,
        weight_gradients={name: total(arguments, name) for name in call.expected},
        initial_gradient=at_start,
        dtype=call.dtype,
        names={name: f"{call.layer}.{name}_l0" for name in WEIGHTS},
    )
    trace.check_finite()
    return trace


def _check(call: Call) -> None:
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
    for each in call.passes.values():
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
        missing = [name for name in call.expected if name not in each.arguments] if each.outputs else ["its output"]
        if missing:
            raise RecordError(
                f"a backward pass that reached {where} but not {', '.join(missing)}",
                "passes that reach the layer's output and all of its weights",
                "use loss.backward(), or name all of the layer's weights in autograd.grad",
            )
