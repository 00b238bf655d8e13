"""How long compiling the chunks of a sweep takes, in a process of its own, with one thread. Importing the compiler counts."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace

import torch

from benchmarks.ours import ledger, ledger_compiled
from benchmarks.scene import Scene

SHORT = 200


def compiling(scene: Scene) -> dict[str, float]:
    """Processor seconds: with nothing on disk, and in the next process, which finds the result there.

    Of a short sequence: what is compiled is the same for any length.
    """
    scene = replace(scene, steps=min(scene.steps, SHORT))
    with tempfile.TemporaryDirectory() as folder:
        own = os.environ | {"TORCHINDUCTOR_CACHE_DIR": folder, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        command = [sys.executable, "-m", "benchmarks.compiled", json.dumps(asdict(scene))]
        return {
            name: float(subprocess.run(command, env=own, stdout=subprocess.PIPE, text=True, check=True).stdout)
            for name in ("compiling, the first time", "compiling, in a later process")
        }


def _spent() -> float:
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in both)


def _main(told: str) -> None:
    torch.set_num_threads(1)
    scene = Scene(**json.loads(told))
    ledger(scene)
    start = _spent()
    ledger_compiled(scene)
    first = _spent()
    ledger_compiled(scene)
    print(2 * first - start - _spent())  # less what it takes once compiled


if __name__ == "__main__":
    _main(sys.argv[1])
