"""`python -m reproduce [STUDY …]`: make the figures and numbers of the studies' pages, all of them by default."""

from __future__ import annotations

import argparse
import time

from reproduce.registry import STUDIES
from reproduce.study import write
from throughtime.progress import bar


def main() -> None:
    """Run the studies that were named and write their pages."""
    arguments = argparse.ArgumentParser(prog="python -m reproduce", description=__doc__)
    arguments.add_argument("studies", nargs="*", metavar="STUDY", help=f"of {', '.join(STUDIES)}; all by default")
    given = arguments.parse_args()
    unknown = sorted(set(given.studies) - set(STUDIES))
    if unknown:
        arguments.error(f"got {', '.join(unknown)}; expected studies of {', '.join(STUDIES)}")
    for name in given.studies or STUDIES:
        begun = time.monotonic()
        with bar() as tell:
            made = STUDIES[name].make(tell)
        write(STUDIES[name], made)
        print(f"{name}: {STUDIES[name].page} and {len(made.figures)} figures, {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
