"""What docs/answer.md shows of trained networks."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import numpy as np
import torch

from reproduce.answer import figures, latch, networks
from reproduce.answer.networks import Network
from reproduce.answer.timescales import Units, median, rank_correlation, ratio, units
from reproduce.study import Made, Study
from throughtime.progress import Tell
from throughtime.tasks.digits import one_thread

SEEDS = range(3)  # of the networks trained here; the first is the one that is shown
FAR = 10  # lag at which what stayed on the carry path is told, in steps; the shortest sequence has 11
Trained = dict[tuple[bool, int], tuple[latch.Latch, list[float]]]


def make(tell: Tell) -> Made:
    """Train, fetch and measure all of them."""
    return told([networks.opus(), networks.speller()], trainings(tell, SEEDS), tell)


def trainings(tell: Tell, seeds: Sequence[int], steps: int = latch.TRAINING) -> Trained:
    """The networks trained here by (chrono, seed), each in one thread of its own process."""
    todo, done = [(chrono, seed) for chrono in (False, True) for seed in seeds], {}
    workers = min(os.cpu_count() or 1, len(todo))
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        waiting = {pool.submit(latch.trained, seed, chrono, steps): (chrono, seed) for chrono, seed in todo}
        tell(0, len(todo), "training GRUs to hold and to filter")
        for future in as_completed(waiting):
            done[waiting[future]] = future.result()
            tell(len(done), len(todo), "training GRUs to hold and to filter")
    return {key: done[key] for key in todo}


@one_thread()
def told(fetched: list[Network], trained: Trained, tell: Tell) -> Made:
    """Blocks and figures from the networks."""
    here = {key: networks.here(key[0], model) for key, (model, _) in trained.items()}
    first = min(seed for _, seed in trained)
    shown = [*fetched, here[False, first], here[True, first]]
    measured = {}
    for place, network in enumerate([*shown, *(each for (_, seed), each in here.items() if seed != first)]):
        tell(place, len(fetched) + len(here), "measuring units of trained networks")
        measured[id(network)] = {name: read(network, name) for name in network.losses}
    usual = [next(iter(measured[id(each)].values())) for each in shown]
    own = {key: measured[id(each)] for key, each in here.items()}
    blocks = {
        "units": table(usual),
        "own": span([ratio(each.own, each.product)[0] for each in usual]),
        "own-ranks": span([rank_correlation(each.own, each.product)[0] for each in usual]),
        "outlives": span([ratio(each.gradient, each.product)[0] for each in usual]),
        "losses": by_loss(own),
        "loop": loop({seed: next(iter(each.values())) for (chrono, seed), each in own.items() if not chrono}),
        "resets": "; ".join(
            f"{each.name} {interval(rank_correlation(each.often_reset, each.gradient))}" for each in usual
        ),
        "errors": errors(trained),
    }
    return Made(blocks, {"images/answer/cases.svg": figures.cases(), "images/answer/units.svg": figures.scatter(usual)})


def read(network: Network, loss: str) -> Units:
    """The units of a network under one of its losses."""
    return units(network.name, network.model, network.layer, network.inputs, network.losses[loss])


def table(told: list[Units]) -> str:
    """A column a network."""
    rows: dict[str, Callable[[Units], str]] = {
        "units; steps": lambda u: f"{len(u.own)}; {u.steps}",
        "half-life by −1/⟨ln z⟩": lambda u: interval(median(u.average)),
        "half-life by ∏ z": lambda u: middle(u.product),
        "half-life of the unit's own value": lambda u: middle(u.own),
        "half-life of the gradient at the unit": lambda u: middle(u.gradient),
        "own value / ∏ z": lambda u: interval(ratio(u.own, u.product)),
        "rank correlation of these": lambda u: interval(rank_correlation(u.own, u.product)),
        "gradient / ∏ z": lambda u: interval(ratio(u.gradient, u.product)),
        "rank correlation of these two": lambda u: interval(rank_correlation(u.gradient, u.product)),
        f"share that never left the carry path, lag {FAR}": lambda u: f"{u.stayed[FAR]:.2f}",
        "largest eigenvalue of J; largest z": lambda u: f"{u.radius:.3f}; {u.keep:.3f}",
    }
    lines = ["| | " + " | ".join(each.name for each in told) + " |", "|---" * (len(told) + 1) + "|"]
    lines += [f"| {label} | " + " | ".join(cell(each) for each in told) + " |" for label, cell in rows.items()]
    return "\n\n" + "\n".join(lines) + "\n\n"


def by_loss(own: dict[tuple[bool, int], dict[str, Units]]) -> str:
    """Gradient / ∏ z of the networks trained here, for other losses: medians over units, least to most over seeds."""
    parts = []
    for loss in next(iter(own.values())):
        for chrono in (False, True):
            ratios = [
                ratio(each[loss].gradient, each[loss].product)[0] for (kind, _), each in own.items() if kind == chrono
            ]
            parts.append(f"{loss}{', chrono' if chrono else ''} {span(ratios)}")
    return "; ".join(parts)


def loop(seeds: dict[int, Units]) -> str:
    """How long the networks from torch's own initialisation hold, and with what gates."""
    longest = [np.nanmax(each.gradient) for each in seeds.values()]
    gates = [np.nanmax(each.product) for each in seeds.values()]
    radius, keep = [each.radius for each in seeds.values()], [each.keep for each in seeds.values()]
    return (
        f"half-lives of the gradient reach {span(longest)} steps, those by ∏ z at most {span(gates)}; the largest eigenvalue "
        f"of the one-step Jacobian has modulus {span(radius, '.3f')}, the largest z is {span(keep, '.2f')}"
    )


def errors(trained: Trained) -> str:
    """What the networks trained here reached: least to most over seeds, of both outputs."""
    parts = []
    for chrono in (False, True):
        mine = [error for (kind, _), (_, error) in trained.items() if kind == chrono]
        held, filtered = (span(list(values), ".4f") for values in zip(*mine, strict=True))
        parts.append(f"{'chrono' if chrono else 'torch’s own initialisation'} {held} and {filtered}")
    held, filtered = latch.chance()
    return "; ".join(parts) + f" (always saying 0 costs {held:.2f} and {filtered:.2f})"


def span(values: Sequence[float], form: str = ".2g") -> str:
    """Least to most, in one number where they are the same."""
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def interval(values: tuple[float, float, float]) -> str:
    """A value and its interval; a dash where there is none."""
    if np.isnan(values[0]):
        return "–"
    told, low, high = (f"{value:.2g}".replace("-", "−") for value in values)
    return f"{told} ({low} to {high})"


def middle(values: np.ndarray) -> str:
    """Median of a half-life, a missing one counted as the longest, and how many are missing."""
    missing = int(np.isnan(values).sum())
    return f"{np.median(np.nan_to_num(values, nan=np.inf)):.2g}" + (f" ({missing} beyond)" if missing else "")


STUDY = Study("answer.md", make)
