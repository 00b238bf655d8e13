"""Who works on the batches: this process, joblib's workers, or Ray's. Each batch becomes sums where it is worked on.

An engine is entered with the model and what to do with a batch, and gives a function from jobs to their results, in whatever
order they come. Results do not depend on the engine but for rounding: sums merge in any order.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar

import torch

from throughtime.errors import InputError

Result = TypeVar("Result")


@dataclass(frozen=True)
class Job:
    """A batch and its number. seed: of all batches together; told: see `throughtime.streaming.stream.Task`."""

    number: int
    batch: Any
    seed: int
    told: Mapping[str, tuple[int, bool]]


@dataclass(frozen=True)
class Calls(Generic[Result]):
    """A model and what to do with it and a job."""

    model: Any
    task: Callable[[Any, Job], Result]


Run = Callable[[list[Job]], Iterable[Any]]


@contextmanager
def serial(calls: Calls, workers: int | None) -> Iterator[Run]:
    """One after another, in this process."""
    yield lambda jobs: (calls.task(calls.model, job) for job in jobs)


@contextmanager
def joblib(calls: Calls, workers: int | None) -> Iterator[Run]:
    """In processes of this machine."""
    try:
        from cloudpickle import dumps
        from joblib import Parallel, delayed
    except ImportError:
        raise _lacking("joblib") from None
    payload = _payload(calls, dumps)
    with Parallel(n_jobs=workers or -1, return_as="generator_unordered") as parallel:
        yield lambda jobs: parallel([delayed(_work)(payload, _packed(job, dumps)) for job in jobs])


@contextmanager
def ray(calls: Calls, workers: int | None) -> Iterator[Run]:
    """On a Ray cluster: the one that is connected to, else one of this machine. Jobs of killed workers are run again."""
    try:
        import ray as cluster
        from ray.cloudpickle import dumps  # pyright: ignore[reportAttributeAccessIssue, reportPrivateImportUsage]
    except ImportError:
        raise _lacking("ray") from None
    own = not cluster.is_initialized()
    if own:
        cluster.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        payload = cluster.put(_payload(calls, dumps))
        remote = cluster.remote(max_retries=-1)(_work)

        def run(jobs: list[Job]) -> Iterator[Any]:
            waiting = [remote.remote(payload, _packed(job, dumps)) for job in jobs]
            while waiting:
                done, waiting = cluster.wait(waiting)
                yield cluster.get(done[0])

        yield run
    finally:
        if own:
            cluster.shutdown()


ENGINES: dict[str, Callable[[Calls, int | None], AbstractContextManager[Run]]] = {
    "serial": serial,
    "joblib": joblib,
    "ray": ray,
}
DISTRIBUTED = "distributed"
NAMES = (*ENGINES, DISTRIBUTED)


def _payload(calls: Calls, dumps: Callable[[Any], bytes]) -> bytes:
    return _pickled(calls, dumps, "a model or loss that", "a model and a loss")


def _packed(job: Job, dumps: Callable[[Any], bytes]) -> bytes:
    return _pickled(job, dumps, f"batch {job.number}, which", "batches")


def _pickled(value: Any, dumps: Callable[[Any], bytes], what: str, wanted: str) -> bytes:
    try:
        return dumps(value)
    except Exception as error:
        raise InputError(
            f"{what} cannot be sent to another process ({type(error).__name__}: {error})",
            f"{wanted} that can be pickled",
            "drop open files, locks and hooks on other objects from them, or use engine='serial'",
        ) from error


def _lacking(name: str) -> InputError:
    return InputError(f"engine='{name}' without {name}", f"the package {name}", f"pip install 'throughtime[{name}]'")


@lru_cache(maxsize=1)
def _unpacked(payload: bytes) -> Calls:
    """Once for each worker: a task leaves the model as it was."""
    return pickle.loads(payload)


def _work(payload: bytes, job: bytes) -> Any:
    torch.set_num_threads(1)
    calls = _unpacked(payload)
    return calls.task(calls.model, pickle.loads(job))
