"""Peak memory of one work: what it adds to what was there before it.

On the CPU in a process of its own, resident memory (Linux only); on CUDA what the allocator held.
"""

from __future__ import annotations

import gc
import json
import resource
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import torch

from benchmarks.scene import Scene
from benchmarks.works import WORKS


@cache
def megabytes(work: str, scene: Scene) -> float:
    """MB that the work adds at its peak."""
    if scene.device != "cpu":
        return _on_cuda(work, scene)
    with tempfile.TemporaryDirectory() as folder:
        traces = Path(folder) / "traces.pt"
        torch.save(scene.traces if WORKS[work].recorded else [], traces)
        arguments = [work, json.dumps(asdict(scene)), str(traces)]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.memory", *arguments], stdout=subprocess.PIPE, text=True, check=True
        )
    return float(done.stdout)


def _on_cuda(work: str, scene: Scene) -> float:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    WORKS[work].run(scene)
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _peak() -> int:
    """Bytes; the most that was ever resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _ballast() -> torch.Tensor:
    """What fills the process up to its peak so far (imports take more than they keep): what is added then is seen."""
    now = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return torch.ones(max(0, _peak() - now), dtype=torch.uint8)


def _main(work: str, told: str, traces: str) -> None:
    torch.set_num_threads(1)
    scene = Scene(**json.loads(told))
    WORKS[work].run(replace(scene, steps=2))  # imports, buffers of libraries
    scene.__dict__["traces"] = torch.load(traces, weights_only=False)  # written by `megabytes` just now
    assert scene.layer is not None
    assert len(scene.x) == scene.steps
    gc.collect()
    ballast = _ballast()
    before = _peak()
    WORKS[work].run(scene)
    print((_peak() - before) / 2**20)
    del ballast


if __name__ == "__main__":
    _main(*sys.argv[1:])
