"""Everything that a flow says, against the reference, over every registered cell, random shapes, losses and starts."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import throughtime as tt
from reference import Loss, Reference, drawn, hard_sigmoid, hard_sigmoid_6, log10, sigmoid, widths
from throughtime.budget import Room
from throughtime.cells import REGISTRY, Weights
from throughtime.errors import ThroughtimeError
from throughtime.flow import QUANTILES, LayerFlow
from throughtime.recurrent import Recurrent

FUSED = {
    "gru": nn.GRU,
    "lstm": nn.LSTM,
    "rnn-tanh": nn.RNN,
    "rnn-relu": functools.partial(nn.RNN, nonlinearity="relu"),
}
OPEN = {"sigmoid": sigmoid, "hard-sigmoid": hard_sigmoid, "hard-sigmoid-6": hard_sigmoid_6}
FAR = {"sigmoid": 6, "hard-sigmoid": 2.5, "hard-sigmoid-6": 3}
EXACT = 1e-10  # relative, in float64
LEVELS = (0.1, 0.01, 0.001)
every_cell = pytest.mark.parametrize("key", REGISTRY)
few = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


# Losses: of the outputs (T, B, H) and the last states, each (B, H).


def bend(value: Tensor) -> Tensor:
    """Something that is not linear in any number: direct gradients differ from step to step."""
    return (torch.sin(value + 0.3) * (1 + value)).sum()


def attention(outputs: Tensor, _: list[Tensor]) -> Tensor:
    scores = torch.softmax(outputs.sum(-1), dim=0)
    return bend((scores[..., None] * outputs).sum(0))


def masked(outputs: Tensor, _: list[Tensor]) -> Tensor:
    """Sequence b counts at steps t with (t + 2b) mod 3 = 0, and the last sequence never, unless it is alone."""
    steps, batch = outputs.shape[:2]
    counts = (torch.arange(steps)[:, None] + 2 * torch.arange(batch)) % 3 == 0
    counts[:, -1] &= batch == 1
    counts[steps // 2, 0] = True
    return bend(outputs[counts])


LOSSES: dict[str, Loss] = {
    "first step": lambda outputs, _: bend(outputs[0]),
    "last step": lambda outputs, _: bend(outputs[-1]),
    "every step": lambda outputs, _: bend(outputs),
    "some steps": lambda outputs, _: bend(outputs[1::2]) + bend(outputs[-1]),
    "steps together": lambda outputs, _: (outputs[0] * outputs[-1]).sum() + outputs.prod(0).sum(),
    "last states": lambda _, finals: sum((bend(final) for final in finals), torch.zeros(())),
    "last of the last states": lambda _, finals: bend(finals[-1]),
    "outputs and last states": lambda outputs, finals: bend(outputs.sum(0)) + 2 * bend(finals[-1]) + bend(finals[0]),
    "mean over steps": lambda outputs, _: bend(outputs.mean(0)) * 3,
    "largest over steps": lambda outputs, _: bend(outputs.amax(0)),
    "attention": attention,
    "masked": masked,
}


@dataclass(frozen=True)
class Scene:
    """What is drawn."""

    key: str
    loss: str = "every step"
    steps: int = 5
    batch: int = 3
    inputs: int = 2
    hidden: int = 3
    bias: bool = True
    start: str = "none"  # "none", "given", "with gradient"
    fused: bool = True
    gain: float = 1.0
    seed: int = 0


@st.composite
def scenes(draw: st.DrawFn, key: str) -> Scene:
    return Scene(
        key,
        loss=draw(st.sampled_from(list(LOSSES))),
        steps=draw(st.integers(1, 7)),
        batch=draw(st.integers(1, 4)),
        inputs=draw(st.integers(1, 3)),
        hidden=draw(st.integers(1, 4)),
        bias=draw(st.booleans()),
        start=draw(st.sampled_from(["none", "given", "with gradient"])),
        fused=draw(st.booleans()),
        gain=draw(st.sampled_from([0.3, 1.0, 2.0])),
        seed=draw(st.integers(0, 10**6)),
    )


@dataclass
class Played:
    """A scene run under the recorder, and the same by the reference."""

    scene: Scene
    model: nn.Module
    record: tt.Record
    truth: Reference
    start_gradient: list[Tensor] | None

    @functools.cached_property
    def layer(self) -> LayerFlow:
        return self.flow()

    def flow(self, **options) -> LayerFlow:
        return self.record.flow(demand=False, **options).layers["rnn"]


def layer_of(scene: Scene, dtype: torch.dtype = torch.float64) -> nn.Module:
    """torch's own layer where it has one and the scene asks for it; weights of the scene's seed and gain in both."""
    cell = REGISTRY[scene.key]
    generator = torch.Generator().manual_seed(scene.seed)

    def normal(*shape: int) -> Tensor:
        draw = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return scene.gain * draw / (scene.hidden + scene.inputs) ** 0.5

    draws = drawn(cell, scene.inputs, scene.hidden, normal, scene.bias)
    weights = Weights(**{name: value.to(dtype) for name, value in draws.items()})
    if not scene.fused or scene.key not in FUSED:
        return Recurrent(cell, weights)
    model = FUSED[scene.key](scene.inputs, scene.hidden, bias=scene.bias).to(dtype)
    with torch.no_grad():
        for name, value in weights.tensors().items():
            getattr(model, f"{name}_l0").copy_(value)
    return model


def play(scene: Scene, model: nn.Module | None = None, x: Tensor | None = None, loss: Loss | None = None) -> Played:
    model = layer_of(scene) if model is None else model
    cell = REGISTRY[scene.key]
    generator = torch.Generator().manual_seed(scene.seed + 1)
    if x is None:
        x = torch.randn(scene.steps, scene.batch, scene.inputs, generator=generator, dtype=torch.float64)
    parameters = {name.removesuffix("_l0"): value.detach() for name, value in model.named_parameters()}
    wide = widths(cell, Weights(**parameters))
    start = [torch.randn(scene.batch, width, generator=generator, dtype=torch.float64) for width in wide]
    if scene.start == "none":
        start = [torch.zeros_like(part) for part in start]
    for part in start:
        part.requires_grad_(scene.start == "with gradient")
    given = None if scene.start == "none" else tuple(part[None] for part in start)
    loss = loss or LOSSES[scene.loss]
    with tt.record(model) as record:
        output, last = model(x) if given is None else model(x, given if len(given) > 1 else given[0])
        last = last if isinstance(last, tuple) else (last,)
        loss(output, [part[0] for part in last]).backward()
    truth = Reference(scene.key, cell, parameters, x, start, loss)
    grads = [part.grad for part in start] if scene.start == "with gradient" else None
    return Played(scene, model, record, truth, grads)


def agree(got, wanted, scale: float = 0.0, rtol: float = EXACT, what: str = "") -> None:
    """Equal to rounding, NaN where NaN and infinite where infinite. scale: the size to which a sum rounds."""
    np.testing.assert_allclose(got, wanted, rtol=rtol, atol=EXACT * scale, err_msg=what)


def agree_log(got: np.ndarray, wanted: np.ndarray, what: str = "") -> None:
    """log10 of a norm against the norm."""
    sizes = np.asarray(wanted)
    agree(got, log10(sizes), what=what, scale=1.0)


def check_ledger(layer: LayerFlow, truth: Reference) -> None:
    for name in truth.named:
        terms = layer.parameters[f"rnn.{name}_l0"]
        assert list(terms.gates) == list(truth.cell.blocks(name))
        for gate, row in [(None, terms), *terms.gates.items()]:
            assert row.gate == gate
            place = f"{name}, gate {gate}"
            sizes, whole = (
                truth.norm(name, gate),
                np.linalg.norm(truth.gradient[name][slice(None) if gate is None else truth.rows(name, gate)]),
            )
            agree(
                row.share,
                truth.share(name, gate),
                scale=max(1, np.nanmax(sizes) / whole) if whole else 0,
                what=f"share of {place}",
            )
            agree_log(row.log10_norm, sizes, what=f"norm of {place}")
            assert row.residual <= EXACT * max(1, np.nansum(sizes) / whole if whole else 1), place
            if whole:
                agree(row.share.sum(), 1, scale=max(1, np.nanmax(sizes) / whole))
    whole = np.linalg.norm(truth.whole)
    if whole:
        inner = [truth.vector(lag) @ truth.whole for lag in range(truth.steps)]
        agree(
            layer.share, np.array(inner) / whole**2, scale=max(1, np.abs(inner).max() / whole**2), what="share of all"
        )
    assert set(layer.parameters) == {f"rnn.{name}_l0" for name in truth.named}


def check_bias(layer: LayerFlow, truth: Reference) -> None:
    size = np.linalg.norm(truth.whole)
    sums = sum(np.linalg.norm(truth.vector(lag)) for lag in range(truth.steps))
    if not size:  # dead units: nothing to explain
        assert layer.cancellation == 0
        assert np.isnan(layer.bias).all()
        assert layer.horizon == dict.fromkeys(LEVELS)
        return
    agree(layer.cancellation, truth.cancellation())
    agree(layer.bias, truth.bias(), scale=sums / size)
    # S/√(b² + 2S − 1) loses what the partial sum is short of G, twice.
    parts = np.array([np.linalg.norm(kept) for kept in truth.kept]) / size
    told = parts > 1e-3 * sums / size
    agree(layer.cosine[told], truth.cosine()[told], rtol=1e-8)
    assert layer.horizon == {level: truth.horizon(level) for level in LEVELS}


def check_adjoints(layer: LayerFlow, truth: Reference) -> None:
    agree_log(layer.adjoint.log10_norm, truth.root_mean_square(truth.inside), what="adjoint")
    assert layer.adjoint.by_state.keys() == truth.by_state().keys()
    for state, sizes in truth.by_state().items():
        agree_log(layer.adjoint.by_state[state], sizes, what=f"adjoint of {state}")
    agree_log(layer.adjoint.by_sequence, truth.by_sequence(), what="adjoint by sequence")
    assert layer.origin_step is not None
    agree(layer.origin_step.origins, truth.origins)
    agree(layer.loss_steps, truth.origins)
    agree(layer.origin_step.steps, np.arange(truth.steps))
    agree_log(layer.origin_step.log10_norm, truth.origin_step(), what="origin × step")


def check_paths(layer: LayerFlow, truth: Reference) -> None:
    paths = truth.paths()
    assert list(layer.paths) == list(paths)
    for port, shares in paths.items():
        agree(
            layer.paths[port], shares, scale=np.nanmax([1.0, *np.abs(np.concatenate(list(paths.values())))]), what=port
        )
    told = np.sum(list(layer.paths.values()), axis=0)
    agree(told[~np.isnan(told)], 1, scale=1)
    if not truth.cell.diagonal:
        assert layer.hops is None
        return
    assert layer.hops is not None
    shares = truth.hops()
    agree(layer.hops["0"], shares, scale=np.nanmax([1.0, *np.abs(shares)]), what="hops")
    agree(layer.hops["rest"], 1 - shares, scale=np.nanmax([1.0, *np.abs(shares)]), what="hops")


def check_noise(layer: LayerFlow, truth: Reference) -> None:
    wanted = truth.signal_to_noise()
    told = ~np.isnan(layer.signal_to_noise)
    # Where all sequences have the same term, up to rounding, there is no noise to divide by.
    assert np.all(np.isnan(wanted[~told]) | (np.abs(wanted[~told]) > 1e9)), wanted
    agree(layer.signal_to_noise[told], wanted[told], scale=1, rtol=1e-8)


def check_initial(layer: LayerFlow, truth: Reference, gradients: list[Tensor] | None) -> None:
    for place, (state, (share, norm)) in enumerate(truth.initial_terms().items()):
        terms = layer.initial_state[f"rnn.{state}_0"]
        sums, whole = np.nansum(norm), np.linalg.norm(truth.adjoints[:, 0, :, place].sum(0))
        if whole:
            agree(terms.share, share, scale=max(1, sums / whole), what=f"share of {state}_0")
        agree_log(terms.log10_norm, norm, what=f"norm of {state}_0")
        assert np.isnan(terms.residual) == (gradients is None)
        if gradients is not None:
            agree(truth.adjoints[:, 0, :, place].sum(0), gradients[place].numpy(), scale=sums)
            assert terms.residual <= EXACT * max(1, sums / whole if whole else 1)


def check_units_and_gates(layer: LayerFlow, truth: Reference) -> None:
    agree([unit.timescale for unit in layer.units], truth.timescales(), what="timescale")
    agree([unit.half_life for unit in layer.units], truth.half_lives(), what="half-life")
    assert [unit.unit for unit in layer.units] == list(range(truth.hidden))
    assert set(layer.gates) == set(truth.cell.sigmoids)
    for name, gate in layer.gates.items():
        logits = truth.logits(name)
        values = OPEN[truth.cell.gate](torch.from_numpy(logits)).numpy()
        agree(gate.mean, values.mean())
        agree(gate.below, (values < 0.1).mean(), rtol=1e-6)
        agree(gate.above, (values > 0.9).mean(), rtol=1e-6)
        agree(gate.saturated, (np.abs(logits) > FAR[truth.cell.gate]).mean(), rtol=1e-6)
        agree(gate.logit_quantiles, [np.quantile(logits, level) for level in QUANTILES], scale=1)
        assert list(gate.histogram) == list(np.histogram(values, bins=20, range=(0, 1))[0])


def check(played: Played, layer: LayerFlow | None = None) -> None:
    """Everything at once."""
    layer, truth = layer or played.layer, played.truth
    for name, value in played.model.named_parameters():  # the reference itself, against plain autograd
        assert value.grad is not None
        short = name.removesuffix("_l0")
        sizes = np.nansum(truth.norm(short))
        agree(truth.gradient[short], value.grad.numpy(), scale=sizes)
    assert layer.residual <= EXACT * max(1, 1 / layer.cancellation if layer.cancellation else 1)
    assert layer.error <= EXACT
    assert layer.tail is None
    check_ledger(layer, truth)
    check_bias(layer, truth)
    check_adjoints(layer, truth)
    check_paths(layer, truth)
    check_noise(layer, truth)
    check_initial(layer, truth, played.start_gradient)
    check_units_and_gates(layer, truth)


@every_cell
def test_random_scenes(key):
    @few
    @given(scenes(key))
    def run(scene: Scene) -> None:
        check(play(scene))

    run()


@every_cell
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss(key, loss):
    check(play(Scene(key, loss, start="with gradient")))


@every_cell
@pytest.mark.parametrize("entries", [1, 20, 40])
@pytest.mark.parametrize("loss", ["last step", "some steps", "every step", "outputs and last states"])
def test_blocks_of_any_size_say_the_same(key, entries, loss, monkeypatch):
    """The sweep cuts its work into blocks: a few lags, a few sequences, a few origins, a few steps of factors at a time."""
    monkeypatch.setattr("throughtime.sweep.BLOCK_ENTRIES", entries)
    check(play(Scene(key, loss, steps=7, start="with gradient")))


@pytest.mark.parametrize(
    "asked",
    [
        {"tolerance": -1e-12},
        {"tolerance": 1},
        {"tolerance": float("nan")},
        {"max_lag": -1},
        {"max_lag": 2.5},
        {"bias": "every"},
    ],
)
def test_options_that_mean_nothing_are_refused(asked):
    with pytest.raises(tt.ThroughtimeError, match=f"got {next(iter(asked))}="):
        play(Scene("gru", steps=4)).flow(**asked)


@every_cell
def test_one_origin_of_one_sequence_is_left(key, monkeypatch):
    """All others have passed the start: what is left goes on alone, a few steps at a time."""
    monkeypatch.setattr("throughtime.sweep.BLOCK_ENTRIES", 16)
    scene = Scene(key, steps=12, batch=3, start="with gradient")
    check(play(scene, loss=lambda y, _: bend(y[2]) + bend(y[11, 1])))


def numbers(layer: LayerFlow) -> dict[str, np.ndarray]:
    """All arrays by lag, by name."""
    out = {name: np.asarray(getattr(layer, name)) for name in ("share", "bias", "cosine", "signal_to_noise")}
    out |= {f"path {name}": value for name, value in layer.paths.items()}
    out |= {f"hops {name}": value for name, value in (layer.hops or {}).items()}
    out |= {"adjoint": layer.adjoint.log10_norm, "by sequence": layer.adjoint.by_sequence}
    out |= {f"adjoint {name}": value for name, value in layer.adjoint.by_state.items()}
    for name, terms in layer.parameters.items():
        for gate, row in [("", terms), *terms.gates.items()]:
            out |= {f"share {name} {gate}": row.share, f"norm {name} {gate}": row.log10_norm}
    return out


def from_start(layer: LayerFlow) -> dict[str, np.ndarray]:
    """Arrays of the initial state, by lag − 1."""
    pairs = [
        (f"{kind} {name}", getattr(row, kind))
        for name, row in layer.initial_state.items()
        for kind in ("share", "log10_norm")
    ]
    return dict(pairs)


def same(got: LayerFlow, wanted: LayerFlow, rtol: float = 1e-9) -> None:
    for name, value in (numbers(wanted) | from_start(wanted)).items():
        finite = np.abs(value[np.isfinite(value)])
        scale = max(1.0, finite.max()) if finite.size else 1.0
        agree((numbers(got) | from_start(got))[name], value, scale=scale, rtol=rtol, what=name)
    assert got.horizon == wanted.horizon
    agree([unit.half_life for unit in got.units], [unit.half_life for unit in wanted.units])
    assert [unit.kind for unit in got.units] == [unit.kind for unit in wanted.units]


@every_cell
@pytest.mark.parametrize(
    ("loss", "entries", "left", "max_lag"),
    [
        ("last step", 20, 0, None),
        ("some steps", 20, 0, None),
        ("some steps", 2**17, 0, None),
        ("every step", 20, 2000, 3),
        ("every step", 2**17, 0, None),
    ],
)
def test_what_is_made_again_where_there_is_no_room_is_the_same(key, loss, entries, left, max_lag, monkeypatch):
    """left: bytes that may be kept; 2000 are room for some of the lanes."""
    monkeypatch.setattr("throughtime.explain.room", lambda *_: Room(entries, left, 200, 10))
    played = play(Scene(key, loss, steps=9, start="with gradient"))
    got, wanted = (played.flow(memory=memory, max_lag=max_lag) for memory in ("1GB", None))
    same(got, wanted)
    assert (got.tail is None) == (wanted.tail is None)
    for name, gate in wanted.gates.items():
        agree(got.gates[name].logit_quantiles, gate.logit_quantiles)
        agree(got.gates[name].mean, gate.mean)
        np.testing.assert_array_equal(got.gates[name].histogram, gate.histogram)
    agree([unit.timescale for unit in got.units], [unit.timescale for unit in wanted.units])


@every_cell
@pytest.mark.parametrize("loss", ["last step", "every step", "outputs and last states"])
def test_derivative_by_autograd_gives_the_same_flow(key, loss):
    played = play(Scene(key, loss, steps=6, start="with gradient"))
    same(played.flow(derivative="autograd"), played.layer)


@every_cell
def test_calls_that_pass_their_states_on_say_what_one_call_says(key):
    """And where a mask stands between the calls, terms, paths and the rest still add up to autograd's gradient."""
    scene = Scene(key, steps=7, fused=False)
    model = layer_of(scene)
    x = torch.randn(7, 3, scene.inputs, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def flow(masked: bool, *cuts: int) -> LayerFlow:
        with tt.record(model) as record:
            outputs, state = [], None
            for part in x.tensor_split(cuts):
                if masked and state is not None:
                    mask = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)[:, None]
                    state = tuple(each * mask for each in state) if isinstance(state, tuple) else state * mask
                output, state = model(part, state)
                outputs.append(output)
            bend(torch.cat(outputs)).backward()
        return record.flow(demand=False).layers["rnn"]

    same(flow(False, 2, 5), flow(False))
    masked = flow(True, 2, 5)
    assert masked.error <= EXACT
    told = np.sum(list(masked.paths.values()), axis=0)
    agree(told[~np.isnan(told)], 1, scale=1)


# The tail.


def check_tail(played: Played, layer: LayerFlow) -> None:
    """Before the tail all is as without one, in the tail all is NaN, and nothing is lost."""
    whole = played.flow(tolerance=0)
    assert whole.tail is None
    tail = layer.tail
    assert tail is not None
    first = tail.first_lag
    for name, value in numbers(layer).items():
        scale = np.nanmax([1.0, *np.abs(value[np.isfinite(value)])])
        agree(value[:first], numbers(whole)[name][:first], scale=scale, rtol=1e-9, what=name)
        after = slice(first + 1, None) if name.startswith("path ") else slice(first, None)  # a path lands a lag further
        assert np.isnan(value[after]).all(), name
    for name, value in from_start(layer).items():
        agree(value[: first - 1], from_start(whole)[name][: first - 1], scale=10, rtol=1e-9, what=name)
        assert np.isnan(value[first:]).all(), name
    assert layer.residual <= EXACT * max(1, 1 / layer.cancellation)
    agree(layer.share[:first].sum() + tail.share, 1, scale=np.abs(whole.share).sum())
    size = np.linalg.norm(played.truth.whole)
    left = played.truth.bias()[first - 1] * size
    agree(10**tail.log10_norm, left, scale=size, rtol=1e-8)
    # Parts that were added up before they were measured can only have become smaller.
    assert layer.cancellation >= whole.cancellation * (1 - EXACT)


@every_cell
@pytest.mark.parametrize("loss", ["every step", "last step", "outputs and last states"])
@pytest.mark.parametrize("max_lag", [0, 3])
def test_tail_from_a_largest_lag(key, loss, max_lag):
    played = play(Scene(key, loss, steps=7, start="with gradient", seed=4))
    layer = played.flow(max_lag=max_lag)
    assert layer.tail is not None
    assert layer.tail.first_lag == max_lag + 1
    check_tail(played, layer)


@pytest.mark.parametrize("key", ["gru", "gru-reset-before", "lstm", "rnn-tanh"])
@pytest.mark.parametrize("entries", [1, 20, 100, 2**17])
def test_tail_from_a_tolerance(key, entries, monkeypatch):
    """It begins where the adjoints say, whatever the sweep works on at once."""
    monkeypatch.setattr("throughtime.sweep.BLOCK_ENTRIES", entries)
    played = play(Scene(key, "every step", steps=16, gain=0.6))
    layer = played.flow(tolerance=0.05)
    assert layer.tail is not None
    arriving = played.truth.inside
    largest = [max(np.abs(arriving[t, t - lag]).max() for t in range(lag, 16)) for lag in range(16)]
    assert largest[layer.tail.first_lag] < 0.05 * max(largest) <= largest[layer.tail.first_lag - 1]
    check_tail(played, layer)


@pytest.mark.parametrize("entries", [1, 20, 100, 2**17])
def test_tail_of_late_losses(entries, monkeypatch):
    """Many lags make one block here, and the tail begins within it."""
    monkeypatch.setattr("throughtime.sweep.BLOCK_ENTRIES", entries)
    played = play(Scene("rnn-tanh", steps=30, gain=0.6), loss=lambda y, _: bend(y[-3:]))
    layer, sizes = played.flow(tolerance=1e-6), played.truth.inside
    assert layer.tail is not None
    largest = [max(np.abs(sizes[t, t - lag]).max() for t in range(max(27, lag), 30)) for lag in range(30)]
    assert largest[layer.tail.first_lag] < 1e-6 * max(largest) <= largest[layer.tail.first_lag - 1]
    check_tail(played, layer)


def test_a_single_loss_has_no_tail():
    assert play(Scene("gru", "last step", steps=12, gain=0.3)).flow(tolerance=0.5).tail is None


def test_a_largest_lag_beyond_the_sequence_leaves_no_tail():
    check(played := play(Scene("lstm", steps=5)), played.flow(max_lag=5))


@pytest.mark.parametrize("max_lag", [None, 25])
def test_an_adjoint_that_dies_and_grows_again(max_lag, monkeypatch):
    """Four saturated steps take the adjoint to 1e-24, 26 linear ones bring it back: nothing of it may be lost."""
    monkeypatch.setattr("throughtime.sweep.BLOCK_ENTRIES", 1)  # the tolerance is looked at after every block
    x = torch.zeros(40, 2, 1, dtype=torch.float64)
    model = nn.RNN(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight_hh_l0.fill_(20.0)
        model.weight_ih_l0.fill_(1.0)
        h = torch.zeros(2, dtype=torch.float64)
        for k in range(40):
            a = [0.01, -0.02] if k < 26 else [9.0, 8.5] if k < 30 else [2.2, 2.1]
            x[k, :, 0] = torch.tensor(a, dtype=torch.float64) - 20 * h
            h = torch.tanh(x[k, :, 0] + 20 * h)
    played = play(
        Scene("rnn-tanh", steps=40, batch=2, inputs=1, hidden=1, bias=False), model, x, lambda y, _: y[34:].sum()
    )
    layer = played.flow(max_lag=max_lag)
    assert layer.tail is not None
    assert layer.error <= EXACT
    check_tail(played, layer)
    sizes = played.flow(tolerance=0).adjoint.log10_norm
    assert sizes[:16].min() < -15
    assert sizes[-1] > 2
    assert abs(layer.tail.share - 1) < 0.01


@every_cell
@pytest.mark.parametrize("loss", ["last step", "every step"])
@pytest.mark.parametrize("entries", [2**17, 100])
def test_horizon_alone_is_that_of_every_bias(key, loss, entries, monkeypatch):
    monkeypatch.setattr("throughtime.sweep.BLOCK_ENTRIES", entries)
    played = play(Scene(key, loss, steps=40, hidden=4, gain=0.8))
    near = played.flow(bias="horizon")
    assert near.horizon == played.layer.horizon
    told = ~np.isnan(near.bias)
    agree(near.bias[told], played.layer.bias[told], scale=1)
    agree(near.share, played.layer.share, scale=1)
    assert near.residual <= EXACT


@pytest.mark.parametrize("loss", ["last step", "some steps"])
def test_origins_and_steps_of_a_long_sequence_are_told_in_blocks(loss):
    picked = {"last step": lambda y, _: bend(y[-1]), "some steps": lambda y, _: bend(y[[300, 301, 599]])}[loss]
    scene = Scene("gru", steps=600, batch=2, inputs=1, hidden=1, gain=2.5)
    played = play(scene, loss=picked)
    layer, truth = played.flow(tolerance=0), played.truth
    squares, counts = np.zeros((300, 300)), np.zeros((300, 300))
    for t in truth.origins:
        for k in range(t + 1):
            squares[t // 2, k // 2] += (truth.inside[t, k] ** 2).sum()
            counts[t // 2, k // 2] += truth.pairs[t].sum()
    rows = sorted({t // 2 for t in truth.origins})
    place = layer.origin_step
    assert place is not None
    agree(place.origins, [2 * row for row in rows])
    agree(place.steps, np.arange(0, 600, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        agree(place.log10_norm, np.log10(np.sqrt(squares / counts))[rows], scale=10)


# Other precisions, and numbers at the edge.


def single(scene: Scene, scale: float = 1.0) -> tuple[LayerFlow, LayerFlow]:
    """The flow of a scene in float32, its loss times `scale`; and in float64, plain."""
    flows = []
    for dtype, factor in ((torch.float32, scale), (torch.float64, 1.0)):
        model = layer_of(scene, dtype)
        generator = torch.Generator().manual_seed(scene.seed + 1)
        x = torch.randn(scene.steps, scene.batch, scene.inputs, generator=generator, dtype=torch.float64).to(dtype)
        with tt.record(model) as record:
            output, last = model(x)
            last = last if isinstance(last, tuple) else (last,)
            (factor * LOSSES[scene.loss](output, [part[0] for part in last])).backward()
        flows.append(record.flow(demand=False).layers["rnn"])
    return flows[0], flows[1]


@pytest.mark.parametrize("key", ["gru", "gru-reset-before", "lstm", "rnn-tanh"])
@pytest.mark.parametrize("loss", ["last step", "every step"])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_float32_keeps_its_contract_at_any_scale_of_the_loss(key, loss, scale):
    low, high = single(Scene(key, loss, steps=40, batch=4, inputs=3, hidden=8, gain=0.8), scale)
    assert low.error <= 3e-6
    assert low.residual <= 1e-4
    first = 40 if low.tail is None else low.tail.first_lag
    for name, value in numbers(high).items():
        got, wanted = numbers(low)[name][:first], value[:first]
        if name.startswith(("adjoint", "by sequence", "norm")):
            np.testing.assert_allclose(got, wanted + np.log10(scale), atol=3e-4, err_msg=name)
        elif name == "signal_to_noise":
            np.testing.assert_allclose(got, wanted, rtol=1e-2, atol=1e-2, err_msg=name)
        else:
            np.testing.assert_allclose(got, wanted, atol=3e-4 * max(1, 0.01 / high.cancellation), err_msg=name)
    assert low.horizon == high.horizon


def set_blocks(model: nn.Module, name: str, gates: int, **values: float) -> None:
    """Fill blocks g0, g1, … of a stacked weight."""
    with torch.no_grad():
        for gate, value in values.items():
            getattr(model, name).unflatten(0, (gates, -1))[int(gate[1:])].fill_(value)


@pytest.mark.parametrize("key", ["gru", "lstm"])
def test_gates_that_are_exactly_open_in_float32(key):
    """σ(40) = 1 in float32: the carry is perfect, and its timescale e⁴⁰ is read on the logit."""
    model = layer_of(Scene(key, hidden=4, inputs=2), torch.float32)
    gates = 3 if key == "gru" else 4
    for side in ("ih", "hh"):
        set_blocks(model, f"weight_{side}_l0", gates, g1=0.0)
        set_blocks(model, f"bias_{side}_l0", gates, g1=20.0)
        if key == "lstm":
            set_blocks(model, f"weight_{side}_l0", gates, g0=0.0)
            set_blocks(model, f"bias_{side}_l0", gates, g0=-60.0)
            set_blocks(model, f"weight_{side}_l0", gates, g3=0.0)
    with tt.record(model) as record:
        output, last = model(torch.randn(30, 3, 2))
        (output if key == "gru" else last[1])[-1].sum().backward()
    layer = record.flow(demand=False).layers["rnn"]
    np.testing.assert_allclose(10**layer.adjoint.log10_norm, 2.0, rtol=1e-6)
    np.testing.assert_allclose(layer.paths["carry"][1:], 1)
    assert layer.hops is not None
    np.testing.assert_allclose(layer.hops["0"], 1)
    np.testing.assert_allclose([unit.timescale for unit in layer.units], np.exp(40.0), rtol=1e-5)
    assert all(np.isnan(unit.half_life) for unit in layer.units)
    assert layer.gates["z" if key == "gru" else "f"].saturated == 1
    assert layer.residual <= 1e-4


@pytest.mark.parametrize("steps", ["last", "every"])
def test_gates_that_are_exactly_shut_in_float32(steps):
    """σ(−120) = 0 in float32: z = r = 0 leaves the candidate W_n(r∘h) no way, and only lag 0 is left."""
    model = layer_of(Scene("gru", hidden=4, inputs=2), torch.float32)
    for side in ("ih", "hh"):
        set_blocks(model, f"weight_{side}_l0", 3, g0=0.0, g1=0.0)
        set_blocks(model, f"bias_{side}_l0", 3, g0=-60.0, g1=-60.0)
    with tt.record(model) as record:
        output, _ = model(torch.randn(9, 3, 2))
        (output[-1] if steps == "last" else output).sum().backward()
    layer = record.flow(demand=False).layers["rnn"]
    assert np.isfinite(layer.adjoint.log10_norm[0])
    assert np.all(layer.adjoint.log10_norm[1:] == -np.inf)
    assert layer.tail is None
    np.testing.assert_allclose(layer.share, [1, *[0] * 8], atol=1e-6)
    np.testing.assert_allclose(layer.bias, 0, atol=1e-6)
    assert layer.horizon == dict.fromkeys(LEVELS, 0)
    assert layer.origin_step is not None
    below = layer.origin_step.log10_norm[np.tri(9, k=-1, dtype=bool)[layer.origin_step.origins]]
    assert np.all(below == -np.inf)
    assert all(np.all(row.log10_norm[list(layer.loss_steps)] == -np.inf) for row in layer.initial_state.values())


@every_cell
def test_zero_input_zero_state_no_bias(key):
    """The state stays at zero: an adjoint, and no gradient of any weight."""
    scene = Scene(key, "every step", bias=False)
    played = play(scene, x=torch.zeros(5, 3, 2, dtype=torch.float64), loss=lambda y, _: (y + y**2).sum())
    layer = played.layer
    assert layer.residual == 0
    assert layer.cancellation == 0
    assert layer.horizon == dict.fromkeys(LEVELS)
    check_adjoints(layer, played.truth)
    check_paths(layer, played.truth)
    for row in layer.parameters.values():
        assert np.all(row.log10_norm[: len(layer.loss_steps)] == -np.inf)


def test_relu_with_dead_and_living_units():
    """Two dead units among four: their paths carry nothing, they are told dead, the rest is exact."""
    model = layer_of(Scene("rnn-relu", hidden=4))
    with torch.no_grad():
        model.bias_ih_l0.copy_(torch.tensor([-50.0, -50.0, 2.0, 2.0]))
    played = play(Scene("rnn-relu", hidden=4, steps=6, gain=0.5), model)
    check(played)
    kinds = [unit.kind for unit in played.layer.units]
    assert kinds[:2] == ["dead", "dead"]
    assert "dead" not in kinds[2:]


def test_two_sequences_that_cancel():
    """Equal inputs, opposite losses: every term of the sum is zero and every sequence's own is not."""
    x = (
        torch.randn(6, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        .expand(6, 2, 2)
        .contiguous()
    )
    played = play(Scene("gru", steps=6, batch=2), x=x, loss=lambda y, _: (y[:, 0] - y[:, 1]).sum())
    layer = played.flow(strict=False)
    check_adjoints(layer, played.truth)
    sizes = np.nansum(played.truth.root_mean_square(played.truth.inside))
    for row in layer.parameters.values():
        assert np.all(10**row.log10_norm < 1e-7 * sizes)  # by Gram matrices a norm of zero rounds to √ε


@every_cell
def test_no_gradient_at_all_is_an_error(key):
    with pytest.raises(ThroughtimeError, match="zero at the output"):
        _ = play(Scene(key), loss=lambda y, _: (0 * y).sum()).layer


@pytest.mark.parametrize("key", ["gru", "lstm", "rnn-tanh"])
def test_a_backward_pass_that_overflows_is_never_explained_silently(key):
    model = layer_of(Scene(key, gain=60.0), torch.float32)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(
                60 * torch.eye(len(value))[:, : value.shape[1]] if "weight_hh" in name else torch.zeros_like(value)
            )
    with tt.record(model) as record:
        model(torch.zeros(60, 3, 2))[0][-1].sum().backward()
    if all(torch.isfinite(value.grad).all() for value in model.parameters() if value.grad is not None):
        assert record.flow(demand=False).residual <= 1e-4
    else:
        with pytest.raises(ThroughtimeError):
            record.flow(demand=False)
