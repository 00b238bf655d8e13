"""A synthetic but plausible report, made of the frozen results alone: no network is run.

`build()` is the digits task in numbers: one loss at the end, demand at the far lags, a default GRU that
loses the gradient.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from throughtime.demand import Demand
from throughtime.diagnosis.finding import Finding
from throughtime.diagnosis.report import Needed, Report
from throughtime.flow import (
    Adjoint,
    Flow,
    Gate,
    LayerFlow,
    Missing,
    OriginStep,
    Tail,
    Terms,
    Unit,
)
from throughtime.verify import Verification

HOSTILE = "</script><img src=x onerror=alert(1)>"
PATHS = {
    "gru": ("carry", "update", "candidate", "reset"),
    "lstm": ("carry", "input", "forget", "candidate", "output"),
    "rnn_tanh": ("recurrent",),
}
GATES = {"gru": ("r", "z", "n"), "lstm": ("i", "f", "g", "o"), "rnn_tanh": ()}
SIGMOIDS = {"gru": ("r", "z"), "lstm": ("i", "f", "o"), "rnn_tanh": ()}


def layer(
    name: str = "rnn",
    *,
    cell: str = "gru",
    steps: int = 100,
    units: int = 48,
    batch: int = 64,
    rate: float = -0.19,
    asked: tuple[int, ...] | None = tuple(range(92, 100)),
    every_step: bool = False,
    tail: int | None = None,
    **changes: Any,
) -> LayerFlow:
    """One layer whose adjoint changes by `rate` decades a step; demand at `asked` (None: not measured)."""
    rng = np.random.default_rng(0)
    lags = np.arange(steps)
    log10 = rate * lags + 0.3 * np.sin(lags / 4) * (lags > 3)
    if tail is not None:
        log10 = np.where(lags < tail, log10, np.nan)
    share = np.exp(-np.where(np.isnan(log10), 50, -log10) * math.log(10) * 0.5)
    share = share / share.sum()
    made = LayerFlow(
        name=name,
        cell=cell,
        convention={"reset": "after the product", "z": "keeps"} if cell == "gru" else {},
        steps=steps,
        batch=batch,
        hidden_size=units,
        input_size=8,
        dtype="float32",
        lag="total",
        loss_steps=tuple(range(steps)) if every_step else (steps - 1,),
        residual=3.1e-7,
        error=2.2e-7,
        cancellation=0.42,
        adjoint=_adjoint(log10, batch, rng),
        parameters={f"{name}.{kind}": _terms(f"{name}.{kind}", cell, share, log10, rng) for kind in WEIGHTS},
        initial_state={"h0": Terms("h0", None, share * 0, log10 - 0.2, math.nan)},
        demand=None if asked is None else _demand(steps, asked, batch, rng),
        paths=_paths(cell, steps, rng),
        hops=_hops(steps) if cell != "rnn_tanh" else None,
        signal_to_noise=20 * np.exp(-lags / 15) + rng.normal(0, 0.1, steps),
        bias=np.maximum(np.cumsum(share[::-1])[::-1] - share, 4e-8),
        cosine=np.clip(np.cumsum(share), 0.2, 1),
        horizon={0.1: _window(share, 0.1), 0.01: _window(share, 0.01), 0.001: _window(share, 0.001)},
        units=_units(units, rng),
        gates={gate: _gate(rng.normal(i - 0.5, 2.0, 4000)) for i, gate in enumerate(SIGMOIDS[cell])},
        tail=None if tail is None else Tail(tail, 1e-4, -7.5, None, 2e-4),
        origin_step=_origin_step(steps, log10, every_step),
        missing=(Missing("hops", "not asked for"),) if cell == "rnn_tanh" else (),
    )
    return dataclasses.replace(made, **changes)


WEIGHTS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


def flow(*layers: LayerFlow) -> Flow:
    """A flow of these layers."""
    return Flow({made.name: made for made in layers}, throughtime="0.1.0", torch="2.13.0")


def build(*layers: LayerFlow, findings: tuple[Finding, ...] | None = None, **changes: Any) -> Report:
    """A report of these layers; without any, of the digits task with a finding."""
    layers = layers or (layer(),)
    needed = tuple(_needed(made) for made in layers)
    if findings is None:
        findings = (vanishing(layers[0].name), saturated(layers[0].name)) if needed[0].lags else ()
    made = Report(flow=flow(*layers), needed=needed, findings=findings, title="Digits, then 92 steps of noise")
    return dataclasses.replace(made, **changes)


def cured() -> Report:
    """The digits task with the remedy measured: before and after in one picture."""
    treated = layer(rate=-0.012)
    return build(verification=verification(), before=flow(layer()), after=flow(treated))


def vanishing(name: str = "rnn") -> Finding:
    """A stable finding."""
    return Finding(
        code="TT101",
        name="gradient-vanishes-before-needed-lag",
        severity="error",
        preview=False,
        layer=name,
        value=1.3e-19,
        threshold=1e-3,
        message="Of the gradient at lag 0, 1.3e-19 arrives at lag 99, where the loss still depends on the input.",
        remedy="Give the gates timescales up to the needed lag: `tt.init.chrono_(model.rnn, max_lag=100)`, "
        "b_z = ln u with u ~ U(1, 99).",
        references=(
            "Tallec & Ollivier 2018, Can recurrent neural networks warp time?, https://arxiv.org/abs/1804.11188",
            "Hochreiter 1991, Untersuchungen zu dynamischen neuronalen Netzen",
        ),
    )


def saturated(name: str = "rnn") -> Finding:
    """A note from a rule in preview."""
    return Finding(
        code="TT201",
        name="gates-saturated",
        severity="info",
        preview=True,
        layer=name,
        value=0.12,
        threshold=0.1,
        message="12 % of the logits of gate `r` lie beyond ±6.",
        remedy="Look at the scale of the inputs.",
        references=(),
    )


def verification(verdict: str = "helps") -> Verification:
    """Five paired seeds."""
    rng = np.random.default_rng(1)
    before = np.array([0.104, 0.099, 0.112, 0.101, 0.095])
    after = before + {"helps": 0.32, "no help": 0.002, "harms": -0.05}[verdict] + rng.normal(0, 0.012, 5)
    steps = np.arange(200)
    curves = {
        "untreated": 2.3 + rng.normal(0, 0.02, (5, 200)),
        "treated": 2.3 * np.exp(-steps / 400) + rng.normal(0, 0.02, (5, 200)),
    }
    difference = float(np.mean(after - before))
    return Verification(
        "chrono", "test accuracy", True, 200, (0, 1, 2, 3, 4), before, after, difference, difference - 0.02,
        difference + 0.02, verdict, curves,
    )  # fmt: skip


def headline(report: Report) -> list[tuple[str, str]]:
    """Stands in for the real headline where a test wants fixed words."""
    needed = report.needed[0]
    rows = [
        ("needed", f"The loss responds to inputs {len(needed.lags)} lags back (B = 64, first-order test)."),
        ("reached", "99 % of the gradient lies within 8 steps."),
        ("finding", "The gradient vanishes before the lag that the loss needs."),
        ("try", "Set the timescales: `tt.init.chrono_(model.rnn, max_lag=100)`."),
    ]
    if report.verification is not None:
        rows.append(("after", "Test accuracy rose in every one of 5 paired trainings of 200 steps."))
    return rows


def _needed(made: LayerFlow) -> Needed:
    lags = made.demand.lags if made.demand is not None else ()
    return Needed(made.name, lags, "demand" if lags else "unknown")


def _adjoint(log10: np.ndarray, batch: int, rng: np.random.Generator) -> Adjoint:
    spread = rng.normal(0, 0.02, (1, batch)) * np.arange(len(log10))[:, None]
    return Adjoint(log10 - 2.0, {"h": log10 - 2.0}, log10[:, None] - 2.0 + spread)


def _terms(name: str, cell: str, share: np.ndarray, log10: np.ndarray, rng: np.random.Generator) -> Terms:
    def row(gate: str | None) -> Terms:
        signs = np.where(rng.random(len(share)) < 0.15 * (share < 0.1), -1, 1)
        signed = share * signs / np.sum(share * signs)
        return Terms(name, gate, signed, log10 + rng.normal(0, 0.2, len(share)) - 1, 10 ** rng.uniform(-8, -6))

    whole = row(None)
    return dataclasses.replace(whole, gates={gate: row(gate) for gate in GATES[cell]})


def _demand(steps: int, asked: tuple[int, ...], batch: int, rng: np.random.Generator) -> Demand:
    z = rng.normal(0, 1, steps)
    z[list(asked)] = rng.uniform(6, 15, len(asked))
    z[np.setdiff1d(np.arange(steps), asked)] = np.minimum(z[np.setdiff1d(np.arange(steps), asked)], 3.0)
    return Demand(z, 4.4, asked, batch)


def _paths(cell: str, steps: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    raw = rng.normal(0, 0.03, (len(PATHS[cell]), steps)) + np.linspace(0.7, 0.1, len(PATHS[cell]))[:, None]
    raw /= raw.sum(axis=0)
    raw[:, 0] = np.nan
    return dict(zip(PATHS[cell], raw, strict=True))


def _hops(steps: int) -> dict[str, np.ndarray]:
    lags = np.arange(steps)
    poisson = {str(m): np.exp(-0.1 * lags) * (0.1 * lags) ** m / math.factorial(m) for m in range(4)}
    return poisson | {"rest": 1 - sum(poisson.values())}


def _window(share: np.ndarray, rest: float) -> int:
    return int(np.argmax(np.cumsum(share) >= 1 - rest))


def _units(count: int, rng: np.random.Generator) -> tuple[Unit, ...]:
    kinds = ("short-term", "long-term", "resetting", "dead")
    units = []
    for index in range(count):
        kind = kinds[int(rng.choice(4, p=[0.6, 0.2, 0.1, 0.1]))]
        timescale = float(10 ** rng.uniform(0.1, 2))
        half_life = math.nan if kind == "dead" else math.log(2) * timescale * float(rng.uniform(0.4, 1.2))
        units.append(Unit(index, timescale, half_life, kind, f"carry gate averages {math.exp(-1 / timescale):.2f}"))
    return tuple(units)


def _gate(logits: np.ndarray) -> Gate:
    values = 1 / (1 + np.exp(-logits))
    return Gate(
        mean=float(values.mean()),
        below=float((values < 0.1).mean()),
        above=float((values > 0.9).mean()),
        saturated=float((np.abs(logits) > 6).mean()),
        logit_quantiles=np.quantile(logits, [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99]),
        histogram=np.histogram(values, 20, (0, 1))[0],
    )


def _origin_step(steps: int, log10: np.ndarray, every_step: bool) -> OriginStep:
    side = np.arange(min(steps, 512))
    lag = side[:, None] - side[None, :]
    rng = np.random.default_rng(2)
    walk = np.cumsum(rng.normal(0, 0.05, len(side)))
    values = np.where(lag >= 0, log10[np.clip(lag, 0, steps - 1)] + walk[None, :] - walk[:, None], np.nan)
    if not every_step:
        values[:-1] = np.nan
    return OriginStep(side, side, values)
