"""Calls that pass their states on: loops over cells and windows of truncated BPTT, against copies of the parameters.

Every call runs with its own copies of the weights (torch.func.functional_call on a plain cell), so that autograd's gradient
of copy k for the part of the loss at step t is the term at lag t − k.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import throughtime as tt
from copies import CLOSE, Call, States, Sums, compare, drawn, loss_parts, stepped, terms
from throughtime.flow import LayerFlow
from throughtime.recording.elementwise import taken_out
from throughtime.recording.hooks import edge_of

T, B, D, H = 8, 4, 3, 4
KINDS = ["GRUCell", "LSTMCell", "RNNCell"]
every_kind = pytest.mark.parametrize("kind", KINDS)


DONE = (torch.rand(T, B, 1, generator=torch.Generator().manual_seed(3)) < 0.3).double()


class Loop(nn.Module):
    """A user's loop over a cell. between: what happens to the states; into: how the input of a step is made."""

    def __init__(self, kind: str, between: str = "", into: str = "") -> None:
        super().__init__()
        torch.manual_seed(5)
        self.between, self.into = between, into
        width = {"": D, "fed back": D + H, "attention": D + H, "itself": H, "own output": D + 2}[into]
        self.cell, self.head = getattr(nn, kind)(width, H), nn.Linear(H, 2)
        self.query = nn.Linear(H, H)
        self.start = nn.Parameter(torch.randn(1, H))
        self.double()

    def call(self, _: int, x: Tensor, states: States) -> States:
        return stepped(self.cell, x, states)

    def forward(self, x: Tensor, call: Call | None = None) -> list[Tensor]:
        call, memory = call or self.call, drawn(5, B, H, seed=9)
        count = 2 if isinstance(self.cell, nn.LSTMCell) else 1
        states: tuple[Tensor, ...] = tuple(self.start.expand(B, H) * (place + 1) for place in range(count))
        outputs = []
        for k, now in enumerate(x):
            if self.between == "done":
                states = tuple(state * (1 - DONE[k]) for state in states)
            elif self.between == "where":
                states = tuple(torch.where(DONE[k] > 0, self.start.expand(B, H), state) for state in states)
            elif self.between == "dropout":
                torch.manual_seed(k)
                states = tuple(torch.nn.functional.dropout(state, 0.3) for state in states)
            h = states[0]
            if self.into == "fed back":
                now = torch.cat((now, torch.tanh(self.query(h))), dim=-1)
            elif self.into == "attention":
                weights = torch.softmax(torch.einsum("bh,tbh->bt", self.query(h), memory), dim=-1)
                now = torch.cat((now, torch.einsum("bt,tbh->bh", weights, memory)), dim=-1)
            elif self.into == "own output":  # on which there is a loss, too
                now = torch.cat((now, self.head(h) if k == 0 or self.between else outputs[-1]), dim=-1)
            elif self.into == "itself":
                now = h
            states = call(k, now, states)
            outputs.append(self.head(states[0]))
        return outputs


def measured(model: Loop, which: str) -> LayerFlow:
    with tt.record(model) as record:
        torch.stack(loss_parts(model(drawn(T, B, D)), which)).sum().backward()
    return record.flow(demand=False, tolerance=0).layers["cell"]


def truth(model: Loop, which: str) -> Sums:
    return terms(model.cell, T, lambda call: loss_parts(model(drawn(T, B, D), call), which))


@every_kind
@pytest.mark.parametrize("between", ["", "done", "where", "dropout"])
@pytest.mark.parametrize("which", ["last", "every"])
def test_a_loop_is_one_sequence(kind, between, which):
    model = Loop(kind, between)
    layer = measured(model, which)
    assert (layer.steps, layer.batch, layer.external) == (T, B, None)
    assert layer.loss_steps == (tuple(range(T)) if which == "every" else (T - 1,))
    assert layer.residual < 1e-12
    compare(layer, truth(model, which))


@every_kind
@pytest.mark.parametrize(
    ("into", "between"),
    [(into, "") for into in ("fed back", "attention", "itself", "own output")]
    + [("fed back", "done"), ("attention", "where"), ("own output", "dropout")],
)
@pytest.mark.parametrize("which", ["last", "every"])
def test_what_comes_round_outside_is_told_with_its_share(kind, into, between, which):
    """The share of G that entered through a later input: from the same loop with these inputs cut off from the graph."""
    model = Loop(kind, between, into)
    layer = measured(model, which)
    assert layer.residual < 1e-12
    whole = {name: value.grad.clone() for name, value in model.cell.named_parameters()}
    model.zero_grad()

    def cut(_: int, x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return model.call(_, x.detach(), states)

    torch.stack(loss_parts(model(drawn(T, B, D), cut), which)).sum().backward()
    direct = {name: value.grad for name, value in model.cell.named_parameters()}
    norm = sum(float(value.square().sum()) for value in whole.values())
    share = 1 - sum(float((direct[name] * whole[name]).sum()) for name in whole) / norm
    np.testing.assert_allclose(layer.external, share, **CLOSE)


def windows(layer: nn.RNNBase, detach: bool, sizes: tuple[int, ...] = (3, 3, 2)) -> LayerFlow:
    with tt.record(layer) as record:
        state, total = None, torch.zeros((), dtype=torch.float64)
        for place, part in enumerate(drawn(T, B, D).split(sizes)):
            output, state = layer(part, state)
            total = total + (output[-1] * drawn(B, H, seed=place)).sum()
            if detach:
                state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
        total.backward()
    return record.flow(demand=False, tolerance=0).layers["rnn"]


@pytest.mark.parametrize("kind", ["GRU", "LSTM", "RNN"])
@pytest.mark.parametrize("depth", [1, 2])
def test_windows_that_pass_their_state_on_are_one_sequence(kind, depth):
    """The same numbers as one call over all steps, with the loss at the same places."""
    torch.manual_seed(0)
    layer = getattr(nn, kind)(D, H, depth).double()
    chained = windows(layer, detach=False)
    with tt.record(layer) as record:
        output, _ = layer(drawn(T, B, D))
        at = zip((2, 5, 7), range(3), strict=True)
        torch.stack([(output[step] * drawn(B, H, seed=place)).sum() for step, place in at]).sum().backward()
    one = record.flow(demand=False, tolerance=0).layers["rnn"]
    assert chained.loss_steps == one.loss_steps == (2, 5, 7)
    for name, told in one.parameters.items():
        np.testing.assert_allclose(chained.parameters[name].share, told.share, **CLOSE)
        np.testing.assert_allclose(chained.parameters[name].log10_norm, told.log10_norm, atol=1e-9)
    np.testing.assert_allclose(chained.adjoint.log10_norm, one.adjoint.log10_norm, atol=1e-9)


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_detached_windows_are_sequences_of_their_own(kind):
    layer = getattr(nn, kind)(D, H).double()
    flow = windows(layer, detach=True)
    assert (flow.steps, flow.batch) == (3, 3 * B)
    assert flow.residual < 1e-12


def test_siamese_calls_are_joined_from_their_starts():
    torch.manual_seed(0)
    layer = nn.GRU(D, H).double()
    one, other = drawn(T, B, D), drawn(T - 3, B, D, seed=1)
    with tt.record(layer) as record:
        (layer(one)[0][-1] - layer(other)[0][-1]).square().sum().backward()
    flow = record.flow(demand=False).layers["rnn"]
    assert (flow.steps, flow.batch) == (T, 2 * B)
    assert flow.residual < 1e-12


def test_an_encoder_that_starts_a_decoder():
    """Each has its own lags; the state that goes over is a gradient at the encoder's last step."""

    class Translator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.LSTM(D, H), nn.LSTMCell(D, H)
            self.double()

        def forward(self, x: Tensor) -> Tensor:
            _, (h, c) = self.encoder(x)
            states, out = (h[0], c[0]), []
            for now in x[:4]:
                states = self.decoder(now, states)
                out.append(states[0])
            return torch.stack(out)

    torch.manual_seed(0)
    model = Translator()
    with tt.record(model) as record:
        model(drawn(T, B, D)).square().sum().backward()
    flow = record.flow(demand=False)
    assert {name: layer.lag for name, layer in flow.layers.items()} == dict.fromkeys(
        ("encoder", "decoder"), "within-layer"
    )
    assert flow.residual < 1e-12
    assert flow.layers["encoder"].loss_steps == (T - 1,)


@every_kind
def test_the_loop_is_left_as_it_was(kind):
    """Gradients to the last bit, and no hook remains."""
    model, x = Loop(kind, "done", "fed back"), drawn(T, B, D)

    def gradients() -> list[Tensor]:
        model.zero_grad()
        torch.stack(loss_parts(model(x), "every")).sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    plain = gradients()
    with tt.record(model) as record:
        seen = gradients()
    assert all(torch.equal(a, b) for a, b in zip(plain, seen, strict=True))
    assert not model.cell._forward_hooks
    assert not model.cell._forward_pre_hooks
    assert record.flow(demand=False).residual < 1e-12


def flow_of(model: nn.Module, loss: Callable[[], Tensor]) -> tt.Flow:
    with tt.record(model) as record:
        loss().backward()
    return record.flow(demand=False)


@every_kind
@pytest.mark.parametrize("change", ["added", "noise", "merged", "one of two with resets"])
def test_states_that_are_changed_between_steps(kind, change):
    """What is added to a state is part of the sequence, and sequences with and without a change are told together."""
    torch.manual_seed(0)
    cell = getattr(nn, kind)(D, H).double()

    def each(states: Tensor | tuple[Tensor, ...], function: Callable[[Tensor], Tensor]):
        return tuple(map(function, states)) if isinstance(states, tuple) else function(states)

    def loss() -> Tensor:
        one = other = None
        total = torch.zeros((), dtype=torch.float64)
        for k, now in enumerate(drawn(T, B, D)):
            if change == "one of two with resets" or (change == "merged" and k < 3):
                other = cell(2 * now, other)
                total = total + (first(other) * drawn(B, H, seed=k)).sum()
            if k and change == "added":
                one = each(one, lambda state: state + 1.0)
            elif k and change == "noise":
                one = each(one, lambda state: state + torch.randn_like(state))
            elif k == 3 and change == "merged":
                one = tuple(a + b for a, b in zip(one, other, strict=True)) if kind == "LSTMCell" else one + other
            elif k and change == "one of two with resets":
                one = each(one, lambda state, k=k: state * (1 - DONE[k]))
            one = cell(now, one)
            total = total + first(one).square().sum()
        return total

    def first(states: Tensor | tuple[Tensor, ...]) -> Tensor:
        return states[0] if isinstance(states, tuple) else states

    assert flow_of(cell, loss).residual < 1e-12


@pytest.mark.parametrize("kind", ["GRU", "LSTM", "RNN"])
@pytest.mark.parametrize("change", ["reset", "added"])
def test_windows_of_a_stack_whose_states_are_changed(kind, change):
    """One sequence through the whole stack; what was reset carries nothing back into the window before."""
    torch.manual_seed(0)
    layer = getattr(nn, kind)(D, H, 2).double()
    keep = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)[:, None]

    def run(x: Tensor) -> Tensor:
        states, outputs = None, []
        for part in x.split(4):
            output, states = layer(part, states)
            outputs.append(output)
            by = {"reset": lambda state: state * keep, "added": lambda state: state + 1}[change]
            states = tuple(map(by, states)) if isinstance(states, tuple) else by(states)
        return torch.cat(outputs)

    x = drawn(T, B, D).requires_grad_()
    flow = flow_of(layer, lambda: run(x)[-1].square().sum())
    assert flow.residual < 1e-12
    assert (flow.layers["rnn"].steps, flow.layers["rnn"].lag) == (T, "total")
    kept = flow_of(layer, lambda: run(x)[-1, ::2].square().sum()).layers["rnn"]
    assert kept.parameters["rnn.weight_ih_l0"].log10_norm[4] > -20
    if change == "reset":  # nothing of the sequences that were reset goes further back than their window
        gone = flow_of(layer, lambda: run(x)[-1, 1::2].square().sum()).layers["rnn"]
        assert gone.parameters["rnn.weight_ih_l0"].log10_norm[4] == -np.inf


def test_calls_with_and_without_dropout_in_one_step():
    torch.manual_seed(0)
    layer = nn.GRU(D, H, 2, dropout=0.5).double()

    def loss() -> Tensor:
        one = layer.train()(drawn(T, B, D))[0].square().sum()
        return one + layer.eval()(drawn(T, B, D, seed=2))[0].square().sum()

    assert flow_of(layer, loss).residual < 1e-12


class Two(nn.Module):
    """A stack of two cells in one loop; the upper one's output, on which there is a loss, is fed back to the lower one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.low, self.high, self.head = nn.GRUCell(D, H), nn.GRUCell(H, H), nn.Linear(H, D)
        self.double()

    def forward(self, x: Tensor, cut: str = "") -> Tensor:
        low = high = x.new_zeros(B, H)
        now, total = torch.zeros_like(x[0]), x.new_zeros(())
        for target in x:
            low = self.low(now.detach() if cut == "low" else now, low)
            high = self.high(low, high)
            now = self.head(high)
            total = total + (now - target).square().sum()
        return total


def test_cells_that_feed_each_other_are_told_each_with_its_own_way_round():
    model, x = Two(), drawn(T, B, D)
    flow = flow_of(model, lambda: model(x))
    assert flow.residual < 1e-12
    whole = [parameter.grad.clone() for parameter in model.low.parameters() if parameter.grad is not None]
    model.zero_grad()
    model(x, cut="low").backward()
    direct = [parameter.grad for parameter in model.low.parameters() if parameter.grad is not None]
    # With the inputs cut, what is left of the lower cell's gradient is what never went round.
    norm = sum(float(value.square().sum()) for value in whole)
    share = 1 - sum(float((a * b).sum()) for a, b in zip(direct, whole, strict=True)) / norm
    np.testing.assert_allclose(flow.layers["low"].external, share, **CLOSE)


def test_a_way_round_that_cannot_be_told_apart_is_missing():
    """An operation of the user's own is not run a second time."""

    class Doubled(torch.autograd.Function):
        runs = 0

        @staticmethod
        def forward(ctx, value: Tensor) -> Tensor:
            return 2 * value

        @staticmethod
        def backward(ctx, *grads: Tensor) -> Tensor:
            Doubled.runs += 1
            return 2 * grads[0]

    torch.manual_seed(0)
    cell = nn.GRUCell(H, H).double()

    def loss(both: bool) -> Tensor:
        state, now, total = torch.zeros(B, H, dtype=torch.float64), drawn(B, H), torch.zeros((), dtype=torch.float64)
        for _ in range(4):
            state = cell(now, state)
            now: Tensor = Doubled.apply(state)  # type: ignore[assignment]
            total = total + (now if both else state).square().sum()
        return total

    flow = flow_of(cell, lambda: loss(both=True))
    assert Doubled.runs == 4
    assert flow.layers["rnn"].external is None
    assert any(each.field == "layers.rnn.external" for each in flow.missing)
    told = flow_of(cell, lambda: loss(both=False))
    assert told.layers["rnn"].external is not None
    assert not any(each.field == "layers.rnn.external" for each in told.missing)


@pytest.mark.parametrize("kind", ["GRU", "LSTM", "RNN"])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("way", ["read out", "directly", "batch first", "without states", "packed"])
def test_a_layer_that_is_fed_its_own_output(kind, depth, way):
    """Windows whose input is made of the outputs before: the share that comes round, by the same with inputs cut off."""
    torch.manual_seed(0)
    width = H if way == "directly" else D
    layer, head = (
        getattr(nn, kind)(width, H, depth, batch_first=way == "batch first").double(),
        nn.Linear(H, D).double(),
    )

    def loss(cut: bool) -> Tensor:
        now, states, total = drawn(3, B, width), None, torch.zeros((), dtype=torch.float64)
        for place in range(3):
            now = now.detach() if cut else now
            if way == "packed":
                packed = torch.nn.utils.rnn.pack_padded_sequence(now, [3, 2, 2, 1])
                made, states = torch.nn.utils.rnn.pad_packed_sequence(layer(packed)[0])[0], None
            else:
                made, states = layer(now, None if way == "without states" else states)
            now = made if way == "directly" else head(made)
            total = total + (now * drawn(*now.shape, seed=place)).square().sum()
        return total

    told = flow_of(layer, lambda: loss(cut=False)).layers["rnn"]
    assert told.residual < 1e-12
    whole = [parameter.grad.clone() for parameter in layer.parameters() if parameter.grad is not None]
    layer.zero_grad()
    loss(cut=True).backward()
    direct = [parameter.grad for parameter in layer.parameters() if parameter.grad is not None]
    norm = sum(float(value.square().sum()) for value in whole)
    share = 1 - sum(float((a * b).sum()) for a, b in zip(direct, whole, strict=True)) / norm
    np.testing.assert_allclose(told.external, share, **CLOSE)


def test_one_cell_as_both_layers_of_a_stack():
    """What the upper use sends to its input comes round outside the cell into the lower one."""
    torch.manual_seed(0)
    cell = nn.GRUCell(H, H).double()

    def loss(cut: bool) -> Tensor:
        low = high = torch.zeros(B, H, dtype=torch.float64)
        total = torch.zeros((), dtype=torch.float64)
        for now in drawn(T, B, H):
            low = cell(now, low)
            high = cell(low.detach() if cut else low, high)
            total = total + (high + low).square().sum()
        return total

    told = flow_of(cell, lambda: loss(cut=False)).layers["rnn"]
    whole = [parameter.grad.clone() for parameter in cell.parameters() if parameter.grad is not None]
    cell.zero_grad()
    loss(cut=True).backward()
    direct = [parameter.grad for parameter in cell.parameters() if parameter.grad is not None]
    norm = sum(float(value.square().sum()) for value in whole)
    share = 1 - sum(float((a * b).sum()) for a, b in zip(direct, whole, strict=True)) / norm
    assert told.residual < 1e-12
    np.testing.assert_allclose(told.external, share, **CLOSE)


def test_a_factor_for_each_unit_is_not_one_for_each_sequence():
    """Where there are as many of both: the same lags as with the factor in the recurrent weights."""
    torch.manual_seed(0)
    cell = nn.RNNCell(D, B).double()
    factor = torch.linspace(0.2, 1, B, dtype=torch.float64)
    scaled = nn.RNNCell(D, B).double()
    scaled.load_state_dict(cell.state_dict())
    with torch.no_grad():
        scaled.weight_hh.mul_(factor)  # the same way back

    def loss(cell: nn.RNNCell, factor: Tensor | float) -> Tensor:
        state = torch.zeros(B, B, dtype=torch.float64)
        for now in drawn(T, B, D):
            state = cell(now, state * factor)
        return state.square().sum()

    told, same = (flow_of(a, lambda a=a, f=f: loss(a, f)).layers["rnn"] for a, f in ((cell, factor), (scaled, 1.0)))
    name = "rnn.weight_ih"
    assert told.loss_steps == (T - 1,)
    np.testing.assert_allclose(told.parameters[name].share, same.parameters[name].share, **CLOSE)
    np.testing.assert_allclose(told.parameters[name].log10_norm, same.parameters[name].log10_norm, rtol=1e-9)


def test_states_that_come_by_another_way_are_told():
    torch.manual_seed(0)
    cell = nn.GRUCell(D, H).double()

    def loss(between: Callable[[Tensor], Tensor]) -> Tensor:
        state = torch.zeros(B, H, dtype=torch.float64)
        for now in drawn(T, B, D):
            state = cell(now, between(state))
        return state.square().sum()

    for between, cut in (
        (torch.tanh, True),
        (lambda state: state.roll(1, -1), True),
        (torch.detach, False),
        (torch.clone, False),
    ):
        flow = flow_of(cell, lambda between=between: loss(between))
        assert flow.residual < 1e-12
        assert any(each.field == "layers.rnn.lag" for each in flow.missing) == cut


def test_a_factor_in_another_layout_does_not_stop_the_step():
    torch.manual_seed(0)
    cell = nn.GRUCell(D, H).double()

    def loss() -> Tensor:
        state = torch.zeros(B, H, dtype=torch.float64)
        for now in drawn(T, B, D):
            state = cell(now, (state.view(2, 2 * H) * torch.linspace(0, 1, 2 * H)).view(B, H))
        return state.square().sum()

    assert flow_of(cell, loss).residual < 1e-12


MASK = (torch.rand(B, 1, generator=torch.Generator().manual_seed(4)) < 0.6).double()


class Layers(nn.Module):
    """Cells one above the other, their states carried in one tensor. hold: zoneout in each of them."""

    WAYS: ClassVar = {  # how the states are laid side by side, and how one is taken out again
        "index": (torch.stack, lambda packed, k: packed[k] if k == 0 else packed[-1]),
        "unbind": (lambda states: torch.stack(states, dim=-1), lambda packed, k: packed.unbind(-1)[k]),
        "slice": (lambda states: torch.cat(states, dim=1), lambda packed, k: packed[:, k * H : (k + 1) * H]),
        "chunk": (lambda states: torch.cat(states, dim=-1), lambda packed, k: packed.chunk(2, dim=1)[k]),
        "mask on all": (torch.stack, lambda packed, k: (packed * MASK)[k]),
        "mask on all, a slice": (
            lambda states: torch.cat(states, dim=1),
            lambda packed, k: torch.where(MASK > 0, packed, 0.0).masked_fill(MASK > 2, 0.0)[:, k * H : (k + 1) * H],
        ),
        "split": (lambda states: torch.cat(states), lambda packed, k: packed.split([B, B])[k]),
    }

    def __init__(self, kind: str, way: str, hold: bool) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.kind, self.way, self.hold = kind, way, hold
        self.cell0, self.cell, self.head = getattr(nn, kind)(D, H), getattr(nn, kind)(H, H), nn.Linear(H, 2)
        self.double()

    def call(self, _: int, x: Tensor, states: tuple[Tensor, ...], cell: nn.Module | None = None) -> tuple[Tensor, ...]:
        return stepped(cell or self.cell, x, states)

    def forward(self, x: Tensor, call: Any = None) -> list[Tensor]:
        call = call or self.call
        pack, take = self.WAYS[self.way]
        count = 2 if self.kind == "LSTMCell" else 1
        packed = [pack([torch.zeros(B, H, dtype=torch.float64)] * 2) for _ in range(count)]
        outputs = []
        for k, now in enumerate(x):
            old = [tuple(take(value, layer) for value in packed) for layer in range(2)]
            new = [self.call(k, now, old[0], self.cell0)]
            new.append(call(k, new[0][0], old[1]))
            if self.hold:
                new = [
                    tuple(0.7 * made + 0.3 * held for made, held in zip(*pair, strict=True))
                    for pair in zip(new, old, strict=True)
                ]
            packed = [pack(list(states)) for states in zip(*new, strict=True)]
            outputs.append(self.head(new[1][0]))
        return outputs


@pytest.mark.parametrize("kind", ["GRUCell", "LSTMCell"])
@pytest.mark.parametrize("way", list(Layers.WAYS))
@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize("which", ["last", "every"])
def test_states_of_several_layers_in_one_tensor(kind, way, hold, which):
    """As the decoders of translation models carry them; of the upper cell the lag within it is the whole lag."""
    model = Layers(kind, way, hold)
    with tt.record(model) as record:
        parts = loss_parts(model(drawn(T, B, D)), which)
        (torch.stack(parts).sum() if which == "every" else parts[-1]).backward()
    flow = record.flow(demand=False, tolerance=0)
    assert [(layer.steps, layer.batch) for layer in flow.layers.values()] == [(T, B)] * 2
    assert [each.reason for each in flow.missing] == ["a layer was called more than once in the step"]
    assert flow.residual < 1e-12
    compare(flow.layers["cell"], truth(model, which))


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("lay", [torch.stack, torch.cat])
@pytest.mark.parametrize("constant", [None, 1])
def test_what_is_taken_out_is_one_of_what_was_laid_in(dim, lay, constant):
    """Judged by the numbers: all different, so that a part, or parts of two, are equal to none."""
    parts = [drawn(2 + k if lay is torch.cat and dim == 0 else 3, 4, seed=k).requires_grad_() * 1 for k in range(3)]
    parts = [part.detach() if k == constant else part for k, part in enumerate(parts)]
    whole = lay(parts, dim)
    count = whole.shape[dim]
    cuts = [whole.narrow(dim, first, size) for first in range(count) for size in range(1, count + 1 - first)]
    cuts += [whole.select(dim, k) for k in range(-count, count)] + list(whole.unbind(dim))
    cuts += [cut for size in range(1, 5) for cut in whole.split(size, dim)]
    cuts += whole.split([1, count - 2, 1], dim) + whole.transpose(0, 1).unbind(0)
    cuts += [whole[::2], whole[-2:], whole[..., :-1], whole[:, 1:]]
    found = 0
    for cut in cuts:
        equal = [part for part in parts if part.shape == cut.shape and torch.equal(part, cut)]
        inside = taken_out(edge_of(cut))
        there = [part for part in equal if part.requires_grad]
        if inside is None or inside[0][0] is None:
            assert not there or cut.grad_fn.next_functions[0][0] is not whole.grad_fn
        else:
            assert [(edge_of(part), None) for part in there] == [inside]
            found += 1
    assert found >= 2
