"""Chrono initialisation against the paper's formula, block by block, and by what the gates then do."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from throughtime.errors import InputError, UnsupportedError
from throughtime.init import chrono_


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blocks(bias: torch.Tensor, names: str) -> dict[str, torch.Tensor]:
    return dict(zip(names, bias.detach().chunk(len(names)), strict=True))


def paper(hidden: int, t_max: int, draws: np.random.Generator | torch.Generator) -> torch.Tensor:
    """ln U(1, T_max − 1), written again from the paper: one plus a uniform stretched over T_max − 2."""
    assert isinstance(draws, torch.Generator)
    return torch.log(1 + (t_max - 2) * torch.rand(hidden, generator=draws))


@pytest.mark.parametrize("t_max", [3, 20, 784])
def test_gru_update_gate_gets_the_papers_value(t_max):
    gru = chrono_(nn.GRU(3, 64), t_max, generator(1))
    torch.testing.assert_close(blocks(gru.bias_ih_l0, "rzn")["z"], paper(64, t_max, generator(1)))
    assert torch.all(blocks(gru.bias_hh_l0, "rzn")["z"] == 0)


@pytest.mark.parametrize("t_max", [3, 20, 784])
def test_lstm_forget_and_input_gates_get_opposite_values(t_max):
    lstm = chrono_(nn.LSTM(3, 64), t_max, generator(1))
    ih, hh = blocks(lstm.bias_ih_l0, "ifgo"), blocks(lstm.bias_hh_l0, "ifgo")
    torch.testing.assert_close(ih["f"], paper(64, t_max, generator(1)))
    assert torch.equal(ih["i"], -ih["f"])
    assert torch.all(hh["i"] == 0)
    assert torch.all(hh["f"] == 0)


DEEP = {
    "GRU": lambda: nn.GRU(3, 7, num_layers=2, bidirectional=True),
    "LSTM": lambda: nn.LSTM(3, 7, num_layers=2, bidirectional=True),
    "LSTM with projections": lambda: nn.LSTM(3, 7, num_layers=2, proj_size=2),
    "GRUCell": lambda: nn.GRUCell(3, 7),
    "LSTMCell": lambda: nn.LSTMCell(3, 7),
}


@pytest.mark.parametrize("make", DEEP.values(), ids=DEEP.keys())
def test_only_the_gates_named_change_in_every_layer_and_direction(make):
    before = make()
    after = copy.deepcopy(before)
    assert chrono_(after, 50, generator()) is after
    gru = isinstance(before, nn.GRU | nn.GRUCell)
    names, set_gates = ("rzn", "z") if gru else ("ifgo", "if")
    pairs = zip(before.named_parameters(), after.named_parameters(), strict=True)
    for (name, old), (_, new) in pairs:
        if not name.startswith("bias"):
            assert torch.equal(old, new), name
            continue
        for gate, block in blocks(new, names).items():
            changed = not torch.equal(block, blocks(old, names)[gate])
            assert changed == (gate in set_gates), (name, gate)
    drawn = [p.detach()[7:14] for n, p in after.named_parameters() if n.startswith("bias_ih")]
    assert len({tuple(d.tolist()) for d in drawn}) == len(drawn), "each layer and direction has its own draws"


def test_timescales_are_uniform():
    """Kolmogorov–Smirnov against U(1, T_max − 1): n = 4000, the 1 % critical distance is 1.63 / √n = .026."""
    bias = blocks(chrono_(nn.GRU(1, 4000), 100, generator(3)).bias_ih_l0, "rzn")["z"]
    u = np.sort(np.exp(bias.double().numpy()))
    assert u.min() >= 1 - 1e-6
    assert u.max() <= 99 + 1e-4
    empirical = np.arange(1, 4001) / 4000
    assert np.abs((u - 1) / 98 - empirical).max() < 0.026


def test_gates_keep_as_long_as_they_were_told():
    """On inputs near zero mean z_j is near 1 − 1/τ_j, and the product of z over τ_j steps is near 1/e."""
    torch.manual_seed(0)
    gru = chrono_(nn.GRU(4, 32), 100, generator())
    x = 0.01 * torch.randn(200, 8, 4)
    output, _ = gru(x)
    previous = torch.cat([torch.zeros(1, 8, 32), output[:-1]])
    logits = x @ gru.weight_ih_l0.T + gru.bias_ih_l0 + previous @ gru.weight_hh_l0.T + gru.bias_hh_l0
    z = torch.sigmoid(logits[..., 32:64])
    tau = 1 + torch.exp(gru.bias_ih_l0[32:64])
    torch.testing.assert_close(1 - z.mean((0, 1)), 1 / tau, rtol=0.2, atol=0)
    unit = int(tau.argmax())
    kept = z[: round(tau[unit].item()), :, unit].prod(0).mean().item()
    assert 0.25 < kept < 0.5


def test_without_a_generator_the_global_one_is_used_and_with_one_it_is_left_alone():
    torch.manual_seed(5)
    a = chrono_(nn.GRU(2, 4), 30).bias_ih_l0
    torch.manual_seed(5)
    b = chrono_(nn.GRU(2, 4), 30).bias_ih_l0
    assert torch.equal(a, b)
    gru, state = nn.GRU(2, 4), torch.get_rng_state()
    chrono_(gru, 30, generator())
    assert torch.equal(state, torch.get_rng_state())


def test_a_parent_module_has_all_its_gated_layers_set():
    parent = nn.ModuleDict(
        {"a": nn.GRU(2, 3), "b": nn.Sequential(nn.LSTM(2, 3)), "c": nn.RNN(2, 3), "d": nn.Linear(2, 3)}
    )
    before = copy.deepcopy(parent.state_dict())
    chrono_(parent, 40, generator())
    changed = {name for name, value in parent.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"a.bias_ih_l0", "a.bias_hh_l0", "b.0.bias_ih_l0", "b.0.bias_hh_l0"}


def test_dtype_and_frozen_state_stay():
    gru = nn.GRU(2, 3, dtype=torch.float64).requires_grad_(False)
    chrono_(gru, 40, generator())
    assert gru.bias_ih_l0.dtype == torch.float64
    assert not gru.bias_ih_l0.requires_grad
    lstm = nn.LSTM(2, 3)
    chrono_(lstm, 40, generator())(torch.zeros(4, 1, 2))[0].sum().backward()
    assert lstm.bias_ih_l0.grad is not None


@pytest.mark.parametrize("max_lag", [2, 1, 0, -5])
def test_a_lag_too_near(max_lag):
    with pytest.raises(InputError, match=f"got max_lag={max_lag}; expected at least 3.*do this"):
        chrono_(nn.GRU(2, 3), max_lag)


@pytest.mark.parametrize("max_lag", [10.0, "10", None, True])
def test_a_lag_that_is_no_integer(max_lag):
    with pytest.raises(InputError, match="an integer number of steps"):
        chrono_(nn.GRU(2, 3), max_lag)


def test_numpy_integers_are_integers():
    chrono_(nn.GRU(2, 3), np.int64(10))


def test_no_biases():
    with pytest.raises(InputError, match="bias=False"):
        chrono_(nn.LSTM(2, 3, bias=False), 10)


@pytest.mark.parametrize("module", [nn.RNN(2, 3), nn.Sequential(nn.RNN(2, 3))])
def test_an_elman_network_has_no_gate(module):
    with pytest.raises(InputError, match=r"(has no gate|without gates).*Elman"):
        chrono_(module, 10)


def test_nothing_recurrent():
    with pytest.raises(InputError, match="without a gated recurrent layer"):
        chrono_(nn.Linear(2, 3), 10)


def test_a_computed_bias():
    gru = nn.GRU(2, 3)
    nn.utils.parametrize.register_parametrization(gru, "bias_ih_l0", nn.Identity())
    with pytest.raises(UnsupportedError, match="computed from other tensors"):
        chrono_(gru, 10)


def test_tied_biases():
    gru = nn.GRU(2, 3)
    gru.bias_hh_l0 = gru.bias_ih_l0
    with pytest.raises(InputError, match="one tensor"):
        chrono_(gru, 10)


def test_an_error_leaves_everything_as_it_was():
    model = nn.ModuleList([nn.GRU(2, 3), nn.GRU(2, 3, bias=False)])
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with pytest.raises(InputError):
        chrono_(model, 10)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
