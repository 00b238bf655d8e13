"""The study behind docs/answer.md, at small size, and the pieces that it measures with."""

import math

import numpy as np
import pytest
import torch
from reproduce.answer import g2p, latch, networks, study, timescales
from reproduce.study import BLOCK, DOCS, Made, Study, write
from torch import nn

from throughtime.cells import GRU, Weights
from throughtime.progress import quiet
from throughtime.recurrent import Recurrent


def test_everything_that_the_page_has_a_place_for_is_made():
    """Without the network that must be fetched, and with hardly any training."""
    whole = networks.opus()
    opus = networks.Network(whole.name, whole.model, whole.layer, whole.inputs[:60], whole.losses)
    trained = {(chrono, seed): latch.trained(seed, chrono, 1) for chrono in (False, True) for seed in (0, 1)}
    made = study.told([opus, opus], trained, quiet)
    page = (DOCS / study.STUDY.page).read_text(encoding="utf-8")
    assert {found["name"] for found in BLOCK.finditer(page)} == set(made.blocks)
    for path, svg in made.figures.items():
        assert path in page
        assert (DOCS / path).exists()
        assert svg.startswith("<?xml")
    assert "nan" not in "".join(made.blocks.values())


def test_a_place_that_is_not_filled_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("reproduce.study.DOCS", tmp_path)
    (tmp_path / "page.md").write_text("a <!-- one: made by x -->old<!-- end --> b")
    study = Study("page.md", lambda _: Made({}))
    with pytest.raises(KeyError, match="one"):
        write(study, Made({}))
    write(study, Made({"one": "new"}, {"images/a.svg": "<svg/>"}))
    assert (tmp_path / "page.md").read_text() == "a <!-- one: made by x -->new<!-- end --> b"
    assert (tmp_path / "images/a.svg").read_text() == "<svg/>"


def constant(keep: float, steps: int = 40) -> timescales.Units:
    """Units of a GRU without recurrent weights, whose gates are the same at every step: z = keep, r = .05."""
    size = 6
    bias = torch.zeros(3, size, dtype=torch.float64)
    bias[0], bias[1] = math.log(0.05 / 0.95), math.log(keep / (1 - keep))
    weights = torch.zeros(3 * size, 2, dtype=torch.float64)
    weights[2 * size :] = torch.randn(size, 2, generator=torch.Generator().manual_seed(0))
    layer = Recurrent(GRU(), Weights(weights, torch.zeros(3 * size, size, dtype=torch.float64), bias.flatten()))
    model = nn.ModuleDict({"rnn": layer})
    model.forward = lambda x: layer(x)[0]  # type: ignore[method-assign]
    x = torch.randn(steps, 3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return timescales.units("constant", model, "rnn", x, lambda output: output[-1].sum())


@pytest.mark.parametrize("keep", [0.3, 0.8, 0.95])
def test_with_constant_gates_and_no_loops_all_half_lives_are_the_gates_own(keep):
    told = constant(keep)
    exact = math.log(0.5) / math.log(keep)
    np.testing.assert_allclose(told.average, exact, rtol=1e-9)
    for measured in (told.product, told.own, told.gradient):
        np.testing.assert_array_equal(measured, math.ceil(exact))
    np.testing.assert_allclose(told.stayed[1:20], 1)
    np.testing.assert_allclose(told.often_reset, 1)
    assert told.radius == pytest.approx(keep)
    assert told.keep == pytest.approx(keep)


def test_what_is_not_reached_has_no_half_life():
    told = constant(0.99)
    for measured in (told.product, told.own, told.gradient):
        assert np.isnan(measured).all()


def test_held_is_the_product_of_gates_and_the_diagonal_of_autograds_derivative(monkeypatch):
    torch.manual_seed(0)
    layer, x = nn.GRU(3, 5).double(), torch.randn(12, 2, 3, dtype=torch.float64)
    with timescales.tt.record(layer) as rec:
        layer(x)[0].square().sum().backward()
    trace = rec.traces()[0]
    z = torch.rand(12, 2, 5, dtype=torch.float64)
    monkeypatch.setattr(timescales, "ORIGINS", 3)
    product, own = timescales.held(trace, z)
    origins = (1, 6, 12)  # 6.5 is rounded to even
    for lag in (0, 1, 4, 9):
        there = [t for t in origins if t > lag]
        kept = torch.stack([z[t - lag : t].prod(0) for t in there])
        np.testing.assert_allclose(product[lag], kept.square().mean((0, 1)).sqrt(), rtol=1e-12)
        diagonals = []
        for t in there:
            for b in range(2):

                def later(h, t=t, b=b, lag=lag):
                    return layer(x[t - lag : t, b : b + 1], h[None, None])[1][0, 0] if lag else h

                before = trace.carries[t - lag, b]
                diagonals.append(torch.autograd.functional.jacobian(later, before).diagonal())
        np.testing.assert_allclose(own[lag], torch.stack(diagonals).square().mean(0).sqrt(), rtol=1e-10)


def by_hand(name: str, gradient: list[float], often: list[float], **other) -> timescales.Units:
    nan = float("nan")
    arrays = {"average": [0.5, 1.5, 2.0, 4.0], "product": [1, 2, 4, 5], "own": [1, 2, 5, nan]} | {"gradient": gradient}
    fields = {key: np.array(value, float) for key, value in arrays.items()}
    stayed = np.linspace(1, 0.5, 11)
    given = {"steps": 11, "often_reset": np.array(often), "stayed": stayed, "radius": 1.003, "keep": 0.91} | other
    return timescales.Units(name=name, **fields, **given)


def test_numbers_stand_where_they_belong():
    one, two = by_hand("one", [3, 6, 8, 10], [0.1, 0.2, 0.3, 0.4]), by_hand("two", [9, 6, 4, 2], [0.4, 0.3, 0.2, 0.1])
    rows = dict(line.strip("| ").split(" | ", 1) for line in study.table([one, two]).strip().splitlines()[2:])
    assert rows["units; steps"] == "4; 11 | 4; 11"
    assert rows["half-life by −1/⟨ln z⟩"].startswith("1.8 (")
    assert rows["half-life by ∏ z"] == "3 | 3"
    assert rows["half-life of the unit's own value"] == "3.5 (1 beyond) | 3.5 (1 beyond)"
    assert rows["half-life of the gradient at the unit"] == "7 | 5"
    assert rows["own value / ∏ z"].startswith("1 (1 to 1.2")
    assert [cell[:3] for cell in rows["gradient / ∏ z"].split(" | ")] == ["2.5", "2 ("]
    assert [cell[:2] for cell in rows["rank correlation of these two"].split(" | ")] == ["1 ", "−1"]
    assert rows["share that never left the carry path, lag 10"] == "0.50 | 0.50"
    assert rows["largest eigenvalue of J; largest z"] == "1.003; 0.910 | 1.003; 0.910"
    assert study.loop({0: one, 1: by_hand("x", [3, 6, 8, 20], [0] * 4, radius=1.001, keep=0.8)}) == (
        "half-lives of the gradient reach 10 to 20 steps, those by ∏ z at most 5; the largest eigenvalue of the one-step "
        "Jacobian has modulus 1.001 to 1.003, the largest z is 0.80 to 0.91"
    )
    own = {(False, 0): {"held": one}, (False, 1): {"held": two}, (True, 0): {"held": one}}
    assert study.by_loss(own) == "held 2 to 2.5; held, chrono 2.5"
    trained = {(False, 0): (None, [0.002, 0.003]), (False, 1): (None, [0.001, 0.003]), (True, 0): (None, [0.1, 0.2])}
    told, chance = study.errors(trained).split(" (always saying 0 costs ")
    assert told == "torch’s own initialisation 0.0010 to 0.0020 and 0.0030; chrono 0.1000 and 0.2000"
    held, filtered = map(float, chance.rstrip(")").split(" and "))
    assert filtered == pytest.approx(
        0.5 * (1 - 2 / latch.STEPS), abs=0.01
    )  # of the mean of two N(0, 1), none at two steps
    none_yet = np.mean([(1 - latch.RATE) ** (t + 1) for t in range(latch.STEPS)])
    assert held == pytest.approx(1 - none_yet, abs=0.03)


def test_the_latch_task_says_what_it_says():
    x, y = latch.batch(torch.Generator().manual_seed(0))
    value, marker, signal = x.unbind(-1)
    for b in range(3):
        held = 0.0
        for t in range(latch.STEPS):
            held = float(value[t, b]) if marker[t, b] else held
            assert float(y[t, b, 0]) == held
            if t >= 2:
                assert float(y[t, b, 1]) == pytest.approx(float(signal[t - 1, b] + signal[t - 2, b]) / 2, abs=1e-6)
    assert float(marker.mean()) == pytest.approx(latch.RATE, abs=0.01)


def test_intervals_hold_the_value():
    values = np.random.default_rng(1).normal(size=80)
    middle, low, high = timescales.median(values)
    assert low < middle == np.median(values) < high
    strong = timescales.rank_correlation(values, values**3)
    assert strong == pytest.approx((1, 1, 1))
    weak = timescales.rank_correlation(values, np.random.default_rng(2).normal(size=80))
    assert weak[1] < 0 < weak[2]


@pytest.mark.network
def test_the_speller_is_the_packages_own():
    """Against its published arithmetic, written out in numpy."""
    arrays = g2p.weights()
    model = g2p.Speller(arrays)
    words = g2p.words()[:4]
    letters = g2p.letters(words)
    state = model.encoder(model.enc_emb[letters])[1]
    said = model.spell(state)

    def cell(x, h, part):
        gates_x = x @ arrays[f"{part}_w_ih"].T + arrays[f"{part}_b_ih"]
        gates_h = h @ arrays[f"{part}_w_hh"].T + arrays[f"{part}_b_hh"]
        r, z = (1 / (1 + np.exp(-(gates_x[k : k + 256] + gates_h[k : k + 256]))) for k in (0, 256))
        n = np.tanh(gates_x[512:] + r * gates_h[512:])
        return (1 - z) * n + z * h

    for place in range(len(words)):
        h = np.zeros(256, np.float32)
        for letter in letters[:, place]:
            h = cell(arrays["enc_emb"][letter], h, "enc")
        np.testing.assert_allclose(state[0, place].detach().numpy(), h, atol=1e-5)
        phoneme = g2p.START
        for k in range(g2p.PHONEMES):
            h = cell(arrays["dec_emb"][phoneme], h, "dec")
            phoneme = int((h @ arrays["fc_w"].T + arrays["fc_b"]).argmax())
            assert phoneme == said[k, place]
            if phoneme == g2p.END:
                break
