"""Models and training steps for the recorder's tests, and the truth to compare with, which does not use the recorder.

A case builds a model and a step; the step runs forward and backward as a user would. Sizes: T = 6 steps, B = 3 sequences,
D = 4 inputs, H = 5 units, float64 unless a case says otherwise.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import clip_grad_norm_, parametrizations
from torch.utils.checkpoint import checkpoint

from throughtime.cells import GRUResetBefore
from throughtime.cells.cell import Weights
from throughtime.recurrent import Recurrent

T, B, D, H = 6, 3, 4, 5
Step = Callable[[nn.Module], Any]
Case = tuple[nn.Module, Step]

KINDS: dict[str, Callable[..., nn.RNNBase]] = {
    "gru": nn.GRU,
    "lstm": nn.LSTM,
    "tanh": nn.RNN,
    "relu": lambda *args, **options: nn.RNN(*args, nonlinearity="relu", **options),
}


def data(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*(shape or (T, B, D)), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(kind: str = "gru", **options: Any) -> nn.RNNBase:
    return KINDS[kind](options.pop("inputs", D), H, **options).double()


class Net(nn.Module):
    """A recurrent layer and a linear readout."""

    def __init__(self, rnn: nn.Module, **options: Any) -> None:
        super().__init__()
        self.rnn = rnn
        self.head = nn.Linear(H, 2, **options).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


def loss_of(model: nn.Module, x: Tensor | None = None) -> Tensor:
    """A loss on every step of what the model returns."""
    return model(data() if x is None else x).tanh().square().mean()


def plain(model: nn.Module) -> Any:
    loss_of(model).backward()


def built(build: Callable[[], Case]) -> Case:
    """The same model and the same random numbers for its step, every time. (A deep copy of some is not the same.)"""
    torch.manual_seed(0)
    model, step = build()
    torch.manual_seed(1)
    return model, step


def truth(build: Callable[[], Case]) -> dict[str, dict[str, Tensor]]:
    """By layer and weight: what the calls that gradients came back to contributed.

    Every call runs with its own clones of the weights, whose gradients are summed.
    """
    model, step = built(build)
    found: dict[str, dict[str, Tensor]] = {}
    with torch.random.fork_rng():
        for name, module in model.named_modules():
            if isinstance(module, nn.RNNBase | Recurrent):
                module.forward = _with_clones(module, found.setdefault(name or "rnn", {}))
    step(model)
    return found


def _with_clones(module: nn.Module, found: dict[str, Tensor]) -> Callable:
    bare = _bare(module)

    def forward(x: Tensor, state: Any = None) -> Any:
        clones = {}
        for name, weight in _weights(module).items():
            clones[name] = weight.clone()
            if clones[name].requires_grad:

                def add(grad: Tensor, name: str = name.removesuffix("_l0")) -> None:
                    found[name] = found.get(name, 0) + grad.detach()

                clones[name].register_hook(add)
        return functional_call(bare, clones, (x, state))

    return forward


def _bare(module: nn.Module) -> nn.Module:
    """A layer of the same kind without parametrizations, hooks or own methods."""
    if isinstance(module, Recurrent | Subclass):
        return copy.deepcopy(module)
    base = next(kind for kind in (nn.GRU, nn.LSTM, nn.RNN) if isinstance(module, kind))
    kind = {"nonlinearity": module.nonlinearity} if base is nn.RNN else {}
    return base(module.input_size, module.hidden_size, bias=module.bias, batch_first=module.batch_first, **kind)


def _weights(module: nn.Module) -> dict[str, Tensor]:
    if isinstance(module, Recurrent):
        return dict(module.named_parameters())
    module._update_flat_weights()  # as torch's own forward does: some parametrizations count how often they are read
    return dict(zip(module._flat_weights_names, module._flat_weights, strict=True))


# What the loss reads of a call: of the output (time first or batch first) and the last state(s).

READS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "last": lambda out, state: out[-1].square().sum(),
    "every": lambda out, state: out.tanh().sum(),
    "some": lambda out, state: out[1::3].square().sum(),
    "state": lambda out, state: first(state).square().sum(),
    "second state": lambda out, state: last(state).square().sum(),
    "state and output": lambda out, state: first(state).square().sum() + last(state).sum() + out.tanh().sum(),
    "mean pooling": lambda out, state: out.mean(0).square().sum() + out.mean(1).square().sum(),
    "max pooling": lambda out, state: out.amax(0).square().sum() + out.amax(1).sum(),
    "attention": lambda out, state: ((out @ out[-1].mT).softmax(0) * out[..., :1]).square().sum(),
    "relu_": lambda out, state: out.relu_().square().sum(),
    "mul_": lambda out, state: out.mul_(2.0).square().sum() + first(state).mul_(3.0).square().sum(),
    "index assignment": lambda out, state: written(out).square().sum(),
    "in place on a view": lambda out, state: halved(out).square().sum(),
    "clipped by a hook": lambda out, state: hooked(out).square().sum(),
}


def first(state: Any) -> Tensor:
    return state[0] if isinstance(state, tuple) else state


def last(state: Any) -> Tensor:
    return state[-1] if isinstance(state, tuple) else state


def written(out: Tensor) -> Tensor:
    out[0] = 0.5
    return out


def halved(out: Tensor) -> Tensor:
    out.transpose(0, 1)[:, 1:].mul_(0.5)
    return out


def hooked(out: Tensor) -> Tensor:
    out.register_hook(lambda grad: grad.clamp(-0.1, 0.1))
    return out


CASES: dict[str, Callable[[], Case]] = {}


def case(build: Callable[[], Case]) -> Callable[[], Case]:
    CASES[build.__name__.replace("_", " ")] = build
    return build


# Models.


class Chain(nn.Module):
    """Two layers in series and a third beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.beside = layer("gru"), layer("lstm", inputs=H), layer("relu", batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x)[0])[0] + self.beside(x.transpose(0, 1))[0].transpose(0, 1)


@case
def series_and_parallel() -> Case:
    return Chain(), plain


class Tied(nn.Module):
    """Two layers that share their recurrent weight, which a product outside uses too."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = layer(), layer()
        self.two.weight_hh_l0 = self.one.weight_hh_l0
        self.two.bias_hh_l0 = self.one.bias_hh_l0

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.one(x)[0], self.two(x.flip(0))[0]), -1) @ self.one.weight_hh_l0[: 2 * H]


@case
def tied() -> Case:
    return Tied(), plain


@case
def tied_embedding() -> Case:
    model = Net(layer(inputs=H))
    model.head.weight = nn.Parameter(data(8, H))
    model.head.bias = None
    tokens = torch.arange(T * B).reshape(T, B) % 8
    return model, lambda m: m(m.head.weight[tokens]).logsumexp(-1).mean().backward()


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(8, D, padding_idx=0).double(), layer("lstm", batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.rnn(self.embed(tokens))[0]


@case
def tokens() -> Case:
    return Tokens(), lambda m: loss_of(m, torch.arange(T * B).reshape(B, T) % 8).backward()


@case
def tokens_below_a_frozen_layer() -> Case:
    model = Tokens()
    model.rnn.requires_grad_(False)
    return model, lambda m: loss_of(m, torch.arange(T * B).reshape(B, T) % 8).backward()


@case
def frozen_recurrent_weight() -> Case:
    model = Net(layer("lstm"))
    model.rnn.weight_hh_l0.requires_grad_(False)
    return model, plain


@case
def orthogonal() -> Case:
    return Net(parametrizations.orthogonal(layer("tanh"), "weight_hh_l0")), plain


@case
def weight_norm() -> Case:
    return Net(parametrizations.weight_norm(layer(), "weight_ih_l0")), plain


@case
def spectral_norm() -> Case:
    return Net(parametrizations.spectral_norm(layer("lstm"), "weight_hh_l0")), plain


@case
def dropout_around() -> Case:
    return nn.Sequential(nn.Dropout(0.3), Net(layer()), nn.Dropout(0.3)), plain


@case
def eval_mode() -> Case:
    return Net(layer("lstm")).eval(), plain


class Subclass(nn.GRU):
    """A layer with a forward of its own around torch's."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Any:
        out, state = super().forward(input, hx)
        return out * 2, state


@case
def subclass() -> Case:
    return Net(Subclass(D, H).double()), plain


class Learned(nn.Module):
    """Learned first states, expanded over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.h, self.c = layer("lstm"), *(nn.Parameter(data(1, 1, H, seed=seed)) for seed in (2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x, (self.h.expand(1, B, H), self.c.expand(1, B, H)))[0]


@case
def learned_states() -> Case:
    return Learned(), plain


@case
def one_state_for_both() -> Case:
    def step(m: nn.Module) -> None:
        state = m.h.expand(1, B, H)
        m.rnn(data(), (state, state))[0].tanh().sum().backward()

    return Learned(), step


@case
def input_as_state() -> Case:
    x = data(1, B, H).requires_grad_()
    return layer(inputs=H), lambda m: m(x, x)[0].tanh().sum().backward()


@case
def replaced_by_a_hook() -> Case:
    model = Net(layer())
    model.rnn.register_forward_hook(lambda module, args, results: (results[0] * 2 + results[1], results[1]))
    model.rnn.register_forward_pre_hook(lambda module, args: (args[0] + 1, *args[1:]))
    return model, plain


@case
def backward_hooks() -> Case:
    model = Net(layer("lstm"))
    model.rnn.register_full_backward_hook(lambda module, inside, outside: None)
    model.rnn.register_full_backward_pre_hook(lambda module, outside: (outside[0] * 2, *outside[1:]))
    return model, lambda m: loss_of(m, data().requires_grad_()).backward()


@case
def two_names() -> Case:
    model = Net(layer())
    model.again = model.rnn
    return model, plain


@case
def data_parallel() -> Case:
    return nn.DataParallel(Net(layer())), plain


@case
def float32() -> Case:
    return Net(layer("lstm")).float(), lambda m: loss_of(m, data().float()).backward()


# Steps.


@case
def input_with_gradient() -> Case:
    return Net(layer()), lambda m: loss_of(m, data().requires_grad_()).backward()


@case
def one_step_one_sequence() -> Case:
    return Net(layer("lstm")), lambda m: loss_of(m, data(1, 1, D)).backward()


@case
def accumulated_and_clipped() -> Case:
    def step(m: nn.Module) -> None:
        plain(m)
        clip_grad_norm_(m.parameters(), 1e-3)

    model = Net(layer())
    loss_of(model, 2 * data()).backward()
    return model, step


@case
def two_losses() -> Case:
    def step(m: nn.Module) -> None:
        out, state = m.rnn(data())
        out[-1].sum().backward(retain_graph=True)
        clip_grad_norm_(m.parameters(), 1e-3)
        out.square().sum().backward(retain_graph=True)
        m.zero_grad()
        state.tanh().sum().backward()

    return Net(layer()), step


@case
def two_losses_of_an_lstm() -> Case:
    def step(m: nn.Module) -> None:
        out, (_, c) = m.rnn(data())
        out[2].sum().backward(retain_graph=True)
        m.zero_grad(set_to_none=False)
        c.tanh().sum().backward()

    return Net(layer("lstm", batch_first=True)), step


@case
def zeroed_in_the_block() -> Case:
    def step(m: nn.Module) -> None:
        m.zero_grad(set_to_none=False)
        loss = loss_of(m)
        m.zero_grad()
        loss.backward()
        m.zero_grad(set_to_none=False)

    model = Net(layer())
    plain(model)
    return model, step


@case
def penalties() -> Case:
    def step(m: nn.Module) -> None:
        decay = sum(p.square().sum() for p in m.parameters())
        (loss_of(m) + 0.1 * decay + m.rnn.weight_hh_l0.norm()).backward()

    return Net(layer()), step


@case
def optimiser_inside() -> Case:
    def step(m: nn.Module) -> None:
        optimiser = torch.optim.SGD(m.parameters(), lr=0.5, weight_decay=0.1)
        plain(m)
        optimiser.step()
        optimiser.zero_grad()

    return Net(layer()), step


@case
def optimiser_in_the_backward_pass() -> Case:
    def step(m: nn.Module) -> None:
        def update(p: Tensor) -> None:
            with torch.no_grad():
                p -= 0.5 * p.grad
            p.grad = None

        handles = [p.register_post_accumulate_grad_hook(update) for p in m.parameters()]
        plain(m)
        for handle in handles:
            handle.remove()

    return Net(layer()), step


@case
def gradient_hooks_on_weights() -> Case:
    def step(m: nn.Module) -> None:
        handles = [p.register_hook(lambda grad: 10 * grad) for p in m.parameters()]
        plain(m)
        for handle in handles:
            handle.remove()

    return Net(layer()), step


@case
def input_changed_before() -> Case:
    def step(m: nn.Module) -> None:
        x = data()
        x.relu_()
        loss_of(m, x).backward()

    return Net(layer()), step


@case
def functional() -> Case:
    def step(m: nn.Module) -> None:
        other = {name: p.detach().mul(1.5).requires_grad_() for name, p in m.named_parameters()}
        functional_call(m, other, (data(),)).square().mean().backward()

    return Net(layer()), step


@case
def gradients_asked_for() -> Case:
    return Net(layer()), lambda m: torch.autograd.grad(loss_of(m), list(m.parameters()))


@case
def gradients_at_states_asked_for_before() -> Case:
    def step(m: nn.Module) -> None:
        out, _ = m.rnn(data())
        torch.autograd.grad(out.square().sum(), out, retain_graph=True)
        m.head(out).square().sum().backward(inputs=list(m.head.parameters()), retain_graph=True)
        m.head(out).sum().backward()

    return Net(layer()), step


@case
def gradients_of_weights_but_not_of_states() -> Case:
    return Learned(), lambda m: torch.autograd.grad(loss_of(m), list(m.rnn.parameters()))


@case
def warm_up_without_gradients() -> Case:
    def step(m: nn.Module) -> None:
        with torch.no_grad():
            m(2 * data())
        plain(m)

    return Net(layer()), step


@case
def truncated() -> Case:
    def step(m: nn.Module) -> None:
        _, state = m.rnn(2 * data())
        m.rnn(data(), state.detach())[0].square().sum().backward()

    return Net(layer()), step


@case
def checkpointed() -> Case:
    return Net(layer()), lambda m: checkpoint(m, data(), use_reentrant=False).square().mean().backward()


@case
def checkpointed_readout() -> Case:
    def step(m: nn.Module) -> None:
        checkpoint(m.head, m.rnn(data())[0], use_reentrant=True).square().mean().backward()

    return Net(layer("lstm", batch_first=True)), step


@case
def beside_another_mode() -> Case:
    def step(m: nn.Module) -> None:
        with torch.device("cpu"):
            plain(m)

    return Net(layer()), step


@case
def saved_elsewhere() -> Case:
    def step(m: nn.Module) -> None:
        with torch.autograd.graph.save_on_cpu():
            loss = loss_of(m)
        loss.backward()

    return Net(layer()), step


@case
def own_cell() -> Case:
    weights = Weights(data(3 * H, D, seed=4), 0.5 * data(3 * H, H, seed=5), data(3 * H, seed=6), data(3 * H, seed=7))
    return Net(Recurrent(GRUResetBefore(), weights)), plain
