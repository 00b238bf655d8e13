"""Inside a torch.distributed job: every process goes through its own part of the data, and all get the sums of the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce
from itertools import chain
from operator import add
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed, nn

from throughtime.errors import InputError
from throughtime.flow import Stream
from throughtime.progress import Tell
from throughtime.streaming.accumulate import borders
from throughtime.streaming.engines import Job
from throughtime.streaming.state import State, state_of
from throughtime.streaming.statefile import digest
from throughtime.streaming.stream import WHAT, Streaming, count_done, first_read, same_again
from throughtime.streaming.task import Measured, Task
from throughtime.training_step import untouched

NOTHING = object()
Made = TypeVar("Made")


def through(
    model: nn.Module,
    batches: Iterable[Any],
    task: Task,
    how: Streaming,
    rng: torch.Tensor,
    total: int | None,
    progress: Tell,
) -> tuple[Measured, Stream]:
    """As `throughtime.streaming.stream.stream`, called by all processes together. Batch i of process r is batch i·R + r of
    the whole.

    Where the terms end is said by the first batch of process 0. The interval ends nothing early: processes may have different
    numbers of batches, and each goes through all of its own. The file of `resume` ends on the process's rank. An error in one
    process is raised in all of them.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        raise InputError(
            "engine='distributed' outside a torch.distributed job",
            "an initialised process group",
            "call torch.distributed.init_process_group first, or use engine='serial'",
        )
    rank, world = distributed.get_rank(), distributed.get_world_size()
    file = None if how.resume is None else Path(f"{how.resume}.{rank}")

    def begin() -> tuple[Any, Iterable[Any]]:
        """The first batch, and those after it; it says where the terms end, and is kept in mind for a run that goes on."""
        if file is not None:
            torch.set_rng_state(state.rng)
        source = iter(batches)
        first = next(source, NOTHING)
        if not state.told and first is not NOTHING and (rank == 0 or file is not None):
            read = first_read(state, task, model, Job(rank, first, state.seed, {}), file)
            state.told = borders(read.traces, task.asked) if rank == 0 else {}
        if rank == 0 and not state.told:
            raise InputError("no batch in process 0", "at least one in each process", "check the sampler")
        return first, source

    def go_on() -> None:
        progress(state.done, total or 0, WHAT)
        for index, batch in enumerate(source if first is NOTHING else chain([first], source)):
            job = Job(index * world + rank, batch, state.seed, state.told)
            if job.number in state.digests:
                same_again(state, task, model, job, file)
                continue
            measured = task(model, job)[1]
            count_done(state, job.number, measured, digest(batch) if file else "", file, total, progress)

    with untouched(model):
        state: State = _in_all(lambda: state_of(model, task, file, rng, world))
        state.seed = _from(0, state.seed)
        first, source = _in_all(begin)
        state.told = _from(0, state.told)
        _in_all(go_on)
    parts = [_from(each, (state.measured, state.done)) for each in range(world)]
    measured = reduce(add, [part for part, _ in parts if part is not None])
    return measured, Stream(sum(done for _, done in parts), f"all batches of {world} processes were read")


def _in_all(work: Callable[[], Made]) -> Made:
    """What each process makes. Where one fails all do: the others would wait for it until the job's time is up."""
    made: list[Made] = []
    failed = None
    try:
        made.append(work())
    except Exception as error:
        failed = error
    words = None if failed is None else str(failed) or type(failed).__name__
    told = [_from(each, words) for each in range(distributed.get_world_size())]
    if failed is not None:
        raise failed
    for process, word in enumerate(told):
        if word is not None:
            raise InputError(f"an error in process {process} of the job ({word})", "none in any of them", "see there")
    return made[0]


def _from(rank: int, value: Any) -> Any:
    """What the process of this rank has, in all."""
    held = [value if distributed.get_rank() == rank else None]
    nccl = distributed.get_backend() == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if nccl else None
    distributed.broadcast_object_list(held, src=rank, device=device)
    return held[0]
