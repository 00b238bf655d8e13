"""Fused layers of any depth, both directions, packed: against copies of the parameters for every step, layer and direction.

The reference runs torch's own one-step, one-layer calls, one sequence at a time and as long as it is, so that it knows
neither stacks nor padding: autograd's gradient of copy k, for the part of the loss at step t, is the term at t − k.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import throughtime as tt

T, B, D, H = 7, 4, 3, 4
LENGTHS = torch.tensor([7, 6, 6, 2])
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


@dataclass(frozen=True)
class Shape:
    kind: str
    layers: int = 1
    both: bool = False
    projected: int = 0
    packed: bool = False

    def make(self) -> nn.RNNBase:
        torch.manual_seed(3)
        options = {"proj_size": self.projected} if self.projected else {}
        return getattr(nn, self.kind)(D, H, self.layers, bidirectional=self.both, **options).double()

    @property
    def lengths(self) -> list[int]:
        return LENGTHS.tolist() if self.packed else [T] * B

    def __str__(self) -> str:
        return "-".join(
            [
                self.kind,
                str(self.layers),
                *["both"] * self.both,
                *["proj"] * bool(self.projected),
                *["packed"] * self.packed,
            ]
        )


SHAPES = [
    Shape("GRU", 2),
    Shape("LSTM", 3, packed=True),
    Shape("RNN", 2),
    Shape("LSTM", 2, projected=2),
    Shape("LSTM", 1, projected=2, packed=True),
    Shape("GRU", 1, both=True),
    Shape("LSTM", 1, both=True, packed=True),
    Shape("LSTM", 3, both=True, packed=True),
    Shape("GRU", 1, packed=True),
]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
LOSSES = ["last", "every"]


def drawn() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return tuple(torch.randn(T, B, width, generator=generator, dtype=torch.float64) for width in (D, 2 * H))  # type: ignore[return-value]


def loss_at(output: Tensor, step: int, length: int, direction: Tensor, which: str) -> Tensor:
    """What the loss takes at one step of one sequence, output (width,)."""
    on = which == "every" or step == length - 1
    return (output * direction[: output.shape[-1]]).sum() * on


def recorded(shape: Shape, which: str) -> tt.Flow:
    layer, (x, directions) = shape.make(), drawn()
    with tt.record(layer) as record:
        if shape.packed:
            output, _ = pad_packed_sequence(layer(pack_padded_sequence(x, LENGTHS))[0])
        else:
            output, _ = layer(x)
        parts = [
            loss_at(output[step, b], step, length, directions[step, b], which)
            for b, length in enumerate(shape.lengths)
            for step in range(length)
        ]
        torch.stack(parts).sum().backward()
    return record.flow(demand=False, tolerance=0)


flow_of = functools.cache(recorded)


def cells(shape: Shape):
    """One-step calls of torch, by layer and direction: (x (1, 1, D), states, weights) to (output, states)."""
    function = {"GRU": torch.gru, "LSTM": torch.lstm, "RNN": torch.rnn_tanh}[shape.kind]

    def step(x: Tensor, states: tuple[Tensor, ...], weights: list[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        hx = states if len(states) > 1 else states[0]
        output, *after = function(x, hx, weights, True, 1, 0.0, False, False, False)
        return output, tuple(after)

    return step


@functools.cache
def truth(shape: Shape, which: str, within: bool) -> dict[tuple[str, int], Tensor]:
    """(parameter, lag) → G(lag), over all origins and sequences.

    within: what enters a layer is all that reaches its outputs from above, at once; else each step of the loss alone. A lag
    is the distance of the two steps.
    """
    layer, (x, directions) = shape.make(), drawn()
    step, directions_count = cells(shape), 2 if shape.both else 1
    states = 2 if shape.kind == "LSTM" else 1
    kinds = ["weight_ih", "weight_hh", "bias_ih", "bias_hh", *["weight_hr"] * bool(shape.projected)]
    sums: dict[tuple[str, int], Tensor] = {}
    for b, length in enumerate(shape.lengths):
        into = [x[k, b].reshape(1, 1, -1) for k in range(length)]
        made: list[tuple[str, list[list[Tensor]], list[Tensor]]] = []
        for depth in range(shape.layers):
            outputs = []
            for direction in range(directions_count):
                end = f"_l{depth}{'_reverse' if direction else ''}"
                copies = [
                    [getattr(layer, kind + end).detach().clone().requires_grad_() for kind in kinds]
                    for _ in range(length)
                ]
                width = shape.projected or H
                state = tuple(torch.zeros(1, 1, w, dtype=x.dtype) for w in (width, H)[:states])
                order = range(length) if not direction else reversed(range(length))
                out: dict[int, Tensor] = {}
                for k in order:
                    out[k], state = step(into[k], state, copies[k])
                    out[k] = out[k].clone()
                outputs.append([out[k] for k in range(length)])
                made.append((end, copies, outputs[-1]))
            into = [torch.cat([side[k] for side in outputs], dim=-1) for k in range(length)]
        whole = torch.stack([loss_at(into[t].reshape(-1), t, length, directions[t, b], which) for t in range(length)])
        for end, copies, outputs in made:
            flat = [copy for at_step in copies for copy in at_step]
            if within:
                entering = torch.autograd.grad(whole.sum(), outputs, retain_graph=True)
                parts = [(t, outputs[t], entering[t]) for t in range(length)]
            else:
                parts = [(t, whole[t], None) for t in range(length)]
            for t, value, cotangent in parts:
                if not value.requires_grad:
                    continue
                grads = torch.autograd.grad(value, flat, cotangent, retain_graph=True, allow_unused=True)
                for place, grad in enumerate(grads):
                    if grad is None:
                        continue
                    k, kind = divmod(place, len(kinds))
                    key = (f"rnn.{kinds[kind]}{end}", abs(t - k))
                    sums[key] = sums.get(key, torch.zeros_like(grad)) + grad
    return sums


def compare(layer: tt.flow.LayerFlow, sums: dict[tuple[str, int], Tensor]) -> None:
    for name, terms in layer.parameters.items():
        told = {lag: value for (parameter, lag), value in sums.items() if parameter == name}
        whole = torch.stack(list(told.values())).sum(0)
        for lag in range(T):
            term = told.get(lag, torch.zeros_like(whole))
            share = float((term * whole).sum() / whole.square().sum())
            np.testing.assert_allclose(terms.share[lag], share, **CLOSE, err_msg=f"{name} share {lag}")
            norm = 10 ** terms.log10_norm[lag] if np.isfinite(terms.log10_norm[lag]) else 0.0
            np.testing.assert_allclose(norm, float(term.norm()), **CLOSE, err_msg=f"{name} norm {lag}")


@every_shape
@pytest.mark.parametrize("which", LOSSES)
def test_residual(shape, which):
    assert flow_of(shape, which).residual < 1e-12


@pytest.mark.parametrize("shape", [s for s in SHAPES if s.layers > 1 and not s.both], ids=str)
@pytest.mark.parametrize("which", LOSSES)
def test_total_lag_through_the_stack(shape, which):
    flow = flow_of(shape, which)
    assert flow.layers["rnn"].lag == "total"
    compare(flow.layers["rnn"], truth(shape, which, within=False))
    shares = sum(terms.share for terms in flow.layers["rnn"].parameters.values())
    assert np.isfinite(shares).all()
    assert len(flow.layers) == 1 + shape.layers


@every_shape
@pytest.mark.parametrize("which", LOSSES)
def test_lag_within_each_layer_and_direction(shape, which):
    flow, sums = flow_of(shape, which), truth(shape, which, within=True)
    wholes = ("rnn", "rnn_reverse") if shape.layers > 1 else ()
    parts = {name: layer for name, layer in flow.layers.items() if name not in wholes}
    for name, layer in parts.items():
        assert layer.reverse == name.endswith("_reverse")
        assert layer.lag == ("within-layer" if shape.layers > 1 else "total")
        compare(layer, sums)
    assert len(parts) == shape.layers * (2 if shape.both else 1)


@pytest.mark.parametrize("kind", ["GRU", "LSTM", "RNN"])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_dropout_between_layers_is_seen(kind, both, batch_first):
    """The masks are drawn inside the call: gradients and the random state are the user's, and terms add up to them."""
    x = torch.randn(T, B, D)

    def step(layer: nn.RNNBase) -> list[Tensor]:
        torch.manual_seed(11)
        layer(x)[0].square().sum().backward()
        return [*(p.grad.clone() for p in layer.parameters()), torch.rand(3)]

    torch.manual_seed(1)
    layer = getattr(nn, kind)(D, H, 3, dropout=0.4, bidirectional=both, batch_first=batch_first)
    plain = step(layer)
    layer.zero_grad()
    with tt.record(layer) as record:
        seen = step(layer)
    assert all(torch.equal(a, b) for a, b in zip(plain, seen, strict=True))
    flow = record.flow(demand=False)
    assert flow.residual < 1e-4
    off = layer.eval()
    off.zero_grad()
    with tt.record(off) as record:
        off(x)[0].square().sum().backward()
    assert record.flow(demand=False).residual < 1e-4


def test_demand_of_a_stack_is_by_its_own_input_and_output():
    torch.manual_seed(0)
    layer = nn.GRU(D, H, 2)
    x = torch.randn(12, 32, D)
    with tt.record(layer) as record:
        layer(x)[0][-1].square().sum().backward()
    flow = record.flow()
    assert flow.layers["rnn"].demand is not None
    assert flow.layers["rnn.l0"].demand is None
    assert any(each.field == "demand" and "whole stack" in each.reason for each in flow.layers["rnn.l0"].missing)


def test_initial_and_last_states_of_every_layer():
    """States given and read: the gradient of h_0 and c_0 comes by lag for each layer, and h_n, c_n may carry the loss."""
    torch.manual_seed(0)
    layer = nn.LSTM(D, H, 2).double()
    h, c = (torch.randn(2, B, H, dtype=torch.float64, requires_grad=True) for _ in range(2))
    with tt.record(layer) as record:
        _, (h_n, c_n) = layer(torch.randn(T, B, D, dtype=torch.float64), (h, c))
        (h_n.square().sum() + c_n.sin().sum()).backward()
    flow = record.flow(demand=False)
    assert flow.residual < 1e-12
    whole = flow.layers["rnn"]
    assert set(whole.initial_state) == {f"rnn.l{k}.{s}_0" for k in range(2) for s in "hc"}
    assert all(terms.residual < 1e-12 for terms in whole.initial_state.values())
