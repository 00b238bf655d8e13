"""The colours of every picture, page and chart: one meaning, one hue, in light and in dark.

Supply is blue and demand is orange everywhere (told apart with every common colour vision). `bad` and `good` are kept
for judgements, and a page without demand makes none.
"""

from __future__ import annotations

LIGHT = {
    "paper": "#fdfdfb",
    "panel": "#f4f4ef",
    "line": "#e0e0d9",
    "faint": "#71767d",
    "soft": "#555b63",
    "ink": "#1b1d20",
    "supply": "#1763a6",
    "supply-soft": "#bcd5ec",
    "demand": "#b4520a",
    "demand-soft": "#fae3cb",
    "against": "#7d3c98",
    "bad": "#b3261e",
    "good": "#1c7440",
    "one": "#0f7f79",
    "two": "#7d3c98",
    "three": "#9a7b13",
    "four": "#6b7078",
}

DARK = {
    "paper": "#15171a",
    "panel": "#1d2024",
    "line": "#33383f",
    "faint": "#8b929b",
    "soft": "#aab0b8",
    "ink": "#e8e8e5",
    "supply": "#6fb4f3",
    "supply-soft": "#244563",
    "demand": "#f2a45f",
    "demand-soft": "#46301c",
    "against": "#cf9be6",
    "bad": "#f48a80",
    "good": "#74d093",
    "one": "#58c7bf",
    "two": "#cf9be6",
    "three": "#dcc062",
    "four": "#9aa1aa",
}


def variables(selector: str, keep_light: str = "") -> str:
    """CSS custom properties `--tt-…` on `selector`; paper is light, and so is a selector that matches `keep_light`."""
    dark_selector = f"{selector}:not({keep_light})" if keep_light else selector
    light = ";".join(f"--tt-{name}:{colour}" for name, colour in LIGHT.items())
    dark = ";".join(f"--tt-{name}:{colour}" for name, colour in DARK.items())
    return f"{selector}{{{light}}}@media screen and (prefers-color-scheme:dark){{{dark_selector}{{{dark}}}}}"
