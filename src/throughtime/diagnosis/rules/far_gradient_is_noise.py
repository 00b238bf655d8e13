"""TT105."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from throughtime.diagnosis.example import measured
from throughtime.diagnosis.finding import Finding, Severity
from throughtime.diagnosis.report import Needed
from throughtime.diagnosis.rule import History, Rule
from throughtime.flow import LayerFlow
from throughtime.report.notation import number

SIGNAL = 1.0
"""Signal-to-noise at which the mean over sequences equals its own standard error, squared. Not calibrated."""


class FarGradientIsNoise(Rule):
    """What arrives at the needed lags is noise: sequences disagree about it.

    ## What

    Signal-to-noise at lag τ compares the mean term of the sequences with its standard error: (‖m‖² − v/B) / (v/B), m
    the mean and v the variance of the B per-sequence terms. The rule fires where it is below 1 at every needed lag.
    The value is the largest of them.

    ## Why

    A gradient that arrives with full size and with another sign from every sequence averages to little: a step along
    it is a random step. Size alone (TT101) does not show that.

    ## Example

    A batch of 8 sequences on a task where one step in a hundred matters.

    ## Remedy

    More sequences a step: 1 + signal-to-noise is B ‖m‖² / v and grows in proportion to B, so that B′ = 2 B / (1 + value)
    sequences make it 1; or gradients accumulated over several batches; or a smaller learning rate, which averages over
    steps.

    ## References

    - McCandlish, Kaplan & Amodei 2018, An empirical model of large-batch training, https://arxiv.org/abs/1812.06162
    """

    code: ClassVar[str] = "TT105"
    name: ClassVar[str] = "far-gradient-is-noise"
    severity: ClassVar[Severity] = "info"
    preview: ClassVar[bool] = True

    def check(self, layer: LayerFlow, needed: Needed, history: History | None) -> Finding | None:
        lags = [lag for lag in needed.lags if lag < layer.steps]
        if not lags or len(lags) < len(needed.lags):
            return None
        ratios = layer.signal_to_noise[lags]
        if np.isnan(ratios).any() or ratios.max() >= SIGNAL:
            return None
        return self.finding(
            layer,
            ratios.max(),
            SIGNAL,
            f"At the needed lags, up to {needed.farthest}, signal-to-noise over {layer.batch} sequences is "
            f"{number(float(ratios.max()), 2)} at best.",
            "Use more sequences a step, or accumulate gradients: B′ = 2 B / (1 + value) sequences make the ratio 1"
            + (
                f", here about {number(2 * layer.batch / whole, 2)}."
                if (whole := 1 + float(ratios.max())) > 0.1
                else "."
            ),
        )

    def fires(self) -> tuple[LayerFlow, Needed, History | None]:
        layer = measured("RNN", lag=3, batch=8, centred=True)
        return layer, Needed(layer.name, (6,), "user"), None

    def silent(self) -> tuple[LayerFlow, Needed, History | None]:
        layer = measured("RNN", lag=3, batch=256, centred=True)
        return layer, Needed(layer.name, (3,), "user"), None
