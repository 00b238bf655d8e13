"""A `Recurrent` LSTM is explained as torch's own, whose call is another one: also where the loss reads its last states."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

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


@pytest.mark.parametrize("lengths", [[7, 5, 3], [3, 7, 5], [7, 7, 7]])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("read", READ)
def test_packed_sequences_are_run_and_read_as_torchs_own(lengths, given, read):
    """In any order of lengths: output, each sequence's own last states, and every term."""
    torch.manual_seed(0)
    plain = nn.LSTM(3, 5).double()
    mine = Recurrent(LSTM(), Weights(*plain.parameters()))
    x = pack_padded_sequence(torch.randn(7, 3, 3, dtype=torch.float64), torch.tensor(lengths), enforce_sorted=False)
    start = tuple(torch.randn(1, 3, 5, dtype=torch.float64) for _ in range(2)) if given else None
    flows, results = [], []
    for layer in (plain, mine):
        with tt.record(layer) as record:
            output, (h, c) = layer(x, start)
            results.append((output.data, h, c))
            READ[read](pad_packed_sequence(output)[0], h, c).square().sum().backward()
        flows.append(record.flow(demand=False).layers["rnn"])
    torch.testing.assert_close(results[1], results[0])
    theirs, ours = flows
    assert ours.residual < 1e-12
    for name, terms in theirs.parameters.items():
        np.testing.assert_allclose(ours.parameters[name].share, terms.share, rtol=1e-9, atol=1e-12)
    for name, terms in theirs.initial_state.items():
        np.testing.assert_allclose(ours.initial_state[name].share, terms.share, rtol=1e-9, atol=1e-12)


def test_packed_sequences_that_do_not_fit_are_said():
    layer = Recurrent(LSTM(), Weights(*nn.LSTM(3, 5).parameters()))
    x = pack_padded_sequence(torch.randn(7, 2, 3), torch.tensor([7, 2]))
    with pytest.raises(tt.ThroughtimeError, match="states"):
        layer(x, torch.zeros(1, 2, 5))
    with pytest.raises(tt.ThroughtimeError, match="put time first"):
        layer(pack_padded_sequence(torch.randn(7, 2, 4), torch.tensor([7, 2])))
