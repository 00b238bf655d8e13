"""What a cell is: forward equations written once through named ports, and a closed form of their pullback.

The previous carry enters a cell through **ports**, one for each path of the derivative. All ports hold the same value, so
the derivative with respect to one port is that path and the chain rule makes the paths add up to the one-step Jacobian.
Autograd therefore gives the whole split for any cell (`pull_by_autograd`), and the gradient of any parameter
(`gradients_by_autograd`). Where speed is wanted, a closed form (`factors`, `pull`) and `products` say the same without a
graph. Tests compare both, path by path, for every registered cell.

Shapes: `...` are any leading axes, H units, D inputs, S carries (1, or 2 for an LSTM), C the width of all carries (S·H in
most cells), P pre-activations.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from throughtime.cells.activations import GATES

Node = Callable[[str, Tensor], Tensor]
Tensors = dict[str, Tensor]


def unchanged(_: str, value: Tensor) -> Tensor:
    """The node that only lets a pre-activation through."""
    return value


class Weights:
    """The arrays of one layer by name. Torch's four: weight_ih (G·H, D), weight_hh (G·H, H), biases (G·H,), gates stacked.

    A cell may read others under the names that it gives them; one that the layer lacks is None.
    """

    def __init__(
        self,
        weight_ih: Tensor | None = None,
        weight_hh: Tensor | None = None,
        bias_ih: Tensor | None = None,
        bias_hh: Tensor | None = None,
        **others: Tensor | None,
    ) -> None:
        given = {"weight_ih": weight_ih, "weight_hh": weight_hh, "bias_ih": bias_ih, "bias_hh": bias_hh, **others}
        self._tensors = {name: value for name, value in given.items() if value is not None}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._tensors.get(name)

    def tensors(self) -> Tensors:
        """Those that exist, by name."""
        return dict(self._tensors)

    def part(self, prefix: str) -> Weights:
        """The arrays whose names begin with this, without it."""
        return Weights(
            **{name[len(prefix) :]: value for name, value in self._tensors.items() if name.startswith(prefix)}
        )

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
    input), a name that `Cell.operands` returns (the previous h among them), or "1" for a bias. With `elementwise` it is
    their elementwise product, as for peepholes and gains.
    """

    parameter: str
    operand: str
    gates: tuple[str, ...]
    pre: tuple[str, ...]
    elementwise: bool = False


@dataclass(frozen=True)
class Pulled:
    """One step back.

    pre: the adjoints of the pre-activations, one tensor (..., P, H) for each of the cell's `banks`. carry: (..., C), the
    adjoint at the step before. paths: its parts by port, each (..., H) at the state that the port reads
    (`Cell.port_state`); empty if not asked for.
    """

    pre: tuple[Tensor, ...]
    carry: Tensor
    paths: Tensors


class Cell(ABC):
    """A recurrent cell: equations without weights.

    gates: blocks of the stacked weights, in order. states: the carries; the first is the layer's output. ports: the paths.
    port_state: the state that a port reads, where it is not the first. pre: pre-activations that have an adjoint of their
    own. sigmoids: those among them that are logits of gates. products: where parameters meet them; the gradient of a
    parameter that stands in none comes from autograd. keep: (pre-activation, sign) of the gate σ(sign · logit) that
    multiplies the old carry, None where there is no such gate. diagonal: whether the port "carry" multiplies the old carry
    number by number, by the factor "keep". gate: the function of the gates, σ above, of `throughtime.cells.activations`.
    reset: the logit of a gate that cuts the old state off. landing: the factors that `path_total` reads. compound: made of
    other cells, which tell units and gates themselves.
    """

    name: ClassVar[str]
    compound: ClassVar[bool] = False
    gates: ClassVar[tuple[str, ...]] = ()
    states: ClassVar[tuple[str, ...]] = ("h",)
    ports: ClassVar[tuple[str, ...]]
    port_state: ClassVar[Mapping[str, str]] = {}
    pre: ClassVar[tuple[str, ...]] = ()
    sigmoids: ClassVar[tuple[str, ...]] = ()
    products: ClassVar[tuple[Product, ...]] = ()
    reset: ClassVar[str | None] = None
    gate: str = "sigmoid"
    landing: ClassVar[tuple[str, ...]] = ()

    @property
    def keep(self) -> tuple[str, int] | None:
        """See the class."""
        return None

    @property
    def diagonal(self) -> bool:
        """See the class."""
        return self.keep is not None

    @property
    def holds(self) -> bool:
        """Whether a state goes over from step to step past the matrix products, in some part of the cell."""
        return "carry" in self.ports

    @property
    def convention(self) -> Mapping[str, str]:
        """What tells this cell from others of its name."""
        return {}

    @property
    def multiple(self) -> int:
        """Hidden units come in multiples of this."""
        return 1

    @property
    def banks(self) -> tuple[tuple[str, ...], ...]:
        """The pre-activations, those of one width together."""
        return (self.pre,) if self.pre else ()

    @abstractmethod
    def step(self, w: Weights, x: Tensor, ports: Mapping[str, Tensor], node: Node = unchanged) -> Tensor:
        """The forward equations: x (..., D) and the carry (..., C) at each port, to the next carry (..., C).

        Every pre-activation named in `pre` goes through `node(name, value)`, and the equations go on with what it returns.
        """

    def log_keep(self, w: Weights, x: Tensor, pre: Tensors) -> Tensor | None:
        """ln of the factor (..., units) by which the old carry is multiplied, or None: x (..., D), logits of the sigmoids."""
        if self.keep is None:
            return None
        name, sign = self.keep
        if self.gate == "sigmoid":
            return torch.nn.functional.logsigmoid(sign * pre[name])
        value = self.opened(pre[name])
        return torch.log(value if sign > 0 else 1 - value)

    def opened(self, logit: Tensor) -> Tensor:
        """The value of a gate at a logit."""
        return GATES[self.gate].value(logit)

    def factors(self, w: Weights, x: Tensor, before: Tensor, after: Tensor, pre: Tensors | None = None) -> Tensors:
        """What `pull` needs of a run of steps, from the states that the forward pass returned; here for autograd's pull.

        x (..., D), the carry (..., C) before and after each step, pre: `pre_activations` where they are at hand. No step
        loop and no graph.
        """
        made = {"x": x, "before": before}
        if self.diagonal:
            log_keep = self.log_keep(w, x, pre or self.pre_activations(w, x, before))
            assert log_keep is not None
            made["keep"] = log_keep.exp()
        return made

    def pull(self, w: Weights, factors: Tensors, adjoint: Tensor, paths: bool = True) -> Pulled:
        """The pullback of a step: the adjoint (..., C) at a step, to the step before. Here by autograd, in a cell perhaps
        in closed form."""
        pulled = pull_by_autograd(self, w, factors["x"], factors["before"], adjoint)
        return pulled if paths else Pulled(pulled.pre, pulled.carry, {})

    def jacobian(self, w: Weights, factors: Tensors) -> Tensor:
        """The one-step Jacobians (steps, B, C, C) of the factors' steps, rows the new carry: here row by row."""
        some = next(iter(factors.values()))
        units = torch.eye(self.carry_size(w), dtype=some.dtype, device=some.device)
        rows = [self.pull(w, factors, unit.expand(*some.shape[:2], -1), paths=False).carry for unit in units]
        return torch.stack(rows, dim=-2)

    def operands(self, factors: Tensors, x: Tensor, before: Tensor) -> Tensors:
        """The arrays that `products` name, besides "1", each (..., width)."""
        return {"x": x, "h": self.output(before)}

    def shapes(self, inputs: int, hidden: int) -> dict[str, tuple[int, ...]]:
        """The shape of every array that a layer of this cell holds, by name; those named bias… may be absent."""
        rows = len(self.gates) * hidden
        return {"weight_ih": (rows, inputs), "weight_hh": (rows, hidden), "bias_ih": (rows,), "bias_hh": (rows,)}

    def dimensions(self, w: Weights) -> tuple[int, int]:
        """(inputs, hidden) that make these arrays' `shapes`."""
        hidden = w.weight_ih.shape[0] // len(self.gates) if w.weight_hh is None else w.weight_hh.shape[1]
        return w.weight_ih.shape[1], hidden

    def carry_size(self, w: Weights) -> int:
        """C, from the weights' shapes."""
        return len(self.states) * self.dimensions(w)[1]

    def split(self, carry: Tensor) -> tuple[Tensor, ...]:
        """The states (..., H) that a carry (..., C) is made of."""
        return split(carry, len(self.states))

    def units(self, carry_size: int) -> int:
        """The number of units, told apart in the space of `total`, from C."""
        return carry_size

    def output(self, carry: Tensor) -> Tensor:
        """What the layer returns of a carry (..., C): its first state."""
        return self.split(carry)[0]

    def entering(self, gradient: Tensor) -> Tensor:
        """The part at the output of a gradient (..., C) that enters at a carry."""
        return self.output(gradient)

    def read(self, port: str, carry: Tensor) -> Tensor:
        """The part of a carry (..., C) that a port reads."""
        return self.split(carry)[self.states.index(self.port_state.get(port, self.states[0]))]

    def to_input(self, w: Weights, pre: tuple[Tensor, ...]) -> Tensor:
        """The adjoint (..., D) of a step's input, from those of its pre-activations by bank. For cells whose input enters
        by `products` alone."""
        place = {name: (bank, at) for bank, names in enumerate(self.banks) for at, name in enumerate(names)}
        parts = []
        for product in self.products:
            if product.operand == "x" and product.parameter in w.tensors():
                gates = self.blocks(product.parameter)
                blocks = w.tensors()[product.parameter].unflatten(0, (len(gates), -1))
                for gate, name in zip(product.gates, product.pre, strict=True):
                    bank, at = place[name]
                    parts.append(pre[bank][..., at, :] @ blocks[gates.index(gate)])
        return torch.stack(parts).sum(0)

    def total(self, w: Weights, adjoint: Tensor, factors: Tensors) -> Tensor:
        """The adjoint (..., C) at steps in the one space (..., H) in which paths, units and hops are told."""
        return adjoint

    def path_total(self, w: Weights, port: str, path: Tensor, factors: Tensors) -> Tensor:
        """A path (..., H) that ends at steps, in the space of `total`; factors of those steps, as named in `landing`."""
        return path

    def carries(self, w: Weights, x: Tensor, output: Tensor, initial: Tensor) -> Tensor:
        """All carries (T + 1, B, C), the initial one (B, C) first, from the layer's output (T, B, H).

        Here of a cell whose carry is its output, or else by running the equations.
        """
        if len(self.states) == 1:
            return torch.cat([initial[None], output])
        run = [initial]
        for now in x:
            run.append(self.step(w, now, dict.fromkeys(self.ports, run[-1])))
        return torch.stack(run)

    def pre_activations(self, w: Weights, x: Tensor, before: Tensor) -> Tensors:
        """All pre-activations (..., H) by name: here from the forward equations, in a cell perhaps in fewer products."""
        seen: Tensors = {}

        def keep(name: str, value: Tensor) -> Tensor:
            seen[name] = value
            return value

        self.step(w, x, dict.fromkeys(self.ports, before), keep)
        return seen

    def blocks(self, parameter: str) -> tuple[str, ...]:
        """The gates whose blocks a parameter stacks, in order; empty where its gradient comes from autograd."""
        made = {gate for product in self.products if product.parameter == parameter for gate in product.gates}
        return tuple(gate for gate in self.gates if gate in made)


def pull_by_autograd(cell: Cell, w: Weights, x: Tensor, before: Tensor, adjoint: Tensor) -> Pulled:
    """The pullback of a step by autograd through the cell's own equations: slow, and true for any cell.

    x (..., D), the carry before the step (..., C), the adjoint at the step (..., C). Same result as `Cell.pull`.
    """
    seen: Tensors = {}

    def node(name: str, value: Tensor) -> Tensor:
        # Weights take no gradient here: what is made of the input alone becomes a leaf.
        seen[name] = value if value.requires_grad else value.detach().requires_grad_()
        return seen[name]

    with torch.enable_grad():
        ports = {name: before.detach().clone().requires_grad_() for name in cell.ports}
        after = cell.step(w, x.detach(), ports, node)
        wanted = [*ports.values(), *(seen[name] for name in cell.pre)]
        got = torch.autograd.grad(after, wanted, adjoint, allow_unused=True)
    filled = [torch.zeros_like(want) if grad is None else grad for want, grad in zip(wanted, got, strict=True)]
    at_ports, at_pre = filled[: len(cell.ports)], dict(zip(cell.pre, filled[len(cell.ports) :], strict=True))
    paths = {port: cell.read(port, value) for port, value in zip(cell.ports, at_ports, strict=True)}
    pre = tuple(stack_gates(tuple(at_pre[name] for name in bank)) for bank in cell.banks)
    return Pulled(pre, torch.stack(at_ports).sum(0), paths)


def gradients_by_autograd(
    cell: Cell, w: Weights, names: Sequence[str], x: Tensor, before: Tensor, adjoint: Tensor
) -> list[Tensor]:
    """What one step gives these weights, summed over all leading axes: x (..., D), carry and adjoint (..., C)."""
    with torch.enable_grad():
        leaves = {name: w.tensors()[name].detach().clone().requires_grad_() for name in names}
        after = cell.step(Weights(**(w.tensors() | leaves)), x, dict.fromkeys(cell.ports, before))
        got = torch.autograd.grad(after, list(leaves.values()), adjoint, allow_unused=True)
    return [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves.values(), got, strict=True)]


def stack_gates(parts: tuple[Tensor, ...]) -> Tensor:
    """(..., K, H) of K parts (..., H), laid out in memory with K first: each part lies in one piece."""
    return torch.stack(parts).movedim(0, -2)


def split(stacked: Tensor, blocks: int) -> tuple[Tensor, ...]:
    """The blocks (..., H) of a stacked last axis (..., blocks·H)."""
    return stacked.unflatten(-1, (blocks, -1)).unbind(-2)


def back_through(pre: Tensor, blocks: Tensor) -> Tensor:
    """Pre-activation adjoints (..., K, H) through their recurrent blocks (K, H, H): (K, ..., H), one row a block."""
    flat = pre.reshape(-1, *pre.shape[-2:]).transpose(0, 1)
    return torch.bmm(flat, blocks).reshape(blocks.shape[0], *pre.shape[:-2], blocks.shape[-1])
