"""What rivals make of the same scene: autograd and torch.func, as they are used for these questions elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.scene import Scene, work

ABREAST = 16  # origins whose gradients a batched rival makes at once: more would need more memory, fewer more passes


def cell(h: Tensor, x: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
    """The GRU's equations: vmap has no rule for a fused one."""
    i_r, i_z, i_n = torch.nn.functional.linear(x, w_ih, b_ih).chunk(3, -1)
    h_r, h_z, h_n = torch.nn.functional.linear(h, w_hh, b_hh).chunk(3, -1)
    z = torch.sigmoid(i_z + h_z)
    return z * h + (1 - z) * torch.tanh(i_n + torch.sigmoid(i_r + h_r) * h_n)


def _start(scene: Scene) -> Tensor:
    return torch.zeros(scene.batch, scene.hidden, device=scene.device)


def _unroll(scene: Scene) -> list[Tensor]:
    states = [_start(scene).requires_grad_()]
    for x in scene.x:
        states.append(torch.gru_cell(x, states[-1], *scene.layer.parameters()))
    return states


@work("rival: GRUCell unroll + autograd.grad, adjoints only")
def unroll_adjoints(scene: Scene) -> list[Tensor]:
    """∂L/∂h_k for all k: no parameters, shares, paths or bias."""
    states = _unroll(scene)
    return [grad.norm() for grad in torch.autograd.grad(scene.loss(torch.stack(states[1:])), states)]


@work("vmap(jacrev(GRU cell))", recorded=True)
def vmap_jacobians(scene: Scene) -> Tensor:
    weights = [parameter.detach() for parameter in scene.layer.parameters()]
    before = scene.traces[0].carries[:-1].flatten(0, 1)
    jacobian = torch.func.jacrev(lambda h, x: cell(h, x, *weights))
    return torch.func.vmap(jacobian)(before, scene.x.flatten(0, 1)).unflatten(0, (scene.steps, scene.batch))


@work("autograd.grad(is_grads_batched=True)")
def batched_grad_norms(scene: Scene) -> Tensor:
    """‖∂h_T/∂h_k‖ for all k on the unroll, every direction at once."""
    states = _unroll(scene)
    units = torch.eye(scene.hidden, device=scene.device)[:, None].expand(-1, scene.batch, -1)
    made = torch.autograd.grad(states[-1], states, units, is_grads_batched=True)
    return torch.stack([grad.square().sum((0, 2)).sqrt() for grad in made])


# Every parameter's term at every lag, with a loss at every step: each step has a copy of the parameters of its own.


def _copies(scene: Scene) -> list[list[Tensor]]:
    return [[p.detach().clone().requires_grad_() for p in scene.layer.parameters()] for _ in range(scene.steps)]


def _losses(scene: Scene, copies: list[list[Tensor]]) -> Tensor:
    h, outputs = _start(scene), []
    for x, own in zip(scene.x, copies, strict=False):
        h = torch.gru_cell(x, h, *own)
        outputs.append(h)
    return scene.losses(torch.stack(outputs))


def _nothing(scene: Scene) -> list[Tensor]:
    return [torch.zeros(scene.steps, *p.shape, device=scene.device) for p in scene.layer.parameters()]


@work("a copy of the parameters a step, a backward a loss")
def copies_by_origin(scene: Scene) -> list[Tensor]:
    """As in Aicher, Foti & Fox 2019, all sequences of the batch together: G(τ) of each parameter, (T, …)."""
    copies, sums = _copies(scene), _nothing(scene)
    losses = _losses(scene, copies)
    for origin, loss in enumerate(losses):
        leaves = [copy for own in copies[: origin + 1] for copy in own]
        grads = torch.autograd.grad(loss, leaves, retain_graph=True)
        for place, grad in enumerate(grads):
            sums[place % 4][origin - place // 4] += grad
    return sums


@work("such copies, autograd.grad(is_grads_batched=True)")
def copies_batched(scene: Scene) -> list[Tensor]:
    copies, sums = _copies(scene), _nothing(scene)
    losses = _losses(scene, copies)
    for first in range(0, scene.steps, ABREAST):
        last = min(first + ABREAST, scene.steps)
        leaves = [copy for own in copies[:last] for copy in own]
        units = torch.eye(last - first, device=scene.device)
        grads = torch.autograd.grad(losses[first:last], leaves, units, retain_graph=True, is_grads_batched=True)
        for place, grad in enumerate(grads):
            _bin(sums[place % 4], grad, first, place // 4)
    return sums


@work("such copies, torch.func.vmap(vjp)")
def copies_vmapped(scene: Scene) -> list[Tensor]:
    copies, sums = [[copy.detach() for copy in own] for own in _copies(scene)], _nothing(scene)
    for first in range(0, scene.steps, ABREAST):
        last = min(first + ABREAST, scene.steps)

        def losses(copies: list[list[Tensor]], first: int = first) -> Tensor:
            h, outputs = _start(scene), []
            for x, own in zip(scene.x, copies, strict=False):
                h = cell(h, x, *own)
                outputs.append(h)
            return scene.losses(torch.stack(outputs[first:]))

        _, back = torch.func.vjp(losses, copies[:last])
        (grads,) = torch.func.vmap(back)(torch.eye(last - first, device=scene.device))
        for step, own in enumerate(grads):
            for total, grad in zip(sums, own, strict=True):
                _bin(total, grad, first, step)
    return sums


def _bin(total: Tensor, grad: Tensor, first: int, step: int) -> None:
    """Add the gradients (N, …) of the losses at first … to the copy of a step to their lags."""
    skipped = max(0, step - first)  # losses before the step
    total[max(0, first - step) : first + len(grad) - step] += grad[skipped:]
