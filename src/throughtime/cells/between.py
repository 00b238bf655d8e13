"""A cell whose carry passes through something on its way from step to step: a reset by `done` flags, dropout on the state.

h = cell(x, mask∘h₋ + shift)

mask and shift, each as wide as the carry, stand after the input; where a mask is zero, a new sequence begins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from throughtime.cells.cell import Cell, Node, Pulled, Tensors, Weights, unchanged
from throughtime.cells.wrapper import Wrapper


@dataclass(frozen=True)
class Between(Wrapper):
    """cell: what runs at each step. inputs: features of its input."""

    cell: Cell
    inputs: int

    copied: ClassVar = (*Wrapper.copied, "states", "ports", "port_state")

    @property
    def diagonal(self) -> bool:
        return self.cell.diagonal

    def log_keep(self, w: Weights, x: Tensor, pre: Tensors) -> Tensor | None:
        return self.cell.log_keep(w, x[..., : self.inputs], pre)

    def carry_size(self, w: Weights) -> int:
        return self.cell.carry_size(w)

    def units(self, carry_size: int) -> int:
        return self.cell.units(carry_size)

    def split(self, carry: Tensor) -> tuple[Tensor, ...]:
        return self.cell.split(carry)

    def read(self, port: str, carry: Tensor) -> Tensor:
        return self.cell.read(port, carry)

    def output(self, carry: Tensor) -> Tensor:
        return self.cell.output(carry)

    def total(self, w: Weights, adjoint: Tensor, factors: Tensors) -> Tensor:
        return self.cell.total(w, adjoint, factors)

    def path_total(self, w: Weights, port: str, path: Tensor, factors: Tensors) -> Tensor:
        return self.cell.path_total(w, port, path, factors)

    def _passed(self, x: Tensor, carry: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The cell's own input, the mask, and the carry as the cell reads it."""
        rest = x.shape[-1] - 2 * carry.shape[-1]
        own, mask, shift = x.split((rest, carry.shape[-1], carry.shape[-1]), dim=-1)
        return own, mask, mask * carry + shift

    def step(self, w: Weights, x: Tensor, ports: Mapping[str, Tensor], node: Node = unchanged) -> Tensor:
        passed = {port: self._passed(x, value) for port, value in ports.items()}
        own = next(iter(passed.values()))[0]
        return self.cell.step(w, own, {port: value[2] for port, value in passed.items()}, node)

    def pre_activations(self, w: Weights, x: Tensor, before: Tensor) -> Tensors:
        own, _, read = self._passed(x, before)
        return self.cell.pre_activations(w, own, read)

    def factors(self, w: Weights, x: Tensor, before: Tensor, after: Tensor, pre: Tensors | None = None) -> Tensors:
        own, mask, read = self._passed(x, before)
        made = self.cell.factors(w, own, read, after, pre)
        if "keep" in made:
            made["own_keep"] = made["keep"]
            made["keep"] = made["keep"] * self.cell.read("carry", mask)
        return made | {"mask": mask}

    def pull(self, w: Weights, factors: Tensors, adjoint: Tensor, paths: bool = True) -> Pulled:
        inner, mask = dict(factors), factors["mask"]
        if "keep" in inner:  # as the cell knows it: its own pull must not pass the mask twice
            inner["keep"] = inner["own_keep"]
        pulled = self.cell.pull(w, inner, adjoint, paths)
        told = {port: path * self.cell.read(port, mask) for port, path in pulled.paths.items()}
        return Pulled(pulled.pre, pulled.carry * mask, told)

    def operands(self, factors: Tensors, x: Tensor, before: Tensor) -> Tensors:
        own, _, read = self._passed(x, before)
        return self.cell.operands(factors, own, read)
