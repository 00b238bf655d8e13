"""What a cell is: forward equations written once through named ports, and a closed form of their pullback.

The previous carry enters a cell through **ports**, one for each path of the derivative. All ports hold the same value, so
the derivative with respect to one port is that path and the chain rule makes the paths add up to the one-step Jacobian.
Autograd therefore gives the whole split for any cell (`pull_by_autograd`); the closed form (`factors`, `pull`) says the
same without a graph. Tests compare both, path by path, for every registered cell.

Shapes: `...` are any leading axes, H units, D inputs, S carries (1, or 2 for an LSTM), P pre-activations.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

Node = Callable[[str, Tensor], Tensor]
Tensors = dict[str, Tensor]


def unchanged(_: str, value: Tensor) -> Tensor:
    """The node that only lets a pre-activation through."""
    return value


@dataclass(frozen=True)
class Weights:
    """The arrays of one layer: weight_ih (G·H, D), weight_hh (G·H, H), biases (G·H,) or None, gates stacked."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None = None
    bias_hh: Tensor | None = None

    def tensors(self) -> Tensors:
        """Those that exist, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def into(self, x: Tensor) -> Tensor:
        """W_ih x + b_ih: (..., D) to (..., G·H)."""
        return torch.nn.functional.linear(x, self.weight_ih, self.bias_ih)

    def rows(self, gate: int, gates: int) -> tuple[Tensor, Tensor | None]:
        """The block of one gate of the recurrent weights and bias."""
        block = self.weight_hh.unflatten(0, (gates, -1))[gate]
        return block, None if self.bias_hh is None else self.bias_hh.unflatten(0, (gates, -1))[gate]


@dataclass(frozen=True)
class Product:
    """Where a parameter meets the pre-activations: its block `gates[i]` makes the pre-activation `pre[i]`.

    The immediate term of a block is the outer product of that pre-activation's adjoint with the operand: "x" (the step's
    input), a name that `Cell.operands` returns (the previous h among them), or "1" for a bias.
    """

    parameter: str
    operand: str
    gates: tuple[str, ...]
    pre: tuple[str, ...]


@dataclass(frozen=True)
class Pulled:
    """One step back.

    pre: (..., P, H), the adjoints of the pre-activations. carry: (..., S·H), the adjoint at the step before.
    paths: its parts by port, each (..., H) at the state that the port reads (`Cell.port_state`); empty if not asked for.
    """

    pre: Tensor
    carry: Tensor
    paths: Tensors


class Cell(ABC):
    """A recurrent cell: equations without weights.

    gates: blocks of the stacked weights, in order. states: the carries; the first is the layer's output. ports: the paths.
    port_state: the state that a port reads, where it is not the first. pre: pre-activations that have an adjoint of their
    own. sigmoids: those among them that are logits of gates. keep: (pre-activation, sign) of the gate σ(sign · logit) that
    multiplies the old carry, None where there is no carry port. reset: the logit of a gate that cuts the old state off.
    landing: the factors that `path_total` reads.
    """

    name: ClassVar[str]
    gates: ClassVar[tuple[str, ...]]
    states: ClassVar[tuple[str, ...]] = ("h",)
    ports: ClassVar[tuple[str, ...]]
    port_state: ClassVar[Mapping[str, str]] = {}
    pre: ClassVar[tuple[str, ...]]
    sigmoids: ClassVar[tuple[str, ...]] = ()
    products: ClassVar[tuple[Product, ...]]
    reset: ClassVar[str | None] = None
    landing: ClassVar[tuple[str, ...]] = ()

    @property
    def keep(self) -> tuple[str, int] | None:
        """See the class."""
        return None

    @property
    def convention(self) -> Mapping[str, str]:
        """What tells this cell from others of its name."""
        return {}

    @abstractmethod
    def step(self, w: Weights, x: Tensor, ports: Mapping[str, Tensor], node: Node = unchanged) -> Tensor:
        """The forward equations: x (..., D) and the carry (..., S·H) at each port, to the next carry (..., S·H).

        Every pre-activation named in `pre` goes through `node(name, value)`, and the equations go on with what it returns.
        """

    @abstractmethod
    def factors(self, w: Weights, x: Tensor, before: Tensor, after: Tensor, pre: Tensors | None = None) -> Tensors:
        """What the closed form needs of a run of steps, from the states that the forward pass returned.

        x (..., D), the carry (..., S·H) before and after each step, pre: `pre_activations` where they are at hand. No step
        loop and no graph.
        """

    @abstractmethod
    def pull(self, w: Weights, factors: Tensors, adjoint: Tensor, paths: bool = True) -> Pulled:
        """The closed-form pullback of a step: the adjoint (..., S·H) at a step, to the step before."""

    def jacobian(self, w: Weights, factors: Tensors) -> Tensor:
        """The one-step Jacobians (steps, B, S·H, S·H) of the factors' steps, rows the new carry: here row by row."""
        lead = next(iter(factors.values())).shape[:2]
        size = len(self.states) * w.weight_hh.shape[0] // len(self.gates)
        units = torch.eye(size, dtype=w.weight_hh.dtype, device=w.weight_hh.device)
        rows = [self.pull(w, factors, unit.expand(*lead, -1), paths=False).carry for unit in units]
        return torch.stack(rows, dim=-2)

    def operands(self, factors: Tensors, x: Tensor, before: Tensor) -> Tensors:
        """The arrays that `products` name, besides "1", each (..., width)."""
        return {"x": x, "h": self.output(before)}

    def output(self, carry: Tensor) -> Tensor:
        """What the layer returns of a carry (..., S·H): its first state (..., H)."""
        return carry[..., : carry.shape[-1] // len(self.states)]

    def total(self, adjoint: Tensor, factors: Tensors) -> Tensor:
        """The adjoint (..., S·H) at steps in the one space (..., H) in which paths, units and hops are told."""
        return adjoint

    def path_total(self, port: str, path: Tensor, factors: Tensors) -> Tensor:
        """A path (..., H) that ends at steps, in the space of `total`; factors of those steps, as named in `landing`."""
        return path

    def carries(self, w: Weights, x: Tensor, output: Tensor, initial: Tensor) -> Tensor:
        """All carries (T + 1, B, S·H), the initial one (B, S·H) first, from the layer's output (T, B, H)."""
        return torch.cat([initial[None], output])

    def pre_activations(self, w: Weights, x: Tensor, before: Tensor) -> Tensors:
        """All pre-activations (..., H) by name: here from the forward equations, in a cell perhaps in fewer products."""
        seen: Tensors = {}

        def keep(name: str, value: Tensor) -> Tensor:
            seen[name] = value
            return value

        self.step(w, x, dict.fromkeys(self.ports, before), keep)
        return seen


def pull_by_autograd(cell: Cell, w: Weights, x: Tensor, before: Tensor, adjoint: Tensor) -> Pulled:
    """The pullback of a step by autograd through the cell's own equations: slow, and true for any cell.

    x (..., D), the carry before the step (..., S·H), the adjoint at the step (..., S·H). Same result as `Cell.pull`.
    """
    seen: Tensors = {}

    def node(name: str, value: Tensor) -> Tensor:
        seen[name] = value
        return value

    with torch.enable_grad():
        ports = {name: before.detach().clone().requires_grad_() for name in cell.ports}
        after = cell.step(w, x.detach(), ports, node)
        wanted = [*ports.values(), *(seen[name] for name in cell.pre)]
        got = torch.autograd.grad(after, wanted, adjoint, allow_unused=True)
    filled = [torch.zeros_like(want) if grad is None else grad for want, grad in zip(wanted, got, strict=True)]
    at_ports, at_pre = filled[: len(cell.ports)], filled[len(cell.ports) :]
    places = [cell.states.index(cell.port_state.get(port, cell.states[0])) for port in cell.ports]
    paths = {
        port: split(value, len(cell.states))[place]
        for port, value, place in zip(cell.ports, at_ports, places, strict=True)
    }
    return Pulled(torch.stack(at_pre, dim=-2), torch.stack(at_ports).sum(0), paths)


def stack_gates(parts: tuple[Tensor, ...]) -> Tensor:
    """(..., K, H) of K parts (..., H), laid out in memory with K first: each part lies in one piece."""
    return torch.stack(parts).movedim(0, -2)


def split(stacked: Tensor, blocks: int) -> tuple[Tensor, ...]:
    """The blocks (..., H) of a stacked last axis (..., blocks·H)."""
    return stacked.unflatten(-1, (blocks, -1)).unbind(-2)


def tanh_slope(value: Tensor) -> Tensor:
    """tanh′ = 1 − tanh² of the value of tanh, by autograd's own kernel.

    Near saturation 1 − y·y in two roundings and in one (a fused multiply-add) differ: in float32 by 1e-4 at y = tanh(6).
    """
    return torch.ops.aten.tanh_backward(value.new_ones(()).expand_as(value), value)


def back_through(pre: Tensor, blocks: Tensor) -> Tensor:
    """Pre-activation adjoints (..., K, H) through their recurrent blocks (K, H, H): (K, ..., H), one row a block."""
    flat = pre.reshape(-1, *pre.shape[-2:]).transpose(0, 1)
    return torch.bmm(flat, blocks).reshape(blocks.shape[0], *pre.shape[:-2], blocks.shape[-1])
