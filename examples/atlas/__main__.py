"""`python -m examples.atlas`: fetch, measure, and write atlas.html and the documentation's page; finished networks are kept."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from examples.atlas import page
from examples.atlas.fetching import FILES, FetchError
from examples.atlas.measure import records
from examples.atlas.networks import NETWORKS
from throughtime.progress import bar
from throughtime.report.files import write_whole

ROOT = Path(__file__).parent.parent.parent


def main() -> None:
    """See the module. Remove build/atlas/*.json to measure anew."""
    torch.set_num_threads(1)
    FILES.mkdir(parents=True, exist_ok=True)
    found, missing = [], {}
    with bar() as tell:
        for done, (name, make) in enumerate(NETWORKS.items()):
            tell(done, len(NETWORKS), f"measuring {name}")
            kept = FILES / f"{name}.json"
            if not kept.exists():
                try:
                    write_whole(kept, json.dumps(records(make())))
                except FetchError as error:
                    missing[name] = str(error)
                    continue
            found += json.loads(kept.read_text(encoding="utf-8"))
    write_whole(ROOT / "docs" / "atlas.json", json.dumps({"records": found, "missing": missing}) + "\n")
    write_whole(ROOT / "docs" / "atlas.md", page.markdown(found, missing))
    write_whole(ROOT / "docs" / "images" / "atlas.svg", page.chart(found, standalone=True) + "\n")
    print(write_whole(ROOT / "atlas.html", page.html(found, missing)))


if __name__ == "__main__":
    main()
