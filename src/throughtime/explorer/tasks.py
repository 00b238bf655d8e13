"""The sequence tasks of the explorer, each with the demand that `throughtime.demand` measures for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.demand import measure
from throughtime.tasks import digits as digits_task
from throughtime.tasks import synthetic

LONGEST, UNITS, SEQUENCES = 200, 24, 256
DIGITS = 8  # digits that the page carries, so that the seed has some to choose from


@dataclass(frozen=True)
class Task:
    """A sequence task. draw(generator) → x (T, B, D) and the target; size: outputs of the reading of the last state.

    any_length: whether dropping the earliest steps leaves the task, so that demand measured on the longest holds for all.
    """

    id: str
    title: str
    needs: str
    draw: Callable[[torch.Generator], tuple[Tensor, Tensor]]
    size: int = 1
    any_length: bool = False


def _delayed(*lags: int) -> Callable[[torch.Generator], tuple[Tensor, Tensor]]:
    return lambda draw: synthetic.delayed_input(LONGEST, SEQUENCES, draw, lags=lags)


def _nothing(draw: torch.Generator) -> tuple[Tensor, Tensor]:
    x = synthetic.autoregressive(LONGEST, SEQUENCES, draw)
    return x, torch.randn(SEQUENCES, 1, generator=draw)


def _digits(draw: torch.Generator) -> tuple[Tensor, Tensor]:
    return digits_task.digits(generator=draw).batches(1, SEQUENCES, draw)[0]


TASKS = (
    Task("none", "nothing depends on the input", "The target is noise.", _nothing, any_length=True),
    Task("delayed", "the input 40 steps back", "The target is the input 40 steps back.", _delayed(40), any_length=True),
    Task("last-three", "the last three inputs", "The target is their sum.", _delayed(0, 1, 2), any_length=True),
    Task("digits", "a digit, then 92 steps of noise", "The first 8 steps are a digit's rows.", _digits, 10),
    Task(
        "adding",
        "the adding problem",
        "The target is a sum of products of both inputs, one in each half: a first-order test hardly sees it.",
        lambda draw: synthetic.adding(100, SEQUENCES, draw),
    ),
)


@cache
def described(task: Task) -> dict[str, Any]:
    """The task as the page carries it, with its demand: of an untrained nn.GRU of 24 units, loss at the end."""
    draw = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x, target = task.draw(draw)
        rnn, head = nn.GRU(x.shape[-1], UNITS), nn.Linear(UNITS, task.size)
        output = rnn(x)[0].detach().requires_grad_()
        read = head(output[-1])
        loss = nn.functional.cross_entropy(read, target) if task.size > 1 else nn.functional.mse_loss(read, target)
        (gradient,) = torch.autograd.grad(loss, output)
    found = measure(gradient, x)
    return {
        "id": task.id,
        "title": task.title,
        "needs": task.needs,
        "any_length": task.any_length,
        "D": x.shape[-1],
        "demand": {
            "z": [None if z != z else round(z, 3) for z in found.z.tolist()],
            "threshold": round(found.threshold, 3),
            "lags": list(found.lags),
            "sequences": found.sequences,
        },
    }


@cache
def digit_rows() -> list[list[list[float]]]:
    """Eight digits, each as 8 rows of 8 pixels of mean 0 and variance 1."""
    rows = digits_task.digits().train.inputs[: digits_task.ROWS, :DIGITS]
    return [[[round(value, 4) for value in row] for row in digit] for digit in rows.transpose(0, 1).tolist()]
