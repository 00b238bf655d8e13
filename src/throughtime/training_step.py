"""The user's loss and data in one form: `step(model, batch) -> scalar`, and a list of batches."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from itertools import islice
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from throughtime.errors import InputError

Step = Callable[[nn.Module, Any], Tensor]
MODEL_NAMES = ("model", "net", "network", "module", "m")


def as_step(loss: Callable[..., Tensor]) -> Step:
    """The user's loss as `step(model, batch)`.

    Read by its parameters: `fn(model, batch)` or `fn(model, x, y)` when the first is called model, net, network, module or m;
    otherwise a criterion, `fn(output, target)` for batches (x, y), or `fn(output)`, whose output is model(x). A torch loss
    module such as nn.CrossEntropyLoss() is a criterion.
    """
    if not callable(loss):
        raise InputError(f"a loss of type {type(loss).__name__}", "a function", "pass fn(model, batch) or a criterion")
    names = _parameters(loss)
    if names and names[0] in MODEL_NAMES:
        if len(names) > 2:
            return _scalar(lambda model, batch: loss(model, *_parts(batch)))
        return _scalar(lambda model, batch: loss(model, batch))
    if len(names) == 1:
        return _scalar(lambda model, batch: loss(model(_parts(batch)[0])))

    def criterion(model: nn.Module, batch: Any) -> Tensor:
        parts = _parts(batch)
        if len(parts) != 2:
            raise InputError(
                f"a batch of {len(parts)} part(s) for a criterion of (output, target)",
                "batches (x, y)",
                "give targets, or write the loss as fn(model, batch)",
            )
        output = model(parts[0])
        try:
            return loss(output, parts[1])
        except Exception as error:
            first = names[0] if names else "output"
            error.add_note(
                f"The loss was read as a criterion fn(output, target), for its first parameter is called {first!r}; "
                "for fn(model, batch) call it model."
            )
            raise

    return _scalar(criterion)


def _parameters(loss: Callable) -> list[str]:
    """Names of the positional parameters that must be given."""
    if isinstance(loss, nn.Module):
        loss = loss.forward
    try:
        parameters = inspect.signature(loss).parameters.values()
    except (TypeError, ValueError):  # built in, such as torch.dot
        return ["input", "target"]
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p.name for p in parameters if p.kind in positional and p.default is p.empty]
    return needed or ["input", "target"]


def _parts(batch: Any) -> list[Any]:
    return list(batch) if isinstance(batch, tuple | list) else [batch]


def _scalar(step: Step) -> Step:
    def checked(model: nn.Module, batch: Any) -> Tensor:
        value = step(model, batch)
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = (
                f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            )
            raise InputError(
                f"a loss that returns {got}",
                "a scalar tensor",
                "reduce it (.mean() or .sum()); see how a loss is read: docs/definitions.md",
            )
        return value

    return checked


def as_batches(batches: Any, limit: int | None) -> list[Any]:
    """At most `limit` batches of a loader or a list; or the one that was given. See `as_stream`."""
    return list(as_stream(batches, limit)[0])


def as_stream(batches: Any, limit: int | None) -> tuple[Iterator[Any], int | None]:
    """The batches of a loader or a list, at most `limit`, or the one that was given, as they are read; and how many, if known.

    One batch is a tensor or array, a dict, a tuple, or a list made of tensors only, as loaders yield it.
    """
    if limit is not None and (not isinstance(limit, Integral) or limit < 1):
        raise InputError(f"limit={limit}", "a whole number of batches, 1 or more", "leave it out to read all")
    if isinstance(batches, Tensor | np.ndarray | dict | tuple) or (
        isinstance(batches, list) and batches and all(isinstance(part, Tensor | np.ndarray) for part in batches)
    ):
        batches = [batches]
    elif not isinstance(batches, Iterable):
        raise InputError(
            f"batches of type {type(batches).__name__}",
            "a batch (a tensor, a tuple (x, y), a dict) or an iterable of batches",
            "pass one batch, a DataLoader or a list of (x, y)",
        )
    count = _length(batches)
    if limit is not None:
        count = count and min(count, limit)
    return _read(batches, limit), count


def _length(batches: object) -> int | None:
    """How many there are, where that is known."""
    try:
        return len(batches) if isinstance(batches, Sized) else None
    except TypeError:  # a DataLoader of an iterable data set
        return None


def _read(batches: Iterable[Any], limit: int | None) -> Iterator[Any]:
    empty = True
    for batch in islice(iter(batches), limit):
        empty = False
        yield _tensors(batch)
    if empty:
        raise InputError("no batch: the loader is empty", "at least one", "check the data set and drop_last")


def _tensors(batch: Any) -> Any:
    if isinstance(batch, np.ndarray):
        return torch.from_numpy(batch)
    if isinstance(batch, tuple | list):
        return type(batch)(_tensors(part) for part in batch) if type(batch) in (tuple, list) else batch
    return batch


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Leave parameters' gradients, buffers and the random state as they were, whatever happens inside."""
    buffers = [
        (module, name, value, None if value is None else value.detach().clone())
        for module in model.modules()
        for name, value in module._buffers.items()
    ]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    devices = [d for d in {p.device for p in model.parameters()} if d.type == "cuda"]
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
            for module, mode in modes:
                module.training = mode
            with torch.no_grad():
                for module, name, value, copy in buffers:
                    if value is not None and copy is not None and not torch.equal(value, copy):
                        value.copy_(copy)
                    module._buffers[name] = value
