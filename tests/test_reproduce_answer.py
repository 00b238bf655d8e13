"""The study behind docs/answer.md, at small size, and the pieces that it measures with."""

import numpy as np
import pytest
import torch
from reproduce.answer import g2p, latch, networks, timescales
from reproduce.answer.study import STUDY, make
from reproduce.study import BLOCK, DOCS, Made, Study, write
from torch import nn

import throughtime as tt
from throughtime.progress import quiet


def small(_) -> list:
    """The study's networks without the one that must be fetched."""

    def opus():
        whole = networks.opus()
        return networks.Network(whole.name, whole.model, whole.layer, whole.inputs[:80], whole.loss)

    return [opus, lambda: networks.trained(False, quiet, 2), lambda: networks.trained(True, quiet, 2), opus]


def test_everything_that_the_page_has_a_place_for_is_made():
    made = make(quiet, small)
    page = (DOCS / STUDY.page).read_text(encoding="utf-8")
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


def test_the_carried_half_life_is_that_of_the_product_of_the_gates():
    torch.manual_seed(0)
    layer, x = nn.GRU(3, 5), torch.randn(30, 4, 3)
    tt.init.chrono_(layer, max_lag=30)
    with tt.record(layer) as rec:
        (layer(x)[0] * torch.randn(30, 4, 5)).sum().backward()
    trace = rec.traces()[0]
    logits = torch.randn(30, 4, 5, dtype=torch.float64) + 1
    z, entering = torch.sigmoid(logits), trace.gradient.double()
    got = timescales.carried(trace, logits)
    for unit in range(5):
        for lag in range(1, 30):
            squares = [
                ((entering[t, b, unit] * z[t - lag + 1 : t + 1, b, unit].prod()) ** 2, entering[t, b, unit] ** 2)
                for t in range(lag, 30)
                for b in range(4)
            ]
            kept, all_of_it = (float(sum(part)) for part in zip(*squares, strict=True))
            if kept / all_of_it <= 0.25:
                break
        assert got[unit] == lag


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
