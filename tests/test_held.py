"""States that are held from outside a cell (zoneout, padding, pauses), against copies of the parameters for every step.

The loss at step t differentiated by copy k is the term at lag t − k: it goes past the cells by which the state was held.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import throughtime as tt
from copies import CLOSE, Call, States, Sums, by_lag, compare, drawn, loss_parts, stepped, terms
from throughtime.flow import LayerFlow
from throughtime.recording import own as own_cells

T, B, D, H = 8, 4, 3, 5


def uniform(*shape: int, seed: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


ON = uniform(T, B, 1, seed=3) < 0.6  # whole sequences pause
ZONES = (uniform(T, B, H, seed=4) < 0.6).double()  # units one by one
SOFT = uniform(T, B, H, seed=5)
DONE = (uniform(T, B, 1, seed=6) < 0.25).double()
LENGTHS = torch.tensor([8, 3, 5, 6])

HOLDS: dict[str, Callable[[int, Tensor, Tensor], Tensor]] = {
    "where": lambda k, new, old: torch.where(ON[k], new, old),
    "padding": lambda k, new, old: torch.where((k < LENGTHS)[:, None], new, old),
    "zoneout": lambda k, new, old: ZONES[k] * new + (1 - ZONES[k]) * old,
    "expected zoneout": lambda k, new, old: 0.7 * new + 0.3 * old,
    "soft": lambda k, new, old: old + SOFT[k] * (new - old),
    "lerp": lambda k, new, old: torch.lerp(old, new, SOFT[k]),
    "sometimes": lambda k, new, old: torch.where(ON[k], new, old) if k % 3 else new,
    "leak": lambda k, new, old: old - 0.3 * (old - new),
    "addcmul": lambda k, new, old: torch.addcmul(old, SOFT[k], new - old),
    "residual": lambda k, new, old: old + new,
    "residual, with dropout": lambda k, new, old: old + ZONES[k] * new,
    "residual, decaying": lambda k, new, old: 0.9 * old + new,
}


class Loop(nn.Module):
    """hold: how the state goes on. reads: "held" or "new", what the loss reads. done: resets before each step."""

    def __init__(self, kind: str, hold: str, reads: str = "held", done: bool = False, start: bool = True) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.cell, self.head = getattr(nn, kind)(D, H), nn.Linear(H, 2)
        self.start = nn.Parameter(torch.randn(1, H), requires_grad=start)
        self.hold, self.reads, self.done = HOLDS[hold], reads, done
        self.double()

    def call(self, _: int, x: Tensor, states: States) -> States:
        return stepped(self.cell, x, states)

    def forward(self, x: Tensor, call: Call | None = None) -> list[Tensor]:
        call = call or self.call
        count = 2 if isinstance(self.cell, nn.LSTMCell) else 1
        states: States = tuple(self.start.expand(B, H) * (place + 1) for place in range(count))
        outputs = []
        for k, now in enumerate(x):
            given = tuple(state * (1 - DONE[k]) for state in states) if self.done else states
            new = call(k, now, given)
            states = tuple(self.hold(k, made, old) for made, old in zip(new, states, strict=True))
            read = {"held": states[0], "new": new[0], "both": states[0] + 2 * new[-1]}[self.reads]
            outputs.append(self.head(read))
        return outputs


def loss_of(model: Loop, which: str) -> Tensor:
    """A last loss alone reads the last output alone."""
    parts = loss_parts(model(drawn(T, B, D)), which)
    return torch.stack(parts).sum() if which == "every" else parts[-1]


def measured(model: Loop, which: str) -> LayerFlow:
    with tt.record(model) as record:
        loss_of(model, which).backward()
    flow = record.flow(demand=False, tolerance=0)
    assert not any(each.field == "layers.cell.lag" for each in flow.missing)
    return flow.layers["cell"]


def truth(model: Loop, which: str) -> Sums:
    return terms(model.cell, T, lambda call: loss_parts(model(drawn(T, B, D), call), which))


@pytest.mark.parametrize("kind", ["GRUCell", "LSTMCell", "RNNCell"])
@pytest.mark.parametrize("hold", list(HOLDS))
@pytest.mark.parametrize("which", ["last", "every"])
def test_a_held_state_keeps_its_lag(kind, hold, which):
    model = Loop(kind, hold)
    layer = measured(model, which)
    assert (layer.steps, layer.batch, layer.external) == (T, B, None)
    assert layer.residual < 1e-12
    compare(layer, truth(model, which))


@pytest.mark.parametrize("kind", ["GRUCell", "LSTMCell"])
@pytest.mark.parametrize("hold", ["where", "soft"])
@pytest.mark.parametrize(
    ("reads", "done", "start"), [("new", False, True), ("both", True, False), ("held", True, True)]
)
@pytest.mark.parametrize("which", ["last", "every"])
def test_a_loss_on_new_states_and_resets_before_the_cell(kind, hold, reads, done, start, which):
    model = Loop(kind, hold, reads, done, start)
    layer = measured(model, which)
    assert layer.residual < 1e-12
    compare(layer, truth(model, which))


@pytest.mark.parametrize("kind", ["GRUCell", "LSTMCell", "RNNCell"])
def test_closed_form_and_autograd_agree_and_the_paths_add_up(kind):
    model = Loop(kind, "soft", "both", done=True)
    with tt.record(model) as record:
        loss_of(model, "every").backward()
    closed, derived = (record.flow(demand=False, derivative=each).layers["cell"] for each in ("closed", "autograd"))
    held = [port for port in closed.paths if port.startswith("held")]
    assert set(held) == ({"held_h", "held_c"} if kind == "LSTMCell" else {"held"})
    for port, share in closed.paths.items():
        np.testing.assert_allclose(share, derived.paths[port], **CLOSE)
    np.testing.assert_allclose(np.sum(list(closed.paths.values()), axis=0)[1:], 1, rtol=1e-9)
    assert closed.initial_state["cell.h_0"].residual < 1e-12


class Windows(nn.Module):
    """A fused layer called once a window; a window's last state is held for some sequences."""

    def __init__(self, kind: str, depth: int, hold: str) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.rnn, self.hold, self.head = getattr(nn, kind)(D, H, depth), HOLDS[hold], nn.Linear(H, 2)
        self.double()

    def forward(self, x: Tensor, run: Callable[[int, Tensor, States | None], tuple[Tensor, States]] | None = None):
        states, outputs, held = None, [], []
        for place, part in enumerate(x.split((3, 1, 2, 2))):
            if run is None:
                output, new = self.rnn(part, states if states is None or len(states) > 1 else states[0])
                new = new if isinstance(new, tuple) else (new,)
            else:
                output, new = run(sum((3, 1, 2, 2)[:place]), part, states)
            old = (0 * new[0],) * len(new) if states is None else states
            states = new if states is None else tuple(self.hold(place, a, b) for a, b in zip(new, old, strict=True))
            outputs += list(self.head(output))
            held.append(self.head(states[0][-1]))
        return outputs, held


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("hold", ["where", "soft"])
@pytest.mark.parametrize("which", ["last", "every"])
def test_windows_whose_states_are_held(kind, depth, hold, which):
    model = Windows(kind, depth, hold)
    ends = (2, 3, 5, 7)

    def parts_of(outputs: list[Tensor], held: list[Tensor]) -> list[Tensor]:
        parts = loss_parts(outputs, "every") if which == "every" else [0 * output.sum() for output in outputs]
        for place, (end, state) in enumerate(zip(ends, held, strict=True)):
            if which == "every" or end == T - 1:
                parts[end] = parts[end] + (state * drawn(B, 2, seed=20 + place)).sum()
        return parts if which == "every" else [0 * part for part in parts[:-1]] + parts[-1:]

    with tt.record(model) as record:
        parts = parts_of(*model(drawn(T, B, D)))
        (torch.stack(parts).sum() if which == "every" else parts[-1]).backward()
    flow = record.flow(demand=False, tolerance=0)
    assert flow.residual < 1e-12
    assert not flow.missing
    layer = flow.layers["rnn"]
    assert (layer.steps, layer.batch, layer.lag) == (T, B, "total")

    plain = getattr(nn, f"{kind}Cell")
    cells = [plain(H if k else D, H).double() for k in range(depth)]
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    copies = [
        {
            f"{n}_l{k}": getattr(model.rnn, f"{n}_l{k}").detach().clone().requires_grad_()
            for k in range(depth)
            for n in names
        }
        for _ in range(T)
    ]

    def run(first: int, x: Tensor, states: States | None) -> tuple[Tensor, States]:
        count = 2 if kind == "LSTM" else 1
        states = states or (torch.zeros(depth, B, H, dtype=torch.float64),) * count
        each = [tuple(state[k] for state in states) for k in range(depth)]
        out = []
        for place, now in enumerate(x):
            for k, cell in enumerate(cells):
                own = {name: copies[first + place][f"{name}_l{k}"] for name in names}
                each[k] = stepped(lambda *told, cell=cell, own=own: functional_call(cell, own, told), now, each[k])
                now = each[k][0]
            out.append(now)
        return torch.stack(out), tuple(torch.stack([state[s] for state in each]) for s in range(count))

    given = [{f"rnn.{name}": value for name, value in copy.items()} for copy in copies]
    compare(layer, by_lag(parts_of(*model(drawn(T, B, D), run)), given))


def test_the_graph_of_a_held_loop_is_let_go_and_the_gradients_are_the_users():
    class Mark:
        pass

    model = Loop("GRUCell", "soft", "both", done=True)
    loss_of(model, "every").backward()
    plain = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    with tt.record(model) as record:
        loss = loss_of(model, "every")
        mark = Mark()
        assert loss.grad_fn is not None
        loss.grad_fn.metadata["mark"] = mark
        alive = weakref.ref(mark)
        loss.backward(retain_graph=True)
    del loss, mark
    gc.collect()
    assert alive() is None
    assert all(torch.equal(plain[name], value.grad) for name, value in model.named_parameters() if name in plain)
    assert record.flow(demand=False).residual < 1e-12


@pytest.mark.parametrize("way", ["mask of the state", "projection beside it", "learned mask", "mask of the input"])
def test_what_is_not_followed_is_said(way):
    """A mask made of the state brings a gradient back that no factor tells; a mask that is not made of it does not."""
    torch.manual_seed(0)
    cell, gate = nn.GRUCell(D, H).double(), nn.Linear(H, H).double()
    learned = torch.rand(H, dtype=torch.float64, requires_grad=True)
    model = nn.ModuleDict({"cell": cell, "gate": gate})
    with tt.record(model) as record:
        state = torch.zeros(B, H, dtype=torch.float64)
        for now in drawn(T, B, D):
            if way == "mask of the state":
                given = state * torch.sigmoid(gate(state))
            elif way == "projection beside it":
                given = state + gate(state)
            else:
                given = state * (learned if way == "learned mask" else torch.sigmoid(gate(now[:, :1].expand(B, H))))
            state = cell(now, given)
        state.square().sum().backward()
    flow = record.flow(demand=False, tolerance=0)
    assert flow.residual < 1e-12
    assert any(each.field == "layers.cell.lag" for each in flow.missing) == (
        way in ("mask of the state", "projection beside it")
    )


@pytest.mark.parametrize("hold", ["where", "soft"])
def test_a_registered_cell_whose_state_is_held(hold):
    """The same numbers as the shipped cell that it wraps."""

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.GRUCell(D, H)

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return self.inner(x, h)

    tt.register_cell(Wrapped)
    try:
        model = Loop("GRUCell", hold)
        told = measured(model, "every")
        cell = Wrapped().double()
        cell.inner.load_state_dict(model.cell.state_dict())
        model.cell = cell
        own = measured(model, "every")
    finally:
        del own_cells._REGISTRY[Wrapped]
    assert own.residual < 1e-12
    np.testing.assert_allclose(own.share, told.share, **CLOSE)
    np.testing.assert_allclose(own.adjoint.log10_norm, told.adjoint.log10_norm, atol=1e-9)
    assert list(own.paths) == ["recurrent", "held"]


def test_a_held_and_a_plain_sequence_are_told_together():
    torch.manual_seed(0)
    cell = nn.GRUCell(D, H).double()

    def loss(both: bool) -> Tensor:
        one = torch.zeros(B, H, dtype=torch.float64)
        for k, now in enumerate(drawn(T, B, D)):
            one = HOLDS["soft"](k, cell(now, one), one)
        total = one.square().sum()
        if both:
            other = torch.zeros(B, H, dtype=torch.float64)
            for now in drawn(T - 2, B, D, seed=1):
                other = cell(now, other)
            total = total + other.square().sum()
        return total

    with tt.record(cell) as record:
        loss(both=True).backward()
    layer = record.flow(demand=False, tolerance=0).layers["rnn"]
    assert (layer.steps, layer.batch) == (T, 2 * B)
    assert layer.residual < 1e-12
    assert "held" in layer.paths


@pytest.mark.parametrize("layout", ["squeezed", "flat", "folded"])
def test_states_that_are_held_in_another_layout(layout):
    """The same numbers as where they are held as they come; the masks of each step differ."""
    torch.manual_seed(0)
    layer = nn.GRU(D, H).double()
    shape = {"squeezed": (B, H), "flat": (B * H,), "folded": (2, B * H // 2), "as they come": (1, B, H)}

    def loss(layout: str) -> Tensor:
        state, total = torch.ones(1, B, H, dtype=torch.float64, requires_grad=True) * 1, 0.0
        for k, part in enumerate(drawn(T, B, D).split(2)):
            given = (state.view(shape[layout]) * SOFT[k].view(shape[layout])).view(1, B, H)
            new, old = layer(part, given)[1].view(shape[layout]), state.view(shape[layout])
            state = torch.lerp(old, new, SOFT[k + 4].view(shape[layout])).view(1, B, H)
            total = total + (state * drawn(1, B, H, seed=k)).sum()
        return total

    told = []
    for each in (layout, "as they come"):
        layer.zero_grad()
        with tt.record(layer) as record:
            loss(each).backward()
        flow = record.flow(demand=False, tolerance=0)
        assert flow.residual < 1e-12
        assert not flow.missing
        told.append(flow.layers["rnn"].share)
    np.testing.assert_allclose(told[0], told[1], **CLOSE)
