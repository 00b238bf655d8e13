"""`python -m benchmarks.explorer`: how long the explorer takes to answer a slider move, in headless chromium.

A move is timed from the change of the state to a page that is laid out: compute, drawing and layout, not the painting by the
browser's own threads. 24 units and 100 steps; each cell, with the loss at the last step and at every step.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path

from throughtime.explorer.page import render

MOVES, WARM_UP = 200, 60
CELLS = {"gru-reset-before": "z", "gru": "z", "lstm": "f", "rnn-tanh": "gain"}
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
MOVE = """([key, warm, count]) => {
  const slider = document.getElementById(`control-${key}`), times = [];
  for (let i = 0; i < warm + count; i++) {
    const part = 0.5 + 0.5 * Math.sin(i / 7);
    slider.value = key === "gain" ? 2 * part : 12 * part - 6;
    const begun = performance.now();
    slider.dispatchEvent(new Event("input", { bubbles: true }));
    throughtime.render();
    document.body.getBoundingClientRect();
    if (i >= warm) times.push(performance.now() - begun);
  }
  return times;
}"""


def main() -> None:
    """Print median and 95 % quantile by cell and place of the loss."""
    argparse.ArgumentParser(prog="python -m benchmarks.explorer", description=__doc__).parse_args()
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("got no chromium; expected Debian's; do this: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = Path(folder) / "explorer.html"
        file.write_text(render(), encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        print(
            f"chromium {browser.version}, {MOVES} moves each after {WARM_UP}, 24 units, 100 steps, 1440 × 1000; ms a move"
        )
        for loss in ("last", "every"):
            for cell, key in CELLS.items():
                page = browser.new_page(viewport={"width": 1440, "height": 1000})
                page.goto(f"{file.as_uri()}#cell={cell}&loss={loss}&T=100&H=24")
                times = page.evaluate(MOVE, [key, WARM_UP, MOVES])
                high = statistics.quantiles(times, n=20)[-1]
                print(f"{cell:18} loss at {loss:5} step: median {statistics.median(times):5.1f}, 95 % {high:5.1f}")
                page.close()
        browser.close()


if __name__ == "__main__":
    main()
