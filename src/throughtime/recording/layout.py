"""The layouts of a call (packed, batch first, of one step) and the one of a trace: (T, B, W), time first."""

from __future__ import annotations

import torch
from torch import Tensor

from throughtime.recording.calls import Form


def time_first(value: Tensor, form: Form) -> Tensor:
    """A call's layout as (T, B, W)."""
    if form.batch_sizes is not None:
        there = inside(form).to(value.device)
        padded = value.new_zeros(*there.shape, value.shape[-1])
        padded[there] = value
        return padded
    if form.single:
        return value.reshape(1, len(value), -1)
    return value.transpose(0, 1) if form.batch_first else value


def laid(value: Tensor, form: Form) -> Tensor:
    """(T, B, W) in the layout of a call of more than one step."""
    if form.batch_sizes is not None:
        return value[inside(form)]
    return value.transpose(0, 1) if form.batch_first else value


def inside(form: Form) -> Tensor:
    """(T, B) bool of a packed batch."""
    assert form.batch_sizes is not None
    return torch.arange(int(form.batch_sizes[0])) < form.batch_sizes[:, None]


def flipped(value: Tensor, lengths: Tensor | None) -> Tensor:
    """(T, B, …) with time turned round within each sequence."""
    if lengths is None:
        return value.flip(0)
    step = torch.arange(value.shape[0], device=value.device)[:, None]
    at = torch.where(step < lengths, lengths - 1 - step, step)
    return value.gather(0, at[..., None].expand(value.shape))
