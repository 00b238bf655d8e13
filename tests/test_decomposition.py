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
from reference import Loss, Reference, log10
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
    rows = len(cell.gates) * scene.hidden
    shapes = {"weight_ih": (rows, scene.inputs), "weight_hh": (rows, scene.hidden)}
    if scene.bias:
        shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
    draws = {
        name: scene.gain * torch.randn(*shape, generator=generator, dtype=torch.float64) / (scene.hidden + scene.inputs) ** 0.5
        for name, shape in shapes.items()
    }
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
    start = [torch.randn(scene.batch, scene.hidden, generator=generator, dtype=torch.float64) for _ in cell.states]
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
    parameters = {name.removesuffix("_l0"): value.detach() for name, value in model.named_parameters()}
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
        assert list(terms.gates) == list(truth.cell.gates)
        for gate, row in [(None, terms), *terms.gates.items()]:
            assert row.gate == gate
            place = f"{name}, gate {gate}"
            sizes, whole = truth.norm(name, gate), np.linalg.norm(truth.gradient[name][slice(None) if gate is None else truth.rows(gate)])
            agree(row.share, truth.share(name, gate), scale=max(1, np.nanmax(sizes) / whole) if whole else 0, what=f"share of {place}")
            agree_log(row.log10_norm, sizes, what=f"norm of {place}")
            assert row.residual <= EXACT * max(1, np.nansum(sizes) / whole if whole else 1), place
            if whole:
                agree(row.share.sum(), 1, scale=max(1, np.nanmax(sizes) / whole))
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
        agree(layer.paths[port], shares, scale=np.nanmax([1.0, *np.abs(np.concatenate(list(paths.values())))]), what=port)
    told = np.sum(list(layer.paths.values()), axis=0)
    agree(told[~np.isnan(told)], 1, scale=1)
    if truth.cell.keep is None:
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
        values = 1 / (1 + np.exp(-logits))
        agree(gate.mean, values.mean())
        agree(gate.below, (values < 0.1).mean(), rtol=1e-6)
        agree(gate.above, (values > 0.9).mean(), rtol=1e-6)
        agree(gate.saturated, (np.abs(logits) > 6).mean(), rtol=1e-6)
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
