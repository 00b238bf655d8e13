"""`python -m benchmarks.compiled`: would compiling chunks of steps (inductor) make the sweep of one loss faster?

Times the pullbacks alone of a GRU's sweep, eager and compiled, beside the training step. Needs a C++ compiler; two minutes.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.ours import plain
from benchmarks.pairs import compared, turns
from benchmarks.scene import Scene
from throughtime.cells import Weights
from throughtime.linearize import Linearization

CHUNK, HIDDEN, STEPS = 8, 128, 1000


def main() -> None:
    torch.set_num_threads(1)
    scene = Scene(HIDDEN, STEPS)
    trace = scene.traces[0]
    cell, factors, start = trace.cell, Linearization(trace).whole.factors, trace.gradient[-1:]

    def chunk(weight_hh: Tensor, keep: Tensor, local: Tensor, adjoint: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """CHUNK steps back: adjoints, those of the pre-activations, paths, and the adjoint that is left."""
        adjoints, pre, paths = [], [], []
        for step in reversed(range(CHUNK)):
            adjoints.append(adjoint)
            at = {"keep": keep[step : step + 1], "local": local[step : step + 1]}
            pulled = cell.pull(Weights(weight_hh=weight_hh), at, adjoint)
            pre.append(pulled.pre[0])
            paths.append(torch.stack(list(pulled.paths.values())))
            adjoint = pulled.carry
        return torch.stack(adjoints), torch.stack(pre), torch.stack(paths), adjoint

    def swept(run: Callable[..., tuple[Tensor, ...]]) -> Tensor:
        adjoint = start
        for first in range(STEPS - CHUNK, -1, -CHUNK):
            at = slice(first, first + CHUNK)
            *_, adjoint = run(trace.weights.weight_hh, factors["keep"][at], factors["local"][at], adjoint)
        return adjoint

    with torch.no_grad():
        compiled = torch.compile(chunk, dynamic=False)
        begin = time.perf_counter()
        torch.testing.assert_close(swept(compiled), swept(chunk), rtol=1e-3, atol=1e-30)
        spent = time.perf_counter() - begin

    def step() -> None:
        with torch.enable_grad():
            plain(scene)

    with torch.no_grad():
        told = compared(turns({"plain": step, "eager": lambda: swept(chunk), "compiled": lambda: swept(compiled)}, 7))
    print(f"compiling took {spent:.0f} s; relative to the training step, H={HIDDEN} T={STEPS}:")
    for name in ("eager", "compiled"):
        print(f"  pullbacks, {name}: {told[name].ratio:.2f} ({told[name].low:.2f} to {told[name].high:.2f})")


if __name__ == "__main__":
    main()
