"""All that is timed, by name, and whether ours and the rivals' say the same: a ratio of different answers is worth nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks import floors, ours, rivals
from benchmarks.scene import WORKS, Scene

__all__ = ["WORKS", "check_jacobians", "check_scaling", "check_terms", "floors", "ours", "rivals"]


def check_jacobians(scene: Scene) -> None:
    """One-step Jacobians and state norms."""
    torch.testing.assert_close(ours.one_step_jacobians(scene), rivals.vmap_jacobians(scene), rtol=1e-4, atol=1e-5)
    rival = rivals.batched_grad_norms(scene).flip(0).log10().detach().cpu()
    norms = ours.state_norms(scene).float()
    there = torch.isfinite(rival) & (rival > -15)  # squares underflow in the rival's float32 beyond
    torch.testing.assert_close(norms[there], rival[there], rtol=1e-3, atol=1e-3)


def check_terms(scene: Scene) -> None:
    """Every parameter's terms by lag, of all rivals; beyond the tail ours has none, and theirs must be as good as nothing."""
    told = ours.terms_by_lag(scene)
    for terms in (ours.terms_of_all_lags(scene), *(rival(scene) for rival in TERMS)):
        flat = terms if isinstance(terms, Tensor) else torch.cat([part.flatten(1) for part in terms], dim=1).cpu()
        torch.testing.assert_close(told, flat, rtol=1e-3, atol=1e-5 * float(flat.abs().max()))


TERMS = (rivals.copies_by_origin, rivals.copies_batched, rivals.copies_vmapped)


def check_scaling(scene: Scene) -> None:
    """With and without powers of two, where none are needed."""
    torch.testing.assert_close(*ours.shares_both_ways(scene), rtol=1e-3, atol=1e-5, equal_nan=True)
