"""How a long graph that was looked at from Python is let go.

A node of autograd's graph that Python has seen keeps the object that it was seen as, and takes that with it when it is freed.
A chain of some 40,000 such nodes is then freed in recursion and overflows the stack, which plain graphs do not (torch 2.13).
So the nodes of a long graph are held until all that was made of them has gone, and then let go one by one, the last made first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.autograd.graph import Node

LONG = 2000  # steps of layers; a GRU's step is a dozen nodes deep


class _Held:
    """Nodes in the order in which they were made."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes

    def __del__(self) -> None:
        while self.nodes:
            self.nodes.pop()


def takes(node: Any) -> tuple[Any, ...]:
    """What a node's operation takes in a backward pass: of each gradient its shape and dtype. torch's stubs leave it out."""
    return node._input_metadata


def hold(tops: Iterable[Node | None]) -> None:
    """Hold all nodes behind these until none of these is there any more."""
    ends = list(dict.fromkeys(node for node in tops if node is not None))
    seen, reached, waiting = set(ends), set(), list(ends)
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if node is not None:
                reached.add(node)
                if node not in seen:
                    seen.add(node)
                    waiting.append(node)
    held = _Held(sorted(reached, key=lambda node: node._sequence_nr()))
    for node in ends:
        if node not in reached:
            metadata: Any = node.metadata  # a dict; typed as a method
            metadata["throughtime"] = held
