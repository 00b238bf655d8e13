"""Constants of an ONNX graph that stand there rearranged: sliced, joined, reshaped initializers, computed here in numpy.

Only operators that move numbers about, in bounded memory; whatever else makes an array leaves it unknown. Source: the
operators' specification, https://onnx.ai/onnx/operators/.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from throughtime.errors import InputError
from throughtime.importers import importer

DEEPEST = 100  # operators in a chain that are followed
PLAIN = "fiub"  # kinds of numpy's own numbers


@dataclass
class Folder:
    """Arrays of a file by what makes them: an initializer or a node. left: bytes that may still be made."""

    left: int = field(default_factory=lambda: importer.LARGEST)
    _made: dict[int, tuple[Any, np.ndarray | None]] = field(default_factory=dict)

    def value(self, name: str, scope: Mapping[str, Any], depth: int = 0) -> np.ndarray | None:
        """The array of that name, None where it is not constant, or not by these operators. scope: what makes each name.

        Raises InputError for more bytes than may be made, and whatever numpy raises for an operator that does not fit.
        """
        maker = scope.get(name)
        if maker is None or depth > DEEPEST:
            return None
        if id(maker) not in self._made:
            self._made[id(maker)] = (maker, None)  # what a damaged graph makes of itself is unknown
            self._made[id(maker)] = (maker, self._make(maker, scope, depth))
        return self._made[id(maker)][1]

    def _make(self, maker: Any, scope: Mapping[str, Any], depth: int) -> np.ndarray | None:
        if not hasattr(maker, "op_type"):
            return array(maker)
        if maker.domain not in ("", "ai.onnx") or len(maker.output) != 1:
            return None
        from onnx.helper import get_attribute_value

        said = {each.name: get_attribute_value(each) for each in maker.attribute if not each.HasField("g")}
        if maker.op_type == "Constant":
            return _constant(said)
        operator = OPERATORS.get(maker.op_type)
        if operator is None:
            return None
        given = [self.value(each, scope, depth + 1) if each else None for each in maker.input]
        if not given or any(value is None for value, each in zip(given, maker.input, strict=True) if each):
            return None
        self.left -= _size(maker.op_type, given, said)
        if self.left < 0:
            raise InputError(
                f"constants of more than {importer.LARGEST:,} bytes, made by {maker.op_type}",
                "a graph whose weights fit",
                "check the file",
            )
        return operator(given, said)


def array(tensor: Any) -> np.ndarray | None:
    """An array that lies in the file itself; None for external data, and where there is none."""
    from onnx import TensorProto, numpy_helper

    if tensor is None or tensor.data_location == TensorProto.EXTERNAL:
        return None
    size = int(np.prod([float(each) for each in tensor.dims])) if tensor.dims else 1
    if size * 8 > importer.LARGEST:
        raise InputError(
            f"{tensor.name} of shape {tuple(tensor.dims)}", f"at most {importer.LARGEST:,} bytes", "check the file"
        )
    try:
        return numpy_helper.to_array(tensor).copy()  # which cannot be written to
    except Exception as error:  # lengths that do not fit, types that numpy does not have
        raise InputError(f"{tensor.name}, which cannot be read: {error}", "a whole tensor", "export it anew") from error


Given = Sequence[np.ndarray | None]
Said = Mapping[str, Any]


def _constant(said: Said) -> np.ndarray | None:
    if "value" in said:
        return array(said["value"])
    kinds = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
    return next((np.array(value, kinds[name]) for name, value in said.items() if name in kinds), None)


def _size(operator: str, given: Given, said: Said) -> int:
    """Bytes that the operator makes anew, before it makes them."""
    data = _operand(given)
    if operator == "Concat":
        return sum(each.nbytes for each in given if each is not None)
    if operator == "Gather" and len(given) > 1 and given[1] is not None:
        rows = data.shape[said.get("axis", 0)]
        return given[1].size * (data.nbytes // rows if rows else 0)
    return {"Cast": 16 * data.size, "Reshape": data.nbytes}.get(operator, 0)


def _operand(given: Given, place: int = 0) -> np.ndarray:
    value = given[place]
    if value is None:
        raise IndexError(f"no operand {place}")
    return value


def _numbers(given: Given, said: Said, place: int, name: str) -> list[int] | None:
    """Whole numbers that are an operand or an attribute, by the version of the operator."""
    value = given[place] if len(given) > place and given[place] is not None else said.get(name)
    return None if value is None else [int(each) for each in np.ravel(value)]


def _slice(given: Given, said: Said) -> np.ndarray:
    data, names = _operand(given), ("starts", "ends", "axes", "steps")
    starts, ends, axes, steps = (_numbers(given, said, place, name) for place, name in enumerate(names, 1))
    if starts is None or ends is None:
        raise IndexError("a slice without bounds")
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    cut: list[slice] = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        cut[axis] = slice(start, end, step)
    return data[tuple(cut)]


def _reshape(given: Given, said: Said) -> np.ndarray:
    data, wanted = _operand(given), _numbers(given, said, 1, "shape")
    if wanted is None:
        raise IndexError("no shape")
    if not said.get("allowzero", 0):
        wanted = [data.shape[place] if each == 0 else each for place, each in enumerate(wanted)]
    return data.reshape(wanted)


def _unsqueeze(given: Given, said: Said) -> np.ndarray:
    axes = _numbers(given, said, 1, "axes")
    if axes is None:
        raise IndexError("no axes")
    return np.expand_dims(_operand(given), tuple(axes))


def _squeeze(given: Given, said: Said) -> np.ndarray:
    axes = _numbers(given, said, 1, "axes")
    return np.squeeze(_operand(given), None if axes is None else tuple(axes))


def _cast(given: Given, said: Said) -> np.ndarray | None:
    from onnx.helper import tensor_dtype_to_np_dtype

    kind = tensor_dtype_to_np_dtype(said["to"])
    return _operand(given).astype(kind) if kind.kind in PLAIN else None


def _concat(given: Given, said: Said) -> np.ndarray:
    return np.concatenate([_operand(given, place) for place in range(len(given))], axis=said["axis"])


def _gather(given: Given, said: Said) -> np.ndarray:
    return np.take(_operand(given), _operand(given, 1), axis=said.get("axis", 0))


OPERATORS: Mapping[str, Callable[[Given, Said], np.ndarray | None]] = {
    "Identity": lambda given, said: given[0],
    "Slice": _slice,
    "Concat": _concat,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Transpose": lambda given, said: np.transpose(_operand(given), said.get("perm")),
    "Reshape": _reshape,
    "Cast": _cast,
    "Gather": _gather,
}
