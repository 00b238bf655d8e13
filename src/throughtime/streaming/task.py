"""What is done with one batch: forward and backward, and the sums of its traces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from throughtime.asked import Asked
from throughtime.errors import InputError
from throughtime.flow import Missing
from throughtime.streaming.accumulate import accumulate, borders, terms_of
from throughtime.streaming.engines import Job
from throughtime.streaming.sums import LayerSums, merge
from throughtime.trace import Trace
from throughtime.training_step import untouched
from throughtime.whole.series import Series


@dataclass(frozen=True)
class Read:
    """What a batch gives: its traces, and how many copies of each sequence they hold.

    names: of all layers that were recorded, reached: of those that the loss depends on. notes: field →
    why it is missing, by layer. series, apart: the total lag by signed offset, and why none, where the whole is wanted.
    """

    traces: list[Trace]
    names: list[str]
    reached: list[str]
    copies: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    series: list[Series] = field(default_factory=list)
    apart: tuple[Missing, ...] = ()


class Reader(Protocol):
    """From a batch to its traces. It is sent to other processes, and leaves the model as it was."""

    def __call__(self, model: nn.Module, number: int, batch: Any, whole: bool = False) -> Read: ...


@dataclass(frozen=True)
class Measured:
    """The sums of some batches. names, reached, notes: see `Read`. beside: what else a task gathers, which adds up; no file
    keeps it."""

    layers: dict[str, LayerSums]
    names: list[str]
    reached: list[str]
    notes: dict[str, Mapping[str, str]]
    beside: Any = None

    def __add__(self, other: Measured) -> Measured:
        both = {
            name: merge(self.layers[name], other.layers[name])
            if name in self.layers and name in other.layers
            else self.layers.get(name) or other.layers[name]
            for name in dict.fromkeys((*self.layers, *other.layers))
        }
        return Measured(
            both,
            list(dict.fromkeys((*self.names, *other.names))),
            list(dict.fromkeys((*self.reached, *other.reached))),
            {**other.notes, **self.notes},
            None if self.beside is None or other.beside is None else self.beside + other.beside,
        )


@dataclass(frozen=True)
class Task:
    """What is done with a batch. The job's `told`: layer → lags told apart, and whether by hand; see `border`."""

    reader: Reader
    asked: Asked

    def read(self, model: nn.Module, job: Job, seeded: bool = False) -> Read:
        """Forward and backward, with random numbers of the batch's own; the first has those that were found, if not seeded."""
        with untouched(model):
            if job.number or seeded:
                torch.manual_seed((job.seed + job.number) % 2**63)
            with in_batch(job.number):
                return self.reader(model, job.number, job.batch)

    def __call__(self, model: nn.Module, job: Job) -> tuple[int, Measured]:
        return job.number, self.added_up(model, self.read(model, job), job)

    def added_up(self, model: nn.Module, read: Read, job: Job) -> Measured:
        """The sums of the traces of a batch."""
        layers = {}
        with in_batch(job.number):
            unseen = [trace for trace in read.traces if trace.name not in job.told]
            told = {**job.told, **borders(unseen, self.asked, look=False)}
            takes = {trace.name: terms_of(trace, told[trace.name][0]) for trace in read.traces}
            for trace in read.traces:
                lags, by_hand = told[trace.name]
                copies, others = read.copies.get(trace.name, 1), sum(takes.values()) - takes[trace.name]
                layers[trace.name] = accumulate(trace, job.number, self.asked, lags, by_hand, copies, others)
        return Measured(layers, read.names, read.reached, dict(read.notes))


@contextmanager
def in_batch(number: int) -> Iterator[None]:
    """Errors say which batch it was."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{error.got}, in batch {number}", error.expected, error.do) from error
    except Exception as error:
        error.add_note(f"This was batch {number}, the first being 0.")
        raise
