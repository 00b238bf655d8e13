"""What is timed: a training step of a GRU, what throughtime makes of it, and what rivals make of the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

import throughtime as tt
from throughtime.explain import explain
from throughtime.jacobians import jacobians, log10_state_norms
from throughtime.trace import Trace

BATCH, INPUTS = 16, 32
LEDGER = {"bias": "horizon", "hops": False, "signal_to_noise": False, "demand": False, "origin_step": False}
EVERY_K = LEDGER | {"bias": "all", "hops": True}

Work = Callable[[], object]


@dataclass(frozen=True)
class Scene:
    """A default nn.GRU and one batch. every: a loss at every step, else at the last."""

    hidden: int
    steps: int
    every: bool = False

    @cached_property
    def layer(self) -> nn.GRU:
        torch.manual_seed(0)
        return nn.GRU(INPUTS, self.hidden)

    @cached_property
    def x(self) -> Tensor:
        return torch.randn(self.steps, BATCH, INPUTS, generator=torch.Generator().manual_seed(1))

    @cached_property
    def target(self) -> Tensor:
        return torch.randn(BATCH, self.hidden, generator=torch.Generator().manual_seed(2))

    @cached_property
    def traces(self) -> list[Trace]:
        with tt.record(self.layer) as record:
            self.plain()
        return record.traces()

    def loss(self, outputs: Tensor) -> Tensor:
        return ((outputs if self.every else outputs[-1]) * self.target).sum()

    # Ours

    def plain(self) -> None:
        """The training step that is explained: fused forward, loss, backward."""
        self.layer.zero_grad()
        self.loss(self.layer(self.x)[0]).backward()

    def recorded(self) -> None:
        with tt.record(self.layer):
            self.plain()

    def ledger(self) -> object:
        return explain(self.traces, **LEDGER)

    def every_k(self) -> object:
        return explain(self.traces, **EVERY_K)

    def one_step_jacobians(self) -> Tensor:
        return jacobians(self.traces[0])

    def state_norms(self) -> object:
        return log10_state_norms(self.traces[0])

    # Rivals

    def _step(self, h: Tensor, x: Tensor) -> Tensor:
        return torch.gru_cell(x, h, *self.layer.parameters())

    def _unroll(self) -> list[Tensor]:
        states = [torch.zeros(BATCH, self.hidden, requires_grad=True)]
        for x in self.x:
            states.append(self._step(states[-1], x))
        return states

    def unroll_adjoints(self) -> list[Tensor]:
        """∂L/∂h_k for all k by a GRUCell unroll and autograd.grad: no parameters, shares, paths or bias."""
        states = self._unroll()
        return [grad.norm() for grad in torch.autograd.grad(self.loss(torch.stack(states[1:])), states)]

    def vmap_jacobians(self) -> Tensor:
        """All one-step Jacobians by vmap(jacrev): of the cell's equations, since vmap has no rule for a fused GRU."""
        w_ih, w_hh, b_ih, b_hh = (parameter.detach() for parameter in self.layer.parameters())

        def step(h: Tensor, x: Tensor) -> Tensor:
            i_r, i_z, i_n = torch.nn.functional.linear(x, w_ih, b_ih).chunk(3)
            h_r, h_z, h_n = torch.nn.functional.linear(h, w_hh, b_hh).chunk(3)
            z = torch.sigmoid(i_z + h_z)
            return z * h + (1 - z) * torch.tanh(i_n + torch.sigmoid(i_r + h_r) * h_n)

        before = self.traces[0].carries[:-1].flatten(0, 1)
        made = torch.func.vmap(torch.func.jacrev(step))(before, self.x.flatten(0, 1))
        return made.unflatten(0, (self.steps, BATCH))

    def batched_grad_norms(self) -> list[Tensor]:
        """‖∂h_T/∂h_k‖ for all k by autograd.grad(is_grads_batched=True) on the unroll, every direction at once."""
        states = self._unroll()
        units = torch.eye(self.hidden)[:, None].expand(-1, BATCH, -1)
        made = torch.autograd.grad(states[-1], states, units, is_grads_batched=True)
        return [grad.square().sum((0, 2)).sqrt() for grad in made]


def check(scene: Scene) -> None:
    """Ours and the rivals' say the same: a ratio between different answers would be worth nothing."""
    torch.testing.assert_close(scene.one_step_jacobians(), scene.vmap_jacobians(), rtol=1e-4, atol=1e-5)
    rival = torch.stack(scene.batched_grad_norms()).flip(0).log10().detach()
    ours = torch.from_numpy(log10_state_norms(scene.traces[0])).float()
    there = torch.isfinite(rival) & (rival > -15)  # squares underflow in the rival's float32 beyond
    torch.testing.assert_close(ours[there], rival[there], rtol=1e-3, atol=1e-3)
