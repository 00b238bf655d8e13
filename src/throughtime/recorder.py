"""Record one backward pass of the user's own training step, leaving the model exactly as it was.

A function mode sees the arrays with which the fused call really ran (parametrizations, functional_call and tied weights
included); `throughtime.calls` reads what the backward pass gave this very call. Nothing here raises inside the user's
step: what cannot be explained is told when the traces are asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from throughtime.calls import Call, edge_of, edges_of, hook, trace_of
from throughtime.cells import GRU, LSTM, RNN
from throughtime.cells.cell import Cell, Weights
from throughtime.errors import InputError, RecordError, ThroughtimeError, UnsupportedError
from throughtime.flow import Flow, Missing
from throughtime.recurrent import Recurrent, scan
from throughtime.trace import Trace

_FUSED: dict[Any, Cell] = {
    torch.gru: GRU(),
    torch.lstm: LSTM(),
    torch.rnn_tanh: RNN("tanh"),
    torch.rnn_relu: RNN("relu"),
}
_LEAVE_OUT = "name the other layers in tt.record(model, layers=[…]) to leave this one out"


def record(model: nn.Module, layers: list[str] | None = None) -> Record:
    """A context in which one training step of `model` is recorded; then `Record.flow()` explains it.

    model: any module that holds one-layer, one-direction nn.GRU, nn.LSTM or nn.RNN. layers: names of those to record;
    all by default. The forward and the backward pass must both happen inside the block; the model, its gradients, modes,
    hooks and the random state are as they would have been without it.

    Raises UnsupportedError for layers that cannot be explained exactly yet, and InputError where there is none.
    """
    return Record(model, layers)


class Record:
    """See `record`."""

    def __init__(self, model: nn.Module, layers: list[str] | None = None) -> None:
        self.layers = dict(_recurrent_layers(model, layers))
        self.calls: list[Call] = []
        self._bare = isinstance(model, nn.RNNBase | Recurrent)
        self._refused: list[ThroughtimeError] = []
        self._handles: list[RemovableHandle] = []
        self._mode: _Mode | None = None

    def __enter__(self) -> Record:
        if self._mode is not None:
            raise RecordError("a record that is already open", "one `with` block at a time", "make a new tt.record")
        self.calls.clear()
        self._refused.clear()
        self._mode = _Mode(_eager(self._see))
        self._mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        assert self._mode is not None
        self._mode.__exit__(*error)
        self._mode = None
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if error[0] is None:
            for call in self.calls:
                if call.passes:
                    call.keep_input()

    def _see(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        """Run a fused call; note what it ran with where it is that of a recorded layer."""
        layer = self._layer_of(func, args)
        if layer is None or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        try:
            cell, x, initial, weights, batch_first = _arguments(func, args, layer)
        except ThroughtimeError as error:
            self._refused.append(error.with_traceback(None))  # whose frames hold the graph
            return func(*args, **kwargs)
        targets = edges_of(x, initial, weights)
        stops = {edge_of(value)[0] for value in (x, *initial, *weights.tensors().values()) if value.requires_grad}
        version = None if x.is_inference() else x._version
        low = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else None
        copies = Weights(**{name: value.detach().clone() for name, value in weights.tensors().items()})
        start = [state.detach().clone() for state in initial]

        results = func(*args, **kwargs)

        output = results[0]
        if output.requires_grad:
            call = Call(
                layer=layer,
                cell=cell,
                batch_first=batch_first,
                x=x.detach() if version is not None else x.detach().clone(),
                version=version,
                initial=start,
                weights=copies,
                output=output.detach().clone(),
                dtype=output.dtype if low is None or output.dtype == torch.float64 else low,
                expected=[name for name, value in weights.tensors().items() if value.requires_grad],
            )
            self.calls.append(call)
            self._handles += hook(call, results, targets, stops)
        return results

    def _layer_of(self, func: Callable, args: tuple) -> str | None:
        """The recorded layer that makes this call: the one whose own list of weights, or who itself, is an argument."""
        for name, layer in self.layers.items():
            mine = layer if func is scan else layer.__dict__.get("_flat_weights")
            if any(each is mine for each in args):
                return name
        return None

    @property
    def unreached(self) -> list[str]:
        """The layers of which nothing can be told: not called with gradients, or no backward pass came back to them."""
        reached = {call.layer for call in self.calls if call.passes}
        return [name for name in self.layers if name not in reached]

    def traces(self) -> list[Trace]:
        """What was recorded, one trace a layer that the backward pass reached. Raises RecordError, see `flow`."""
        if self._mode is not None:
            raise RecordError(
                "flow() asked for inside the block", "the block to be closed", "call flow() after the with block"
            )
        if self._refused:
            raise self._refused[0]
        if not self.calls:
            raise RecordError(
                f"no call with gradients of the recurrent layers {sorted(self.layers)}",
                "a forward pass through them, with gradients enabled, inside the block",
                "call the model in the block, outside torch.no_grad and TorchScript, in this thread, not in a reentrant "
                "checkpoint (use_reentrant=False is fine), and with the layer's own weights in torch's own forward",
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
        lag = "total" if len(reached) == 1 else "within-layer"
        return [replace(trace_of(call), bare=self._bare, lag=lag) for call in reached]

    def flow(self, **options: Any) -> Flow:
        """The exact decomposition of the recorded backward pass; options: see `throughtime.explain.explain`.

        Raises RecordError where no exact decomposition exists (nothing reached the layer, the input was changed in place,
        a second-order pass), ResidualError where the terms do not add up, InputError for NaN and infinities.
        """
        from throughtime.explain import explain

        flow = explain(self.traces(), **options)
        again = {call.layer for call in self.calls if not call.passes} - set(self.unreached)
        other = "another call of it in this step got no gradient: its state was detached, or not used"
        silent = tuple(
            Missing(f"layers.{name}", "no gradient reached it in the recorded step") for name in self.unreached
        )
        return replace(
            flow, missing=(*flow.missing, *silent, *(Missing(f"layers.{name}", other) for name in sorted(again)))
        )


class _Mode(TorchFunctionMode):
    """Shows the fused calls to a recorder."""

    def __init__(self, see: Callable) -> None:
        super().__init__()
        self.see = see

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is scan or func in _FUSED:
            return self.see(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


def _eager(function: Callable) -> Callable:
    """The function, which torch.compile leaves alone where it is in use."""
    dynamo = sys.modules.get("torch._dynamo")
    return function if dynamo is None else dynamo.disable(function)


def _arguments(func: Callable, args: tuple, layer: str) -> tuple[Cell, Tensor, list[Tensor], Weights, bool]:
    """The cell, input, initial states (each (…, H) as given), weights and batch_first of a fused call."""
    if func is scan:
        owner, x, initial, weights = args
        found = owner.cell, x, [initial], weights, False
    elif not isinstance(args[2], list | tuple) or isinstance(args[3], list | tuple):
        raise UnsupportedError(
            f"a packed sequence at layer '{layer}'",
            "a padded or equal-length batch: a tensor",
            f"pass the padded tensor without pack_padded_sequence and mask the loss, or {_LEAVE_OUT}",
        )
    else:
        x, state, flat, bias, *_ = args
        states = list(state) if isinstance(state, list | tuple) else [state]
        found = _FUSED[func], x, states, Weights(*flat[: 4 if bias else 2]), bool(args[8])
    _, x, _, weights, _ = found
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
    given = [(name, edge_of(value)) for name, value in weights.tensors().items() if value.requires_grad]
    for place, (name, edge) in enumerate(given):
        for other, same in given[:place]:
            if edge == same:
                raise UnsupportedError(
                    f"one tensor as both {other} and {name} of layer '{layer}'",
                    "a tensor for each: their gradients cannot be told apart",
                    f"give the layer two parameters (ties between layers are fine), or {_LEAVE_OUT}",
                )
    return found


def _recurrent_layers(model: nn.Module, wanted: list[str] | None) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of each layer to record; raises where one cannot be explained yet."""
    if not isinstance(model, nn.Module):
        raise InputError(
            f"a {type(model).__name__}", "an nn.Module", "pass the model itself, not its output or its weights"
        )
    if any(
        type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None
        for module in model.modules()
    ):
        raise UnsupportedError("a model under torch.compile", "an eager model", "record the model before torch.compile")
    found = {
        name or "rnn": module
        for name, module in model.named_modules(remove_duplicate=wanted is None)
        if isinstance(module, nn.RNNBase | Recurrent)
    }
    if not found:
        kinds = sorted({type(module).__name__ for module in model.modules()})
        cells = any(isinstance(module, nn.RNNCellBase) for module in model.modules())
        raise UnsupportedError(
            f"a model without nn.GRU, nn.LSTM or nn.RNN: it holds {', '.join(kinds[:8])}",
            "at least one of them",
            "single-step cells cannot be chained yet: use the fused layer"
            if cells
            else "pass the module that holds it",
        )
    if wanted is not None:
        unknown = [wanted] if isinstance(wanted, str) else sorted(set(wanted) - set(found))
        if unknown or not wanted:
            raise InputError(
                f"layers {unknown}",
                f"a list of some of {sorted(found)}",
                "name recurrent layers as named_modules() does",
            )
        found = {name: found[name] for name in wanted}
    for name, module in found.items():
        if isinstance(module, nn.RNNBase):
            _check_supported(name, module)
        yield name, module


def _check_supported(name: str, module: nn.RNNBase) -> None:
    if module.num_layers > 1:
        raise UnsupportedError(
            f"layer '{name}' with num_layers={module.num_layers}",
            "num_layers=1",
            f"write the stack as {module.num_layers} modules of one layer each, or {_LEAVE_OUT}",
        )
    if module.bidirectional:
        raise UnsupportedError(
            f"layer '{name}' with bidirectional=True", "one direction", f"use two layers, or {_LEAVE_OUT}"
        )
    if getattr(module, "proj_size", 0):
        raise UnsupportedError(
            f"layer '{name}' with proj_size={module.proj_size}", "proj_size=0", f"drop it, or {_LEAVE_OUT}"
        )
    if not isinstance(module, nn.GRU | nn.LSTM | nn.RNN):
        raise UnsupportedError(
            f"layer '{name}' of type {type(module).__name__}", "nn.GRU, nn.LSTM or nn.RNN", _LEAVE_OUT
        )
