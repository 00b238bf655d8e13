"""Order statistics of more numbers than are held at once: by radix, 16 bits with each pass over all of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DIGIT = 16  # bits


class Order:
    """The numbers at some ranks, counted from 0 in ascending order. Pass by pass: `see` each part, then `narrow`."""

    def __init__(self, ranks: list[int]) -> None:
        self.ranks, self.left = ranks, list(ranks)  # left: the rank among those that begin as the number sought
        self.prefix = [0] * len(ranks)  # the bits known so far, as an integer
        self.known, self.dtype = 0, np.dtype(np.float64)
        self.counts: dict[int, NDArray[np.int64]] = {}

    @property
    def found(self) -> bool:
        return self.known == 8 * self.dtype.itemsize

    def see(self, values: NDArray) -> None:
        """A part of the numbers (n,): count the next bits of those that begin as one sought."""
        self.dtype = values.dtype
        digits = _sortable(values.view(f"i{self.dtype.itemsize}")) >> (8 * self.dtype.itemsize - self.known - DIGIT)
        for prefix in set(self.prefix):
            here = digits + 2 ** (DIGIT - 1)  # with the sign
            if self.known:
                here = digits[digits >> DIGIT == prefix] & (2**DIGIT - 1)
            self.counts[prefix] = self.counts.get(prefix, 0) + np.bincount(here, minlength=2**DIGIT)

    def narrow(self) -> None:
        """When all parts were seen."""
        for place, prefix in enumerate(self.prefix):
            passed = self.counts[prefix].cumsum()
            at = int(np.searchsorted(passed, self.left[place], side="right"))
            self.left[place] -= int(passed[at - 1]) if at else 0
            self.prefix[place] = (prefix << DIGIT) + at if self.known else at - 2 ** (DIGIT - 1)
        self.counts, self.known = {}, self.known + DIGIT

    def values(self) -> dict[int, float]:
        """Rank → number."""
        bits = _sortable(np.array(self.prefix, dtype=f"i{self.dtype.itemsize}"))
        return dict(zip(self.ranks, bits.view(self.dtype).tolist(), strict=True))


def _sortable(bits: NDArray) -> NDArray:
    """The bits of floats to integers of the same order; the same again takes them back."""
    return np.where(bits < 0, bits ^ np.iinfo(bits.dtype).max, bits)
