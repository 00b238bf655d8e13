"""Bad data, weights and shapes: a clear error that says where, or a number that is null with its reason."""

import math

import pytest
import torch
from torch import nn

import throughtime as tt
from record_cases import KINDS, B, D, H, Net, T, data, layer, loss_of, plain
from throughtime.cells import LSTM, S6, BlockGRU, LSTMPeepholes, Weights
from throughtime.errors import InputError
from throughtime.recurrent import Recurrent

bad_value = pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])


def flow_error(model: nn.Module, step) -> str:
    """The message of the InputError that the flow of this step ends in."""
    with tt.record(model) as rec:
        step(model)
    with pytest.raises(InputError, match=r"got .+; expected .+; do this: .+") as caught:
        rec.flow()
    return str(caught.value)


@bad_value
@pytest.mark.parametrize("kind", KINDS)
def test_data_that_are_not_finite(kind, value):
    x = data()
    x[3, 1, 2] = x[5, 0, 0] = value
    message = flow_error(Net(layer(kind)), lambda m: loss_of(m, x).backward())
    assert f"got {value} in the input of layer 'rnn', first at (step, sequence, feature) (3, 1, 2)" in message


@bad_value
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
def test_weights_that_are_not_finite(name, value):
    model = Net(layer("lstm"))
    with torch.no_grad():
        getattr(model.rnn, name)[7] = value
    message = flow_error(model, plain)
    assert f"got {value} in rnn.{name} of layer 'rnn', first at index (7" in message


def test_an_initial_state_that_is_not_finite():
    state = data(1, B, H)
    state[0, 2, 1] = math.nan
    message = flow_error(layer(), lambda m: m(data(), state)[0].sum().backward())
    assert "the initial state of layer 'rnn', first at (sequence, unit) (2, 1)" in message


def test_states_that_overflow():
    model = layer("relu").float()
    with torch.no_grad():
        model.weight_hh_l0.copy_(1e20 * torch.eye(H))
    message = flow_error(model, lambda m: m(data().float().abs() + 1)[0].sum().backward())
    assert "inf in the states of layer 'rnn', first at (step, sequence, unit) (" in message


@bad_value
def test_targets_that_are_not_finite(value):
    y = data(T, B, 2)
    y[4, 1, 0] = value
    message = flow_error(Net(layer()), lambda m: (m(data()) - y).square().sum().backward())
    assert "the gradient at the output of layer 'rnn', first at (step, sequence, unit) (4, 1, 0)" in message
    assert "targets" in message


def test_a_gradient_at_the_last_cell_that_is_not_finite():
    message = flow_error(layer("lstm"), lambda m: (m(data())[1][1] * math.inf).sum().backward())
    assert "the gradient at the state c of layer 'rnn', first at (step, sequence, unit) (5, 0, 0)" in message


@pytest.mark.parametrize("batch_first", [False, True])
def test_an_empty_batch(batch_first):
    x = data(0, T, D) if batch_first else data(T, 0, D)
    message = flow_error(layer(batch_first=batch_first), lambda m: m(x)[0].sum().backward())
    assert f"an empty batch {tuple(x.shape)} at layer 'rnn'" in message


def test_no_step_is_told_by_torch_and_the_block_leaves_cleanly():
    model = layer()
    with tt.record(model) as rec, pytest.raises(RuntimeError, match="sequence length to be larger than 0"):
        model(data(0, B, D))
    with pytest.raises(tt.errors.RecordError, match="no call with gradients"):
        rec.flow()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("steps", "sequences"), [(1, B), (T, 1), (1, 1)])
def test_one_step_or_one_sequence(kind, steps, sequences):
    model = layer(kind)
    with tt.record(model) as rec:
        model(data(steps, sequences, D))[0].square().sum().backward()
    part = rec.flow().layers["rnn"]
    assert part.residual <= 1e-10
    assert part.adjoint.log10_norm.shape == (steps,)
    assert math.isclose(part.parameters["rnn.weight_ih_l0"].share.sum(), 1)
    reasons = {each.field: each.reason for each in part.missing}
    if sequences == 1:
        assert all(math.isnan(value) for value in part.signal_to_noise)
        assert "one sequence" in reasons["signal_to_noise"]
        assert reasons["demand"]


@pytest.mark.parametrize("mix", ["float32 data", "float64 model", "meta data", "wrong width", "integer data"])
def test_mixes_that_torch_refuses(mix):
    """torch's own message comes through, and the model is as before."""
    model = layer().float() if mix != "float64 model" else layer()
    x = {
        "float32 data": data(),
        "float64 model": data().float(),
        "meta data": torch.empty(T, B, D, device="meta"),
        "wrong width": data(T, B, D + 1).float(),
        "integer data": torch.ones(T, B, D, dtype=torch.int64),
    }[mix]
    with pytest.raises((RuntimeError, ValueError)) as bare:
        model(x)
    with tt.record(model), pytest.raises((RuntimeError, ValueError)) as recorded:
        model(x)
    assert str(recorded.value) == str(bare.value)


def test_a_model_on_the_meta_device():
    model, x = layer().to("meta"), data().to("meta")
    assert "meta device" in flow_error(model, lambda m: m(x)[0].sum().backward())


def weights(hidden: int = H) -> Weights:
    return Weights(data(4 * hidden, D), data(4 * hidden, hidden))


def test_own_layers_check_their_shapes():
    with pytest.raises(InputError, match=r"got weight_ih .*; expected 4 stacked gates .*; do this: "):
        Recurrent(LSTM(), Weights(data(3 * H, D), data(3 * H, H)))
    with pytest.raises(InputError, match=r"got a \(4, 5\); expected the arrays for a s6: weight_low \(1, 4\), .*"):
        Recurrent(S6(), Weights(a=data(D, H)))
    with pytest.raises(
        InputError, match=r"got peephole \(9,\); expected .* for a lstm-peepholes: weight_ih, weight_hh, .*"
    ):
        Recurrent(LSTMPeepholes(), Weights(peephole=data(9)))
    with pytest.raises(InputError, match=r"got 5 units in 2 blocks; expected blocks that divide them; do this: "):
        Recurrent(BlockGRU(blocks_of=2), Weights(data(3 * H, D)))
    own = Recurrent(LSTM(), weights())
    for x in (data(T, B, D + 1), data(D), data(0, B, D)):
        with pytest.raises(InputError, match=r"got input .*; expected \(steps, sequences, 4\); do this: "):
            own(x)
    for state in (data(B, H), (data(1, H), data(1, H)), (data(B, H),), (data(B, H), data(B, H + 1))):
        with pytest.raises(InputError, match=r"got states .*; expected 2 of shape \(3, 5\); do this: "):
            own(data(), state)


def test_own_layers_agree_with_torch():
    fused = layer("lstm")
    own = Recurrent(LSTM(), Weights(*fused.parameters()))
    for x, shape in ((data(), (1, B, H)), (data(T, D), (1, H))):
        state = (data(*shape, seed=2), data(*shape, seed=3))
        torch.testing.assert_close(own(x, state), fused(x, state))
        torch.testing.assert_close(own(x), fused(x))
