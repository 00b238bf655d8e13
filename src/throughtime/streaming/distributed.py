"""Inside a torch.distributed job: every process goes through its own part of the data, and all get the sums of the whole."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import reduce
from itertools import chain
from operator import add
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from throughtime.errors import InputError
from throughtime.flow import Stream
from throughtime.progress import Tell
from throughtime.streaming.accumulate import border
from throughtime.streaming.engines import Job
from throughtime.streaming.statefile import digest
from throughtime.streaming.stream import WHAT, Measured, Streaming, Task, count_done, same_again, state_of
from throughtime.training_step import untouched

NOTHING = object()


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
    numbers of batches, and each goes through all of its own. The file of `resume` ends on the process's rank.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        raise InputError(
            "engine='distributed' outside a torch.distributed job",
            "an initialised process group",
            "call torch.distributed.init_process_group first, or use engine='serial'",
        )
    rank, world = distributed.get_rank(), distributed.get_world_size()
    file = None if how.resume is None else Path(f"{how.resume}.{rank}")
    with untouched(model):
        state = state_of(model, task, file, rng, world)
        if file is not None:
            torch.set_rng_state(state.rng)
        source = iter(batches)
        first = next(source, NOTHING)
        job = Job(rank, first, state.seed, state.told)
        if rank == 0 and not state.told and first is not NOTHING:
            state.told = {trace.name: border(trace, task.asked) for trace in task.read(model, job).traces}
        state.told, state.seed = _from(0, (state.told, state.seed))
        if not state.told:
            raise InputError("no batch in process 0", "at least one in each process", "check the sampler")
        progress(state.done, total or 0, WHAT)
        for index, batch in enumerate(source if first is NOTHING else chain([first], source)):
            number = index * world + rank
            if number in state.digests:
                same_again(state, number, batch, file)
                continue
            job = replace(job, number=number, batch=batch, seed=state.seed, told=state.told)
            measured = task(model, job)[1]
            count_done(state, number, measured, digest(batch) if file else "", file, total, progress)
    parts = [_from(each, (state.measured, state.done)) for each in range(world)]
    measured = reduce(add, [part for part, _ in parts if part is not None])
    return measured, Stream(sum(done for _, done in parts), f"all batches of {world} processes were read")


def _from(rank: int, value: Any) -> Any:
    """What the process of this rank has, in all."""
    held = [value if distributed.get_rank() == rank else None]
    nccl = distributed.get_backend() == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if nccl else None
    distributed.broadcast_object_list(held, src=rank, device=device)
    return held[0]
