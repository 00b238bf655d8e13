"""What stands on the atlas's page is what was measured and stored."""

from __future__ import annotations

import json
from pathlib import Path

from examples.atlas import page

DOCS = Path(__file__).parent.parent / "docs"
STORED = json.loads((DOCS / "atlas.json").read_text(encoding="utf-8"))


def test_the_page_and_the_figure_are_those_of_the_stored_result():
    records, missing = STORED["records"], STORED["missing"]
    assert (DOCS / "atlas.md").read_text(encoding="utf-8") == page.markdown(records, missing)
    assert (DOCS / "images" / "atlas.svg").read_text(encoding="utf-8") == page.chart(records, standalone=True) + "\n"


def test_a_number_moves_the_page_and_a_network_left_out_is_told():
    records = json.loads(json.dumps(STORED["records"]))
    first = records[0]
    assert f"| {first['horizon']['0.1']} = " in page.markdown(records, {})
    first["horizon"]["0.1"] = 4321
    first["network"] = "<b>"
    assert "| 4321 = " in page.markdown(records, {})
    whole = page.html(records, {"other": "no wheel"})
    assert "&lt;b&gt;" in whole
    assert "<b>" not in whole
    assert "Left out: other (no wheel)." in whole


def test_the_terms_added_up():
    assert all(record["error"] < 1e-4 for record in STORED["records"])
