"""Figures for papers and notebooks, by matplotlib (extra: plot). Plots are functions over results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from throughtime.errors import InputError, MissingExtraError
from throughtime.flow import Flow, LayerFlow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DECADES = 40  # of the axis at most: what is smaller lies below it


def plot_lags(flow: Flow | LayerFlow, layer: str | None = None, ax: Axes | None = None) -> tuple[Any, Any]:
    """Supply by lag on a log axis, with the lags at which demand was detected as bands; (figure, axes).

    layer: by its name, where there are several. Raises InputError for a name that is not there, MissingExtraError without
    matplotlib.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise MissingExtraError(
            "no module matplotlib", "the extra [plot]", "pip install 'throughtime[plot]'"
        ) from error
    told = flow if isinstance(flow, LayerFlow) else _layer(flow, layer)
    if ax is None:
        _, ax = plt.subplots(layout="constrained")
    log10 = np.where(told.log10_arriving > -DECADES, told.log10_arriving, np.nan)
    for lag in told.demand.lags if told.demand is not None else ():
        ax.axvspan(lag - 0.5, lag + 0.5, color="C1", alpha=0.25, lw=0)
    ax.semilogy(np.arange(told.steps), 10.0**log10, color="C0", label=told.name)
    ax.set(xlabel="lag (steps)", ylabel="fraction of the gradient that arrives")
    return ax.figure, ax


def _layer(flow: Flow, name: str | None) -> LayerFlow:
    if name is None and len(flow.layers) == 1:
        return next(iter(flow.layers.values()))
    if name is None or name not in flow.layers:
        raise InputError(f"layer {name!r}", f"one of {', '.join(flow.layers)}", "pass layer=… of them")
    return flow.layers[name]
