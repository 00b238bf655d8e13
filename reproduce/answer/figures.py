"""The two figures of docs/answer.md."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure

from reproduce.answer.timescales import Units
from reproduce.drawing import drawn
from throughtime import theory

STRENGTH, STEPS = 4, 60
LOOKS = {  # case: label, colour, line
    "z=1": ("z → 1", "#0072b2", "-"),
    "z=0,r=1": ("z → 0, r → 1 (Elman)", "#d55e00", "--"),
    "z=r=0": ("z → 0, r → 0", "#009e73", "-."),
}
POINTS = (("the gradient at the unit", "#d55e00", "o"), ("the unit's own value", "#0072b2", "s"))


@drawn
def cases() -> Figure:
    """The question's three cases: what arrives at step k, and what step k puts into ∂L/∂U_z and ∂L/∂U_h."""
    cell = theory.ChoGRU.random(24, 8)
    generator = torch.Generator().manual_seed(1000)
    x = torch.randn(STEPS, 8, generator=generator, dtype=torch.float64)
    gradient = torch.randn(24, generator=generator, dtype=torch.float64)
    figure, axes = plt.subplots(1, 3, figsize=(9.5, 4), layout="constrained", sharey=True)
    for name, (label, colour, line) in LOOKS.items():
        run = cell.run(x, **theory.case(name, STRENGTH))
        told = run.terms("U_z", gradient), run.terms("U_h", gradient)
        for axis, values in zip(axes, (told[0].transport_norm, told[0].norm, told[1].norm), strict=True):
            axis.semilogy(np.arange(STEPS), values.numpy(), line, color=colour, lw=2, label=label)
            axis.semilogy(0, float(values[0]), "o", color=colour, ms=7, clip_on=False)
    axes[0].set(ylim=(1e-12, 30), title="transport ‖∂L/∂h_k‖", ylabel="norm")
    axes[1].set(title="terms of ∂L/∂U_z")
    axes[2].set(title="terms of ∂L/∂U_h")
    for axis in axes:
        axis.set(xlabel="lag t − k")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


@drawn
def scatter(told: list[Units]) -> Figure:
    """A column a network, a point a unit: half-life by the gate against those of its own value and of the gradient at it."""
    figure, axes = plt.subplots(2, len(told), figsize=(10, 5.8), layout="constrained", sharex="row", sharey=True)
    for column, each in zip(axes.T, told, strict=True):
        for axis, across in zip(column, (each.product, each.average), strict=True):
            low, top = (0.7 if across is each.product else 0.07), 2 * max(unit.steps for unit in told)
            axis.plot([low, 1, top], [1, 1, top], color="0.5", lw=1)
            axis.axhline(each.steps, color="0.75", lw=1, ls=":")
            for values, (label, colour, marker) in zip((each.gradient, each.own), POINTS, strict=True):
                height = np.where(np.isfinite(values), values, each.steps)
                axis.scatter(across, height, marker=marker, s=16, color=colour, alpha=0.6, linewidths=0, label=label)
            axis.set(xscale="log", yscale="log", xlim=(low, top), ylim=(0.7, top))
        column[0].set_title(each.name)
        column[0].set_xlabel("by ∏ z")
        column[1].set_xlabel("by −1/⟨ln z⟩")
    figure.supylabel("measured half-life (steps)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
