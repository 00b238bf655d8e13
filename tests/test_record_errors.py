"""What cannot be explained ends in an error that says got, expected and what to do; never in a wrong number."""

import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.utils.checkpoint import checkpoint

import throughtime as tt
from record_cases import D, H, Net, data, layer, loss_of, plain
from throughtime.errors import InputError, RecordError, ThroughtimeError, UnsupportedError


def told(error: type[ThroughtimeError], words: str) -> Any:
    return pytest.raises(error, match=rf"got .*{words}.*; expected .+; do this: .+")


# Told before the block: the model.


class Own(nn.RNNBase):
    def __init__(self) -> None:
        super().__init__("RNN_TANH", D, H)


@pytest.mark.parametrize(
    ("build", "error", "words"),
    [
        (Own, UnsupportedError, "type Own"),
        (lambda: nn.Sequential(nn.Linear(D, H), nn.Tanh()), UnsupportedError, "Linear, Sequential, Tanh"),
        (lambda: torch.jit.script(nn.Linear(D, H)), UnsupportedError, "ScriptModule"),
        (lambda: torch.compile(nn.GRU(D, H), backend="eager"), UnsupportedError, "torch.compile"),
        (lambda: data(), InputError, "a Tensor"),
        (lambda: nn.GRU(D, H).parameters(), InputError, "a generator"),
        (lambda: nn.GRU, InputError, "a type"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_models(build, error, words):
    with told(error, words):
        tt.record(build())


def test_a_module_compiled_in_place():
    model = Net(layer())
    model.compile(backend="eager")
    with told(UnsupportedError, "torch.compile"):
        tt.record(model)


@pytest.mark.parametrize("layers", [["two"], ["rnn", "two"], "rnn", []])
def test_layers_that_are_not_there(layers):
    with told(InputError, "layers"):
        tt.record(Net(layer()), layers=layers)


def test_an_unsupported_layer_can_be_left_out():
    model = nn.ModuleDict({"a": layer(), "b": Own().double()})
    with told(UnsupportedError, "layer 'b' of type Own"):
        tt.record(model)
    with tt.record(model, layers=["a"]) as rec:
        model["a"](data())[0].square().sum().backward()
    assert rec.flow().residual <= 1e-10


# Told after it: the step.

STEPS: dict[Callable[[Any], Any], tuple[type[ThroughtimeError], str]] = {}


def step(error: type[ThroughtimeError], words: str) -> Callable[[Callable], Callable]:
    def add(function: Callable) -> Callable:
        STEPS[function] = error, words
        return function

    return add


@step(RecordError, "no call with gradients")
def nothing(m: Net) -> None:
    pass


@step(RecordError, "no call with gradients")
def forward_without_gradients(m: Net) -> None:
    with torch.no_grad():
        m(data())


@step(RecordError, "no call with gradients")
def forward_in_inference_mode(m: Net) -> None:
    with torch.inference_mode():
        m(data())


@step(RecordError, "no call with gradients")
def everything_frozen(m: Net) -> None:
    m.rnn.requires_grad_(False)
    plain(m)
    m.rnn.requires_grad_(True)


@step(RecordError, "no call with gradients")
def another_model(m: Net) -> None:
    plain(Net(layer()))


@step(RecordError, "no call with gradients")
def another_thread(m: Net) -> None:
    thread = threading.Thread(target=plain, args=(m,))
    thread.start()
    thread.join()


@step(RecordError, "no call with gradients")
def reentrant_checkpoint(m: Net) -> None:
    checkpoint(m, data().requires_grad_(), use_reentrant=True).square().mean().backward()


@step(RecordError, "no backward pass that reached")
def no_backward(m: Net) -> None:
    loss_of(m)


@step(RecordError, "no backward pass that reached")
def detached(m: Net) -> None:
    m.head(m.rnn(data())[0].detach()).sum().backward()


@step(RecordError, "no backward pass that reached")
def loss_of_something_else(m: Net) -> None:
    m(data())
    m.head.weight.square().sum().backward()


@step(InputError, "gradient of exactly zero")
def loss_times_zero(m: Net) -> None:
    (0 * loss_of(m)).backward()


@step(UnsupportedError, "different weights")
def two_training_steps(m: Net) -> None:
    plain(m)
    with torch.no_grad():
        m.rnn.weight_hh_l0.mul_(1.01)
    plain(m)


@step(RecordError, "create_graph=True")
def double_backward(m: Net) -> None:
    x = data().requires_grad_()
    loss = loss_of(m, x)
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    (loss + slope.square().sum()).backward()


@step(RecordError, "not weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0")
def gradient_of_the_input_alone(m: Net) -> None:
    x = data().requires_grad_()
    torch.autograd.grad(loss_of(m, x), x)


@step(RecordError, "not bias_ih_l0, bias_hh_l0")
def gradient_of_some_weights(m: Net) -> None:
    torch.autograd.grad(loss_of(m), [m.rnn.weight_ih_l0, m.rnn.weight_hh_l0])


@step(RecordError, "not weight_ih_l0, weight_hh_l0, bias_hh_l0")
def one_pass_of_two_is_partial(m: Net) -> None:
    loss = loss_of(m)
    loss.backward(retain_graph=True)
    torch.autograd.grad(loss, [m.rnn.bias_ih_l0])


@step(UnsupportedError, "batch of backward passes")
def batched_gradients(m: Net) -> None:
    out = m(data())[-1, 0]
    torch.autograd.grad(out, list(m.parameters()), torch.eye(2).double(), is_grads_batched=True)


@step(UnsupportedError, "torch.func")
def functional_gradient(m: Net) -> None:
    grad(lambda p: functional_call(m, p, (data(),)).square().mean())(dict(m.named_parameters()))


@step(RecordError, "input of layer 'rnn' that was changed in place")
def input_changed_after_the_call(m: Net) -> None:
    m.rnn.weight_ih_l0.requires_grad_(False)  # with it, autograd itself objects
    x = data()
    loss = loss_of(m, x)
    x.relu_()
    loss.backward()
    m.rnn.weight_ih_l0.requires_grad_(True)


@step(UnsupportedError, "one tensor as both bias_ih_l0 and bias_hh_l0")
def one_bias_twice(m: Net) -> None:
    first, m.rnn.bias_hh_l0 = m.rnn.bias_hh_l0, m.rnn.bias_ih_l0
    plain(m)
    m.rnn.bias_hh_l0 = first


@pytest.mark.parametrize("one", STEPS, ids=lambda one: one.__name__)
def test_steps(one):
    model = Net(layer())
    with tt.record(model) as rec:
        one(model)
    with told(*STEPS[one]):
        rec.flow()
    with rec:  # and nothing hinders the next one
        plain(model)
    assert rec.flow().residual <= 1e-10


def test_backward_after_the_block():
    model = Net(layer())
    with tt.record(model) as rec:
        loss = loss_of(model)
    loss.backward()
    with told(RecordError, "no backward pass that reached"):
        rec.flow()


def test_flow_inside_the_block():
    model = Net(layer())
    with tt.record(model) as rec:
        plain(model)
        with told(RecordError, "inside the block"):
            rec.flow()
    assert rec.flow().residual <= 1e-10


def test_flow_without_a_block():
    with told(RecordError, "no call with gradients"):
        tt.record(Net(layer())).flow()


def test_vmap_fails_as_without_a_record():
    model, x = Net(layer()), data()

    def run() -> str:
        with pytest.raises(RuntimeError) as caught:
            torch.vmap(lambda scale: model(scale * x).sum())(torch.ones(2).double())
        return str(caught.value)

    plain_error = run()
    rec = tt.record(model)
    with rec:
        assert run() == plain_error
    with told(UnsupportedError, "torch.func"):
        rec.flow()


def test_an_input_changed_between_is_told_by_autograd_itself():
    model, x = Net(layer()), data()
    with tt.record(model) as rec, pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss_of(model, x), x.relu_())[0].backward()
    with told(RecordError, ""):
        rec.flow()


class WeightsOfItsOwn(nn.GRU):
    """Calls the fused function with other weights than those the module holds."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Any:
        start = input.new_zeros(1, input.shape[1], self.hidden_size)
        weights = [2 * weight for weight in self._flat_weights]
        return torch.gru(input, start, weights, True, 1, 0.0, self.training, False, False)


def test_a_subclass_that_calls_with_weights_of_its_own():
    model = Net(WeightsOfItsOwn(D, H).double())
    with tt.record(model) as rec:
        plain(model)
    with told(RecordError, "no call with gradients"):
        rec.flow()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace")
def test_a_traced_copy_is_not_the_model():
    model = layer()
    traced = torch.jit.trace(model, (data(),), check_trace=False)
    with tt.record(model) as rec:
        traced(data())[0].sum().backward()
    with told(RecordError, "no call with gradients"):
        rec.flow()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("warm", [False, True])
def test_a_compiled_view_of_a_recorded_model_is_right(backend, warm):
    """torch.compile runs recurrent layers eagerly, and the record sees them as they run."""
    model = Net(layer("lstm"))
    compiled = torch.compile(model, backend=backend)
    if warm:
        plain(compiled)
        model.zero_grad()
    with tt.record(model) as rec:
        plain(compiled)
    assert rec.flow().residual <= 1e-10
    torch.testing.assert_close(rec.traces()[0].weight_gradients["weight_hh"], model.rnn.weight_hh_l0.grad)
    torch.compiler.reset()


def test_messages_name_the_remedy():
    with pytest.raises(UnsupportedError) as caught:
        tt.record(Own())
    assert re.search(r"do this: .*name the other layers", str(caught.value))
    assert (caught.value.got, caught.value.expected) == ("layer 'rnn' of type Own", "nn.GRU, nn.LSTM or nn.RNN")
