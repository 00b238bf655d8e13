"""What a sweep hands to its reducers: adjoints of some origins at some lags, and what is made of them when it is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from throughtime.cells.cell import Pulled, Tensors, gradients_by_autograd
from throughtime.linearize import Linearization, Window
from throughtime.scaled import power_of_two

EVERYONE = slice(None)


@dataclass(frozen=True)
class Block:
    """Adjoints of R origins over L lags; row (l, r) stands at `steps[l, r]`.

    adjoint: (L, R, B, S·H), times 2^exponent (L, R, B), `DEAD` for rows that are zero. lags: (L,), None in the tail's
    stream, where lags are mixed. origins: (R,). common: (L,) one exponent a lag, of its largest row. pulled: what the sweep
    saw when it pulled these rows back, if it was kept: lag by lag, or some lags at once, along a first axis. sequences: which
    of the batch these B are. The rows of a lag may come in several blocks: `last` says that this is the last of them,
    `complete` that it is the last of its sequences.
    lags, origins and steps are on the host; at picks the same steps (L·R) along an axis of the window's arrays.
    """

    linearization: Linearization
    window: Window
    lags: Tensor | None
    origins: Tensor
    steps: Tensor
    at: slice | Tensor
    adjoint: Tensor
    exponent: Tensor
    common: Tensor
    pulled: list[Pulled] | None = None
    sequences: slice = field(default_factory=lambda: EVERYONE)
    last: bool = True
    complete: bool = True
    terms: dict[str, Tensor] = field(
        default_factory=dict
    )  # G(τ) of its rows, where a reducer has made them: see `Blocks`

    @property
    def rows(self) -> int:
        """Rows a lag, sequences told apart."""
        return self.adjoint.shape[1] * self.adjoint.shape[2]

    def take(self, array: Tensor, axis: int = 0) -> Tensor:
        """The window's array (steps, B, …) at the rows: (L, R, B, …). axis: where its steps are."""
        taken = array[(slice(None),) * axis + (self.at,)]
        return taken.unflatten(axis, self.steps.shape)

    @cached_property
    def _shift(self) -> Tensor | None:
        """(L, R, B) the power of two from a row's exponent to its lag's; None where all are known to be the same."""
        shift = self.exponent - self.common[:, None, None]
        if shift.device.type == "cpu" and not shift.any():  # on a GPU to look would make the host wait
            return None
        return power_of_two(shift, self.adjoint.dtype)

    def _align(self, rows: Tensor) -> Tensor:
        """(..., L, R, B, N) to one exponent a lag."""
        return rows if self._shift is None else rows * self._shift.unsqueeze(-1)

    @cached_property
    def aligned(self) -> Tensor:
        """(L, R, B, S·H): the adjoints, times 2^common: one exponent a lag, so that rows can be added up."""
        return self._align(self.adjoint)

    @cached_property
    def factors(self) -> Tensors:
        """The factors of the rows' steps."""
        return {name: self.take(value) for name, value in self.window.factors.items()}

    @cached_property
    def total(self) -> Tensor:
        """(L, R, B, H): the aligned adjoints in the space in which paths, units and hops are told."""
        lin = self.linearization
        return lin.cell.total(lin.trace.weights, self.aligned, self.factors)

    @cached_property
    def apart(self) -> Tensor:
        """(L, R, B, H): `total` with each row times its own 2^exponent, so that none underflows beside a larger one."""
        lin = self.linearization
        alike = self.aligned is self.adjoint
        return self.total if alike else lin.cell.total(lin.trace.weights, self.adjoint, self.factors)

    def _pull(self, paths: bool) -> Pulled:
        return self.linearization.pull(self.window, self.take, self.aligned, paths)

    @cached_property
    def pre(self) -> tuple[Tensor, ...]:
        """(L, R, B, P, H) for each bank: aligned adjoints of the pre-activations; in memory P comes first."""
        if self.pulled is None:
            made = self._pull(paths=False).pre
        else:
            banks = zip(*(each.pre for each in self.pulled), strict=True)
            made = tuple(
                self._align(self._beside([each.movedim(-2, 0) for each in bank], dim=1)).movedim(0, -2)
                for bank in banks
            )
        return tuple(bank.to(self.linearization.terms_in) for bank in made)

    @cached_property
    def sums(self) -> tuple[Tensor, ...]:
        """(P, L, H) for each bank: the adjoints of the pre-activations, added up over rows and sequences."""
        return tuple(bank.movedim(-2, 0).flatten(2, 3).sum(2) for bank in self.pre)

    def rows_by_autograd(self, rows: slice) -> list[Tensors]:
        """For each lag, the terms of the parameters that stand in none of the cell's products, of these sequences alone.

        In units of 2^common.
        """
        lin = self.linearization
        names = [name for name in lin.trace.weights.tensors() if not lin.cell.blocks(name)]
        x, before = self.take(self.window.x), self.take(self.window.before)
        return [
            dict(
                zip(
                    names,
                    gradients_by_autograd(lin.cell, lin.trace.weights, names, *(each[:, rows] for each in at_lag)),
                    strict=True,
                )
            )
            for at_lag in zip(x, before, self.aligned, strict=True)
        ]

    @cached_property
    def by_autograd(self) -> list[Tensors]:
        """The same of all sequences together."""
        return self.rows_by_autograd(slice(None))

    @cached_property
    def paths(self) -> Tensors:
        """Port → (L, R, B, H): the aligned adjoints one step back, by path."""
        if self.pulled is None or not self.pulled[0].paths:
            return self._pull(paths=True).paths
        ports = self.pulled[0].paths
        return {port: self._align(self._beside([each.paths[port] for each in self.pulled])) for port in ports}

    def _beside(self, parts: list[Tensor], dim: int = 0) -> Tensor:
        """All lags along `dim`, an axis that a part of one lag alone lacks; without a copy where there is one lag."""
        if len(parts) == len(self.adjoint):
            return parts[0].unsqueeze(dim) if len(parts) == 1 else torch.stack(parts, dim)
        whole = self.adjoint.ndim + dim
        return torch.cat([part if part.ndim == whole else part.unsqueeze(dim) for part in parts], dim)


def contiguous(places: Tensor) -> slice | Tensor:
    """What picks the places (L, R) along an axis; a slice, which costs nothing, where they follow each other."""
    flat = places.flatten()
    first, last = int(flat[0]), int(flat[-1])
    return slice(first, last + 1) if last - first == flat.numel() - 1 and 1 in places.shape else flat
