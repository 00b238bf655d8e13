"""A `Recurrent` LSTM is explained as torch's own, whose call is another one: also where the loss reads its last states."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import throughtime as tt
from throughtime.cells import LSTM, Weights
from throughtime.recurrent import Recurrent

READ = {
    "output": lambda output, h, c: output,
    "last h": lambda output, h, c: h,
    "last c": lambda output, h, c: c,
    "all": lambda output, h, c: torch.cat([output, h, 2 * c]),
}


@pytest.mark.parametrize("read", READ)
@pytest.mark.parametrize("given", [False, True])
def test_states_of_an_lstm_are_read_as_torchs_own(read, given):
    torch.manual_seed(0)
    plain = nn.LSTM(3, 5).double()
    mine = Recurrent(LSTM(), Weights(*plain.parameters()))
    x = torch.randn(7, 2, 3, dtype=torch.float64)
    start = tuple(torch.randn(1, 2, 5, dtype=torch.float64) for _ in range(2)) if given else None
    flows = []
    for layer in (plain, mine):
        with tt.record(layer) as record:
            output, (h, c) = layer(x, start)
            READ[read](output, h, c).square().sum().backward()
        flows.append(record.flow(demand=False))
    theirs, ours = (flow.layers["rnn"] for flow in flows)
    assert ours.residual < 1e-12
    for name, terms in theirs.parameters.items():
        np.testing.assert_allclose(ours.parameters[name].share, terms.share, rtol=1e-9, atol=1e-12)
