"""A cell whose state may be held from outside: zoneout, padding that keeps the old state, `torch.where(on, new, old)`.

h = cell(x, p∘h₋ + q∘s₋ + u)          s = a∘h + b∘s₋

h is what the cell makes, s the state as the user carries it on; both are the carry, s first. p, q, u, a, b, each as wide as
the cell's own carry, stand after the input. In a loop over single steps p = 0 and q a mask; within a call of many steps
p = 1 and s waits for its end. The way past the cell, b, is a port of its own: "held", one for each state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from throughtime.cells.cell import Cell, Node, Pulled, Tensors, Weights, unchanged
from throughtime.cells.wrapper import Wrapper


@dataclass(frozen=True)
class Held(Wrapper):
    """cell: what runs at each step. inputs: features of its input. size: the width of its carry."""

    cell: Cell
    inputs: int
    size: int
    _stand_in: dict[str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "_stand_in", self._stand_ins())
        object.__setattr__(self, "ports", (*self.cell.ports, *self._stand_in))
        new = [f"{layer}{dot}new_{state}" for layer, dot, state in (name.rpartition(".") for name in self.cell.states)]
        object.__setattr__(self, "states", (*self.cell.states, *new))

    def _stand_ins(self) -> dict[str, str]:
        """Port of a held state → a port of the cell that reads the same state."""
        at = torch.arange(self.size)
        names = {tuple(part.tolist()): name for name, part in zip(self.cell.states, self.cell.split(at), strict=True)}
        read: dict[tuple[int, ...], str] = {}
        for port in self.cell.ports:
            read.setdefault(tuple(self.cell.read(port, at).tolist()), port)
        layers = [port.rpartition(".")[:2] for port in read.values()]
        out = {}
        for (places, port), layer in zip(read.items(), layers, strict=True):
            state = f"_{names[places].rpartition('.')[2]}" if layers.count(layer) > 1 else ""
            out[f"{''.join(layer)}held{state}"] = port
        return out

    @property
    def diagonal(self) -> bool:
        return False  # the state comes back by the held port too

    def log_keep(self, w: Weights, x: Tensor, pre: Tensors) -> Tensor | None:
        """Of the cell's gate and of what holds the state, together."""
        own, *_, take, hold = self._parts(x)
        kept = self.cell.log_keep(w, own, pre) if self.keep else None
        if kept is None or "carry" not in self.cell.ports:
            return None
        take, hold = (self.cell.read("carry", value) for value in (take, hold))
        return torch.log(take * kept.exp() + hold)

    def carry_size(self, w: Weights) -> int:
        return 2 * self.size

    def units(self, carry_size: int) -> int:
        return self.cell.units(carry_size // 2)

    def split(self, carry: Tensor) -> tuple[Tensor, ...]:
        held, new = carry.split(self.size, dim=-1)
        return *self.cell.split(held), *self.cell.split(new)

    def output(self, carry: Tensor) -> Tensor:
        return self.cell.output(carry[..., self.size :])

    def entering(self, gradient: Tensor) -> Tensor:
        return self.cell.entering(self._sum(gradient))

    def read(self, port: str, carry: Tensor) -> Tensor:
        """Of an adjoint: at the new state and at the held one together."""
        return self.cell.read(self._stand_in.get(port, port), self._sum(carry))

    def total(self, w: Weights, adjoint: Tensor, factors: Tensors) -> Tensor:
        return self.cell.total(w, self._sum(adjoint), factors)

    def path_total(self, w: Weights, port: str, path: Tensor, factors: Tensors) -> Tensor:
        return self.cell.path_total(w, self._stand_in.get(port, port), path, factors)

    def _sum(self, carry: Tensor) -> Tensor:
        held, new = carry.split(self.size, dim=-1)
        return held + new

    def _parts(self, x: Tensor) -> tuple[Tensor, ...]:
        """The cell's own input, p, q, u, a, b."""
        return x.split((x.shape[-1] - 5 * self.size, *(self.size,) * 5), dim=-1)

    def _given(self, x: Tensor, carry: Tensor) -> Tensor:
        """The carry as the cell reads it."""
        _, p, q, u, *_ = self._parts(x)
        held, new = carry.split(self.size, dim=-1)
        return p * new + q * held + u

    def step(self, w: Weights, x: Tensor, ports: Mapping[str, Tensor], node: Node = unchanged) -> Tensor:
        own, *_, take, hold = self._parts(x)
        new = self.cell.step(w, own, {port: self._given(x, ports[port]) for port in self.cell.ports}, node)
        at, old = torch.arange(self.size, device=new.device), torch.zeros_like(new)
        for port, stand_in in self._stand_in.items():
            mine = self.cell.read(stand_in, at)
            old = old.index_add(
                -1, mine, ports[port][..., : self.size].index_select(-1, mine).expand(*old.shape[:-1], -1)
            )
        return torch.cat((take * new + hold * old, new), dim=-1)

    def pre_activations(self, w: Weights, x: Tensor, before: Tensor) -> Tensors:
        return self.cell.pre_activations(w, self._parts(x)[0], self._given(x, before))

    def factors(self, w: Weights, x: Tensor, before: Tensor, after: Tensor, pre: Tensors | None = None) -> Tensors:
        own, p, q, _, take, hold = self._parts(x)
        made = self.cell.factors(w, own, self._given(x, before), after[..., self.size :], pre)
        return made | {"from_new": p, "from_held": q, "take": take, "hold": hold}

    def pull(self, w: Weights, factors: Tensors, adjoint: Tensor, paths: bool = True) -> Pulled:
        at_held, at_new = adjoint.split(self.size, dim=-1)
        p, q, past = factors["from_new"], factors["from_held"], at_held * factors["hold"]
        pulled = self.cell.pull(w, factors, at_new + at_held * factors["take"], paths)
        told = {port: path * self.cell.read(port, p + q) for port, path in pulled.paths.items()}
        if paths:
            told |= {port: self.cell.read(stand_in, past) for port, stand_in in self._stand_in.items()}
        return Pulled(pulled.pre, torch.cat((pulled.carry * q + past, pulled.carry * p), dim=-1), told)

    def operands(self, factors: Tensors, x: Tensor, before: Tensor) -> Tensors:
        return self.cell.operands(factors, self._parts(x)[0], self._given(x, before))
