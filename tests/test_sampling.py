"""Estimates from some of the origins: their mean over every draw is the truth, and their errors cover it."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from torch import nn

import throughtime as tt
from throughtime.errors import InputError
from throughtime.sampling import sample, square_of_sum

LAGS = 4


def record_of(steps: int, kind: type[nn.RNNBase] = nn.GRU) -> tt.Record:
    torch.manual_seed(0)
    model = kind(2, 3).double()
    x, weight = torch.randn(steps, 2, 2, dtype=torch.float64), torch.randn(steps, 2, 3, dtype=torch.float64)
    with tt.record(model) as record:
        (model(x)[0] * weight).sum().backward()
    return record


@pytest.mark.parametrize(("of", "size", "groups"), [(4, 1, 2), (4, 2, 2), (5, 1, 4), (6, 2, 3), (6, 3, 2)])
def test_the_mean_over_every_draw_is_the_square_of_the_sum(of, size, groups):
    terms = torch.randn(of, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    seen = []
    for order in permutations(range(of)):
        dealt = [terms[list(order[g * size : (g + 1) * size])].sum(0) * of / size for g in range(groups)]
        seen.append(square_of_sum(torch.stack(dealt), of, size)[0])
    torch.testing.assert_close(torch.stack(seen).mean(0), terms.sum(0).square().sum(0), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("origins", "groups"), [(4, 2), (3, 3), (4, 4)])
def test_over_every_draw_the_estimates_are_the_truth_and_the_errors_of_shares_their_spread(
    origins, groups, monkeypatch
):
    """Every way to deal 6 origins, as `sample` itself would draw them."""
    record = record_of(6)
    layer = record.flow(tolerance=0).layers["rnn"]
    size, dealt = origins // groups, {}
    for order in permutations(range(6)):
        dealt[frozenset(frozenset(order[g * size : (g + 1) * size]) for g in range(groups))] = order
    told = []
    for order in dealt.values():
        monkeypatch.setattr(torch, "randperm", lambda count, generator, order=order: torch.tensor(order))
        told.append(record.sample(origins, groups=groups, tolerance=0)["rnn"])
    squares = sum(10.0 ** (2 * terms.log10_norm) for terms in layer.parameters.values())
    truth = {"share": layer.share, "beyond": 1 - np.cumsum(layer.share)}
    truth |= {"squared_norm": squares, "squared_bias": layer.bias**2}
    for name, wanted in truth.items():
        estimates = np.stack([getattr(each, name) for each in told])
        np.testing.assert_allclose(estimates.mean(0), wanted[: estimates.shape[1]], rtol=1e-9, atol=1e-13, err_msg=name)
        errors = np.stack([getattr(each, f"{name}_error") for each in told])
        if name in ("share", "beyond"):
            np.testing.assert_allclose((errors**2).mean(0), estimates.var(0), rtol=1e-9, atol=1e-13, err_msg=name)
        elif groups > 2:  # the jackknife's are never too small here
            assert ((errors**2).mean(0) >= estimates.var(0) * (1 - 1e-9)).all(), name


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_all_origins_tell_the_exact_shares(kind):
    record = record_of(12, kind)
    layer, got = record.flow(tolerance=0).layers["rnn"], record.sample(12, groups=4, tolerance=0)["rnn"]
    np.testing.assert_allclose(got.share, layer.share[: len(got.share)], atol=1e-12)
    np.testing.assert_allclose(got.beyond, 1 - np.cumsum(layer.share)[: len(got.share)], atol=1e-12)
    np.testing.assert_allclose(got.share_error, 0, atol=1e-12)
    assert (got.drawn, got.of) == (12, 12)


def test_the_errors_cover_the_truth():
    """95 % intervals by Student's t of eight groups, over 200 draws of 24 of 60 origins."""
    record = record_of(60)
    layer = record.flow(tolerance=0).layers["rnn"]
    squares = sum(10.0 ** (2 * terms.log10_norm) for terms in layer.parameters.values())
    wanted = {"share": layer.share, "beyond": 1 - np.cumsum(layer.share)}
    wanted |= {"squared_norm": squares, "squared_bias": layer.bias**2}
    inside: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
    for seed in range(200):
        got = record.sample(24, groups=8, max_lag=LAGS - 1, seed=seed)["rnn"]
        for name, truth in wanted.items():
            off = np.abs(getattr(got, name) - truth[:LAGS])
            inside[name].append(off <= 2.365 * getattr(got, f"{name}_error"))
    for name, hits in inside.items():
        covered = np.mean(hits, axis=0)
        assert (covered > 0.85).all(), (name, covered)
        assert covered.mean() < 0.999, (name, covered)


def test_other_numbers_are_refused():
    record = record_of(6)
    for asked in ({"origins": 7}, {"origins": 4, "groups": 1}, {"origins": 3, "groups": 4}):
        with pytest.raises(InputError, match="at least two groups"):
            record.sample(**asked)


@pytest.mark.parametrize(
    "asked", [{"origins": "many"}, {"origins": 2.5}, {"groups": 2.5}, {"max_lag": -1}, {"tolerance": -1.0}]
)
def test_what_is_no_number_of_them_is_refused(asked):
    with pytest.raises(InputError, match=f"{next(iter(asked))}="):
        record_of(6).sample(**{"origins": 4, "groups": 2} | asked)


def test_more_than_there_are_is_refused_where_whole_groups_would_fit():
    with pytest.raises(InputError, match="no more origins than"):
        record_of(6).sample(7, groups=2)


@pytest.mark.parametrize("groups", [2, 5])
def test_terms_of_all_groups_fit_the_memory(groups, monkeypatch):
    """What does not fit is told as one sum beyond the lags that do: nothing of the share is lost."""
    record = record_of(10)
    weights = sum(p.numel() for trace in record.traces() for p in trace.weight_gradients.values())
    whole = record.sample(10, groups=groups)["rnn"]
    monkeypatch.setattr("throughtime.sampling.MEMORY", 8 * weights * (groups + 4) * 3 + 100)
    some = record.sample(10, groups=groups)["rnn"]
    assert len(some.share) == 3 < len(whole.share)
    for name in ("share", "beyond", "squared_norm", "squared_bias", "squared_bias_error"):
        np.testing.assert_allclose(getattr(some, name), getattr(whole, name)[:3], rtol=1e-9, atol=1e-14)


def test_nothing_is_changed():
    record = record_of(10)
    before = record.traces()[0].gradient.clone()
    again = [record.sample(8, groups=4)["rnn"].share for _ in range(2)]
    np.testing.assert_array_equal(*again)
    assert torch.equal(record.traces()[0].gradient, before)
    assert sample(record.traces()[0], 8, 4).name == "rnn"
