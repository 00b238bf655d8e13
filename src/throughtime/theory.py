"""The cell of "How GRU solves vanishing gradient" (Cross Validated 556070) in its own notation, and what is asked of it.

    z_i = σ(W_z h_{i−1} + U_z x_i + b_z)          r_i = σ(W_r h_{i−1} + U_r x_i + b_r)
    h̃_i = tanh(W_h (r_i ∘ h_{i−1}) + U_h x_i + b_h)
    h_i = z_i ∘ h_{i−1} + (1 − z_i) ∘ h̃_i

Cho et al. 2014, arXiv:1406.1078v3: z keeps, the reset gate acts before the matrix product. The gradient of a loss at step t,

    ∂L_t/∂θ = Σ_{k=1..t} ∂L_t/∂h_t (∏_{i=k+1..t} ∂h_i/∂h_{i−1}) ∂⁺h_k/∂θ,

is a sum over k of a **transport**, the product of one-step Jacobians, times an **immediate** derivative ∂⁺h_k/∂θ, in which
h_{k−1} is held fixed. Both are here as the matrices that the question writes, for one sequence: to teach and to check. For
a network of your own use `throughtime.record`.

Everything is written with 1 − σ(a) as σ(−a), so that z(1 − z) and 1 − z stay right where z itself rounds to 1 (in float32
from a logit of 17 on); autograd's z(1 − z) is 0 there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from throughtime.errors import InputError
from throughtime.scaled import norms

PARAMETERS = ("U_z", "U_r", "U_h", "W_z", "W_r", "W_h", "b_z", "b_r", "b_h")
PATHS = ("carry", "update", "candidate", "reset")
CASES: Mapping[str, Mapping[str, int]] = {"z=1": {"z": 1}, "z=0,r=1": {"z": -1, "r": 1}, "z=r=0": {"z": -1, "r": -1}}
"""The question's three cases: the sign of what is added to the logit of each gate."""


def case(name: str, strength: float) -> dict[str, float]:
    """What drives a `ChoGRU` towards one of the question's `CASES`: `strength` is added to or taken from the gates' logits.

    At strength b a gate is within about e^(−b) of its limit; no finite one reaches it. Pass it on as
    `cell.run(x, **case("z=1", 8))`.

    Raises InputError: a case of another name.
    """
    if name not in CASES:
        raise InputError(f"the case {name!r}", f"one of {', '.join(CASES)}", "pass one of them")
    return {gate: sign * strength for gate, sign in CASES[name].items()}


@dataclass(frozen=True, eq=False)
class ChoGRU:
    """The question's cell: H units, D inputs. W_z, W_r, W_h: (H, H); U_z, U_r, U_h: (H, D); b_z, b_r, b_h: (H,)."""

    W_z: Tensor
    W_r: Tensor
    W_h: Tensor
    U_z: Tensor
    U_r: Tensor
    U_h: Tensor
    b_z: Tensor
    b_r: Tensor
    b_h: Tensor

    @classmethod
    def random(
        cls, units: int, inputs: int, seed: int = 0, gain: float = 1.0, dtype: torch.dtype = torch.float64
    ) -> ChoGRU:
        """Drawn as torch.nn.GRU draws: every entry from U(−1/√H, 1/√H); gain multiplies W_z, W_r and W_h."""
        generator = torch.Generator().manual_seed(seed)
        widths = {"W": (units,), "U": (inputs,), "b": ()}

        def draw(kind: str) -> Tensor:
            uniform = torch.rand(units, *widths[kind], generator=generator, dtype=dtype)
            return (2 * uniform - 1) / units**0.5 * (gain if kind == "W" else 1.0)

        return cls(**{f"{kind}_{gate}": draw(kind) for kind in widths for gate in "zrh"})

    def run(self, x: Tensor, h0: Tensor | None = None, z: float | Tensor = 0.0, r: float | Tensor = 0.0) -> Run:
        """Forward through x (T, D), from h0 (H,), default zero.

        z, r: added to the logits of the gates, a number or a tensor that broadcasts to (T, H): gates are driven through their
        logits and are never overwritten, so that every derivative is that of a GRU.

        Raises InputError: x, h0 or forces that do not fit the weights, in shape or dtype; no step at all.
        """
        (units, inputs), dtype = self.U_h.shape, self.U_h.dtype
        if x.ndim != 2 or x.shape[1] != inputs or not len(x) or x.dtype != dtype:
            raise _misfit("x", x, f"(T, {inputs}), T ≥ 1, of {dtype}", "pass one sequence, time first")
        if h0 is not None and (h0.shape != (units,) or h0.dtype != dtype):
            raise _misfit("h0", h0, f"({units},) of {dtype}", "pass the state of one sequence")
        steps, forces = len(x), []
        for name, given in (("z", z), ("r", r)):
            force = torch.as_tensor(given, dtype=dtype)
            if force.ndim > 2 or any(
                mine not in (1, whole) for mine, whole in zip(force.shape[::-1], (units, steps), strict=False)
            ):
                raise _misfit(name, force, f"what broadcasts to ({steps}, {units})", "force[:, None] for one a step")
            forces.append(force.expand(steps, units))
        force_z, force_r = forces
        h = [x.new_zeros(units) if h0 is None else h0]
        logits_z, logits_r, candidates = [], [], []
        for i in range(steps):
            a_z = self.W_z @ h[-1] + self.U_z @ x[i] + self.b_z + force_z[i]
            a_r = self.W_r @ h[-1] + self.U_r @ x[i] + self.b_r + force_r[i]
            candidate = torch.tanh(self.W_h @ (torch.sigmoid(a_r) * h[-1]) + self.U_h @ x[i] + self.b_h)
            h.append(torch.sigmoid(a_z) * h[-1] + torch.sigmoid(-a_z) * candidate)
            logits_z.append(a_z)
            logits_r.append(a_r)
            candidates.append(candidate)
        return Run(self, x, torch.stack(h), *(torch.stack(each) for each in (logits_z, logits_r, candidates)))


@dataclass(frozen=True, eq=False)
class Run:
    """A forward pass of T steps. x: (T, D). h: (T + 1, H), h[0] the initial state. logits_z, logits_r, candidate: (T, H).

    Index i − 1 of an array by step is the question's step i.
    """

    cell: ChoGRU
    x: Tensor
    h: Tensor
    logits_z: Tensor
    logits_r: Tensor
    candidate: Tensor

    @property
    def z(self) -> Tensor:
        """(T, H): the update gate, which keeps."""
        return torch.sigmoid(self.logits_z)

    @property
    def r(self) -> Tensor:
        """(T, H): the reset gate."""
        return torch.sigmoid(self.logits_r)

    @cached_property
    def _slopes(self) -> tuple[Tensor, Tensor, Tensor]:
        """(T, H) each: ∂h/∂a_z, ∂h/∂a_h and ∂(r∘h₋)/∂a_r, the derivatives by the logits of z, h̃ and r."""
        take = torch.sigmoid(-self.logits_z)
        by_z = (self.h[:-1] - self.candidate) * self.z * take
        by_h = take * (1 - self.candidate.square())
        by_r = self.h[:-1] * self.r * torch.sigmoid(-self.logits_r)
        return by_z, by_h, by_r

    @cached_property
    def paths(self) -> dict[str, Tensor]:
        """(T, H, H) by name: the four paths of ∂h_i/∂h_{i−1}, rows the new state.

        carry      diag(z)
        update     diag((h₋ − h̃) z (1 − z)) W_z
        candidate  diag((1 − z)(1 − h̃²)) W_h diag(r)
        reset      diag((1 − z)(1 − h̃²)) W_h diag(h₋ r (1 − r)) W_r
        """
        cell = self.cell
        by_z, by_h, by_r = self._slopes
        into = by_h[:, :, None] * cell.W_h
        return {
            "carry": torch.diag_embed(self.z),
            "update": by_z[:, :, None] * cell.W_z,
            "candidate": into * self.r[:, None, :],
            "reset": (into * by_r[:, None, :]) @ cell.W_r,
        }

    @cached_property
    def jacobians(self) -> Tensor:
        """(T, H, H): ∂h_i/∂h_{i−1}, the sum of the four paths."""
        return torch.stack(list(self.paths.values())).sum(0)

    def transport(self, t: int | None = None) -> Tensor:
        """(t, H, H): ∏_{i=k+1..t} ∂h_i/∂h_{i−1} by lag t − k; lag 0 is the empty product, the identity. t: default T."""
        t = self._step(t)
        products = [torch.eye(self.h.shape[1], dtype=self.h.dtype)]
        for k in range(t - 1, 0, -1):
            products.append(products[-1] @ self.jacobians[k])  # J_{k+1} stands at index k
        return torch.stack(products)

    def immediate(self, parameter: str) -> tuple[Tensor, Tensor]:
        """∂⁺h_k/∂θ of all steps as matrix (T, H, H) and operand (T, N): ∂⁺h_k/∂θ[j, n] = matrix[:, j] · operand[n].

        z: diag((h₋ − h̃) z (1 − z)); h: diag((1 − z)(1 − h̃²)); r: diag((1 − z)(1 − h̃²)) W_h diag(h₋ r (1 − r)). The operand
        is x_k for U, h_{k−1} for W (r_k ∘ h_{k−1} for W_h), 1 for b.

        Raises InputError: a parameter of another name.
        """
        if parameter not in PARAMETERS:
            raise InputError(f"the parameter {parameter!r}", f"one of {', '.join(PARAMETERS)}", "pass one of them")
        kind, gate = parameter.split("_")
        by_z, by_h, by_r = self._slopes
        if gate == "r":
            matrix = by_h[:, :, None] * self.cell.W_h * by_r[:, None, :]
        else:
            matrix = torch.diag_embed(by_z if gate == "z" else by_h)
        before = self.h[:-1]
        operands = {"U": self.x, "W": self.r * before if gate == "h" else before, "b": torch.ones_like(before[:, :1])}
        return matrix, operands[kind]

    def terms(self, parameter: str, gradient: Tensor, t: int | None = None) -> Terms:
        """∂L_t/∂θ term by term. parameter: of `PARAMETERS`. gradient: ∂L_t/∂h_t (H,). t: default T.

        Raises InputError: a gradient of another shape, a step that is not there, a parameter of another name.
        """
        t = self._step(t)
        if gradient.shape != self.h[0].shape or gradient.dtype != self.h.dtype:
            expected = f"({self.h.shape[1]},) of {self.h.dtype}"
            raise _misfit("gradient", gradient, expected, "pass ∂L_t/∂h_t of one sequence")
        matrix, operand = (each[:t].flip(0) for each in self.immediate(parameter))
        return Terms(parameter, gradient @ self.transport(t), matrix, operand)

    def _step(self, t: int | None) -> int:
        steps = self.x.shape[0]
        if t is not None and (not isinstance(t, int) or not 1 <= t <= steps):
            raise InputError(f"t={t}", f"1 to {steps}", "steps are counted from 1, as in the question")
        return steps if t is None else t


@dataclass(frozen=True, eq=False)
class Terms:
    """The terms of ∂L_t/∂θ by lag t − k: index 0 is k = t.

    transport: (t, H), ∂L_t/∂h_t ∏ ∂h_i/∂h_{i−1}, which is ∂L_t/∂h_k. matrix (t, H, H), operand (t, N): the immediate ∂⁺h_k/∂θ,
    as `Run.immediate` has it.
    """

    parameter: str
    transport: Tensor
    matrix: Tensor
    operand: Tensor

    @cached_property
    def values(self) -> Tensor:
        """(t, H, N): the terms, transport times immediate. For a bias N = 1."""
        at_logits = (self.transport[:, None, :] @ self.matrix)[:, 0]
        return at_logits[:, :, None] * self.operand[:, None, :]

    @property
    def total(self) -> Tensor:
        """(H, N): ∂L_t/∂θ."""
        return self.values.sum(0)

    @property
    def share(self) -> Tensor:
        """(t,): ⟨term, ∂L_t/∂θ⟩ / ⟨∂L_t/∂θ, ∂L_t/∂θ⟩, signed, adding up to 1; NaN where ∂L_t/∂θ is exactly 0."""
        scaled = self.values / self.values.abs().max()  # squares of what is tiny would be 0
        total = scaled.sum(0)
        return (scaled * total).sum((1, 2)) / total.square().sum()

    @property
    def norm(self) -> Tensor:
        """(t,): Frobenius norm of each term."""
        return norms(self.values.flatten(1))

    @property
    def transport_norm(self) -> Tensor:
        """(t,): ‖∂L_t/∂h_k‖."""
        return norms(self.transport.flatten(1))

    @property
    def immediate_norm(self) -> Tensor:
        """(t,): ‖∂⁺h_k/∂θ‖, over all units and entries of θ."""
        return norms(self.matrix.flatten(1)) * norms(self.operand.flatten(1))

    @property
    def by_unit(self) -> Tensor:
        """(t, H): Σ_n |term[j, n]|, what each term puts into row j of θ."""
        return self.values.abs().sum(-1)


def _misfit(name: str, got: Tensor, expected: str, do: str) -> InputError:
    return InputError(f"{name} of shape {tuple(got.shape)}, {got.dtype}", expected, do)
