"""What cells around another cell have in common: they are read as that cell is, apart from how its carry comes to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from throughtime.cells.cell import Cell, Weights


class Wrapper(Cell):
    """cell: what runs at each step. copied: tables that are the cell's own."""

    cell: Cell
    copied: ClassVar = ("name", "gates", "pre", "sigmoids", "products", "reset", "compound", "landing", "gate")

    def __post_init__(self) -> None:
        for field in self.copied:
            object.__setattr__(self, field, getattr(self.cell, field))

    @property
    def keep(self) -> tuple[str, int] | None:
        return self.cell.keep

    @property
    def holds(self) -> bool:
        return self.cell.holds

    @property
    def convention(self) -> Mapping[str, str]:
        return self.cell.convention

    @property
    def banks(self) -> tuple[tuple[str, ...], ...]:
        return self.cell.banks

    def to_input(self, w: Weights, pre: tuple[Tensor, ...]) -> Tensor:
        return self.cell.to_input(w, pre)

    def blocks(self, parameter: str) -> tuple[str, ...]:
        return self.cell.blocks(parameter)
