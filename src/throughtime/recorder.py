"""Record one backward pass of the user's own training step, leaving the model exactly as it was.

A function mode sees the arrays with which the fused call really ran (parametrizations, functional_call and tied weights
included). What the backward pass gave this very call is read at the edges of its own part of autograd's graph: tensor hooks
on what the call returned give the direct gradients, node hooks at the edges into each weight give this call's contribution
to it, before anything is accumulated, clipped or added from elsewhere. The graph itself stays untouched, so gradients are
the user's to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from throughtime.cells import GRU, LSTM, RNN
from throughtime.cells.cell import Cell, Weights
from throughtime.errors import InputError, RecordError, UnsupportedError
from throughtime.flow import Flow
from throughtime.recurrent import Recurrent, scan
from throughtime.trace import Trace

_FUSED: dict[Any, Cell] = {torch.gru: GRU(), torch.lstm: LSTM(), torch.rnn_tanh: RNN("tanh"), torch.rnn_relu: RNN("relu")}
WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


@dataclass
class Pass:
    """What one backward pass gave a call: by output place ("output", then the last states) and by weight."""

    outputs: dict[int, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    second_order: bool = False


@dataclass
class Call:
    """One call of one layer: copies of what it ran with, and the passes that came back to it."""

    layer: str
    cell: Cell
    batch_first: bool
    x: Tensor
    version: int | None
    initial: list[Tensor]
    weights: Weights
    output: Tensor
    expected: set[str]
    passes: dict[int, Pass] = field(default_factory=dict)

    def get(self) -> Pass:
        """The pass that is running now."""
        found = self.passes.setdefault(torch._C._current_graph_task_id(), Pass())
        found.second_order |= torch.is_grad_enabled()  # on during a backward pass only with create_graph
        return found


def record(model: nn.Module, layers: list[str] | None = None) -> Record:
    """A context in which one training step of `model` is recorded; then `Record.flow()` explains it.

    model: any module that holds one-layer, one-direction nn.GRU, nn.LSTM or nn.RNN. layers: names of those to record; all
    by default. The forward and the backward pass must both happen inside the block; the model, its gradients, modes, hooks
    and the random state are as they would have been without it.

    Raises UnsupportedError for layers that cannot be explained exactly yet, and InputError where there is none.
    """
    return Record(model, layers)


class Record:
    """See `record`."""

    def __init__(self, model: nn.Module, layers: list[str] | None = None) -> None:
        self.layers = dict(_recurrent_layers(model, layers))
        self.calls: list[Call] = []
        self._handles: list[RemovableHandle] = []
        self._running: list[str] = []
        self._mode: _Mode | None = None

    def __enter__(self) -> Record:
        if self._mode is not None:
            raise RecordError("a record that is already open", "one `with` block at a time", "make a new tt.record")
        self.calls.clear()
        for name, layer in self.layers.items():
            self._handles.append(layer.register_forward_pre_hook(lambda *_, name=name: self._running.append(name)))
            self._handles.append(layer.register_forward_hook(lambda *_: self._leave(), always_call=True))
        self._mode = _Mode(self)
        self._mode.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        assert self._mode is not None
        self._mode.__exit__(*error)
        self._mode = None
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._running.clear()

    def _leave(self) -> None:
        if self._running:
            self._running.pop()

    def traces(self) -> list[Trace]:
        """What was recorded, one trace a layer that the backward pass reached. Raises RecordError, see `flow`."""
        if self._mode is not None:
            raise RecordError("traces asked for inside the block", "the block to be closed", "call flow() after the with block")
        if not self.calls:
            raise RecordError(
                f"no call with gradients of the recurrent layers {sorted(self.layers)}",
                "a forward pass through them, with gradients enabled, inside the block",
                "call the model inside `with tt.record(model)`, outside torch.no_grad and torch.compile",
            )
        reached = [call for call in self.calls if call.passes]
        if not reached:
            raise RecordError(
                f"no backward pass that reached the layers {sorted({call.layer for call in self.calls})}",
                "a loss that depends on their output, and its backward() inside the block",
                "call loss.backward() inside `with tt.record(model)`; check for a detach between layer and loss",
            )
        names = [call.layer for call in reached]
        for name in names:
            if names.count(name) > 1:
                raise UnsupportedError(
                    f"{names.count(name)} calls of layer '{name}' in one record",
                    "one call of each layer",
                    "record one training step at a time; calls that pass their state on cannot be chained yet",
                )
        return [_trace(call) for call in reached]

    def flow(self, **options: Any) -> Flow:
        """The exact decomposition of the recorded backward pass; options: see `throughtime.explain.explain`.

        Raises RecordError where no exact decomposition exists (nothing reached the layer, the input was changed in place, a
        second-order pass), ResidualError where the terms do not add up, InputError for NaN and infinities.
        """
        from throughtime.explain import explain

        return explain(self.traces(), **options)


class _Mode(TorchFunctionMode):
    """Sees the fused calls, and only of layers that are running."""

    def __init__(self, record: Record) -> None:
        self.record = record

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        running = self.record._running
        if not running or not (func is scan or func in _FUSED) or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        cell, x, initial, weights, batch_first = _arguments(func, args, running[-1])
        given = {name: value for name, value in weights.tensors().items() if value.requires_grad}
        targets = {_edge(value): name for name, value in given.items()}
        states = [state for state in initial if state.requires_grad]
        targets |= {_edge(state): f"initial{place}" for place, state in enumerate(initial) if state.requires_grad}
        stops = {_edge(value)[0] for value in (x, *states) if value.requires_grad} | {node for node, _ in targets}
        version = None if x.is_inference() else x._version
        copies = Weights(*(None if value is None else value.detach().clone() for value in vars(weights).values()))
        start = [state.detach().clone() for state in initial]

        results = func(*args, **kwargs)

        output, *last = results
        if not output.requires_grad:
            return results
        call = Call(
            layer=running[-1],
            cell=cell,
            batch_first=batch_first,
            x=x.detach() if version is not None else x.detach().clone(),
            version=version,
            initial=start,
            weights=copies,
            output=output.detach().clone(),
            expected=set(targets.values()),
        )
        self.record.calls.append(call)
        self.record._handles += _hook(call, [output, *last], targets, stops)
        return results


def _edge(tensor: Tensor) -> tuple[Node, int]:
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def _hook(call: Call, outputs: list[Tensor], targets: dict, stops: set[Node]) -> Iterator[RemovableHandle]:
    """Hooks on what the call returned and on every edge of its own graph into a weight."""

    def at_output(place: int) -> Callable[[Tensor], None]:
        def hook(grad: Tensor) -> None:
            kept = call.get().outputs
            kept[place] = grad.detach().clone() if place not in kept else kept[place] + grad.detach()

        return hook

    for place, output in enumerate(outputs):
        if output.requires_grad:
            yield output.register_hook(at_output(place))
    for node, edges in _edges_into(outputs, targets, stops):

        def at_node(grads: tuple[Tensor | None, ...], _: Any, edges: dict[int, str] = edges) -> None:
            kept = call.get().weights
            for place, name in edges.items():
                grad = grads[place]
                if grad is not None:
                    if name in kept:
                        kept[name] += grad.detach()
                    else:
                        kept[name] = grad.detach().clone()

        yield node.register_hook(at_node)


def _edges_into(outputs: list[Tensor], targets: dict, stops: set[Node]) -> Iterator[tuple[Node, dict[int, str]]]:
    """The nodes of the graph between the outputs and the call's arguments that have an edge into a target."""
    waiting = [output.grad_fn for output in outputs if output.grad_fn is not None]
    seen: set[Node] = set(waiting)
    while waiting:
        node = waiting.pop()
        edges = {}
        for place, (following, number) in enumerate(node.next_functions):
            if following is None:
                continue
            if (following, number) in targets:
                edges[place] = targets[following, number]
            if following not in seen and following not in stops:
                seen.add(following)
                waiting.append(following)
        if edges:
            yield node, edges


def _arguments(func: Callable, args: tuple, layer: str) -> tuple[Cell, Tensor, list[Tensor], Weights, bool]:
    """The cell, input, initial states (each (…, H) as given), weights and batch_first of a fused call."""
    if func is scan:
        cell, x, initial, weights = args
        return cell, x, [initial], weights, False
    if not isinstance(args[2], list | tuple) or isinstance(args[3], list | tuple):
        raise UnsupportedError(
            f"a packed sequence at layer '{layer}'",
            "a padded or equal-length batch: a tensor",
            "pass the padded tensor without pack_padded_sequence and mask the loss; packed input cannot be explained yet",
        )
    x, state, flat, bias, *_ = args
    weights = Weights(*flat[:4]) if bias else Weights(*flat[:2])
    states = list(state) if isinstance(state, list | tuple) else [state]
    return _FUSED[func], x, states, weights, bool(args[8])


def _trace(call: Call) -> Trace:
    """A trace of the sum of the call's passes, in one layout (time first) and one dtype."""
    where = f"layer '{call.layer}'"
    if call.version is not None and call.x._version != call.version:
        raise RecordError(
            f"an input of {where} that was changed in place after the call",
            "the input as the layer saw it",
            "replace the in-place operation (x += …, x.relu_(), a reused buffer) by one that makes a new tensor",
        )
    passes = list(call.passes.values())
    for each in passes:
        if each.second_order:
            raise RecordError(
                f"a backward pass with create_graph=True through {where}",
                "first-order backward passes",
                "leave the gradient penalty or the double backward out of the recorded step",
            )
        if not each.outputs or set(each.weights) != call.expected:
            missing = sorted(call.expected - set(each.weights)) if each.outputs else ["its output"]
            raise RecordError(
                f"a backward pass that reached {where} but not {', '.join(missing)}",
                "passes that reach the layer's output and all of its weights",
                "use loss.backward(), or name all of the layer's weights in autograd.grad",
            )
    dtype = call.output.dtype
    working = torch.promote_types(torch.promote_types(dtype, call.weights.weight_hh.dtype), torch.float32)
    if call.weights.weight_hh.dtype != torch.float64:
        working = torch.float32

    def time_first(value: Tensor) -> Tensor:
        return (value.transpose(0, 1) if call.batch_first else value).to(working)

    def added(place: int) -> Tensor | None:
        found = [each.outputs[place] for each in passes if place in each.outputs]
        return torch.stack(found).sum(0) if found else None

    x, output = time_first(call.x), time_first(call.output)
    if x.shape[0] == 0 or x.shape[1] == 0:
        raise InputError(f"an empty batch {tuple(call.x.shape)} at {where}", "at least one step and one sequence", "check the data")
    hidden, batch = output.shape[-1], output.shape[1]
    weights = Weights(*(None if value is None else value.to(working) for value in vars(call.weights).values()))
    initial = torch.cat([state.reshape(batch, -1).to(working) for state in call.initial], dim=-1)
    direct, last, cell = added(0), added(1), added(2)
    gradient = torch.zeros_like(output) if direct is None else time_first(direct).clone()
    if last is not None:
        gradient[-1] += last.reshape(batch, hidden).to(working)
    given = {
        name: torch.stack([each.weights[name] for each in passes]).sum(0).to(working)
        for name in call.expected
        if name in WEIGHTS
    }
    starts = [name for name in sorted(call.expected) if name not in WEIGHTS]
    at_start = None
    if len(starts) == len(call.initial):
        parts = [torch.stack([each.weights[name] for each in passes]).sum(0) for name in starts]
        at_start = torch.cat([part.reshape(batch, -1).to(working) for part in parts], dim=-1)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        carries = call.cell.carries(weights, x, output, initial)
    trace = Trace(
        name=call.layer,
        cell=call.cell,
        weights=weights,
        x=x.contiguous(),
        carries=carries,
        gradient=gradient,
        cell_gradient=None if cell is None else cell.reshape(batch, hidden).to(working),
        weight_gradients=given,
        initial_gradient=at_start,
        dtype=dtype,
        names={name: f"{call.layer}.{name}_l0" for name in WEIGHTS},
    )
    trace.check_finite()
    return trace


def _recurrent_layers(model: nn.Module, wanted: list[str] | None) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of each layer to record; raises where one cannot be explained yet."""
    if not isinstance(model, nn.Module):
        raise InputError(f"a {type(model).__name__}", "an nn.Module", "pass the model itself, not its output or its weights")
    if any(type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None for module in model.modules()):
        raise UnsupportedError("a model under torch.compile", "an eager model", "record the model before torch.compile")
    found = {
        name or "rnn": module for name, module in model.named_modules() if isinstance(module, nn.RNNBase | Recurrent)
    }
    if wanted is not None:
        unknown = sorted(set(wanted) - set(found))
        if unknown:
            raise InputError(f"layers {unknown}", f"some of {sorted(found)}", "name recurrent layers as named_modules() does")
        found = {name: found[name] for name in wanted}
    if not found:
        kinds = sorted({type(module).__name__ for module in model.modules()})
        cells = any(isinstance(module, nn.RNNCellBase) for module in model.modules())
        raise UnsupportedError(
            f"a model without nn.GRU, nn.LSTM or nn.RNN: it holds {', '.join(kinds[:8])}",
            "at least one of them",
            "single-step cells cannot be chained yet: use the fused layer" if cells else "pass the module that holds it",
        )
    for name, module in found.items():
        if isinstance(module, nn.RNNBase):
            _check_supported(name, module)
        yield name, module


def _check_supported(name: str, module: nn.RNNBase) -> None:
    only = "name the other layers in tt.record(model, layers=[…]) to leave this one out"
    if module.num_layers > 1:
        raise UnsupportedError(
            f"layer '{name}' with num_layers={module.num_layers}",
            "num_layers=1",
            f"write the stack as {module.num_layers} modules of one layer each, or {only}",
        )
    if module.bidirectional:
        raise UnsupportedError(f"layer '{name}' with bidirectional=True", "one direction", f"use two layers, or {only}")
    if getattr(module, "proj_size", 0):
        raise UnsupportedError(f"layer '{name}' with proj_size={module.proj_size}", "proj_size=0", f"drop it, or {only}")
    if type(module) not in (nn.GRU, nn.LSTM, nn.RNN) and not isinstance(module, nn.GRU | nn.LSTM | nn.RNN):
        raise UnsupportedError(f"layer '{name}' of type {type(module).__name__}", "nn.GRU, nn.LSTM or nn.RNN", only)
