"""`python -m benchmarks`: the table, and benchmarks/results.json; --write puts it into docs/performance.md too.

A full run takes about 20 minutes. --only measures some groups and puts them in the place of their stored rows.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.regression import LIMIT, regressions
from benchmarks.rows import CHECK, FULL, GROUPS, QUICK, rows
from benchmarks.table import environment, label, load, results, save, show, write


def main(arguments: list[str] | None = None) -> None:
    """Measure and store, or compare with what is stored: exit code 1 where a ratio has become worse."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds: does it run; nothing is stored")
    parser.add_argument("--check", action="store_true", help="a few minutes' rows against the stored ones")
    parser.add_argument("--write", action="store_true", help="update the table in docs/performance.md")
    parser.add_argument("--only", action="append", choices=GROUPS, help="this group; may be repeated")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args(arguments)
    for name in ("quick", "check"):
        if options.write and getattr(options, name):
            parser.error(f"--write: got --{name} too; expected a full run; leave one of them out")
    if options.write and options.device != "cpu":
        parser.error("--write: got --device cuda; expected cpu, whose table the page has; leave one of them out")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("got no CUDA device; expected one; do this: make bench, which measures the CPU")
    torch.set_num_threads(1)
    groups = options.only or list(GROUPS)
    if options.check:
        _check(groups, options.device)
        return
    file, where = results(options.device), environment(options.device)
    measured = []
    for group in groups:
        own = list(rows(group, QUICK if options.quick else FULL, options.device))
        show(own)
        measured += own
        if not options.quick:
            measured = save(file, where, own)
    if options.write:
        write(where, measured)


def _check(groups: list[str], device: str) -> None:
    file = results(device)
    where, stored = load(file)
    if not stored:
        raise SystemExit(f"got no stored table {file.name}; expected one; do this: make bench")
    here = environment(device)
    for name in sorted(here.keys() & where.keys()):
        if here[name] != where[name]:
            print(f"note: {name} is {here[name]}, the stored table is of {where[name]}")

    def measure(group: str) -> list:
        own = list(rows(group, CHECK, device))
        show(own)
        return own

    found, count = regressions(groups, measure, stored)
    if not count:
        raise SystemExit(
            f"got no row of {', '.join(groups)} that is soon done; expected some; do this: leave --only out"
        )
    for row, before in found:
        print(
            f"worse: {row.group}: {label(row.work)} / {label(row.base)}, H={row.hidden} T={row.steps} B={row.batch}: "
            f"got {row.ratio:.2f} ({row.low:.2f}–{row.high:.2f}), expected within {100 * (LIMIT - 1):.0f} % "
            f"of the stored {before.ratio:.2f}"
        )
    print(f"{count} ratios compared with {file.name}, {len(found)} worse by more than {100 * (LIMIT - 1):.0f} %")
    if found:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
