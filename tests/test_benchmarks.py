"""The benchmarks run, their rivals say the same as ours, and a ratio that has become worse is seen. No time is judged here."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from benchmarks.__main__ import main
from benchmarks.memory import megabytes
from benchmarks.pairs import compared
from benchmarks.regression import regressions
from benchmarks.rows import GROUPS, QUICK, Row, rows
from benchmarks.scene import WORKS, Scene
from benchmarks.table import TITLES, environment, load, results, save
from benchmarks.works import check_jacobians, check_scaling, check_terms

from throughtime.linearize import Linearization
from throughtime.sweep import sweep

ROW = Row("rate", "ledger", "plain", 32, 100, 16, 0.1, 1.0, 0.9, 1.1, "≤ 1.0", 5.0, math.nan)


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "group", [pytest.param(group, marks=pytest.mark.slow if group == "compiled" else ()) for group in GROUPS]
)
def test_every_group_runs(group):
    measured = list(rows(group, QUICK, "cpu"))
    assert measured
    for row in measured:
        assert row.group == group
        assert row.low <= row.ratio <= row.high
        assert row.seconds > 0
    assert group in TITLES


def test_rivals_say_the_same():
    check_jacobians(Scene(8, 12, 3))
    check_terms(Scene(8, 20, 3, every=True))
    check_scaling(Scene(8, 30, 3, chrono=30))
    check_scaling(Scene(8, 30, 3, every=True, chrono=30))


def test_a_rival_that_says_otherwise_is_seen(monkeypatch):
    wrong = lambda scene: [part * 1.01 for part in WORKS["copies_batched"].run(scene)]  # noqa: E731
    monkeypatch.setattr("benchmarks.works.TERMS", (wrong,))
    with pytest.raises(AssertionError):
        check_terms(Scene(8, 20, 3, every=True))


def test_scaling_is_put_back():
    module = __import__("sys").modules["throughtime.sweep"]
    before = module.march, module.shifts
    WORKS["unscaled_sweep"].run(Scene(8, 30, 3, chrono=30))
    assert (module.march, module.shifts) == before


def test_products_are_those_of_the_lags_told_apart():
    scene = Scene(8, 200, 2, every=True)
    first = sweep(Linearization(scene.traces[0]), [])
    assert scene.lags == first < 200


def test_memory_of_a_work():
    assert (
        megabytes("plain", Scene(64, 2000, 16)) > 24
    )  # the output, its gradient and the gates kept for backward, 8 MB each


def test_ratio_and_interval():
    told = compared({"base": [1.0, 2.0, 4.0], "own": [2.0, 4.0, 8.0]})["own"]
    assert (told.ratio, told.low, told.high, told.seconds) == (2, 2, 2, 4)


def test_rows_are_stored_group_by_group(tmp_path):
    file, here = tmp_path / "results.json", environment("cpu")
    save(file, here, [ROW, replace(ROW, group="growth")])
    again = save(file, here, [replace(ROW, ratio=0.5)])
    assert [(row.group, row.ratio) for row in again] == [("rate", 0.5), ("growth", 1.0)]
    assert load(file)[0] == here
    assert [replace(row, base_megabytes=0) for row in load(file)[1]] == [
        replace(row, base_megabytes=0) for row in again
    ]
    assert len(save(file, here | {"cpu": "another"}, [ROW])) == 1


@pytest.mark.parametrize(
    ("fresh", "bad"),
    [
        ({"ratio": 1.3, "low": 1.25, "high": 1.4}, True),
        ({"ratio": 1.3, "low": 1.15, "high": 1.4}, False),  # the interval is not sure
        ({"ratio": 0.5, "low": 0.4, "high": 0.6}, False),
        ({"ratio": 0.7, "low": 0.6, "high": 0.75, "better": "higher"}, True),
        ({"ratio": 0.7, "low": 0.6, "high": 0.9, "better": "higher"}, False),
        ({"ratio": 9.0, "low": 8.0, "high": 10.0, "better": ""}, False),
        ({"ratio": 9.0, "low": 8.0, "high": 10.0, "steps": 7}, False),  # not stored
    ],
)
def test_what_is_worse(fresh, bad):
    found, _ = regressions(["rate"], lambda _: [replace(ROW, **fresh)], [ROW])
    assert bool(found) == bad


def test_one_bad_run_is_forgiven():
    runs = iter([[replace(ROW, ratio=2.0, low=1.9, high=2.1)], [ROW]])
    assert regressions(["rate"], lambda _: next(runs), [ROW]) == ([], 1)


@pytest.mark.parametrize("stored", [1.0, 1e-3])
def test_check_ends_with_exit_code(monkeypatch, tmp_path, capsys, stored):
    save(tmp_path / "results.json", environment("cpu"), [replace(ROW, ratio=stored)])
    monkeypatch.setattr("benchmarks.__main__.results", lambda _: tmp_path / "results.json")
    monkeypatch.setattr("benchmarks.__main__.rows", lambda *_: [ROW])
    arguments = ["--check", "--only", "rate"]
    if stored == 1.0:
        main(arguments)
        assert "1 ratios compared" in capsys.readouterr().out
        return
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 1
    assert "H=32 T=100 B=16: got 1.00 (0.90–1.10), expected within 20 % of the stored 0.00" in capsys.readouterr().out


def test_check_of_nothing_is_said(monkeypatch, tmp_path):
    save(tmp_path / "results.json", environment("cpu"), [ROW])
    monkeypatch.setattr("benchmarks.__main__.results", lambda _: tmp_path / "results.json")
    with pytest.raises(SystemExit, match="got no row of long"):
        main(["--check", "--only", "long"])


def test_no_cuda_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="got no CUDA device; expected one; do this: make bench"):
        main(["--device", "cuda"])


def test_stored_rows_are_those_of_the_registers():
    _, stored = load(results("cpu"))
    assert {row.group for row in stored} == set(GROUPS)
