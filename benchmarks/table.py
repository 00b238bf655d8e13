"""The table as text, as JSON and in docs/performance.md."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import throughtime as tt
from benchmarks.rows import GROUPS, Row
from benchmarks.scene import WORKS

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
BEGIN, END = "<!-- table: made by python -m benchmarks --write -->", "<!-- end of table -->"
HEAD = ("work", "relative to", "H", "T", "B", "seconds", "ratio", "95 % interval", "aim", "peak MB", "of the other")
TITLES = {
    "one-loss": "One loss, at the last step",
    "every-step": "A loss at every step",
    "job-b": "Every parameter's terms by lag, a loss at every step: times faster than rivals",
    "rate": "Rate of matrix products, over the machine's best at the same shapes",
    "reducers": "The price of the reducers, a loss at every step",
    "growth": "Growth with T, a loss at every step: the ratio is the exponent of time",
    "jacobians": "No loss: times faster than rivals",
    "scaling": "The price of powers of two",
    "long": "Memory: one loss after 100,000 steps, and what a budget costs",
    "compiled": "Chunks of steps compiled; of compiling, the ratio is the number of decompositions after which it has paid",
}


def results(device: str) -> Path:
    """Where the rows of a device are stored."""
    return HERE / ("results.json" if device == "cpu" else f"results-{device}.json")


def environment(device: str) -> dict[str, Any]:
    """What a ratio depends on besides the code."""
    return {
        "throughtime": tt.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "device": "cpu" if device == "cpu" else torch.cuda.get_device_name(),
    }


def load(file: Path) -> tuple[dict[str, Any], list[Row]]:
    """The environment and the rows that are stored; nothing and none where there is no such file."""
    told = json.loads(file.read_text()) if file.exists() else {}
    if "environment" not in told:
        return {}, []
    return told["environment"], [_row(each) for each in told["rows"]]


def save(file: Path, environment: dict[str, Any], measured: Sequence[Row]) -> list[Row]:
    """Put these rows in the place of their groups' stored ones; all rows then stored, in the table's order.

    Rows of another environment cannot stand beside them: they are dropped.
    """
    before, rows = load(file)
    new = {row.group for row in measured}
    kept = [row for row in rows if row.group not in new] if before == environment else []
    together = sorted([*kept, *measured], key=lambda row: list(GROUPS).index(row.group))
    told = {"environment": environment, "rows": [_told(row) for row in together]}
    file.write_text(json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return together


def _told(row: Row) -> dict[str, Any]:
    values = {
        key: None if isinstance(value, float) and math.isnan(value) else value for key, value in asdict(row).items()
    }
    return values | {"met": row.met}


def _row(told: dict[str, Any]) -> Row:
    floats = ("megabytes", "base_megabytes")
    return Row(**{k: math.nan if v is None and k in floats else v for k, v in told.items() if k != "met"})


def show(rows: Sequence[Row]) -> None:
    """Print the table to the terminal."""
    table = Table(*HEAD)
    for row in rows:
        table.add_row(*_cells(row))
    if rows:
        Console(width=200).print(table)


def write(environment: dict[str, Any], rows: Sequence[Row]) -> None:
    """Put the table into docs/performance.md, between its two marks."""
    lines = [
        f"{environment['cpu']}, {environment['threads']} thread, torch {environment['torch']}, "
        f"Python {environment['python']}, {' to '.join(sorted({min(_days(rows)), max(_days(rows))}))}."
    ]
    for group, title in TITLES.items():
        own = [row for row in rows if row.group == group]
        if own:
            lines += ["", f"**{title}**", "", "| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
            lines += ["| " + " | ".join(_cells(row)) + " |" for row in own]
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(before + "\n".join((BEGIN, "", *lines, "", END)) + after)


def _days(rows: Sequence[Row]) -> list[str]:
    return [row.date[:10] for row in rows]


def label(name: str) -> str:
    """What a work is called in the table."""
    return WORKS[name].label if name in WORKS else name


def _cells(row: Row) -> tuple[str, ...]:
    verdict = {None: "", True: " ✓", False: " ✗"}[row.met]
    return (
        label(row.work),
        label(row.base),
        str(row.hidden),
        str(row.steps),
        str(row.batch),
        f"{row.seconds:.3g}",
        f"{row.ratio:.2f}",
        f"{row.low:.2f}–{row.high:.2f}",
        row.aim + verdict,
        *("" if math.isnan(value) else f"{value:.0f}" for value in (row.megabytes, row.base_megabytes)),
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
