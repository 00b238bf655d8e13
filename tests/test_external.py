"""What comes round outside a layer, by lag: against gradients at stand-ins for the states, from the last step to the first.

A later input reads a stand-in for the state. What reaches the stand-in of step k is the loss's gradient there and, for every
later step j, what the gradient at stand-in j makes of state j: this is what enters at step k from outside. Through the states
alone it goes on to copy k − lag of the weights.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import throughtime as tt
from copies import CLOSE, Call, States, copied, drawn, stepped
from throughtime.report.outside import outside

T, B, D, H = 6, 3, 2, 4


ON = torch.rand(T, B, 1, generator=torch.Generator().manual_seed(3)) < 0.6


class Loop(nn.Module):
    """The state goes into the next input too; hold: whether it is held for some sequences."""

    def __init__(self, kind: str, hold: bool) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.cell, self.query, self.hold = getattr(nn, kind)(D + H, H), nn.Linear(H, H), hold
        self.start = nn.Parameter(torch.randn(1, H))
        self.double()

    def forward(self, call: Call, read: Callable[[int, Tensor], Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The states carried on after each step, and one loss a step."""
        count = 2 if isinstance(self.cell, nn.LSTMCell) else 1
        states: States = (self.start.expand(B, H),) * count
        seen, losses = [], []
        for k, now in enumerate(drawn(T, B, D)):
            given = read(k - 1, seen[-1]) if seen else torch.zeros(B, H, dtype=torch.float64)
            new = call(k, torch.cat((now, torch.tanh(self.query(given))), dim=-1), states)
            if self.hold:
                new = tuple(torch.where(ON[k], made, old) for made, old in zip(new, states, strict=True))
            states = new
            seen.append(states[0])
            losses.append((states[0] * drawn(B, H, seed=k + 1)).sum())
        return seen, losses


@pytest.mark.parametrize("kind", ["GRUCell", "LSTMCell"])
@pytest.mark.parametrize("hold", [False, True])
def test_the_external_share_by_lag(kind, hold):
    model = Loop(kind, hold)
    with tt.record(model) as record:
        torch.stack(model(lambda _, x, states: stepped(model.cell, x, states), lambda _, h: h)[1]).sum().backward()
    layer = record.flow(demand=False, tolerance=0).layers["cell"]
    assert layer.residual < 1e-12

    copies, call = copied(model.cell, T)
    stand_ins: dict[int, Tensor] = {}

    def read(k: int, h: Tensor) -> Tensor:
        stand_ins[k] = h.detach().clone().requires_grad_()
        return stand_ins[k]

    seen, losses = model(call, read)
    target, entering = torch.stack(losses).sum(), {}
    for k in sorted(stand_ins, reverse=True):
        entering[k] = torch.autograd.grad(target, stand_ins[k], retain_graph=True)[0]
        target = target + (seen[k] * entering[k]).sum()
    whole = {name: value.grad for name, value in model.cell.named_parameters() if value.grad is not None}
    size = sum(float(value.square().sum()) for value in whole.values())
    by_lag = np.zeros(T)
    for k, grad in entering.items():
        for lag in range(k + 1):
            made = torch.autograd.grad(
                (seen[k] * grad).sum(), list(copies[k - lag].values()), retain_graph=True, allow_unused=True
            )
            pairs = zip(copies[k - lag], made, strict=True)
            by_lag[lag] += sum(float((part * whole[name]).sum()) for name, part in pairs if part is not None) / size
    np.testing.assert_allclose(layer.external_by_lag, by_lag, **CLOSE)
    np.testing.assert_allclose(layer.external, by_lag.sum(), **CLOSE)
    assert "came round outside" in outside(layer)
    assert "lag" in outside(layer).rpartition(":")[2]


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_parts_of_a_stack_tell_their_share(kind):
    """The share of each layer's gradient that is left when the later inputs are cut off."""
    torch.manual_seed(0)
    layer, head = getattr(nn, kind)(D, H, 2).double(), nn.Linear(H, D).double()

    def loss(cut: bool) -> Tensor:
        now, states, total = drawn(3, B, D), None, torch.zeros((), dtype=torch.float64)
        for place in range(3):
            made, states = layer(now.detach() if cut else now, states)
            now = head(made)
            total = total + (now * drawn(*now.shape, seed=place)).square().sum()
        return total

    with tt.record(layer) as record:
        loss(cut=False).backward()
    flow = record.flow(demand=False, tolerance=0)
    whole = {name: value.grad.clone() for name, value in layer.named_parameters() if value.grad is not None}
    layer.zero_grad()
    loss(cut=True).backward()
    direct = {name: value.grad for name, value in layer.named_parameters() if value.grad is not None}
    for k in range(2):
        names = [name for name in whole if name.endswith(f"_l{k}")]
        norm = sum(float(whole[name].square().sum()) for name in names)
        share = 1 - sum(float((direct[name] * whole[name]).sum()) for name in names) / norm
        np.testing.assert_allclose(flow.layers[f"rnn.l{k}"].external, share, **CLOSE)
    for told in flow.layers.values():
        np.testing.assert_allclose(np.sum(told.external_by_lag), told.external, **CLOSE)
    document = flow.to_dict()["layers"]
    assert [len(each["external_by_lag"]) for each in document] == [9, 9, 9]
