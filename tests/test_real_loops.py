"""Loops as people write them: each must close against autograd, leave the gradients alone, and count its lags right."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import throughtime as tt
from copies import drawn
from throughtime.errors import RecordError

T, B, D, H, A = 8, 4, 3, 5, 3


def flow_of(model: nn.Module, loss: Callable[[], Tensor]) -> tt.Flow:
    """Recorded, with the same gradients as without."""
    model.zero_grad()
    loss().backward()
    plain = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    with tt.record(model) as record:
        loss().backward()
    assert all(torch.equal(plain[name], value.grad) for name, value in model.named_parameters() if name in plain)
    flow = record.flow(demand=False, tolerance=0)
    assert flow.residual < 1e-12
    return flow


class ActorCritic(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.core = nn.Linear(D, H), getattr(nn, kind)(H, H)
        self.actor, self.critic = nn.Linear(H, A), nn.Linear(H, 1)
        self.double()


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell"])
def test_an_actor_critic_rollout(kind):
    """Resets by `done`, actions drawn, states detached between two updates: the second one's lags end at its start."""
    model = ActorCritic(kind)
    done = torch.zeros(2 * T, B, 1, dtype=torch.float64)
    done[5], done[T + 3, :2] = 1, 1
    observed, rewards = drawn(2 * T, B, D), drawn(2 * T, B, seed=1)

    def rollout(first: int, state: Tensor | tuple[Tensor, ...] | None) -> tuple[Tensor, Tensor | tuple[Tensor, ...]]:
        log_probs, values, entropies = [], [], []
        for k in range(first, first + T):
            mask = 1 - done[k]
            if isinstance(state, tuple):
                state = tuple(part * mask for part in state)
            elif state is not None:
                state = state * mask
            state = model.core(torch.relu(model.encoder(observed[k])), state)
            assert state is not None
            h = state[0] if isinstance(state, tuple) else state
            chances = torch.distributions.Categorical(logits=model.actor(h))
            torch.manual_seed(k)
            log_probs.append(chances.log_prob(chances.sample()))
            entropies.append(chances.entropy())
            values.append(model.critic(h).squeeze(-1))
        returns, gain = [], torch.zeros(B, dtype=torch.float64)
        for k in reversed(range(T)):
            gain = rewards[first + k] + 0.9 * gain * (1 - done[first + k, :, 0])
            returns.insert(0, gain)
        advantage = torch.stack(returns) - torch.stack(values)
        policy = -(torch.stack(log_probs) * advantage.detach()).mean() - 0.01 * torch.stack(entropies).mean()
        return policy + 0.5 * advantage.square().mean(), state

    with torch.no_grad():
        _, carried = rollout(0, None)
    flow = flow_of(model, lambda: rollout(T, carried)[0])
    layer = flow.layers["core"]
    assert (layer.steps, layer.batch, layer.external) == (T, B, None)
    assert not flow.missing

    def two_updates() -> Tensor:
        first, state = rollout(0, None)
        state = tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()
        return first + rollout(T, state)[0]

    both = flow_of(model, two_updates).layers["core"]
    assert (both.steps, both.batch) == (T, 2 * B)


def test_scheduled_sampling():
    """A decoder that is given the truth or its own last word by chance: only its own words come round."""
    torch.manual_seed(0)

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.cell, self.head = nn.Linear(D, H), nn.GRUCell(H, H), nn.Linear(H, D)
            self.double()

    model, target = Decoder(), drawn(T, B, D)

    def loss(own: float, cut: bool = False) -> Tensor:
        chance, state, now = random.Random(1), torch.zeros(B, H, dtype=torch.float64), torch.zeros_like(target[0])
        total = torch.zeros((), dtype=torch.float64)
        for k in range(T):
            into = model.embed(now)
            state = model.cell(into.detach() if cut else into, state)
            said = model.head(state)
            total = total + (said - target[k]).square().mean()
            now = said if chance.random() < own else target[k]
        return total

    told = flow_of(model, lambda: loss(0.5)).layers["cell"]
    whole = [parameter.grad.clone() for parameter in model.cell.parameters() if parameter.grad is not None]
    model.zero_grad()
    loss(0.5, cut=True).backward()
    direct = [parameter.grad for parameter in model.cell.parameters() if parameter.grad is not None]
    norm = sum(float(value.square().sum()) for value in whole)
    share = 1 - sum(float((a * b).sum()) for a, b in zip(direct, whole, strict=True)) / norm
    assert told.external is not None
    np.testing.assert_allclose(told.external, share, rtol=1e-9)
    model.zero_grad()
    assert flow_of(model, lambda: loss(0.0)).layers["cell"].external is None


def test_a_character_model_that_reads_its_own_samples():
    """Letters drawn from the output carry no gradient: nothing comes round."""
    torch.manual_seed(0)

    class Letters(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.cell, self.head = nn.Embedding(7, D), nn.LSTMCell(D, H), nn.Linear(H, 7)
            self.double()

    model = Letters()

    def loss() -> Tensor:
        torch.manual_seed(3)
        letter, state, scores = torch.zeros(B, dtype=torch.long), None, []
        for _ in range(T):
            state = model.cell(model.embed(letter), state)
            logits = model.head(state[0])
            letter = torch.multinomial(torch.softmax(logits, -1), 1).squeeze(-1)
            scores.append(nn.functional.cross_entropy(logits, letter))
        return torch.stack(scores).sum()

    layer = flow_of(model, loss).layers["cell"]
    assert (layer.steps, layer.external, layer.lag) == (T, None, "total")
    assert layer.loss_steps == tuple(range(T))


@pytest.mark.parametrize("kind", ["GRUCell", "LSTMCell"])
def test_a_siamese_loop(kind):
    """One cell over two sequences, step by step side by side or one after the other: the same two sequences."""
    torch.manual_seed(0)
    cell = getattr(nn, kind)(D, H).double()
    one, other = drawn(T, B, D), drawn(T, B, D, seed=1)

    def first(state: Tensor | tuple[Tensor, ...]) -> Tensor:
        return state[0] if isinstance(state, tuple) else state

    def loss(together: bool) -> Tensor:
        a = b = None
        if together:
            for x, y in zip(one, other, strict=True):
                a, b = cell(x, a), cell(y, b)
        else:
            for x in one:
                a = cell(x, a)
            for y in other:
                b = cell(y, b)
        return (first(a) - first(b)).square().sum()

    flows = []
    for together in (True, False):
        cell.zero_grad()
        flows.append(flow_of(cell, lambda together=together: loss(together)).layers["rnn"])
    assert [(flow.steps, flow.batch, flow.external) for flow in flows] == [(T, 2 * B, None)] * 2
    np.testing.assert_allclose(flows[0].share, flows[1].share, rtol=1e-9)


def test_a_fast_and_a_slow_cell():
    """The slow one runs every fourth step and is read in between; its lags are counted in its own steps."""
    torch.manual_seed(0)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fast, self.slow, self.head = nn.GRUCell(D + H, H), nn.GRUCell(H, H), nn.Linear(H, 1)
            self.double()

    model = Two()

    def loss() -> Tensor:
        fast = slow = torch.zeros(B, H, dtype=torch.float64)
        for k, now in enumerate(drawn(3 * 4, B, D)):
            if k % 4 == 0:
                slow = model.slow(fast, slow)
            fast = model.fast(torch.cat((now, slow), dim=-1), fast)
        return model.head(fast).square().sum()

    flow = flow_of(model, loss)
    assert {name: (layer.steps, layer.lag) for name, layer in flow.layers.items()} == {
        "fast": (12, "within-layer"),
        "slow": (3, "within-layer"),
    }
    assert flow.layers["fast"].external is not None  # round by the slow cell


@pytest.mark.parametrize("hold", [False, True])
def test_a_slow_cell_that_runs_always_and_is_kept_between(hold):
    """The slow cell runs at every step and its result is kept at every fourth: the lag is that of the steps. Where results are
    thrown away in Python, a state goes into several calls, which is told."""
    torch.manual_seed(0)
    slow, x = nn.GRUCell(D, H).double(), drawn(8, B, D)

    def loss() -> Tensor:
        state = torch.zeros(B, H, dtype=torch.float64)
        for k, now in enumerate(x):
            new = slow(now, state)
            keep = torch.tensor(k % 4 == 0)
            state = torch.where(keep, new, state) if hold else (new if k % 4 == 0 else state)
        return state.square().sum()

    flow = flow_of(slow, loss)
    assert any(each.field == "layers.rnn.lag" for each in flow.missing) != hold
    if hold:
        layer = flow.layers["rnn"]
        assert [lag for lag in range(layer.steps) if layer.share[lag] != 0] == [3, 7]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", ["GRUCell", "LSTMCell"])
def test_a_loop_under_a_checkpoint(kind, reentrant):
    """Run again in the backward pass: exact; where it is run without a graph first, an error that says what to do."""
    torch.manual_seed(0)

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = getattr(nn, kind)(D, H)
            self.double()

        def forward(self, x: Tensor, ckpt: bool) -> Tensor:
            def step(now: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
                made = self.cell(now, state if len(state) > 1 else state[0])
                return made if isinstance(made, tuple) else (made,)

            state = (torch.zeros(B, H, dtype=torch.float64, requires_grad=True),) * (2 if kind == "LSTMCell" else 1)
            state = tuple(part.clone() for part in state)
            for now in x:
                state = checkpoint(step, now, *state, use_reentrant=reentrant) if ckpt else step(now, *state)
            return state[0].square().sum()

    model, x = Loop(), drawn(T, B, D)
    plain = flow_of(model, lambda: model(x, False)).layers["cell"]
    model.zero_grad()
    with tt.record(model) as record:
        model(x, True).backward()
    if reentrant:
        with pytest.raises(RecordError, match=r"reentrant checkpoint .use_reentrant=False is fine"):
            record.flow(demand=False)
        return
    layer = record.flow(demand=False, tolerance=0).layers["cell"]
    assert layer.residual < 1e-12
    np.testing.assert_allclose(layer.share, plain.share, rtol=1e-9, atol=1e-12)


def test_a_held_loop_in_chunks_under_a_checkpoint():
    torch.manual_seed(0)
    cell, x = nn.GRUCell(D, H).double(), drawn(T, B, D)
    on = torch.rand(T, B, 1, generator=torch.Generator().manual_seed(3)) < 0.6

    def chunk(first: int, state: Tensor) -> Tensor:
        for k in range(first, first + 4):
            state = torch.where(on[k], cell(x[k], state), state) * 0.9
        return state

    def loss(again: bool) -> Tensor:
        state = torch.ones(B, H, dtype=torch.float64, requires_grad=True) * 1
        for first in (0, 4):
            state = checkpoint(chunk, first, state, use_reentrant=False) if again else chunk(first, state)
        return state.square().sum()

    plain, again = (flow_of(cell, lambda again=again: loss(again)).layers["rnn"] for again in (False, True))
    assert again.steps == T
    np.testing.assert_allclose(again.share, plain.share, rtol=1e-9, atol=1e-12)


def test_a_loop_called_with_other_parameters():
    torch.manual_seed(0)
    cell = nn.GRUCell(D, H).double()
    own = {name: (2 * value).detach().requires_grad_() for name, value in cell.named_parameters()}
    same = nn.GRUCell(D, H).double()
    same.load_state_dict(own)

    def loss(step: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        state = torch.zeros(B, H, dtype=torch.float64)
        for now in drawn(T, B, D):
            state = step(now, state)
        return state.square().sum()

    with tt.record(cell) as record:
        loss(lambda *given: functional_call(cell, own, given)).backward()
    told = record.flow(demand=False, tolerance=0).layers["rnn"]
    assert told.residual < 1e-12
    np.testing.assert_allclose(told.share, flow_of(same, lambda: loss(same)).layers["rnn"].share, rtol=1e-9)


@pytest.mark.parametrize("kind", ["GRUCell", "LSTMCell"])
@pytest.mark.parametrize("hold", [False, True])
def test_a_loop_under_autocast(kind, hold):
    """bfloat16: the terms close within what its rounding leaves, and the lags are those of float32."""
    torch.manual_seed(0)
    cell, x = getattr(nn, kind)(D, H), drawn(T, B, D).float()
    on = torch.rand(T, B, 1, generator=torch.Generator().manual_seed(3)) < 0.6

    def loss() -> Tensor:
        states: tuple[Tensor, ...] = (torch.zeros(B, H),) * (2 if kind == "LSTMCell" else 1)
        for k, now in enumerate(x):
            new = cell(now, states if len(states) > 1 else states[0])
            new = new if isinstance(new, tuple) else (new,)
            states = tuple(torch.where(on[k], a, b) for a, b in zip(new, states, strict=True)) if hold else new
        return states[0].float().square().sum()

    with tt.record(cell) as record, torch.autocast("cpu", dtype=torch.bfloat16):
        loss().backward()
    low = record.flow(demand=False, tolerance=0)
    assert not any(each.field == "layers.rnn.lag" for each in low.missing)
    cell.zero_grad()
    with tt.record(cell) as record:
        loss().backward()
    full = record.flow(demand=False, tolerance=0).layers["rnn"]
    assert low.layers["rnn"].dtype == "bfloat16"
    assert low.residual < 2e-2
    np.testing.assert_allclose(low.layers["rnn"].share, full.share, atol=3e-2)
