"""`python -m benchmarks`: the table, and benchmarks/results.json; --write puts it into docs/performance.md too."""

from __future__ import annotations

import argparse

import torch

from benchmarks.rows import rows
from benchmarks.table import document, save, show, write


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds: does it run; nothing is stored")
    parser.add_argument("--write", action="store_true", help="update the table in docs/performance.md")
    options = parser.parse_args()
    if options.quick and options.write:
        parser.error("--write: got --quick too; expected a full run; leave one of them out")
    torch.set_num_threads(1)
    measured = list(rows(options.quick))
    told = document(measured, options.quick)
    show(measured)
    if not options.quick:
        save(told)
    if options.write:
        write(told, measured)


if __name__ == "__main__":
    main()
