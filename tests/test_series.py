"""Total lag by signed offset: against copies of the parameters for every step, layer and direction.

The reference runs torch's own one-step, one-layer calls, one sequence at a time and as long as it is: autograd's gradient of
copy k, for the part of the loss that enters at step t, is the term at the offset t − k.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import jsonschema
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import throughtime as tt
from throughtime.explorer import flowfile
from throughtime.flow import LayerFlow
from throughtime.recording.chains import runs_of
from throughtime.report.json import schema
from throughtime.whole.offsets import Offsets
from throughtime.whole.series import stack_of
from throughtime.whole.total import total_of

T, B, D, H = 6, 3, 3, 4
LENGTHS = torch.tensor([6, 5, 2])
CLOSE = {"rtol": 1e-9, "atol": 1e-12}
FUNCTIONS = {"GRU": torch.gru, "LSTM": torch.lstm, "RNN": torch.rnn_tanh}
KINDS = ["weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"]
Sums = dict[tuple[str, int], Tensor]


@dataclass(frozen=True)
class Shape:
    kind: str
    layers: int
    loss: str
    packed: bool = False
    dropout: float = 0.0
    batch_first: bool = False
    projected: int = 0

    def make(self) -> nn.RNNBase:
        torch.manual_seed(3)
        options = {"proj_size": self.projected} if self.projected else {}
        return getattr(nn, self.kind)(
            *(D, H, self.layers),
            bidirectional=True,
            dropout=self.dropout,
            batch_first=self.batch_first,
            **options,
        ).double()

    @property
    def lengths(self) -> list[int]:
        return LENGTHS.tolist() if self.packed else [T] * B

    def __str__(self) -> str:
        options = [name for name in ("packed", "dropout", "batch_first", "projected") if getattr(self, name)]
        return "-".join([self.kind, str(self.layers), self.loss, *options])


SHAPES = [
    Shape("GRU", 2, "every"),
    Shape("GRU", 2, "final", packed=True),
    Shape("GRU", 3, "one", dropout=0.4),
    Shape("GRU", 2, "every", packed=True, dropout=0.3),
    Shape("LSTM", 2, "every", packed=True, batch_first=True),
    Shape("LSTM", 3, "final", batch_first=True, dropout=0.4),
    Shape("LSTM", 2, "one", projected=2, packed=True),
    Shape("RNN", 3, "every"),
    Shape("RNN", 2, "final"),
]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def drawn() -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, and what the loss takes of outputs (T, B, 2H) and of last states (N, B, H)."""
    generator = torch.Generator().manual_seed(5)
    shapes = ((T, B, D), (T, B, 2 * H), (6, B, H))
    return tuple(torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes)  # type: ignore[return-value]


def run(shape: Shape, layer: nn.RNNBase) -> tuple[Tensor, Tensor]:
    """The layer's outputs (T, B, 2H) and the loss."""
    x, directions, ends = drawn()
    torch.manual_seed(7)
    into = x.transpose(0, 1) if shape.batch_first else x
    if shape.packed:
        packed = pack_padded_sequence(into, LENGTHS, batch_first=shape.batch_first)
        output, state = layer(packed)
        output, _ = pad_packed_sequence(output, batch_first=shape.batch_first)
    else:
        output, state = layer(into)
    output = output.transpose(0, 1) if shape.batch_first else output
    if shape.loss == "final":
        states = state if isinstance(state, tuple) else (state,)
        loss = torch.stack([(each * ends[: len(each), :, : each.shape[-1]]).sum() for each in states]).sum()
    else:
        at = slice(2, 3) if shape.loss == "one" else slice(None)
        mask = torch.arange(T)[:, None] < torch.tensor(shape.lengths)
        loss = (output * directions[..., : output.shape[-1]] * mask[..., None])[at].sum()
    return output, loss


@functools.cache
def recorded(shape: Shape) -> tuple[tt.Flow, tt.Record]:
    layer = shape.make()
    with tt.record(layer) as record:
        run(shape, layer)[1].backward()
    return record.flow(demand=False, tolerance=0), record


def masks(shape: Shape) -> list[Tensor]:
    """What torch multiplies the outputs of each layer but the top one by, drawn again in torch's order."""
    width = 2 * (shape.projected or H)
    torch.manual_seed(7)
    out = []
    for _ in range(shape.layers - 1):
        inside = torch.arange(T)[:, None] < torch.tensor(shape.lengths)
        mask = torch.ones(T, B, width, dtype=torch.float64)
        if shape.dropout and shape.packed:
            mask[inside] = nn.functional.dropout(mask[inside], shape.dropout)
        elif shape.dropout:
            mask = nn.functional.dropout(mask, shape.dropout)
        out.append(mask)
    return out


@functools.cache
def truth(shape: Shape) -> Sums:
    """(parameter, offset) → G(offset), over all origins and sequences."""
    layer, (x, directions, ends), between = shape.make(), drawn(), masks(shape)
    output, _ = run(shape, layer)
    kinds = KINDS if shape.projected else KINDS[:4]
    widths = (shape.projected or H, H)[: 2 if shape.kind == "LSTM" else 1]
    sums: Sums = {}
    for b, length in enumerate(shape.lengths):
        into = [x[k, b].reshape(1, 1, -1) for k in range(length)]
        copies: dict[tuple[str, int], list[Tensor]] = {}
        last: list[tuple[int, tuple[Tensor, ...], int]] = []
        for depth in range(shape.layers):
            sides = []
            for direction in range(2):
                end = f"_l{depth}{'_reverse' if direction else ''}"
                state = tuple(torch.zeros(1, 1, width, dtype=x.dtype) for width in widths)
                made: dict[int, Tensor] = {}
                for k in reversed(range(length)) if direction else range(length):
                    copies[end, k] = [getattr(layer, kind + end).detach().clone().requires_grad_() for kind in kinds]
                    given = state if len(state) > 1 else state[0]
                    result = FUNCTIONS[shape.kind](into[k], given, copies[end, k], True, 1, 0.0, False, False, False)
                    made[k], state = result[0], tuple(result[1:])
                sides.append(made)
                last.append((0 if direction else length - 1, state, 2 * depth + direction))
            into = [torch.cat([side[k] for side in sides], dim=-1) for k in range(length)]
            if depth < shape.layers - 1:
                into = [value * between[depth][k, b] for k, value in enumerate(into)]
        torch.testing.assert_close(torch.stack(into).reshape(length, -1), output[:length, b])
        if shape.loss == "final":
            parts = [
                (t, sum((part.reshape(-1) * ends[place, b, : part.numel()]).sum() for part in state))
                for t, state, place in last
            ]
        else:
            steps = [2] if shape.loss == "one" else range(length)
            parts = [
                (t, (into[t].reshape(-1) * directions[t, b, : into[t].numel()]).sum()) for t in steps if t < length
            ]
        flat = [copy for each in copies.values() for copy in each]
        for t, value in parts:
            assert isinstance(value, Tensor)
            grads = iter(torch.autograd.grad(value, flat, retain_graph=True, allow_unused=True))
            for (end, k), _ in copies.items():
                for kind in kinds:
                    grad = next(grads)
                    if grad is not None:
                        key = f"rnn.{kind}{end}", t - k
                        sums[key] = sums.get(key, torch.zeros_like(grad)) + grad
    return sums


def compare(flows: list[LayerFlow], sums: Sums, steps: int = T) -> None:
    """Shares and norms of every parameter and gate, of the past in the first flow, from ahead in the second."""
    for name in flows[0].parameters:
        told = {offset: value for (parameter, offset), value in sums.items() if parameter == name}
        whole = torch.stack(list(told.values())).sum(0)
        for offset in range(1 - steps, steps):
            if offset < 0 and len(flows) == 1:
                assert offset not in told or not told[offset].any()
                continue
            terms = flows[offset < 0].parameters[name]
            for block, of in _blocks(terms, whole, told.get(offset, torch.zeros_like(whole))):
                term, reference = of
                share = float((term * reference).sum() / reference.square().sum())
                np.testing.assert_allclose(block.share[abs(offset)], share, **CLOSE, err_msg=f"{name} share {offset}")
                norm = 10 ** block.log10_norm[abs(offset)] if np.isfinite(block.log10_norm[abs(offset)]) else 0.0
                np.testing.assert_allclose(norm, float(term.norm()), **CLOSE, err_msg=f"{name} norm {offset}")


def _blocks(terms: tt.flow.Terms, whole: Tensor, term: Tensor) -> Iterator[tuple[tt.flow.Terms, tuple[Tensor, Tensor]]]:
    yield terms, (term, whole)
    for place, gate in enumerate(terms.gates):
        count = {3: "rzn", 4: "ifgo"}.get(len(terms.gates), "")
        if count:
            place = count.index(gate)
            yield terms.gates[gate], (term.chunk(len(count))[place], whole.chunk(len(count))[place])


@every_shape
def test_shares_and_norms_by_signed_offset(shape):
    flow, _ = recorded(shape)
    compare([flow.layers["rnn"], flow.layers["rnn_reverse"]], truth(shape))


@every_shape
def test_both_signs_together_are_the_whole(shape):
    flow, _ = recorded(shape)
    past, ahead = flow.layers["rnn"], flow.layers["rnn_reverse"]
    assert past.residual < 1e-12
    assert past.error < 1e-12
    assert (past.lag, ahead.lag, past.reverse, ahead.reverse) == ("total", "total", False, True)
    assert (past.opposite, ahead.opposite) == ("rnn_reverse", "rnn")
    assert len(flow.layers) == 2 + 2 * shape.layers
    np.testing.assert_allclose(past.share.sum() + ahead.share.sum(), 1, rtol=1e-12)
    for name, terms in past.parameters.items():
        np.testing.assert_allclose(terms.share.sum() + ahead.parameters[name].share.sum(), 1, rtol=1e-11)
        assert ahead.parameters[name].share[0] == 0


@pytest.mark.parametrize("kind", ["GRU", "LSTM", "RNN"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_stack_in_one_direction_is_told_the_same_both_ways(kind, packed):
    torch.manual_seed(0)
    layer, x = getattr(nn, kind)(D, H, 3, dropout=0.3).double(), torch.randn(T, B, D, dtype=torch.float64)
    with tt.record(layer) as record:
        given = pack_padded_sequence(x, LENGTHS) if packed else x
        output = layer(given)[0]
        (output.data if packed else output).sin().sum().backward()
    whole = record.flow(demand=False, tolerance=0).layers["rnn"]
    series = stack_of(runs_of(record.calls)[0])
    for norms in (True, False):
        offsets = Offsets(series, [part.trace.weight_gradients for part in series.parts], T, norms)
        offsets.add(series)
        offsets.settle()
        inner = torch.cat([sums.inner for sums in offsets.sums]).sum(0)
        share = inner / sum(block.square().sum() for sums in offsets.sums for block in sums.blocks)
        np.testing.assert_allclose(share[T - 1 :], whole.share, rtol=1e-10, atol=1e-14)
        assert not share[: T - 1].any()
        for sums in offsets.sums:
            for block, total in zip(sums.blocks, sums.totals, strict=True):
                torch.testing.assert_close(total, block, rtol=1e-12, atol=1e-13)
        pairs = torch.log10(offsets.pairs.double()).numpy()
        np.testing.assert_allclose(
            0.5 * (offsets.squares.log10() - pairs)[T - 1 :], whole.adjoint.log10_norm, atol=1e-10
        )
        entering = 0.5 * (torch.log10(offsets.entered).numpy() - pairs)[T - 1 :]
        np.testing.assert_allclose(entering, whole.entering, atol=1e-10)
    given = [part.trace.weight_gradients for part in series.parts]
    (told,) = total_of([series], [(each, "") for each in given], given, (0.1, 0.01, 0.001), None)
    for name, terms in whole.parameters.items():
        np.testing.assert_allclose(told.parameters[name].log10_norm, terms.log10_norm, atol=1e-10)
    np.testing.assert_allclose(told.bias, whole.bias, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(told.cosine, whole.cosine, rtol=1e-9)
    np.testing.assert_allclose(told.cancellation, whole.cancellation, rtol=1e-10)
    assert told.horizon == whole.horizon
    assert told.opposite is None


@every_shape
def test_bias_and_cosine_of_the_window_to_both_sides(shape):
    flow, sums = recorded(shape)[0], truth(shape)
    past, ahead = flow.layers["rnn"], flow.layers["rnn_reverse"]
    names = list(past.parameters)
    zeros = {name: torch.zeros_like(value) for (name, _), value in sums.items()}

    def within(least: int, most: int) -> Tensor:
        parts = {name: zeros[name].clone() for name in names}
        for (name, offset), value in sums.items():
            if least <= abs(offset) <= most:
                parts[name] += value
        return torch.cat([parts[name].flatten() for name in names])

    whole = within(0, T)
    for window in range(T):
        kept, cut = within(0, window), within(window + 1, T)
        np.testing.assert_allclose(past.bias[window], float(cut.norm() / whole.norm()), **CLOSE)
        cosine = float(kept @ whole / kept.norm() / whole.norm())
        np.testing.assert_allclose(past.cosine[window], cosine, rtol=1e-7)
    for level, told in past.horizon.items():
        above = [window for window in range(T) if past.bias[window] > level]
        assert told == (above[-1] + 1 if above else 0)
    assert np.isnan(ahead.bias).all()
    assert past.horizon_told
    assert not ahead.horizon_told


def test_adjoints_by_offset_are_those_that_the_states_carry():
    """By autograd: what each loss step gives the state as the next step of the same layer and direction reads it."""
    torch.manual_seed(0)
    layer, (x, directions, _) = nn.GRU(D, H, 2, bidirectional=True).double(), drawn()
    with tt.record(layer) as record:
        (layer(x)[0] * directions).sum().backward()
    flow = record.flow(demand=False)
    squares = np.zeros((T, T))
    into = list(x.unsqueeze(1))
    carried: list[tuple[int, bool, Tensor]] = []
    for depth in range(2):
        sides = []
        for direction in range(2):
            end = f"_l{depth}{'_reverse' if direction else ''}"
            weights = [getattr(layer, kind + end).detach() for kind in KINDS[:4]]
            state, made = torch.zeros(1, B, H, dtype=x.dtype), {}
            for k in reversed(range(T)) if direction else range(T):
                made[k], state = torch.gru(into[k], state.clone(), weights, True, 1, 0.0, False, False, False)
                made[k] = made[k].clone()
                state = state.clone().requires_grad_()
                carried.append((k, depth == 1, state))
            sides.append(made)
        into = [torch.cat([side[k] for side in sides], dim=-1) for k in range(T)]
    entering = directions.reshape(T, B, 2, H)
    for t in range(T):
        grads = torch.autograd.grad(
            (into[t] * directions[t]).sum(), [state for *_, state in carried], retain_graph=True, allow_unused=True
        )
        places = {}
        for (k, top, _), grad in zip(carried, grads, strict=True):
            side = places.get((k, top), 0)
            places[k, top] = side + 1
            value = torch.zeros(B, H, dtype=x.dtype) if grad is None else grad[0]
            if top and k == t:
                value = value + entering[t, :, side]
            squares[t, k] += float(value.square().sum())
    for offset in range(1 - T, T):
        pairs = [squares[t, t - offset] for t in range(T) if 0 <= t - offset < T]
        told = flow.layers["rnn" if offset >= 0 else "rnn_reverse"].adjoint.log10_norm[abs(offset)]
        np.testing.assert_allclose(10**told, np.sqrt(np.sum(pairs) / (B * len(pairs))), rtol=1e-9)


def stack(steps: int = 12, **options) -> tt.Record:
    torch.manual_seed(0)
    layer = nn.GRU(D, H, 2, bidirectional=True)
    with tt.record(layer) as record:
        layer(torch.randn(steps, 32, D))[0].square().sum().backward()
    return record


def test_what_is_not_told_says_why():
    document = stack().flow().to_dict()
    jsonschema.validate(document, schema())
    for layer in document["layers"][:2]:
        reasons = {each["field"]: each["reason"] for each in layer["missing"]}
        assert all("each layer" in reasons[field] for field in ("paths", "hops", "signal_to_noise", "units", "gates"))
    assert document["layers"][1]["opposite"] == "rnn"
    assert document["layers"][0]["demand"]["z"]
    assert document["layers"][2]["demand"] is None


def test_the_explorer_shows_the_layers_of_a_whole(tmp_path):
    path = tmp_path / "flow.json"
    path.write_text(stack().flow().to_json(network=True))
    names = [layer["name"] for layer in flowfile.read(path)["layers"]]
    assert names == ["rnn.l0", "rnn.l0_reverse", "rnn.l1", "rnn.l1_reverse"]


def test_without_the_terms_of_all_offsets_shares_stay(monkeypatch):
    whole = stack().flow(demand=False)
    monkeypatch.setattr("throughtime.whole.total.TERMS", 1000)
    flow = stack().flow(demand=False)
    for name in ("rnn", "rnn_reverse"):
        np.testing.assert_allclose(flow.layers[name].share, whole.layers[name].share, atol=1e-6)
        assert all(np.isnan(terms.log10_norm).all() for terms in flow.layers[name].parameters.values())
    assert flow.layers["rnn"].residual < 1e-5
    assert not flow.layers["rnn"].horizon_told
    assert "%" in str(flow.diagnose()).partition("rnn_reverse")[0]


def test_what_would_take_long_is_told_only_when_asked(monkeypatch):
    monkeypatch.setattr("throughtime.explain.COST", 1000)
    record = stack()
    flow = record.flow()
    assert "rnn" not in flow.layers
    assert flow.layers["rnn.l1"].demand is not None
    assert any(each.field == "layers.rnn" and "total=True" in each.reason for each in flow.missing)
    assert "rnn" in record.flow(total=True).layers
    monkeypatch.undo()
    assert "rnn" not in record.flow(total=False).layers


def test_tiny_adjoints_are_told_and_below_the_floor_they_are_not_called_zero(monkeypatch):
    torch.manual_seed(0)
    layer = nn.GRU(D, H, 2, bidirectional=True)
    with tt.record(layer) as record:
        layer(torch.randn(500, 1, D))[0][-1].square().sum().backward()
    options = {"demand": False, "signal_to_noise": False, "hops": False, "origin_step": False}
    log10 = record.flow(**options).layers["rnn"].adjoint.log10_norm
    assert np.isfinite(log10).all()
    assert log10[-1] < -45  # below single precision
    monkeypatch.setattr("throughtime.whole.total.FLOOR", -40.0)
    past = record.flow(**options).layers["rnn"]
    cut = past.adjoint.log10_norm
    first = int(np.flatnonzero(log10 < -40)[0])
    np.testing.assert_array_equal(cut[:first], log10[:first])
    assert np.isnan(cut[first:]).all()
    assert any(each.field == "adjoint" and "told from zero" in each.reason for each in past.missing)


def test_a_layer_of_the_same_name_is_not_covered():
    torch.manual_seed(0)
    model, x = (
        nn.ModuleDict({"rnn": nn.GRU(D, H, 2, bidirectional=True), "rnn_reverse": nn.GRU(D, H)}),
        drawn()[0].float(),
    )
    with tt.record(model) as record:
        (model["rnn"](x)[0].sum() + model["rnn_reverse"](x)[0].sum()).backward()
    flow = record.flow()
    assert flow.layers["rnn_reverse"].hidden_size == H
    assert any("rename" in each.reason for each in flow.missing)


def test_without_a_loss_the_last_states_are_probed():
    torch.manual_seed(0)
    report = tt.diagnose(nn.GRU(D, H, 2, bidirectional=True), torch.randn(10, 2, D))
    past, ahead = report.flow.layers["rnn"], report.flow.layers["rnn_reverse"]
    assert (past.batch, past.loss_steps, ahead.loss_steps) == (2, (0, 9), (0, 9))
    np.testing.assert_allclose(past.share.sum() + ahead.share.sum(), 1, rtol=1e-6)
    assert past.demand is None


def test_batches_together_are_one_whole():
    torch.manual_seed(0)
    layer, loss = nn.GRU(D, H, 2, bidirectional=True).double(), lambda model, x, y: (model(x)[0] * y).sum()
    x, y, _ = drawn()
    apart = tt.diagnose(layer, [(x[:, :1], y[:, :1]), (x[:, 1:], y[:, 1:])], loss).flow.layers
    together = tt.diagnose(layer, (x, y), loss).flow.layers
    for name in ("rnn", "rnn_reverse"):
        np.testing.assert_allclose(apart[name].share, together[name].share, rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(apart[name].adjoint.log10_norm, together[name].adjoint.log10_norm, atol=1e-10)
        assert apart[name].batch == B
    np.testing.assert_allclose(apart["rnn"].bias, together["rnn"].bias, rtol=1e-9)
