"""What stands on the atlas's page is what was measured and stored, and its intervals are those of samples drawn anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from examples.atlas import intervals, measure, page, picture
from examples.atlas.network import Network, edges, stretches
from torch import nn

import throughtime as tt

DOCS = Path(__file__).parent.parent / "docs"
STORED = json.loads((DOCS / "atlas.json").read_text(encoding="utf-8"))


def test_the_page_and_the_figures_are_those_of_the_stored_result():
    records, missing = STORED["records"], STORED["missing"]
    assert (DOCS / "atlas.md").read_text(encoding="utf-8") == page.markdown(records, missing)
    for name, draw in (("atlas", picture.horizons), ("atlas-arriving", picture.arriving)):
        assert (DOCS / "images" / f"{name}.svg").read_text(encoding="utf-8") == draw(records, standalone=True) + "\n"


def test_a_number_moves_the_page_and_a_network_left_out_is_told():
    records = json.loads(json.dumps(STORED["records"]))
    told = next(record for record in records if record["seconds"] is None)
    assert f"| {told['horizon']['0.1']}\N{NO-BREAK SPACE}(" in page.markdown(records, {})
    told["horizon"]["0.1"] = 4321
    told["network"] = "<b>"
    assert "| 4321\N{NO-BREAK SPACE}(" in page.markdown(records, {})
    assert "4321 of the " in page.markdown(records, {})  # further than its input: bound by it
    whole = page.html(records, {"other": "no wheel"})
    assert "&lt;b&gt;" in whole
    assert "<b>" not in whole
    assert "Left out: other (no wheel)." in whole


def test_time_is_told_in_seconds_and_the_farthest_layer_speaks_for_its_network():
    shared = {"network": "ear", "job": "hearing", "seconds": 0.01, "step": "10 ms", "farthest": 800}
    near = {**shared, "horizon": {"0.1": 30}, "interval": {"0.1": [7, 129]}}
    far = {**shared, "horizon": {"0.1": 250}, "interval": {"0.1": [200, 360]}}
    assert page.answer([near, far]) == [("2.5 s (2 to 3.6)", "ear, hearing")]


def test_the_terms_added_up():
    assert all(record["error"] < 1e-4 for record in STORED["records"])


def net(x: torch.Tensor, cuts: tuple[int, ...] = ()) -> Network:
    """A small GRU that sums its units at every step; its decisions by sequence, or by stretch of one."""
    torch.manual_seed(1)
    model = nn.ModuleDict({"rnn": nn.GRU(3, 6)})
    weight = torch.arange(1, x.shape[0] + 1).float()

    def decisions(model: Any) -> torch.Tensor:
        values = model["rnn"](x)[0].sum(-1) * weight[:, None]
        return stretches(values[:, 0], cuts) if cuts else values.sum(0)

    return Network("", "", "", {"rnn": ""}, "", None, "", "", "", model, decisions, cuts)


def grams(network: Network) -> np.ndarray:
    (trace,) = measure.recorded(network)
    units = intervals.units_of(trace, network.cuts)
    return intervals.grams(trace, units, measure.of_layer(trace, measure.by_unit(network)))


@pytest.mark.parametrize("entries", [2**17, 500])  # all rows in one block, and in lanes
@pytest.mark.parametrize("stretched", [False, True])
def test_the_horizon_of_a_resample_is_that_of_the_network_run_on_it(stretched, entries, monkeypatch):
    monkeypatch.setattr("throughtime.sweep.BLOCK_ENTRIES", entries)
    x = torch.randn(40, 1 if stretched else 7, 3, generator=torch.Generator().manual_seed(0))
    network = net(x, edges(40) if stretched else ())
    told, rng = grams(network), np.random.default_rng(0)
    for _ in range(3):
        drawn = np.bincount(rng.integers(0, len(told[0]), len(told[0])), minlength=len(told[0])).astype(float)

        def loss(model, batch, drawn=drawn):
            return (network.decisions(model) * torch.from_numpy(drawn)).sum()

        flow = tt.diagnose(network.model, [None], loss, **measure.LESS).flow
        for level, horizon in flow.layers["rnn"].horizon.items():
            assert intervals.horizons(told, drawn, level) == horizon


def test_units_that_are_not_those_of_the_gradients_are_refused():
    x = torch.randn(12, 4, 3)
    network = net(x)
    (trace,) = measure.recorded(network)
    gradients = {name: value.flip(0) for name, value in measure.by_unit(network).items()}
    with pytest.raises(ValueError, match="expected"):
        intervals.grams(trace, intervals.units_of(trace, ()), measure.of_layer(trace, gradients))


def test_the_interval_is_that_of_the_bootstrap_written_out():
    """A thousand resamples drawn and judged one by one have the same quantiles; scipy draws others."""
    told = grams(net(torch.randn(40, 9, 3, generator=torch.Generator().manual_seed(0))))
    low, high = intervals.interval(told, 0.01)
    rng = np.random.default_rng(1)
    drawn = [np.bincount(rng.integers(0, 9, 9), minlength=9).astype(float) for _ in range(1000)]
    found = np.quantile([intervals.horizons(told, each, 0.01) for each in drawn], [0.025, 0.975])
    assert low <= intervals.horizons(told, np.ones(9), 0.01) <= high
    assert abs(low - found[0]) <= 1
    assert abs(high - found[1]) <= 1
