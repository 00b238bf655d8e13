"""The two figures of docs/answer.md."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import torch

from reproduce.answer.timescales import Units
from reproduce.drawing import style, svg
from throughtime import theory

STRENGTH, STEPS = 4, 60
LOOKS = {  # case: label, colour, line
    "z=1": ("z → 1", "#0072b2", "-"),
    "z=0,r=1": ("z → 0, r → 1 (Elman)", "#d55e00", "--"),
    "z=r=0": ("z → 0, r → 0", "#009e73", "-."),
}


def cases() -> str:
    """The question's three cases: what arrives at step k, and what step k puts into ∂L/∂U_z and ∂L/∂U_h."""
    cell = theory.ChoGRU.random(24, 8)
    generator = torch.Generator().manual_seed(1000)
    x = torch.randn(STEPS, 8, generator=generator, dtype=torch.float64)
    gradient = torch.randn(24, generator=generator, dtype=torch.float64)
    with style():
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
        text = svg(figure)
        plt.close(figure)
    return text


def scatter(told: list[Units]) -> str:
    """A panel a network, a point a unit: half-life by the gate against measured half-life, coloured by the reset gate."""
    with style():
        figure, axes = plt.subplots(2, 2, figsize=(8, 7), layout="constrained", sharex=True, sharey=True)
        low, high = 0.07, 1500
        for axis, each in zip(axes.flat, told, strict=True):
            reached = each.reached
            axis.plot([low, 1, high], [1, 1, high], color="0.5", lw=1)
            look = {"c": each.reset[reached], "cmap": "cividis", "vmin": 0, "vmax": 1, "s": 22, "alpha": 0.9}
            points = axis.scatter(each.by_gate[reached], each.measured[reached], linewidths=0, **look)
            beyond = each.by_gate[~reached]
            axis.scatter(
                beyond, np.full(len(beyond), each.steps), marker="^", s=26, facecolors="none", edgecolors="0.35"
            )
            axis.axhline(each.steps, color="0.75", lw=1, ls=":")
            axis.set(xscale="log", yscale="log", xlim=(low, high), ylim=(0.7, high), title=each.name)
        figure.supxlabel("half-life by the gate, ln 2 · −1/⟨ln z⟩ (steps)")
        figure.supylabel("measured half-life of the gradient (steps)")
        figure.colorbar(points, ax=axes, label="mean reset gate", aspect=30, pad=0.01)
        text = svg(figure)
        plt.close(figure)
    return text
