"""Recorded graphs of many steps are freed without recursion, whoever holds them last: each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

FUSED = "layer = nn.{}(2, 4); run = lambda x: layer(x)[0]"
LOOP = """
layer = nn.GRUCell(2, 4)
def run(x):
    h, out = torch.zeros(1, 4), []
    for step in x:
        h = layer(step, h)
        out.append(h)
    return torch.stack(out)
"""
USE = """
x = torch.randn({steps}, 1, 2)
with tt.record(layer) as rec:
    out = run(x)
    loss = {loss}
    if {backward}:
        loss.backward()
del out
del loss
print("freed")
"""


@pytest.mark.parametrize(
    ("make", "steps", "loss", "backward"),
    [
        (FUSED.format("GRU"), 8_000, "out[-1].sum()", True),
        (FUSED.format("GRU"), 8_000, "out.square().sum()", False),
        (FUSED.format("RNN"), 20_000, "out.square().sum()", True),
        (LOOP, 6_000, "out[-1].sum()", True),
    ],
)
def test_a_long_graph_is_freed(make, steps, loss, backward):
    code = "import torch, throughtime as tt\nfrom torch import nn\n" + make + "\n"
    code += USE.format(steps=steps, loss=loss, backward=backward)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == "freed\n", (done.returncode, done.stderr[-500:])
