"""What is heard of a user's own training step, leaving the model exactly as it was.

A function mode sees the arrays with which the fused call really ran (parametrizations, functional_call and tied weights
included); `throughtime.recording.hooks` reads what the backward pass gave this very call. Nothing here raises inside the user's
step: what cannot be explained is told when the traces are asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from throughtime.cells.cell import Tensors
from throughtime.errors import RecordError, ThroughtimeError
from throughtime.recording import own
from throughtime.recording.calls import INPUT, Call, Form, Shared
from throughtime.recording.chains import link, mixed
from throughtime.recording.elementwise import MIXING
from throughtime.recording.fused import FUSED, SINGLE, Masks, arguments
from throughtime.recording.graph import LONG, hold
from throughtime.recording.hooks import Edges, edge_of, hook, targets_of
from throughtime.recording.layers import recurrent_layers
from throughtime.recording.passages import Passages
from throughtime.recording.ways import Ways
from throughtime.recurrent import Recurrent, scan


class Listener:
    """A context that hears one training step. calls: what was heard; layers: of which, by name."""

    def __init__(self, model: nn.Module, layers: list[str] | None = None) -> None:
        self.layers = dict(recurrent_layers(model, layers))
        self.calls: list[Call] = []
        self._bare = isinstance(model, nn.RNNBase | nn.RNNCellBase | Recurrent) or own.registered(model)
        self._refused: list[ThroughtimeError] = []
        self._handles: list[RemovableHandle] = []
        self._ways: dict[str, Ways] = {}
        self._passages = Passages()
        self._edges = Edges()
        self._tops: list[Node | None] = []
        self._running: list[str] = []
        self._mode: _Mode | None = None

    def __enter__(self) -> Self:
        if self._mode is not None:
            raise RecordError("a record that is already open", "one `with` block at a time", "make a new tt.record")
        self.calls.clear()
        self._refused.clear()
        self._ways.clear()
        self._passages.clear()
        for name, layer in self.layers.items():
            if own.registered(layer):
                self._handles += self._own(name, layer)
            elif isinstance(layer, nn.RNNCellBase):
                self._handles += _around(layer, name, self._running)
        self._mode = _Mode(_eager(self._see), _eager(self._after))
        self._mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        assert self._mode is not None
        self._mode.__exit__(*error)
        self._mode = None
        for ways in self._ways.values():
            ways.close()
        self._edges.clear()
        if sum(call.form.steps(call.x) for call in self.calls) > LONG:
            hold(self._tops)
        self._tops.clear()
        for call in self.calls:  # which hold the graph
            call.ends.clear()
            call.origins.clear()
            call.sent_to_input = None
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if error[0] is not None:
            self._passages.clear()
        else:
            self._passages.close()
            for call in self.calls:
                if call.passes:
                    call.keep_input()

    def _see(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        """Run a fused call; note what it ran with where it is that of a recorded layer."""
        layer = self._layer_of(func, args)
        if layer is None or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        try:
            form, x, initial, weights = arguments(func, args, layer, self._edges)
        except ThroughtimeError as error:
            self._refused.append(error.with_traceback(None))  # whose frames hold the graph
            return func(*args, **kwargs)
        started = self._start(layer, form, x, initial, weights)
        with Masks() if form.layers > 1 else nullcontext() as masks:
            results = func(*args, **kwargs)
        self._end(started, results if isinstance(results, tuple) else (results,), masks.seen if masks else [])
        return results

    def _after(self, made: Any) -> Any:
        """Look at what an operation of the user's made: it may hold an old state beside a new one."""
        seen = isinstance(made, Tensor) and made.grad_fn is not None
        if seen and not torch._C._are_functorch_transforms_active():
            for ways in self._ways.values():
                self._handles += mixed(made, ways)
        return made

    def _start(self, layer: str, form: Form, x: Tensor, initial: list[Tensor], weights: Tensors) -> _Started:
        """What must be noted before a call runs."""
        low = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else None
        copies = [state.detach().clone() for state in initial]
        version = None if x.is_inference() else x._version
        return _Started(layer, form, x, version, initial, copies, weights, self._shared_by(layer, weights), low)

    def _end(self, started: _Started, made: tuple[Tensor, ...], masks: list[Tensor]) -> None:
        """Keep a call that has run, and hear what comes back to it."""
        form, x, initial, weights = started.form, started.x, started.initial, started.weights
        output, low = made[0], started.low
        if not output.requires_grad:
            return
        edges = self._edges.of(weights)
        targets, told = targets_of(x, initial, edges)
        stops = {edge_of(value)[0] for value in (x, *initial) if value.requires_grad}
        stops.update(node for node, _ in edges.values())
        call = Call(
            layer=started.layer,
            form=form,
            x=x.detach() if started.version is not None else x.detach().clone(),
            version=started.version,
            initial=started.copies,
            shared=started.shared,
            results=[value.detach().clone() for value in (made if form.single else made[:1])],
            dtype=output.dtype if low is None or output.dtype == torch.float64 else low,
            expected=list(edges),
            masks=[mask.transpose(0, 1) if form.batch_first else mask for mask in masks],  # torch draws them time first
            ends=[edge_of(state) for state in (made if form.single else made[1:])],
            told=told,
        )
        ways = self._ways.setdefault(started.layer, Ways())
        self._handles += link(call, initial, ways)
        self._handles += ways.behind(call, x, initial)
        ways.add(call, output)
        if call.sent_to_input is not None:
            targets.setdefault(edge_of(x), INPUT)
        self.calls.append(call)
        self._tops += [result.grad_fn for result in made]
        if len(self.layers) > 1:
            self._passages.add(call, x, initial, made, edges)
        self._handles += hook(call, made, targets, stops)

    def _own(self, name: str, module: nn.Module) -> Iterator[RemovableHandle]:
        """Hooks around the steps of a registered cell of the user's own."""
        running: list[_Started | None] = []

        def begin(x: Any, state: Any) -> None:
            running.append(None)
            if torch.is_grad_enabled():
                try:
                    cell, states = own.cell_of(module, x, state)
                except ThroughtimeError as error:
                    self._refused.append(error)
                    return
                form = Form(cell, single=True)
                running[-1] = self._start(name, form, x, states, own.weights_of(module))

        def end(result: Any) -> None:
            started = running.pop() if running else None
            if started is not None and result is not None:
                assert isinstance(started.form.cell, own.OwnCell)
                self._end(started, own.state_of(result, started.form.cell.bare), [])

        yield from own.around(module, begin, end)

    def _shared_by(self, layer: str, weights: Tensors) -> Shared:
        """Copies of the weights: those of the layer's last call where they are still the same."""
        last = next((call.shared for call in reversed(self.calls) if call.layer == layer), None)
        if last is not None and all(torch.equal(last.weights[name], value) for name, value in weights.items()):
            return last
        return Shared({name: value.detach().clone() for name, value in weights.items()})

    def _layer_of(self, func: Callable, args: tuple) -> str | None:
        """The recorded layer that makes this call: the one whose own list of weights, or who itself, is an argument."""
        if func in SINGLE:
            return self._running[-1] if self._running else None
        for name, layer in self.layers.items():
            mine = layer if func is scan else layer.__dict__.get("_flat_weights")
            if any(each is mine for each in args):
                return name
        return None


@dataclass(slots=True)
class _Started:
    """A call before it runs. copies: of its states; low: autocast's dtype, or None."""

    layer: str
    form: Form
    x: Tensor
    version: int | None
    initial: list[Tensor]
    copies: list[Tensor]
    weights: Tensors
    shared: Shared
    low: torch.dtype | None


class _Mode(TorchFunctionMode):
    """Shows the fused calls to a recorder, and what is made by operations in which a new and an old state can meet."""

    def __init__(self, see: Callable, after: Callable) -> None:
        super().__init__()
        self.see, self.after = see, after

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is scan or func in FUSED or func in SINGLE:
            return self.see(func, args, kwargs or {})
        if func in MIXING and not torch.compiler.is_compiling():
            return self.after(func(*args, **(kwargs or {})))
        return func(*args, **(kwargs or {}))


def _eager(function: Callable) -> Callable:
    """The function, which torch.compile leaves alone where it is in use."""
    dynamo = sys.modules.get("torch._dynamo")
    return function if dynamo is None else dynamo.disable(function)


def _around(layer: nn.Module, name: str, running: list[str]) -> Iterator[RemovableHandle]:
    """Keep the name of a layer in `running` while its forward runs."""

    def begin(*_: Any) -> None:
        running.append(name)

    def end(*_: Any) -> None:
        running.pop()

    yield layer.register_forward_pre_hook(begin)
    yield layer.register_forward_hook(end, always_call=True)
