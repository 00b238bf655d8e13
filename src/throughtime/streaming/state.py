"""What a run over batches knows, and its file keeps: sums, what they are of, and how a later run is told to be the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from throughtime import __version__
from throughtime.asked import Asked
from throughtime.collect import CONTRACT, LOW_PRECISION
from throughtime.errors import InputError
from throughtime.streaming.statefile import digest, load
from throughtime.streaming.sums import LayerSums
from throughtime.streaming.task import Measured, Read, Reader, Task


@dataclass
class State:
    """What a run knows, and its file keeps. of: see `_run`. rng: random state at the beginning, so that a loader shuffles
    again as it did. first: of the first batch, see `fingerprint`; empty where it differs from run to run."""

    asked: Asked
    of: dict[str, str]
    seed: int
    rng: torch.Tensor
    told: dict[str, tuple[int, bool]] = field(default_factory=dict)
    digests: dict[int, str] = field(default_factory=dict)
    measured: Measured | None = None
    first: dict[str, list[float]] = field(default_factory=dict)

    @property
    def done(self) -> int:
        return len(self.digests)

    def add(self, number: int, measured: Measured, told: str) -> None:
        self.measured = measured if self.measured is None else self.measured + measured
        self.digests[number] = told

    def to_dict(self) -> dict[str, Any]:
        kept = {name: list(value) for name, value in self.told.items()}
        assert self.measured is not None
        return {
            "asked": self.asked.questions(),
            "of": self.of,
            "seed": self.seed,
            "rng": self.rng,
            "told": kept,
            "digests": self.digests,
            "first": self.first,
            **{name: getattr(self.measured, name) for name in MEASURED},
        }


MEASURED: dict[str, Any] = {
    "layers": dict[str, LayerSums],
    "names": list[str],
    "reached": list[str],
    "notes": dict[str, dict[str, str]],
}
KINDS: dict[str, Any] = MEASURED | {
    "asked": dict[str, Any],
    "of": dict[str, str],
    "seed": int,
    "rng": torch.Tensor,
    "told": dict[str, list[int | bool]],
    "digests": dict[int, str],
    "first": dict[str, list[float]],
}
"""Of what a file keeps, by name."""


def check_kept(kept: dict[str, Any]) -> None:
    """Raise ValueError where the parts of a file do not fit together, RuntimeError and TypeError where numbers are none."""
    torch.Generator().set_state(kept["rng"])
    layers: dict[str, LayerSums] = kept["layers"]
    batches = {number for sums in layers.values() for number in sums.batches}
    if not batches or batches != kept["digests"].keys():
        raise ValueError("other batches are counted than added up")
    if any(len(each) != 2 for each in kept["told"].values()) or any(len(each) != 16 for each in kept["first"].values()):
        raise ValueError("lists of another length")
    if any(sums.steps != sums.scaled("entering.squares").exponent.shape[-1] for sums in layers.values()):
        raise ValueError("another number of steps")


def state_of(model: nn.Module, task: Task, file: Path | None, rng: torch.Tensor, processes: int = 1) -> State:
    """The state in the file where there is one, of a run of the same model and options; else that of a new run."""
    found, asked = None if file is None else load(file, KINDS, check_kept), task.asked
    of = {} if file is None else _run(model, task.reader, processes)
    if found is None:
        return State(asked, of, int(digest(rng), 16) >> 2, rng)
    for name, value in of.items():
        if found["of"].get(name) != value:
            raise InputError(
                f"{file}, the state of a run with another {name}",
                "the same model, layers, kind of loss and number of processes as in that run",
                "name another file: one for each model, checkpoint and question",
            )
    if found["asked"] != asked.questions():
        differ = ", ".join(name for name, value in asked.questions().items() if found["asked"].get(name) != value)
        raise InputError(
            f"{file}, the state of a run with other options: {differ}", "the options of that run", "name another file"
        )
    told = {name: (int(border[0]), bool(border[1])) for name, border in found["told"].items()}
    measured = Measured(**{name: found[name] for name in MEASURED})
    return State(asked, of, found["seed"], found["rng"], told, found["digests"], measured, found["first"])


def _run(model: nn.Module, reader: Reader, processes: int) -> dict[str, str]:
    """What has to be the same for a run to go on, by name."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    modes = [(name, module.training) for name, module in model.named_modules()]
    return {
        "model": digest([tensors, modes]),
        "kind of loss": type(reader).__name__,
        "choice of layers": repr(getattr(reader, "layers", None)),
        "number of processes": str(processes),  # by which batches are numbered
        "number of directions to probe": str(getattr(reader, "batches", None)),
        "version of throughtime": __version__,
    }


def fingerprint(read: Read) -> dict[str, list[float]]:
    """By layer, what its sums are made of, in numbers that two runs can compare: of input, states and entering gradient the
    norm and four random projections, whose differences tell how far one is from another (Johnson & Lindenstrauss 1984); before
    them, what rounding may make of it.
    """
    out = {}
    for trace in read.traces:
        found = [CONTRACT.get(trace.dtype, LOW_PRECISION)]
        for value in (trace.x, trace.carries, trace.gradient):
            flat = value.detach().double().cpu().flatten()
            generator = torch.Generator().manual_seed(len(flat))
            ways = (torch.randn(flat.shape, generator=generator, dtype=flat.dtype) for _ in range(4))
            found += [float(flat.norm()), *(float(flat @ way) for way in ways)]
        out[trace.name] = found
    return out


def like(one: Mapping[str, list[float]], other: Mapping[str, list[float]]) -> bool:
    """Whether two fingerprints are those of one and the same computation, to its rounding."""
    if one.keys() != other.keys():
        return False
    for name, told in one.items():
        a, b = (torch.tensor(each[1:], dtype=torch.float64).reshape(3, -1) for each in (told, other[name]))
        apart = (a[:, 1:] - b[:, 1:]).square().mean(1).sqrt()
        if not bool((apart <= told[0] * torch.maximum(a[:, 0], b[:, 0])).all()):
            return False
    return True
