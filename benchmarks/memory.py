"""Peak memory of one work, in a process of its own: what it adds to what was resident before it. Linux only."""

from __future__ import annotations

import gc
import resource
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.works import Scene

RECORDED = ("ledger", "every_k", "one_step_jacobians", "vmap_jacobians", "state_norms")  # start from traces


def megabytes(work: str, scene: Scene) -> float:
    """MB that `Scene.<work>` adds at its peak."""
    with tempfile.TemporaryDirectory() as folder:
        traces = Path(folder) / "traces.pt"
        torch.save(scene.traces if work in RECORDED else [], traces)
        arguments = [work, str(scene.hidden), str(scene.steps), str(int(scene.every)), str(traces)]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.memory", *arguments], stdout=subprocess.PIPE, text=True, check=True
        )
    return float(done.stdout)


def _peak() -> int:
    """Bytes; the most that was ever resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _ballast() -> torch.Tensor:
    """What fills the process up to its peak so far (imports take more than they keep): what is added then is seen."""
    now = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return torch.ones(max(0, _peak() - now), dtype=torch.uint8)


def _main(work: str, hidden: str, steps: str, every: str, traces: str) -> None:
    torch.set_num_threads(1)
    scene = Scene(int(hidden), int(steps), bool(int(every)))
    getattr(replace(scene, steps=2), work)()  # imports, buffers of libraries
    scene.__dict__["traces"] = torch.load(traces, weights_only=False)  # written by `megabytes` just now
    assert scene.layer is not None
    assert len(scene.x) == scene.steps
    gc.collect()
    ballast = _ballast()
    before = _peak()
    getattr(scene, work)()
    print((_peak() - before) / 2**20)
    del ballast


if __name__ == "__main__":
    _main(*sys.argv[1:])
