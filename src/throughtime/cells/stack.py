"""A stack of cells as one cell: each layer reads the new output of the one below, at the same step.

Its carry holds all layers' carries side by side, so the sweep of a stack is the sweep of a cell, and a lag counts steps
through the whole stack: what a layer's pre-activations pass down to their input enters the layer below at the same step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from throughtime.cells.cell import Cell, Node, Pulled, Tensors, Weights, unchanged


@dataclass(frozen=True)
class Stack(Cell):
    """Layers from the lowest; names of the layer k = 0, 1, … begin with "l{k}.".

    sizes: the widths of their carries. inputs: features of the lowest layer's input. dropout: whether what the upper layers
    read is multiplied by masks, which stand after the input, layer by layer from 1.
    """

    cells: tuple[Cell, ...]
    sizes: tuple[int, ...]
    inputs: int
    dropout: bool = False

    compound = True

    def __post_init__(self) -> None:
        def named(field: str) -> tuple[str, ...]:
            return tuple(f"l{k}.{name}" for k, cell in enumerate(self.cells) for name in getattr(cell, field))

        fields: dict[str, object] = {field: named(field) for field in ("gates", "states", "ports", "pre", "landing")}
        fields["products"] = tuple(
            replace(
                each,
                parameter=f"l{k}.{each.parameter}",
                operand="1" if each.operand == "1" else f"l{k}.{each.operand}",
                gates=tuple(f"l{k}.{gate}" for gate in each.gates),
                pre=tuple(f"l{k}.{pre}" for pre in each.pre),
            )
            for k, cell in enumerate(self.cells)
            for each in cell.products
        )
        kinds = {cell.name for cell in self.cells}
        fields["name"] = kinds.pop() if len(kinds) == 1 else "stack"
        for field, value in fields.items():
            object.__setattr__(self, field, value)

    @property
    def holds(self) -> bool:
        return any(cell.holds for cell in self.cells)

    @property
    def convention(self) -> Mapping[str, str]:
        return {"layers": str(len(self.cells)), **self.cells[-1].convention}

    @property
    def banks(self) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(f"l{k}.{name}" for name in bank) for k, cell in enumerate(self.cells) for bank in cell.banks)

    def carry_size(self, w: Weights) -> int:
        return sum(self.sizes)

    def units(self, carry_size: int) -> int:
        return sum(cell.units(size) for cell, size in zip(self.cells, self.sizes, strict=True))

    def split(self, carry: Tensor) -> tuple[Tensor, ...]:
        parts = zip(self.cells, carry.split(self.sizes, dim=-1), strict=True)
        return tuple(state for cell, part in parts for state in cell.split(part))

    def output(self, carry: Tensor) -> Tensor:
        return self.cells[-1].output(carry.split(self.sizes, dim=-1)[-1])

    def read(self, port: str, carry: Tensor) -> Tensor:
        k, own = self._layer(port)
        return self.cells[k].read(own, carry.split(self.sizes, dim=-1)[k])

    def step(self, w: Weights, x: Tensor, ports: Mapping[str, Tensor], node: Node = unchanged) -> Tensor:
        into, after = x[..., : self.inputs], []
        for k, cell in enumerate(self.cells):
            own = {port: ports[f"l{k}.{port}"].split(self.sizes, dim=-1)[k] for port in cell.ports}
            if k:
                into = self._masked(self.cells[k - 1].output(after[-1]), x, k)
            after.append(cell.step(w.part(f"l{k}."), into, own, lambda name, value, k=k: node(f"l{k}.{name}", value)))
        return torch.cat(after, dim=-1)

    def factors(self, w: Weights, x: Tensor, before: Tensor, after: Tensor, pre: Tensors | None = None) -> Tensors:
        befores, afters = before.split(self.sizes, dim=-1), after.split(self.sizes, dim=-1)
        made, into = {}, x[..., : self.inputs]
        for k, cell in enumerate(self.cells):
            if k:
                into = self._masked(self.cells[k - 1].output(afters[k - 1]), x, k)
                made[f"l{k}.in"] = into
                if self.dropout:
                    made[f"l{k}.mask"] = self._mask(x, k)
            own = cell.factors(w.part(f"l{k}."), into, befores[k], afters[k])
            made |= {f"l{k}.{name}": value for name, value in own.items()}
        return made

    def pull(self, w: Weights, factors: Tensors, adjoint: Tensor, paths: bool = True) -> Pulled:
        at = list(adjoint.split(self.sizes, dim=-1))
        pre: list[Tensor] = []
        carries: list[Tensor] = []
        told: Tensors = {}
        for k in reversed(range(len(self.cells))):
            cell, own = self.cells[k], w.part(f"l{k}.")
            pulled = cell.pull(own, _of(factors, k), at[k], paths)
            pre[:0], carries[:0] = pulled.pre, [pulled.carry]
            told |= {f"l{k}.{port}": path for port, path in pulled.paths.items()}
            if k:
                below = cell.to_input(own, pulled.pre)
                below = below * factors[f"l{k}.mask"] if self.dropout else below
                at[k - 1] = at[k - 1].clone()
                self.cells[k - 1].output(at[k - 1]).add_(below)
        return Pulled(tuple(pre), torch.cat(carries, dim=-1), {port: told[port] for port in self.ports if port in told})

    def operands(self, factors: Tensors, x: Tensor, before: Tensor) -> Tensors:
        made = {}
        for k, (cell, own) in enumerate(zip(self.cells, before.split(self.sizes, dim=-1), strict=True)):
            into = factors[f"l{k}.in"] if k else x[..., : self.inputs]
            made |= {f"l{k}.{name}": value for name, value in cell.operands(_of(factors, k), into, own).items()}
        return made

    def total(self, w: Weights, adjoint: Tensor, factors: Tensors) -> Tensor:
        parts = zip(self.cells, adjoint.split(self.sizes, dim=-1), strict=True)
        return torch.cat(
            [cell.total(w.part(f"l{k}."), part, _of(factors, k)) for k, (cell, part) in enumerate(parts)], dim=-1
        )

    def path_total(self, w: Weights, port: str, path: Tensor, factors: Tensors) -> Tensor:
        k, own = self._layer(port)
        told = self.cells[k].path_total(w.part(f"l{k}."), own, path, _of(factors, k))
        widths = [cell.units(size) for cell, size in zip(self.cells, self.sizes, strict=True)]
        return torch.nn.functional.pad(told, (sum(widths[:k]), sum(widths[k + 1 :])))

    @staticmethod
    def _layer(port: str) -> tuple[int, str]:
        layer, _, own = port.partition(".")
        return int(layer[1:]), own

    def _mask(self, x: Tensor, k: int) -> Tensor:
        """What the input of layer k ≥ 1 is multiplied by: all masks are as wide as the outputs below."""
        return x[..., self.inputs :].unflatten(-1, (len(self.cells) - 1, -1))[..., k - 1, :]

    def _masked(self, below: Tensor, x: Tensor, k: int) -> Tensor:
        return below * self._mask(x, k) if self.dropout else below


def _of(factors: Tensors, k: int) -> Tensors:
    """The factors of layer k under their own names."""
    start = f"l{k}."
    return {name[len(start) :]: value for name, value in factors.items() if name.startswith(start)}
