"""`python -m examples.atlas`: fetch, measure, and write atlas.html and the documentation's page; finished networks are kept."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from examples.atlas import page, picture
from examples.atlas.fetching import FILES
from examples.atlas.measure import measured
from examples.atlas.networks import NETWORKS
from throughtime.progress import bar
from throughtime.report.files import write_whole

ROOT = Path(__file__).parent.parent.parent
PROCESSES = 2


def main() -> None:
    """See the module. Remove build/atlas/*.json to measure anew."""
    FILES.mkdir(parents=True, exist_ok=True)
    wanted = [name for name in NETWORKS if not (FILES / f"{name}.json").exists()]
    missing = {}
    with bar() as tell, ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        tell(0, len(NETWORKS), f"measuring {', '.join(wanted)}")
        running = {pool.submit(measured, name): name for name in wanted}
        for done, future in enumerate(as_completed(running), len(NETWORKS) - len(wanted) + 1):
            tell(done, len(NETWORKS), f"measured {running[future]}")
            if future.result():
                missing[running[future]] = future.result()
    kept = [name for name in NETWORKS if name not in missing]
    found = [each for name in kept for each in json.loads((FILES / f"{name}.json").read_text(encoding="utf-8"))]
    write_whole(ROOT / "docs" / "atlas.json", json.dumps({"records": found, "missing": missing}) + "\n")
    write_whole(ROOT / "docs" / "atlas.md", page.markdown(found, missing))
    images = ROOT / "docs" / "images"
    write_whole(images / "atlas.svg", picture.horizons(found, standalone=True) + "\n")
    write_whole(images / "atlas-arriving.svg", picture.arriving(found, standalone=True) + "\n")
    print(write_whole(ROOT / "atlas.html", page.html(found, missing)))


if __name__ == "__main__":
    main()
