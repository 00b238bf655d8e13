"""What docs/answer.md shows of trained networks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from reproduce.answer import figures
from reproduce.answer.latch import TRAINING
from reproduce.answer.networks import Network, opus, speller, trained
from reproduce.answer.timescales import Array, Units, median, rank_correlation, units
from reproduce.study import Made, Study
from throughtime.progress import Tell
from throughtime.tasks.digits import one_thread

FAR = 10  # lag at which what stayed on the carry path is told, in steps; the shortest sequence has 11


def networks(tell: Tell, steps: int = TRAINING) -> list[Callable[[], Network]]:
    """The four networks, made when they are called. steps: of the two trainings."""
    return [opus, speller, *(partial(trained, chrono, tell, steps) for chrono in (False, True))]


@one_thread()
def make(tell: Tell, ways: Callable[[Tell], list[Callable[[], Network]]] = networks) -> Made:
    """Measure them all."""
    told, errors = [], {}
    todo = ways(tell)
    for done, way in enumerate(todo):
        tell(done, len(todo), "measuring units of trained networks")
        network = way()
        told.append(units(network.name, network.model, network.layer, network.inputs, network.loss))
        if network.error is not None:
            errors[network.name] = network.error
    pictures = {"images/answer/cases.svg": figures.cases(), "images/answer/units.svg": figures.scatter(told)}
    untreated = next(each for each in told if each.name in errors)
    blocks = {"units": table(told), "resets": resets(told), "errors": trainings(errors)}
    return Made(blocks | {"factor": factor(told), "loop": loop(untreated)}, pictures)


def table(told: list[Units]) -> str:
    """A column a network."""
    rows: dict[str, Callable[[Units], str]] = {
        "units; T": lambda u: f"{len(u.reached)}{_beyond(u.reached)}; {u.steps}",
        "half-life by the gate (steps)": lambda u: _told(median(u.by_gate)),
        "measured half-life (steps)": lambda u: _told(median(u.measured[u.reached])),
        "measured / by the gate, in whole steps": lambda u: _told(_outlives(u)),
        "their rank correlation": lambda u: _told(rank_correlation(u.by_gate[u.reached], u.measured[u.reached])),
        "measured / half-life of the RMS of ∏ z": lambda u: _told(_outlives_product(u)),
        f"{FAR} steps back, never off the carry path": lambda u: f"{u.stayed[FAR]:.0%}",
    }
    lines = ["| | " + " | ".join(each.name for each in told) + " |", "|---" * (len(told) + 1) + "|"]
    lines += [f"| {label} | " + " | ".join(cell(each) for each in told) + " |" for label, cell in rows.items()]
    return "\n\n" + "\n".join(lines) + "\n\n"


def factor(told: list[Units]) -> str:
    """By how much the gradient outlives the gate: the least and the largest of the medians."""
    factors = [_outlives(each)[0] for each in told]
    return f"{min(factors):.2g} to {max(factors):.2g}"


def loop(each: Units) -> str:
    """A network whose units outlive their gates by far."""
    return (
        f"half-lives of up to {each.measured[each.reached].max():.0f} steps, with gates of at most {each.by_gate.max():.1f}; "
        f"of the gradient that arrives {FAR} steps back all but {each.stayed[FAR]:.0%} has left the carry path at least once"
    )


def resets(told: list[Units]) -> str:
    """Cho et al.'s observation on resets, network by network."""
    rows = [f"{each.name} {_told(_of_reached(each, each.reset))}" for each in told]
    return "; ".join(rows)


def trainings(errors: dict[str, list[float]]) -> str:
    """What the networks trained here reached."""
    return "; ".join(f"{name} {held:.4f} and {filtered:.4f}" for name, (held, filtered) in errors.items())


def _of_reached(each: Units, values: Array) -> tuple[float, float, float]:
    return rank_correlation(values[each.reached], each.measured[each.reached])


def _outlives(each: Units) -> tuple[float, float, float]:
    return median(each.measured[each.reached] / each.gate_steps[each.reached])


def _outlives_product(each: Units) -> tuple[float, float, float]:
    both = each.reached & np.isfinite(each.carried)
    return median(each.measured[both] / each.carried[both])


def _beyond(reached: np.ndarray) -> str:
    return "" if reached.all() else f" ({np.sum(~reached)} not reached)"


def _told(values: tuple[float, float, float]) -> str:
    middle, low, high = (f"{value:.2g}".replace("-", "−") for value in values)
    return f"{middle} ({low} to {high})"


STUDY = Study("answer.md", make)
