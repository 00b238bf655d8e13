"""Slow, obvious ground truth for the decomposition. It shares no formula with the library.

Every step and every sequence gets its own copy of the parameters: autograd's gradient of copy k, for the part of the loss
that enters at step t alone, is the term G[t, k]. Forward equations are written here from the papers and torch's
documentation; a registered cell that has none here runs through its own `step`, which the contract of cells compares.

A forward pass here goes through a **core**: the state from which the layer's output is read. For GRU and Elman it is h. For
an LSTM it is c, read as h = o∘tanh(c); the gradient of c with h below it is the total cell adjoint d, by definition.

Shapes: T steps, B sequences, H units. Indices of steps are 0-based; an array with T + 1 steps has the initial state first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from throughtime.cells import Cell, Weights

Parameters = Mapping[str, Tensor]  # by name, each (B, …): one copy a sequence


def affine(w: Parameters, side: str, value: Tensor) -> Tensor:
    """W value + b of one side ("ih" or "hh"), sequence by sequence: (B, G·H)."""
    product = (w[f"weight_{side}"] @ value[:, :, None])[:, :, 0]
    return product + w[f"bias_{side}"] if f"bias_{side}" in w else product


@dataclass
class Moved:
    """One step forward: the core (B, H), what reads h from it, and the pre-activations of the gates."""

    core: Tensor
    read: Callable[[Tensor], Tensor]
    logits: dict[str, Tensor] = field(default_factory=dict)
    keep: Tensor | None = None


Gate = Callable[[Tensor], Tensor]
Step = Callable[[Parameters, Tensor, Mapping[str, tuple[Tensor, Tensor]]], Moved]


def drawn(cell: Cell, inputs: int, hidden: int, normal: Callable[..., Tensor], bias: bool = True) -> dict[str, Tensor]:
    """Arrays of the cell's shapes, each by `normal(*shape)`; without bias, those that may be absent are."""
    shapes = cell.shapes(inputs, hidden * cell.multiple)
    return {name: normal(*shape) for name, shape in shapes.items() if bias or not name.startswith("bias")}


def widths(cell: Cell, w: Weights) -> list[int]:
    """Of the cell's states."""
    return [part.shape[-1] for part in cell.split(torch.empty(cell.carry_size(w)))]


def itself(core: Tensor) -> Tensor:
    return core


def sigmoid(a: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-a))


def hard_sigmoid(a: Tensor) -> Tensor:
    """Keras up to 2: 0 below −2.5, 1 above 2.5, 0.2 a + 0.5 between."""
    return torch.where(a < -2.5, 0.0, torch.where(a > 2.5, 1.0, 0.2 * a + 0.5))


def hard_sigmoid_6(a: Tensor) -> Tensor:
    """Keras 3: relu6(a + 3) / 6."""
    return torch.where(a < -3, 0.0, torch.where(a > 3, 1.0, (a + 3) / 6))


def relu(a: Tensor) -> Tensor:
    return torch.where(a > 0, a, torch.zeros_like(a))


def gru(keeps: bool, reset_after: bool, gate: Gate = sigmoid, act: Gate = torch.tanh) -> Step:
    """Cho et al. 2014 (reset before), torch.nn.GRU's documentation (after); z keeps, or takes as in Chung et al. 2014."""

    def step(w: Parameters, x: Tensor, ports: Mapping[str, tuple[Tensor, Tensor]]) -> Moved:
        def block(side: str, gate: int, value: Tensor) -> Tensor:
            return affine(w, side, value).chunk(3, dim=-1)[gate]

        old, at_update, at_candidate, at_reset = (ports[p][0] for p in ("carry", "update", "candidate", "reset"))
        r_logit = block("ih", 0, x) + block("hh", 0, at_reset)
        z_logit = block("ih", 1, x) + block("hh", 1, at_update)
        r, z = gate(r_logit), gate(z_logit)
        if reset_after:
            n = act(block("ih", 2, x) + r * block("hh", 2, at_candidate))
        else:
            n = act(block("ih", 2, x) + block("hh", 2, r * at_candidate))
        keep = z if keeps else 1 - z
        return Moved(keep * old + (1 - keep) * n, itself, {"r": r_logit, "z": z_logit}, keep)

    return step


def lstm(gate: Gate = sigmoid, act: Gate = torch.tanh, shown: Gate | None = None) -> Step:
    """torch.nn.LSTM's documentation: i, f, g, o; act: of g, shown: of c in the output, ONNX's g and h. A port holds (h, c)."""
    shown = shown or act

    def step(w: Parameters, x: Tensor, ports: Mapping[str, tuple[Tensor, Tensor]]) -> Moved:
        readers = {"i": "input", "f": "forget", "g": "candidate", "o": "output"}
        pre = {
            name: affine(w, "ih", x).chunk(4, -1)[place] + affine(w, "hh", ports[port][0]).chunk(4, -1)[place]
            for place, (name, port) in enumerate(readers.items())
        }
        i, f, o = (gate(pre[name]) for name in "ifo")
        c = f * ports["carry"][1] + i * act(pre["g"])
        return Moved(c, lambda core: o * shown(core), {name: pre[name] for name in "ifo"}, f)

    return step


def lstm_peepholes(gate: Gate = sigmoid, act: Gate = torch.tanh, shown: Gate | None = None) -> Step:
    """Gers & Schmidhuber 2000, in the notation of ONNX's LSTM: i and f look at the old cell, o at the new one."""
    shown = shown or act

    def step(w: Parameters, x: Tensor, ports: Mapping[str, tuple[Tensor, Tensor]]) -> Moved:
        p_i, p_f, p_o = w["peephole"].chunk(3, -1)
        i_in, f_in, g_in, o_in = affine(w, "ih", x).chunk(4, -1)
        i_rec, f_rec, g_rec, o_rec = (
            affine(w, "hh", ports[port][0]).chunk(4, -1)[place]
            for place, port in enumerate(("input", "forget", "candidate", "output"))
        )
        i_logit = i_in + i_rec + p_i * ports["input-peephole"][1]
        f_logit = f_in + f_rec + p_f * ports["forget-peephole"][1]
        i, f = gate(i_logit), gate(f_logit)
        c = f * ports["carry"][1] + i * act(g_in + g_rec)

        def read(core: Tensor) -> Tensor:
            return shown(core) * gate(o_in + o_rec + p_o * core)

        return Moved(c, read, {"i": i_logit, "f": f_logit, "o": o_in + o_rec + p_o * c}, f)

    return step


def min_gru(w: Parameters, x: Tensor, ports: Mapping[str, tuple[Tensor, Tensor]]) -> Moved:
    """Feng et al. 2024, section 3.1.2."""
    logit, candidate = affine(w, "ih", x).chunk(2, -1)
    z = sigmoid(logit)
    return Moved((1 - z) * ports["carry"][0] + z * candidate, itself, {"z": logit}, 1 - z)


def min_lstm(w: Parameters, x: Tensor, ports: Mapping[str, tuple[Tensor, Tensor]]) -> Moved:
    """Feng et al. 2024, section 3.2.3."""
    f_logit, i_logit, candidate = affine(w, "ih", x).chunk(3, -1)
    f, i = sigmoid(f_logit), sigmoid(i_logit)
    keep, take = f / (f + i), i / (f + i)
    return Moved(keep * ports["carry"][0] + take * candidate, itself, {"f": f_logit, "i": i_logit}, keep)


def janet(w: Parameters, x: Tensor, ports: Mapping[str, tuple[Tensor, Tensor]]) -> Moved:
    """van der Westhuizen & Lasenby 2018, equations 5 to 8, β = 1."""
    s = affine(w, "ih", x).chunk(2, -1)[0] + affine(w, "hh", ports["forget"][0]).chunk(2, -1)[0]
    new = torch.tanh(affine(w, "ih", x).chunk(2, -1)[1] + affine(w, "hh", ports["candidate"][0]).chunk(2, -1)[1])
    return Moved(sigmoid(s) * ports["carry"][0] + (1 - sigmoid(s - 1)) * new, itself, {"f": s}, sigmoid(s))


def mgu(w: Parameters, x: Tensor, ports: Mapping[str, tuple[Tensor, Tensor]]) -> Moved:
    """Zhou et al. 2016, equations 6a to 6c."""
    logit = affine(w, "ih", x).chunk(2, -1)[0] + affine(w, "hh", ports["gate"][0]).chunk(2, -1)[0]
    f = sigmoid(logit)
    read = f * ports["candidate"][0]
    new = torch.tanh(affine(w, "ih", x).chunk(2, -1)[1] + affine(w, "hh", read).chunk(2, -1)[1])
    return Moved((1 - f) * ports["carry"][0] + f * new, itself, {"f": logit}, 1 - f)


def rate(activation: Callable[[Tensor], Tensor], alpha: float, inside: bool) -> Step:
    """Song, Yang & Wang 2016, equation 5; with φ inside, Sompolinsky et al. 1988 by Euler steps."""

    def step(w: Parameters, x: Tensor, ports: Mapping[str, tuple[Tensor, Tensor]]) -> Moved:
        old, read = ports["carry"][0], ports["recurrent"][0]
        if inside:
            drive = affine(w, "ih", x) + affine(w, "hh", activation(read))
        else:
            drive = activation(affine(w, "ih", x) + affine(w, "hh", read))
        return Moved(old + alpha * (drive - old), itself, keep=torch.full_like(old, 1 - alpha))

    return step


def lru(w: Parameters, x: Tensor, ports: Mapping[str, tuple[Tensor, Tensor]]) -> Moved:
    """Orvieto et al. 2023, in complex numbers."""
    eigenvalues = torch.exp(torch.complex(-torch.exp(w["nu"]), torch.exp(w["theta"])))
    b = torch.complex(*w["weight_ih"].chunk(2, dim=1))
    driven = torch.exp(w["gamma"]) * torch.einsum("bnd,bd->bn", b, x.to(b.dtype))
    moved = eigenvalues * torch.complex(*ports["recurrent"][0].chunk(2, -1)) + driven
    return Moved(torch.cat((moved.real, moved.imag), -1), itself, keep=eigenvalues.abs().repeat(1, 2))


def s6(w: Parameters, x: Tensor, ports: Mapping[str, tuple[Tensor, Tensor]]) -> Moved:
    """Gu & Dao 2023, algorithm 2, with one loop over channels and numbers of their state."""
    low = torch.einsum("brd,bd->br", w["weight_low"], x)
    step_size = torch.einsum("bdr,br->bd", w["weight_dt"], low) + w.get("bias_dt", 0)
    step_size = torch.log1p(torch.exp(step_size))
    b = torch.einsum("bnd,bd->bn", w["weight_b"], x)
    channels, numbers = w["a"].shape[1:]
    states, keeps = [], []
    for place in range(channels * numbers):
        channel, number = divmod(place, numbers)
        keeps.append(torch.exp(-step_size[:, channel] * torch.exp(w["a"][:, channel, number])))
        driven = step_size[:, channel] * b[:, number] * x[:, channel]
        states.append(keeps[-1] * ports["carry"][0][:, place] + driven)
    return Moved(torch.stack(states, -1), itself, keep=torch.stack(keeps, -1))


def block_gru(blocks: int, eps: float) -> Step:
    """Hafner et al. 2023: one dense product with the block-diagonal matrix written out, layer norm by its definition."""

    def step(w: Parameters, x: Tensor, ports: Mapping[str, tuple[Tensor, Tensor]]) -> Moved:
        old = ports["carry"][0]
        size = old.shape[-1] // blocks
        sums = []
        for gate, port in enumerate(("reset", "candidate", "update")):
            rows = w["weight_hh"].chunk(3, dim=1)[gate]
            dense = torch.stack([torch.block_diag(*each.split(size)) for each in rows])
            sums.append(torch.einsum("bij,bj->bi", dense, ports[port][0]))
        a = affine(w, "ih", x) + torch.cat(sums, -1)
        centred = a - a.mean(-1, keepdim=True)
        normed = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
        r, n, u = (w["norm_weight"] * normed + w.get("bias_norm", 0)).chunk(3, -1)
        update = sigmoid(u - 1)
        new = torch.tanh(sigmoid(r) * n)
        return Moved(update * new + (1 - update) * old, itself, {"r": r, "u": u - 1}, 1 - update)

    return step


def elman(activation: Callable[[Tensor], Tensor]) -> Step:
    """torch.nn.RNN's documentation."""

    def step(w: Parameters, x: Tensor, ports: Mapping[str, tuple[Tensor, Tensor]]) -> Moved:
        return Moved(activation(affine(w, "ih", x) + affine(w, "hh", ports["recurrent"][0])), itself)

    return step


STEPS: dict[str, Step] = {
    "gru": gru(keeps=True, reset_after=True),
    "gru-z-takes": gru(keeps=False, reset_after=True),
    "gru-reset-before": gru(keeps=True, reset_after=False),
    "gru-reset-before-z-takes": gru(keeps=False, reset_after=False),
    "gru-hard": gru(keeps=True, reset_after=True, gate=hard_sigmoid, act=relu),
    "gru-reset-before-hard": gru(keeps=False, reset_after=False, gate=hard_sigmoid_6),
    "lstm": lstm(),
    "lstm-hard": lstm(hard_sigmoid, relu),
    "lstm-relu-tanh": lstm(sigmoid, relu, torch.tanh),
    "lstm-peepholes": lstm_peepholes(),
    "lstm-peepholes-hard": lstm_peepholes(hard_sigmoid_6, shown=relu),
    "mingru": min_gru,
    "minlstm": min_lstm,
    "janet": janet,
    "mgu": mgu,
    "rate-tanh": rate(torch.tanh, 0.2, inside=False),
    "rate-relu": rate(torch.relu, 0.2, inside=False),
    "rate-inside": rate(torch.tanh, 0.2, inside=True),
    "block-gru": block_gru(blocks=2, eps=1e-3),
    "lru": lru,
    "s6": s6,
    "rnn-tanh": elman(torch.tanh),
    "rnn-relu": elman(lambda a: torch.where(a > 0, a, torch.zeros_like(a))),
}


def step_of(key: str, cell: Cell) -> Step:
    """The independent equations of a registered cell; of one that has none here and one state, its own `step`."""
    if key in STEPS:
        return STEPS[key]
    if len(cell.states) > 1:
        raise NotImplementedError(f"'{key}' has states {cell.states}: write its core in tests/reference.py")

    def step(w: Parameters, x: Tensor, ports: Mapping[str, tuple[Tensor, Tensor]]) -> Moved:
        seen: dict[str, Tensor] = {}

        def node(name: str, value: Tensor) -> Tensor:
            seen[name] = value
            return value

        def one(w: dict[str, Tensor], x: Tensor, at: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            return cell.step(Weights(**w), x, at, node), {name: seen[name] for name in cell.sigmoids}

        core, logits = torch.vmap(one)(dict(w), x, {port: pair[0] for port, pair in ports.items()})
        keep = None if cell.keep is None else torch.sigmoid(cell.keep[1] * logits[cell.keep[0]])
        return Moved(core, itself, logits, keep)

    return step


@dataclass
class Unrolled:
    """A forward pass with a node wherever a gradient is asked for."""

    outputs: list[Tensor]  # (B, H) a step: where the loss reads h
    finals: list[Tensor]  # the last of each state, where the loss reads h_n and c_n
    states: list[list[Tensor]]  # T + 1 times one (B, H) for each state: the carry's coordinates
    cores: list[Tensor]  # (B, H) a step
    ports: list[dict[str, Tensor]]  # T times, by port: what step k reads of the core of step k − 1 (k ≥ 1)
    copies: list[dict[str, Tensor]]  # T times the parameters, each (B, …)
    logits: list[dict[str, Tensor]]
    keeps: list[Tensor | None]


def unroll(
    key: str, cell: Cell, parameters: Mapping[str, Tensor], x: Tensor, initial: list[Tensor], read: str
) -> Unrolled:
    """Run a cell over x (T, B, D) from `initial`, one (B, H) a state.

    read: "states", all ports read the same state nodes; "ports", each reads its own copy of the core before; "carry", all
    but the carry port are cut off from the graph.
    """
    step = step_of(key, cell)
    batch = x.shape[1]
    first = [state.detach().clone().requires_grad_() for state in initial]
    out = Unrolled([], [], [first], [], [], [], [], [])
    before: Moved | None = None
    for now in x:
        h, c = (first if before is None else out.states[-1])[0], out.states[-1][-1]
        ports, at = {}, {}
        for port in cell.ports:
            if read == "ports" and before is not None:
                at[port] = before.core.view_as(before.core)
                ports[port] = (before.read(at[port]), at[port])
            elif read == "carry" and port != "carry":
                ports[port] = (h.detach(), c.detach())
            else:
                ports[port] = (h, c)
        copies = {
            name: value.detach().expand(batch, *value.shape).clone().requires_grad_()
            for name, value in parameters.items()
        }
        before = step(copies, now, ports)
        h = before.read(before.core)
        out.states.append([h, before.core.view_as(before.core)] if len(cell.states) > 1 else [h])
        out.cores.append(before.core)
        out.outputs.append(h.view_as(h))
        out.ports.append(at)
        out.copies.append(copies)
        out.logits.append(before.logits)
        out.keeps.append(before.keep)
    # A cell whose output is its core reads h from the very node that is the carry.
    out.finals = [state.view_as(state) for state in out.states[-1]]
    return out


Loss = Callable[[Tensor, list[Tensor]], Tensor]


@dataclass
class Reference:
    """Everything that a flow says of a layer, from terms by (t, k, sequence).

    key, cell: of the registry. parameters: as the layer holds them, without their names' `_l0`. x: (T, B, D). initial: one
    (B, H) a state. loss: of the outputs (T, B, H) and the list of last states, each (B, H).
    """

    key: str
    cell: Cell
    parameters: Mapping[str, Tensor]
    x: Tensor
    initial: list[Tensor]
    loss: Loss

    def __post_init__(self) -> None:
        self.steps, self.batch = self.x.shape[:2]
        self.hidden = self.initial[0].shape[-1]
        self.named = list(self.parameters)

    def unroll(self, read: str) -> Unrolled:
        return unroll(self.key, self.cell, self.parameters, self.x, self.initial, read)

    @cached_property
    def run(self) -> Unrolled:
        return self.unroll("states")

    @cached_property
    def direct(self) -> tuple[list[Tensor], list[Tensor]]:
        """g: what the loss gives each output, and each last state, with everything else held."""
        outputs = [value.detach().requires_grad_() for value in self.run.outputs]
        finals = [value.detach().requires_grad_() for value in self.run.finals]
        value = self.loss(torch.stack(outputs), finals)
        grads = torch.autograd.grad(value, [*outputs, *finals], allow_unused=True)
        filled = [torch.zeros_like(outputs[0]) if grad is None else grad for grad in grads]
        return filled[: self.steps], filled[self.steps :]

    def entering(self, run: Unrolled, t: int) -> Tensor:
        """L_t: a number whose gradient is what enters the layer at step t."""
        g, at_finals = self.direct
        value = (g[t] * run.outputs[t]).sum()
        if t == self.steps - 1:
            value = value + sum((gradient * final).sum() for gradient, final in zip(at_finals, run.finals, strict=True))
        return value

    def pull(self, run: Unrolled, t: int, wanted: list[Tensor]) -> list[Tensor]:
        if not wanted:
            return []
        grads = torch.autograd.grad(self.entering(run, t), wanted, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(want) if grad is None else grad for want, grad in zip(wanted, grads, strict=True)]

    @cached_property
    def pairs(self) -> np.ndarray:
        """(T, B) bool: where any gradient enters."""
        g, at_finals = self.direct
        enters = np.array([[bool((g[t][b] != 0).any()) for b in range(self.batch)] for t in range(self.steps)])
        for final in at_finals:
            enters[-1] |= (final != 0).any(-1).numpy()
        return enters

    @cached_property
    def origins(self) -> list[int]:
        return [t for t in range(self.steps) if self.pairs[t].any()]

    # The four families of gradients, as arrays over (origin t, step k, sequence, …); zero where k > t.

    @cached_property
    def terms(self) -> dict[str, np.ndarray]:
        """Parameter → G[t, k, b]: (T, T, B, rows, …)."""
        out = {
            name: np.zeros((self.steps, self.steps, self.batch, *value.shape))
            for name, value in self.parameters.items()
        }
        for t in self.origins:
            wanted = [copies[name] for copies in self.run.copies[: t + 1] for name in self.named]
            grads = iter(self.pull(self.run, t, wanted))
            for k in range(t + 1):
                for name in self.named:
                    out[name][t, k] = next(grads).numpy()
        return out

    @cached_property
    def adjoints(self) -> np.ndarray:
        """λ[t, k] in the coordinates of the carry: (T, T + 1, B, S, H); the initial state is step 0 of the second axis."""
        count = len(self.cell.states)
        out = np.zeros((self.steps, self.steps + 1, self.batch, count, self.hidden))
        for t in self.origins:
            grads = iter(self.pull(self.run, t, [state for states in self.run.states[: t + 2] for state in states]))
            for k in range(t + 2):
                for place in range(count):
                    out[t, k, :, place] = next(grads).numpy()
        return out

    @cached_property
    def totals(self) -> np.ndarray:
        """The adjoint of the core (of h; of an LSTM d): (T, T, B, H)."""
        return self._at_cores(self.run)

    @cached_property
    def by_port(self) -> dict[str, np.ndarray]:
        """Port → λ_p[t, k], the part of the core's adjoint at step k that went through that port of step k + 1."""
        out = {port: np.zeros((self.steps, self.steps, self.batch, self.hidden)) for port in self.cell.ports}
        run = self.unroll("ports")
        for t in self.origins:
            wanted = [run.ports[k + 1][port] for k in range(t) for port in self.cell.ports]
            grads = iter(self.pull(run, t, wanted))
            for k in range(t):
                for port in self.cell.ports:
                    out[port][t, k] = next(grads).numpy()
        return out

    @cached_property
    def carried(self) -> np.ndarray:
        """λ^(0): the adjoint of the core through carry ports alone, (T, T, B, H)."""
        return self._at_cores(self.unroll("carry"))

    def _at_cores(self, run: Unrolled) -> np.ndarray:
        out = np.zeros((self.steps, self.steps, self.batch, self.hidden))
        for t in self.origins:
            for k, grad in enumerate(self.pull(run, t, run.cores[: t + 1])):
                out[t, k] = grad.numpy()
        return out

    # By lag.

    def lag_sum(self, values: np.ndarray, lag: int) -> np.ndarray:
        """Σ_t values[t, t − lag]."""
        return sum((values[t, t - lag] for t in range(lag, self.steps)), np.zeros(values.shape[2:]))

    def term(self, name: str, lag: int) -> np.ndarray:
        """G(τ) of a parameter: (rows, …)."""
        return self.lag_sum(self.terms[name], lag).sum(0)

    def vector(self, lag: int) -> np.ndarray:
        """G(τ) of the whole layer, flat."""
        return np.concatenate([self.term(name, lag).ravel() for name in self.named])

    @cached_property
    def gradient(self) -> dict[str, np.ndarray]:
        """G by parameter: the sum of all terms."""
        return {name: sum(self.term(name, lag) for lag in range(self.steps)) for name in self.named}

    @cached_property
    def whole(self) -> np.ndarray:
        return np.concatenate([self.gradient[name].ravel() for name in self.named])

    def rows(self, name: str, gate: str) -> slice:
        """The rows of a gate block of a parameter."""
        gates = self.cell.blocks(name)
        place, size = gates.index(gate), len(self.parameters[name]) // len(gates)
        return slice(place * size, (place + 1) * size)

    def share(self, name: str, gate: str | None = None) -> np.ndarray:
        at = slice(None) if gate is None else self.rows(name, gate)
        whole = self.gradient[name][at]
        inner = np.array([(self.term(name, lag)[at] * whole).sum() for lag in range(self.steps)])
        return divide(inner, (whole * whole).sum())

    def norm(self, name: str, gate: str | None = None) -> np.ndarray:
        """‖G(τ)‖; NaN at lags that no origin reaches back by."""
        at = slice(None) if gate is None else self.rows(name, gate)
        norms = np.array([np.linalg.norm(self.term(name, lag)[at]) for lag in range(self.steps)])
        norms[self.origins[-1] + 1 :] = np.nan
        return norms

    @cached_property
    def kept(self) -> list[np.ndarray]:
        """Σ_{τ ≤ K} G(τ) by K."""
        return list(np.cumsum([self.vector(lag) for lag in range(self.steps)], axis=0))

    def bias(self) -> np.ndarray:
        left = [np.linalg.norm(sum(self.vector(lag) for lag in range(K + 1, self.steps))) for K in range(self.steps)]
        return divide(np.array(left), np.linalg.norm(self.whole))

    def cosine(self) -> np.ndarray:
        return np.array(
            [divide(kept @ self.whole, np.linalg.norm(kept) * np.linalg.norm(self.whole)) for kept in self.kept]
        )

    def horizon(self, level: float) -> int | None:
        bias = self.bias()
        for K in range(self.steps):
            if all(bias[K:] <= level):
                return K
        return None

    def cancellation(self) -> float:
        return float(np.linalg.norm(self.whole) / sum(np.linalg.norm(self.vector(lag)) for lag in range(self.steps)))

    def signal_to_noise(self) -> np.ndarray:
        """(‖m‖² − v/B) / (v/B) of the sequences' own terms."""
        out = []
        for lag in range(self.steps):
            single = [
                np.concatenate([self.lag_sum(self.terms[name], lag)[b].ravel() for name in self.named])
                for b in range(self.batch)
            ]
            mean = np.mean(single, axis=0)
            variance = (
                sum(((each - mean) ** 2).sum() for each in single) / (self.batch - 1) if self.batch > 1 else np.nan
            )
            noise = variance / self.batch
            out.append(divide((mean**2).sum() - noise, noise))
        return np.array(out)

    def counts(self) -> np.ndarray:
        """Pairs (t, b) with a gradient and t > τ (t from 1), by lag and sequence: (T, B)."""
        return np.array([[self.pairs[lag:, b].sum() for b in range(self.batch)] for lag in range(self.steps)])

    def root_mean_square(self, values: np.ndarray) -> np.ndarray:
        """RMS over the pairs of the length of values[t, t − τ, b]; values (T, T, B, …)."""
        out = []
        for lag in range(self.steps):
            squares = sum((values[t, t - lag] ** 2).sum() for t in range(lag, self.steps))
            out.append(np.sqrt(divide(squares, self.counts()[lag].sum())))
        return np.array(out)

    @property
    def inside(self) -> np.ndarray:
        """λ without the initial state: (T, T, B, S, H)."""
        return self.adjoints[:, 1:]

    def by_state(self) -> dict[str, np.ndarray]:
        if len(self.cell.states) == 1:
            return {}
        states = {name: self.inside[:, :, :, place] for place, name in enumerate(self.cell.states)}
        return {name: self.root_mean_square(value) for name, value in (states | {"d": self.totals}).items()}

    def by_sequence(self) -> np.ndarray:
        """(T, B): RMS over the origins of each sequence alone."""
        out = np.full((self.steps, self.batch), np.nan)
        for lag in range(self.steps):
            for b in range(self.batch):
                squares = sum((self.inside[t, t - lag, b] ** 2).sum() for t in range(lag, self.steps))
                out[lag, b] = np.sqrt(divide(squares, self.counts()[lag, b]))
        return out

    def origin_step(self) -> np.ndarray:
        """(origins, T): RMS of ‖λ[t, k]‖ over the sequences in which a gradient enters at t, NaN where k > t."""
        out = np.full((len(self.origins), self.steps), np.nan)
        for row, t in enumerate(self.origins):
            for k in range(t + 1):
                out[row, k] = np.sqrt((self.inside[t, k] ** 2).sum() / self.pairs[t].sum())
        return out

    def paths(self) -> dict[str, np.ndarray]:
        """Port → share by lag, NaN at lag 0."""
        out = {}
        for port, values in self.by_port.items():
            shares = [np.nan]
            for lag in range(1, self.steps):
                at = [(t, t - lag) for t in range(lag, self.steps)]
                inner = sum((values[place] * self.totals[place]).sum() for place in at)
                shares.append(divide(inner, sum((self.totals[place] ** 2).sum() for place in at)))
            out[port] = np.array(shares)
        return out

    def hops(self) -> np.ndarray:
        """Share of λ^(0) by lag."""
        out = []
        for lag in range(self.steps):
            at = [(t, t - lag) for t in range(lag, self.steps)]
            inner = sum((self.carried[place] * self.totals[place]).sum() for place in at)
            out.append(divide(inner, sum((self.totals[place] ** 2).sum() for place in at)))
        return np.array(out)

    def initial_terms(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """State → (share, norm) of what reaches it at the start; index i is lag i + 1, that is origin i."""
        out = {}
        for place, name in enumerate(self.cell.states):
            terms = self.adjoints[:, 0, :, place]
            whole = terms.sum(0)
            inner = np.array([divide((term * whole).sum(), (whole**2).sum()) for term in terms])
            norms = np.array([np.linalg.norm(term) for term in terms])
            inner[[t for t in range(self.steps) if t not in self.origins]] = np.nan
            norms[[t for t in range(self.steps) if t not in self.origins]] = np.nan
            out[name] = (inner, norms)
        return out

    def unit_sizes(self) -> np.ndarray:
        """(H, T) RMS of |λ_j| by lag, on the core."""
        return np.array([self.root_mean_square(self.totals[..., j]) for j in range(self.hidden)])

    def half_lives(self) -> np.ndarray:
        """(H,) the first lag after the peak at which the size is half the peak or less."""
        out = np.full(self.hidden, np.nan)
        for j, sizes in enumerate(self.unit_sizes()):
            known = [0.0 if np.isnan(size) else size for size in sizes]
            peak = known.index(max(known))
            for lag in range(peak + 1, self.steps):
                if sizes[lag] <= sizes[peak] / 2 and sizes[peak] > 0:
                    out[j] = lag
                    break
        return out

    def timescales(self) -> np.ndarray:
        """(H,) −1 / ⟨ln of the gate on the carry⟩; NaN for a cell without one."""
        keeps = [keep for keep in self.run.keeps if keep is not None]
        if not keeps:
            return np.full(self.hidden, np.nan)
        with np.errstate(divide="ignore"):
            return 1 / np.abs(np.log(torch.stack(keeps).detach().numpy()).mean((0, 1)))

    def logits(self, gate: str) -> np.ndarray:
        return torch.stack([logits[gate] for logits in self.run.logits]).detach().numpy().ravel()


def divide(value: np.ndarray | float, unit: np.ndarray | float) -> np.ndarray:
    """value / unit without warnings: 0/0 is NaN."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(value, dtype=np.float64) / np.asarray(unit, dtype=np.float64)


def log10(value: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log10(value)
