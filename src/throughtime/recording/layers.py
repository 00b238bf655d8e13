"""The recurrent layers of a model that can be recorded."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from throughtime.errors import InputError, UnsupportedError
from throughtime.recording import own
from throughtime.recording.foreign import FROM_KERAS, is_keras
from throughtime.recurrent import Recurrent

LEAVE_OUT = "name the other layers in tt.record(model, layers=[…]) to leave this one out"


def recurrent_layers(model: nn.Module, wanted: list[str] | None) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of each layer to record; raises where one cannot be explained yet."""
    if not isinstance(model, nn.Module):
        raise InputError(
            f"a {type(model).__name__}",
            "an nn.Module",
            FROM_KERAS if is_keras(model) else "pass the model itself, not its output or its weights",
        )
    if any(
        type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None
        for module in model.modules()
    ):
        raise UnsupportedError("a model under torch.compile", "an eager model", "record the model before torch.compile")
    found = {
        name or "rnn": module
        for name, module in model.named_modules(remove_duplicate=wanted is None)
        if isinstance(module, nn.RNNBase | nn.RNNCellBase | Recurrent) or own.registered(module)
    }
    cells = [f"{name}." for name, module in found.items() if own.registered(module)]
    found = {name: module for name, module in found.items() if not name.startswith(tuple(cells))}
    if not found:
        kinds = sorted({type(module).__name__ for module in model.modules()})
        raise UnsupportedError(
            f"a model without nn.GRU, nn.LSTM, nn.RNN or their cells: it holds {', '.join(kinds[:8])}",
            "at least one of them, or a registered cell",
            FROM_KERAS
            if any(map(is_keras, model.modules()))
            else "pass the module that holds it; tell a cell of your own by tt.register_cell",
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
        if isinstance(module, nn.RNNBase) and not isinstance(module, nn.GRU | nn.LSTM | nn.RNN):
            raise UnsupportedError(
                f"layer '{name}' of type {type(module).__name__}", "nn.GRU, nn.LSTM or nn.RNN", LEAVE_OUT
            )
        yield name, module
