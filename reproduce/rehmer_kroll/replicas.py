"""Many small networks of one kind side by side: one batched product serves all, and each keeps its own weights.

A network is one recurrent layer and a linear reading of every output. Weights of all replicas are stacked along a first
axis R and stand to the right, `x @ W`: w_ih (R, D, G·H), w_hh (R, H, G·H), b_ih and b_hh (R, 1, G·H), head (R, H, O),
bias (R, 1, O). Gates are stacked in torch's order. Nothing mixes replicas, so the gradient of the sum of their losses
holds each one's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from throughtime.cells import GRUResetBefore
from throughtime.cells.cell import Weights
from throughtime.recurrent import Recurrent

Parameters = dict[str, Tensor]
Step = Callable[[Tensor, tuple[Tensor, ...], Parameters], tuple[Tensor, ...]]


def elman(into: Tensor, state: tuple[Tensor, ...], p: Parameters) -> tuple[Tensor, ...]:
    """h = tanh(W x + b + U h₋ + b′)."""
    return (torch.tanh(into + torch.baddbmm(p["b_hh"], state[0], p["w_hh"])),)


def gru(into: Tensor, state: tuple[Tensor, ...], p: Parameters) -> tuple[Tensor, ...]:
    """torch's GRU: the reset gate acts after the product."""
    (h,) = state
    units = h.shape[-1]
    back = torch.baddbmm(p["b_hh"], h, p["w_hh"])
    r, z = torch.sigmoid(into[..., : 2 * units] + back[..., : 2 * units]).chunk(2, -1)
    n = torch.tanh(into[..., 2 * units :] + r * back[..., 2 * units :])
    return (torch.lerp(n, h, z),)


def gru_before(into: Tensor, state: tuple[Tensor, ...], p: Parameters) -> tuple[Tensor, ...]:
    """The GRU of Cho et al. 2014 v3: the reset gate acts before the product."""
    (h,) = state
    units = h.shape[-1]
    gates, candidate = p["w_hh"][..., : 2 * units], p["w_hh"][..., 2 * units :]
    r, z = torch.sigmoid(into[..., : 2 * units] + torch.baddbmm(p["b_hh"][..., : 2 * units], h, gates)).chunk(2, -1)
    n = torch.tanh(into[..., 2 * units :] + torch.baddbmm(p["b_hh"][..., 2 * units :], r * h, candidate))
    return (torch.lerp(n, h, z),)


def lstm(into: Tensor, state: tuple[Tensor, ...], p: Parameters) -> tuple[Tensor, ...]:
    """torch's LSTM; state (h, c)."""
    h, c = state
    i, f, g, o = (into + torch.baddbmm(p["b_hh"], h, p["w_hh"])).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


@dataclass(frozen=True)
class Kind:
    """A kind of network. gates: blocks of its stacked weights; states: 1, or 2 for h and c."""

    name: str
    title: str
    gates: int
    states: int
    step: Step


ELMAN = Kind("elman", "Elman", 1, 1, elman)
GRU = Kind("gru", "GRU", 3, 1, gru)
GRU_BEFORE = Kind("gru-before", "GRU (reset before)", 3, 1, gru_before)
LSTM = Kind("lstm", "LSTM", 4, 2, lstm)
KINDS = (ELMAN, GRU, GRU_BEFORE, LSTM)


def draw(kind: Kind, inputs: int, units: int, outputs: int, seeds: Sequence[int], dtype=torch.float32) -> Parameters:
    """Weights U(±1/√H) as torch draws them by default, one replica a seed."""
    bound = units**-0.5
    shapes = {
        "w_ih": (inputs, kind.gates * units), "w_hh": (units, kind.gates * units),
        "b_ih": (1, kind.gates * units), "b_hh": (1, kind.gates * units),
        "head": (units, outputs), "bias": (1, outputs),
    }  # fmt: skip
    drawn: dict[str, list[Tensor]] = {name: [] for name in shapes}
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for name, shape in shapes.items():
            drawn[name].append(torch.empty(shape, dtype=torch.float64).uniform_(-bound, bound, generator=generator))
    return {name: torch.stack(values).to(dtype) for name, values in drawn.items()}


def chosen(parameters: Parameters, which: Sequence[int] | Tensor) -> Parameters:
    """Some of the replicas."""
    return {name: value[which] for name, value in parameters.items()}


def states(
    kind: Kind, p: Parameters, x: Tensor, start: tuple[Tensor, ...] | None = None, cut: int | None = None
) -> list[Tensor]:
    """The outputs h_1 … h_T of the layer, each (R, B, H), for x (T, B, D) that all replicas read or (T, R, B, D).

    start: the states before the first step, each (R, B, H); 0 by default. cut: detach the state after every `cut` steps,
    so that no gradient goes farther back.
    """
    replicas, units = p["w_hh"].shape[:2]
    steps, batch = x.shape[0], x.shape[-2]
    rows = x.transpose(0, 1) if x.ndim == 4 else x.expand(replicas, *x.shape)
    into = torch.baddbmm(p["b_ih"], rows.flatten(1, 2), p["w_ih"]).unflatten(1, (steps, batch)).unbind(1)
    state = (x.new_zeros(replicas, batch, units),) * kind.states if start is None else start
    outputs = []
    for step in range(steps):
        if cut is not None and step % cut == 0:
            state = tuple(part.detach() for part in state)
        state = kind.step(into[step], state, p)
        outputs.append(state[0])
    return outputs


def read(p: Parameters, outputs: Sequence[Tensor]) -> Tensor:
    """The linear reading of every output: (T, R, B, O)."""
    steps = len(outputs)
    stacked = torch.stack(list(outputs), 1)
    return torch.baddbmm(p["bias"], stacked.flatten(1, 2), p["head"]).unflatten(1, (steps, -1)).transpose(0, 1)


def simulated(kind: Kind, p: Parameters, x: Tensor, cut: int | None = None) -> Tensor:
    """What the networks say of x (T, B, D): (T, R, B, O)."""
    return read(p, states(kind, p, x, cut=cut))


def count(kind: Kind, inputs: int, units: int, outputs: int) -> int:
    """Parameters of one network."""
    return kind.gates * units * (inputs + units + 2) + (units + 1) * outputs


class Network(nn.Module):
    """One replica as an ordinary module, that the library records: x (T, B, D) → (T, B, O)."""

    def __init__(self, kind: Kind, parameters: Parameters, replica: int) -> None:
        super().__init__()
        p = {name: value[replica].detach() for name, value in parameters.items()}
        units, outputs = p["head"].shape
        layer = {
            "weight_ih": p["w_ih"].T, "weight_hh": p["w_hh"].T, "bias_ih": p["b_ih"][0], "bias_hh": p["b_hh"][0]
        }  # fmt: skip
        if kind is GRU_BEFORE:
            self.rnn = Recurrent(GRUResetBefore(), Weights(**layer))
        else:
            module = {"elman": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[kind.name]
            self.rnn = module(len(p["w_ih"]), units, dtype=p["head"].dtype)
            self.rnn.load_state_dict({f"{name}_l0": value for name, value in layer.items()})
        self.head = nn.Linear(units, outputs, dtype=p["head"].dtype)
        self.head.load_state_dict({"weight": p["head"].T, "bias": p["bias"][0]})

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.head(self.rnn(x)[0])
