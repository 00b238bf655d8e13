"""The table as text, as JSON and in docs/performance.md."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import throughtime as tt
from benchmarks.rows import Row

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results.json", HERE.parent / "docs" / "performance.md"
BEGIN, END = "<!-- table: made by python -m benchmarks --write -->", "<!-- end of table -->"
HEAD = ("work", "relative to", "H", "T", "seconds", "ratio", "95 % interval", "aim", "peak MB", "of the other")
NAMES = {
    "plain": "plain forward + backward",
    "recorded": "the same step, recorded",
    "ledger": "decomposition",
    "every_k": "decomposition, bias at every K, hops",
    "unroll_adjoints": "rival: GRUCell unroll + autograd.grad, adjoints only",
    "one_step_jacobians": "all one-step Jacobians, times faster than",
    "vmap_jacobians": "vmap(jacrev(GRU cell))",
    "state_norms": "‖∂h_T/∂h_k‖ for all k, times faster than",
    "batched_grad_norms": "autograd.grad(is_grads_batched=True)",
}


def document(rows: Sequence[Row], quick: bool) -> dict[str, Any]:
    """Everything that a ratio depends on, and the rows."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "throughtime": tt.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "quick": quick,
        "rows": [asdict(row) | {"met": row.met} for row in rows],
    }


def save(told: dict[str, Any]) -> None:
    RESULTS.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")


def show(rows: Iterable[Row]) -> None:
    """Print the table to the terminal."""
    table = Table(*HEAD)
    for row in rows:
        table.add_row(*_cells(row))
    Console(width=160).print(table)


def write(told: dict[str, Any], rows: Sequence[Row]) -> None:
    """Put the table into docs/performance.md, between its two marks."""
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    where = f"{told['cpu']}, {told['threads']} thread, torch {told['torch']}, {told['date'][:10]}."
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(before + "\n".join((BEGIN, "", where, "", *lines, "", END)) + after)


def _cells(row: Row) -> tuple[str, ...]:
    verdict = {None: "", True: " ✓", False: " ✗"}[row.met]
    work = NAMES[row.work] + (", loss at every step" if row.group == "loss at every step" else "")
    return (
        work,
        NAMES[row.base],
        str(row.hidden),
        str(row.steps),
        f"{row.seconds:.3g}",
        f"{row.ratio:.2f}",
        f"{row.low:.2f}–{row.high:.2f}",
        row.aim + verdict,
        f"{row.megabytes:.0f}",
        f"{row.base_megabytes:.0f}",
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
