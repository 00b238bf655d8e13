"""How the report writes numbers, powers of ten and sets of lags."""

from __future__ import annotations

import math
from collections.abc import Iterable

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
ABSENT = "–"


def power_of_ten(exponent: int) -> str:
    """1, 10, 10⁻²⁰: the label of a decade."""
    return {0: "1", 1: "10"}.get(exponent, f"10{str(exponent).translate(_SUPERSCRIPT)}")


def from_log10(log10: float, digits: int = 2) -> str:
    """10^log10 in words a reader takes in: 0.013, 1.3 × 10⁻¹⁹; works where the number itself would underflow."""
    if math.isnan(log10):
        return ABSENT
    if math.isinf(log10):
        return "0" if log10 < 0 else "∞"
    if -3 <= log10 < 4:
        return number(10.0**log10, digits)
    exponent = math.floor(log10)
    mantissa = round(10.0 ** (log10 - exponent), digits - 1)
    if mantissa >= 10:
        exponent, mantissa = exponent + 1, mantissa / 10
    return f"{_trimmed(f'{mantissa:.{digits - 1}f}')} × {power_of_ten(exponent)}"


def arriving(log10: float) -> str:
    """What a supply of 10^log10 means: “1.3 × 10⁻¹⁹ arrives”, “nothing arrives”, “grown 960-fold”."""
    if math.isinf(log10) and log10 < 0:
        return "nothing arrives"
    return f"grown {from_log10(log10)}-fold" if log10 > 0.04 else f"{from_log10(log10)} arrives"


def number(value: float | None, digits: int = 3, *, fixed: bool = False) -> str:
    """A number with `digits` significant digits: 0.0131, 0.5, 1.4 × 10⁻⁸, 12 300; – where there is none.

    fixed: final zeros stay, so that columns of a table line up.
    """
    if value is None or math.isnan(value):
        return ABSENT
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e5:
        return ("−" if value < 0 else "") + _scientific(abs(value), digits, fixed)
    decimals = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    written = f"{value:,.{decimals}f}"
    return (written if fixed else _trimmed(written)).replace(",", "\u202f").replace("-", "−")


def _scientific(value: float, digits: int, fixed: bool) -> str:
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa if fixed else _trimmed(mantissa)} × {power_of_ten(int(exponent))}"


def _trimmed(written: str) -> str:
    return written.rstrip("0").rstrip(".") if "." in written else written


def signed(value: float, digits: int = 2) -> str:
    """A difference, always with its sign."""
    return number(value, digits) if value < 0 or math.isnan(value) else f"+{number(value, digits)}"


def runs(lags: Iterable[int]) -> list[tuple[int, int]]:
    """Sorted, unbroken runs (first, last) of lags."""
    found: list[tuple[int, int]] = []
    for lag in sorted(set(lags)):
        if found and lag == found[-1][1] + 1:
            found[-1] = (found[-1][0], lag)
        else:
            found.append((lag, lag))
    return found


def lag_words(lags: Iterable[int], most: int = 3) -> str:
    """“lag 40”, “lags 92–99”, “lags 1, 3, 92–99”; beyond `most` runs only how many and how far."""
    spans = runs(lags)
    if not spans:
        return "no lag"
    if len(spans) > most:
        count = sum(last - first + 1 for first, last in spans)
        return f"{count} lags, {spans[0][0]} to {spans[-1][1]}"
    words = ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in spans)
    single = len(spans) == 1 and spans[0][0] == spans[0][1]
    return f"lag {words}" if single else f"lags {words}"
