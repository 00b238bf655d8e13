"""The figure is tested by its drawing data."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn

import throughtime as tt
from throughtime.errors import InputError


@pytest.fixture(scope="module")
def flow():
    torch.manual_seed(0)
    model, x = nn.GRU(1, 8), torch.randn(30, 256, 1)
    report = tt.diagnose(model, (x, x[-21]), lambda output, y: (output[0][-1].sum(-1) - y[:, 0]).square().mean())
    return report.flow


def test_the_line_is_what_arrives_and_the_bands_are_demand(flow):
    figure, ax = tt.plot_lags(flow)
    layer = flow.layers["rnn"]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), layer.arriving)
    assert ax.get_yscale() == "log"
    assert [round(band.get_x() + 0.5) for band in ax.patches] == list(layer.demand.lags)
    assert 20 in layer.demand.lags
    plt.close(figure)


def test_it_draws_where_it_is_told(flow):
    figure, (left, right) = plt.subplots(1, 2)
    assert tt.plot_lags(flow.layers["rnn"], ax=right) == (figure, right)
    assert not left.lines
    plt.close(figure)


def test_a_layer_that_is_not_there_is_told(flow):
    with pytest.raises(InputError, match="one of rnn"):
        tt.plot_lags(flow, "lstm")
