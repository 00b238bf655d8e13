"""A CUDA device as far as a program without one can have it: tensors that say they are on it, and what would make it wait.

`EmulatedCuda` is a mode: the traces that it is given, and all that is made of them, say `device="cuda:0"`, though their
numbers lie in ordinary memory. What CUDA refuses is refused (operands on two devices), and what would make the host wait for
the device is counted: numbers read back (`.item()`, `.cpu()`, `if tensor:`, shapes that depend on numbers), arrays sent
there.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from throughtime.cells import Cell, Weights

CUDA = torch.device("cuda", 0)
ANYWHERE = {
    "__get__",
    "__set__",
    "size",
    "stride",
    "dim",
    "numel",
    "is_contiguous",
    "__len__",
    "__repr__",
    "element_size",
}
READ = {"item", "tolist", "__bool__", "__float__", "__int__", "__index__", "__contains__", "numpy", "equal", "allclose"}
SHAPED = {
    "nonzero",
    "unique",
    "unique_consecutive",
    "masked_select",
    "argwhere",
    "bincount",
    "isin",
    "repeat_interleave",
}
INDEXING = {"__getitem__", "__setitem__", "index_put_", "index_put"}


def is_there(value: object) -> bool:
    """Whether this is a tensor on the emulated device."""
    return isinstance(value, Tensor) and getattr(value, "_there", False)


class EmulatedCuda(TorchFunctionMode):
    """See above. waits: the places, "file:line in function", at which the host would wait, and how often."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        there = [value for value in given if is_there(value)]
        if name == "__get__":
            return self._attribute(func, args[0])
        wanted = kwargs.get("device")
        if name in ("to", "cpu", "cuda"):
            return self._moved(name, args, kwargs)
        if wanted is not None:
            kwargs["device"] = "cpu"
        if there and name not in ANYWHERE:
            self._check(name, args, given)
        made = func(*args, **kwargs)
        if name in READ and there:
            self._waits()
        on_device = bool(there) if wanted is None else torch.device(wanted).type == "cuda"
        if wanted is not None and on_device and name in ("tensor", "as_tensor"):
            self._waits()
        return _tagged(made) if on_device and name not in READ else made

    @staticmethod
    def _attribute(func: Any, tensor: Tensor) -> Any:
        name = func.__self__.__name__
        if is_there(tensor) and name in ("device", "is_cuda", "is_cpu"):
            return {"device": CUDA, "is_cuda": True, "is_cpu": False}[name]
        made = func(tensor)
        return _tagged(made) if is_there(tensor) else made

    def _moved(self, name: str, args: Any, kwargs: dict[str, Any]) -> Tensor:
        tensor, rest = args[0], list(args[1:])
        target = {"cpu": "cpu", "cuda": "cuda"}.get(name) or kwargs.pop("device", None)
        for place, value in enumerate(rest):
            if isinstance(value, torch.device | str):
                target = rest.pop(place)
                break
            if isinstance(value, Tensor):
                target, rest[place] = value.device, value.dtype
        to_device = is_there(tensor) if target is None else torch.device(target).type == "cuda"
        kwargs.pop("non_blocking", None)
        made = tensor.to(*rest, **kwargs) if rest or kwargs else tensor
        if to_device != is_there(tensor):
            self._waits()
            made = made.clone()
            made._there = to_device
        elif to_device:
            made = _tagged(made)
        return made

    def _check(self, name: str, args: Any, given: list[Tensor]) -> None:
        if name == "copy_":
            if is_there(args[0]) != is_there(args[1]):
                self._waits()
            return
        if name in INDEXING:
            places = [value for value in tree_leaves(args[1]) if isinstance(value, Tensor)]
            if any(is_there(place) for place in places) and not is_there(args[0]):
                raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
            if any(place.dtype == torch.bool or not is_there(place) for place in places):
                self._waits()
            given = [value for value in given if not any(value is place for place in places)]
        if name in SHAPED or (name == "where" and len(args) == 1):
            self._waits()
        if any(not is_there(value) and value.dim() for value in given):
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, found cuda:0 and cpu")
        if name in ("add_", "sub_", "mul_", "__iadd__", "__isub__", "__imul__") and not is_there(args[0]):
            raise RuntimeError(f"{name}: the result is on cpu, an operand on cuda:0")

    def _waits(self) -> None:
        for frame in reversed(traceback.extract_stack()):
            path = Path(frame.filename)
            if "torch" not in path.parts and path != Path(__file__):
                self.waits[f"{path.name}:{frame.lineno} in {frame.name}"] += 1
                return

    def put(self, value: Any) -> Any:
        """The same trace, or whatever holds tensors, with all of them on the device."""
        if isinstance(value, Tensor):
            return _tagged(value.clone())
        if isinstance(value, Weights):
            return Weights(**self.put(value.tensors()))
        if isinstance(value, Mapping):
            return {name: self.put(each) for name, each in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.put(each) for each in value)
        if is_dataclass(value) and not isinstance(value, type | Cell):
            return replace(value, **{each.name: self.put(getattr(value, each.name)) for each in fields(value)})
        return value


def _tagged(value: Any) -> Any:
    for each in tree_leaves(value):
        if isinstance(each, Tensor):
            each._there = True  # pyright: ignore[reportAttributeAccessIssue]
    return value
