"""Has a ratio become worse than the stored table says? More than 20 %, and surely: the interval's better end too.

What looks so is measured once more, since a noisy machine can spoil one run; it fails if it does again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from benchmarks.rows import Row

LIMIT = 1.2


def worse(row: Row, stored: Row) -> bool:
    """Whether even the interval's better end is more than 20 % worse than the stored median."""
    if row.better == "lower":
        return row.low > LIMIT * stored.ratio
    return row.better == "higher" and row.high * LIMIT < stored.ratio


def regressions(
    groups: Iterable[str], measure: Callable[[str], Sequence[Row]], stored: Sequence[Row]
) -> tuple[list[tuple[Row, Row]], int]:
    """The rows that are worse than stored, each with the stored one, twice in a row; and how many rows were compared."""
    known = {row.key: row for row in stored}
    found, count = [], 0
    for group in groups:
        pairs = _pairs(measure(group), known)
        count += len(pairs)
        bad = {row.key for row, before in pairs if worse(row, before)}
        if bad:
            found += [
                (row, before) for row, before in _pairs(measure(group), known) if row.key in bad and worse(row, before)
            ]
    return found, count


def _pairs(rows: Sequence[Row], known: dict[tuple[object, ...], Row]) -> list[tuple[Row, Row]]:
    return [(row, known[row.key]) for row in rows if row.better and row.key in known]
