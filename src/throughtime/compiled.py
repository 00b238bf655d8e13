"""Chunks of steps back as one compiled function (torch.compile): fewer calls from Python, and elementwise work fused.

Where a chunk cannot be compiled (no C++ compiler, an operation that the compiler does not know) the sweep takes its steps one
by one, with the same results, and says why once. Many rows at once are not compiled: there the products dominate.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from types import FunctionType

import torch
from torch import Tensor

from throughtime.cells.cell import Cell, Pulled, Tensors, Weights
from throughtime.linearize import Linearization, Window
from throughtime.scaled import Chunk

STEPS = 12  # of a chunk, two in a run of `scaled.march`

_failed: set[Cell] = set()  # what this process could not compile; it is not tried again
_said: set[str] = set()


def chunk_of(lin: Linearization, window: Window, rows: Tensor, paths: bool, entering: bool = False) -> Chunk | None:
    """Steps back from the window's last, `STEPS` at once; None where they are to be taken one by one.

    rows: (1, B, C), like those that will be taken back. entering: whether others are added before each step. What is kept of
    a chunk has an axis for its steps, in their order in time.
    """
    length = window.last - window.first
    if not lin.compile or length <= STEPS:
        return None
    if lin.derivative == "autograd":
        _say("derivative='autograd', which runs the cell's equations; expected 'closed'; do this: leave derivative out")
        return None
    if not _closed(lin.cell):
        _say(
            f"cell '{lin.cell.name}', whose pullback is autograd's; expected a closed form; do this: leave compile out"
        )
        return None
    if lin.cell in _failed:
        return None
    weights, factors = lin.trace.weights.tensors(), window.factors
    layout = tuple(_layout(arrays) for arrays in (weights, {name: value[0] for name, value in factors.items()}))
    back = _back(lin.cell, paths, entering, (*layout, _layout({"rows": rows})))
    if not back.tried:
        back.prepare(weights, factors, rows)
    if not back.works:
        return None

    def take(turn: int, rows: Tensor, added: Tensor | None) -> tuple[list[Tensor], Pulled, Tensor]:
        passed, pulled = back(weights, {name: value[: length - turn] for name, value in factors.items()}, rows, added)
        return passed, pulled, pulled.carry

    return Chunk(STEPS, take)


class _Back:
    """`STEPS` steps back of one cell, with arrays of one layout."""

    def __init__(self, cell: Cell, paths: bool, entering: bool) -> None:
        def back(weights: Tensors, factors: Tensors, rows: Tensor, added: Tensor | None) -> tuple[list[Tensor], Pulled]:
            """From the last step of the factors (steps, B, …): the rows at each of the steps, and what was pulled."""
            w, passed, pulled = Weights(**weights), [], []
            for turn in range(STEPS):
                rows = rows if added is None else rows + added[turn]
                passed.append(rows)
                at = {name: value[len(value) - 1 - turn : len(value) - turn] for name, value in factors.items()}
                pulled.append(cell.pull(w, at, rows, paths))
                rows = pulled[-1].carry
            pulled.reverse()
            banks = zip(*[each.pre for each in pulled], strict=True)
            pre = tuple([torch.stack([each.movedim(-2, 0) for each in bank], 1).movedim(0, -2) for bank in banks])
            told = {port: torch.stack([each.paths[port] for each in pulled]) for port in pulled[0].paths}
            return passed, Pulled(pre, rows, told)

        # A code object of its own: torch counts compilations by it, and would stop after some layouts.
        own = FunctionType(back.__code__.replace(), back.__globals__, back.__name__, None, back.__closure__)
        self.cell, self.entering, self.plain = cell, entering, back
        # A whole graph or an error, never step by step in silence; called without Python between its operations.
        self.compiled = torch.compile(own, fullgraph=True, options={"cpp_wrapper": True})
        self.tried = self.works = False

    def prepare(self, weights: Tensors, factors: Tensors, rows: Tensor) -> None:
        """Compile for factors of any number of steps, by a first call."""
        self.tried = self.works = True
        # Not of all steps, for strides that fit the number of steps would be taken to follow it.
        shorter = {name: value[:-1] for name, value in factors.items()}
        for value in shorter.values():
            torch._dynamo.mark_dynamic(value, 0)
        added = rows.new_zeros(STEPS, *rows.shape) if self.entering else None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the compiler's own
                self.compiled(weights, shorter, rows, added)
        except Exception as error:  # the compiler's, of any kind; the step's own comes again from the plain way
            self._fail(error)

    def __call__(
        self, weights: Tensors, factors: Tensors, rows: Tensor, added: Tensor | None
    ) -> tuple[list[Tensor], Pulled]:
        if self.works:
            try:
                return self.compiled(weights, factors, rows, added)
            except Exception as error:  # likewise: arrays of a new layout are compiled anew
                self._fail(error)
        return self.plain(weights, factors, rows, added)

    def _fail(self, error: Exception) -> None:
        self.works = False
        _failed.add(self.cell)
        first = str(error).strip().partition("\n")[0]
        _say(
            f"{type(error).__name__}: {first}; expected a C++ compiler, and a cell that torch.compile takes; "
            "do this: install g++ or clang, or leave compile out"
        )


@lru_cache(maxsize=64)
def _back(cell: Cell, paths: bool, entering: bool, layout: object) -> _Back:
    return _Back(cell, paths, entering)


def _closed(cell: Cell) -> bool:
    """Whether the pullback of a cell, and of all that it is made of, is written out."""
    parts = [each for value in vars(cell).values() for each in (value if isinstance(value, tuple) else (value,))]
    return type(cell).pull is not Cell.pull and all(_closed(part) for part in parts if isinstance(part, Cell))


def _layout(arrays: Tensors) -> tuple[object, ...]:
    return tuple((name, value.shape, value.dtype, value.device) for name, value in arrays.items())


def _say(got: str) -> None:
    """Warn, once in a process, that steps are taken one by one."""
    if got not in _said:
        _said.add(got)
        warnings.warn(f"compile=True: got {got}. Steps are taken one by one, with the same results", stacklevel=2)
