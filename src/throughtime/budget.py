"""How much memory the decomposition of a trace may add, and what it keeps within that.

What a sweep needs at every lag (the factors of all steps, what G makes of their operands) is kept where there is room, and
else made anew for the steps of each block; so are the logits of the gates. What remains is the least: the rows of all
origins, sums and results by lag, and the work on one block, which can be made smaller.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING

from throughtime.errors import InputError
from throughtime.lagged import CHUNK

if TYPE_CHECKING:
    from throughtime.asked import Asked
    from throughtime.linearize import Linearization

UNITS = {"": 1, "b": 1} | {
    f"{prefix}{i}b": base**power for power, prefix in enumerate("kmgt", 1) for i, base in (("", 1000), ("i", 1024))
}
LEAST = 2**12  # entries of a block, see `throughtime.sweep`
BASE = 24 * 2**20  # bytes: small tensors, buffers of libraries, what the allocator cannot give back
PRODUCTS = 48  # bytes: of demand, for each number of a product
STEP = 10_000  # bytes: the tensors of one step of a block, besides their numbers


def in_bytes(memory: str | float) -> int:
    """Bytes of "4GB", "500 MB", "2GiB" or a number of them. Raises InputError."""
    size = -1.0
    if isinstance(memory, str):
        found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([A-Za-z]*)\s*", memory)
        size = float(found[1]) * UNITS.get(found[2].lower(), -1) if found else size
    elif isinstance(memory, Real) and not isinstance(memory, bool):  # of numpy too
        size = memory
    if not 1 <= size < 2**60:
        raise InputError(f"memory={memory!r}", "bytes, or a text such as '4GB', '500 MB' or '2GiB'", "use memory='4GB'")
    return int(size)


def in_words(size: float) -> str:
    """Bytes as text, rounded up."""
    for unit, base in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= base:
            return f"{-(-size // (base // 10)) / 10:.1f} {unit}".replace(".0 ", " ")
    return f"{size:.0f} bytes"


def chunk(memory: int | None) -> int:
    """Numbers that the test of demand may hold at once in a product: they take a quarter of the memory at most."""
    return CHUNK if memory is None else min(CHUNK, memory // (4 * PRODUCTS))


class BudgetError(InputError):
    """A memory below the least of a trace, in bytes. results: of it, what remains when the work is done."""

    def __init__(self, got: str, expected: str, do: str, least: int = 0, results: int = 0) -> None:
        super().__init__(got, expected, do)
        self.least, self.results = least, results


@dataclass
class Room:
    """What the analysis of a trace may keep. entries: numbers of one carry that a block may hold. left: bytes.

    window, logits: bytes a step and sequence of what is kept for many origins, and of the gates. results: bytes that remain
    when the work is done.
    """

    entries: int
    left: int
    window: int
    logits: int
    results: int = 0

    def take(self, size: int) -> bool:
        """Whether so much may be kept; then it is taken."""
        if size > self.left:
            return False
        self.left -= size
        return True

    def spent(self) -> Room:
        """The same for work beside it: nothing more is kept."""
        return Room(self.entries, 0, self.window, self.logits)


def room(lin: Linearization, asked: Asked, beside: int = 0) -> Room | None:
    """Of a trace, None without a budget. beside: bytes that others take of it. Raises BudgetError where it is smaller than
    the least."""
    from throughtime.sweep import BLOCK_ENTRIES, DEVICE_ENTRIES

    memory = asked.budget
    if memory is None:
        return None
    needs = _Needs(lin, asked)
    fixed, tests = needs.fixed + beside, asked.demand and not lin.trace.inner
    least = fixed + needs.work(LEAST)
    least += min(least // 3 + 1, PRODUCTS * CHUNK) if tests else 0  # a quarter of the whole
    if memory < least:
        trace = lin.trace
        raise BudgetError(
            f"memory='{in_words(memory)}' for layer '{trace.name}' (T={trace.steps}, B={trace.batch}, "
            f"H={trace.hidden_size}, a loss at {needs.origins} steps)",
            f"at least {in_words(least)}: {in_words(fixed)} of rows, sums and results, the rest to work with",
            ("leave demand out (demand=False), " if tests else "") + "raise memory, or give fewer sequences at once",
            least,
            needs.results,
        )
    fixed += PRODUCTS * chunk(memory) if tests else 0
    entries = BLOCK_ENTRIES if lin.trace.x.device.type == "cpu" else DEVICE_ENTRIES
    while entries > LEAST and fixed + needs.work(entries) > memory:
        entries //= 2
    return Room(entries, memory - fixed - needs.work(entries), needs.window, needs.logits, needs.results)


def spare(lin: Linearization, asked: Asked, memory: int) -> int:
    """Bytes that others may take of it beside the least, below 0 where it is smaller."""
    needs = _Needs(lin, asked)
    tests = PRODUCTS * chunk(memory) if asked.demand and not lin.trace.inner else 0
    return memory - needs.fixed - needs.work(LEAST) - tests


class _Needs:
    """Bytes, from shapes."""

    def __init__(self, lin: Linearization, asked: Asked) -> None:
        from throughtime.reducers.products import AUTOGRAD, entries, grouped
        from throughtime.sweep import BLOCK_ENTRIES

        trace = lin.trace
        self.origins, self.steps, self.batch = len(trace.origins()), trace.steps, trace.batch
        self.width, self.size = trace.carries.shape[-1], trace.carries.element_size()
        inputs, units, noise = trace.x.shape[-1], trace.hidden_size, asked.signal_to_noise
        one = lin.alone(0, 0)
        factors = sum(value.numel() for value in one.whole.factors.values())
        weights = trace.weights.tensors()
        groups = [group for group in grouped(lin) if group.operand not in ("1", AUTOGRAD) and not group.elementwise]
        projected = sum(len(group.places) * weights[group.parameter].shape[0] // group.count for group in groups)
        pre = sum(lin.trace.hidden_size for bank in lin.cell.banks for _ in bank)
        sigmoids = sum(value.numel() for value in one.logits.values())
        total = sum(value.numel() for value in weights.values())
        rows = len(entries(lin))
        self.window = self.size * (factors + projected + self.width + inputs)
        self.logits = self.size * sigmoids * (1 if trace.lengths is None else 2)
        self.numbers = 4 * factors + 4 * pre + 4 * projected + 12 * self.width + 2 * len(lin.cell.ports) * units
        many = self.origins > 1
        by_lag = 8 * (units + 6 * rows + 10 * self.batch + 60)
        sequence = self.size * (inputs + self.width)
        held = self.origins * self.batch * (2 * self.size * self.width + 24) + 1000 * self.origins if many else 0
        hops = self.origins * self.batch * (self.size * units + 8) if asked.hops and lin.cell.diagonal else 0
        demand = 0
        if asked.demand and not trace.inner:  # without its products
            dense = 40 + 40 * self.origins // self.steps
            demand = dense * self.steps * self.batch * (units + inputs)
        places = 32 * min(self.steps, 512) ** 2 if asked.origin_step else 0
        terms = self.size * (16 * total + 2 * min(2**20, max(total, BLOCK_ENTRIES // self.width * total)))
        apart = 4 * self.size * total * self.batch if noise and many else 0
        self.results = self.steps * (8 * (4 * rows + 4 * self.batch + 40) + sequence)
        self.fixed = BASE + self.steps * (by_lag + sequence) + held + hops + demand + places + terms + apart

    def work(self, entries: int) -> int:
        """Of a block."""
        rows = max(1, entries // self.width)
        steps = max(1, rows // self.batch) if self.origins == 1 else 1
        return rows * self.size * self.numbers + min(steps, self.steps) * STEP
