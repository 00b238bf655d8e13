"""Verification on tasks whose true answer is known, and on everything that can go wrong in a training."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from throughtime.errors import InputError
from throughtime.init import chrono_
from throughtime.remedies import registered
from throughtime.student_t import t_quantile
from throughtime.verify import judge, verify

T = 30


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small networks gain nothing from a second thread, and lose minutes to it where other tests run beside them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Last(nn.Module):
    def __init__(self, hidden: int = 12) -> None:
        super().__init__()
        self.rnn = nn.GRU(2, hidden)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0][-1])[:, 0]


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    x, y = batch
    return nn.functional.mse_loss(model(x), y)


def batches(target: str, count: int = 25, size: int = 16, steps: int = T) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """White noise with a sign on its first step; y is that sign, or a coin that no input knows."""
    generator = torch.Generator().manual_seed(0)
    result = []
    for _ in range(count):
        x = 0.3 * torch.randn(steps, size, 2, generator=generator)
        x[0, :, 0] = torch.randint(0, 2, (size,), generator=generator) * 2.0 - 1
        coin = torch.randint(0, 2, (size,), generator=generator) * 2.0 - 1
        result.append((x, x[0, :, 0].clone() if target == "first" else coin))
    return result


def quick(**changes):
    """A verification of few, small steps, for what does not depend on learning."""
    options = {"model": lambda: Last(4), "batches": batches("coin", 5, 4, 5), "loss": loss, "remedy": nothing}
    return verify(**(options | {"seeds": range(2), "steps": 3} | changes))


def nothing(model: nn.Module) -> None:
    """A remedy without effect."""


def test_chrono_helps_to_recall_the_first_input():
    chrono = registered()["chrono"]
    result = verify(Last, batches("first"), loss, chrono, "rnn", needed_lag=T - 1, seeds=range(3), steps=60, lr=2e-2)
    assert result.verdict == "helps"
    assert result.high < 0
    assert (result.after < result.before).all()
    assert (result.remedy, result.metric, result.higher_is_better) == ("chrono", "held-out loss", False)
    assert result.curves["treated"].shape == (3, 60)
    assert result.difference == pytest.approx((result.after - result.before).mean())


def test_nothing_helps_where_nothing_depends_on_the_input():
    """Accuracy on coins, and not their loss: it is .5 for every network, while the loss of a longer memory overfits."""
    x, coin = batches("coin", 1, 500)[0]

    def accuracy(model: nn.Module) -> float:
        return float((model(x).sign() == coin).float().mean())

    chrono, train = registered()["chrono"], batches("coin")
    result = verify(Last, train, loss, chrono, needed_lag=T - 1, seeds=range(4), steps=30, metric=accuracy)
    assert result.verdict == "no help"
    assert result.low < 0 < result.high


def test_a_remedy_that_destroys_harms():
    def shut(model: nn.Module) -> None:
        """The update gate keeps everything for good, so that no input enters."""
        with torch.no_grad():
            model.rnn.bias_ih_l0[12:24] = 40.0

    short = [(x[-3:].clone(), x[-3, :, 0].clone()) for x, _ in batches("coin")]
    result = verify(Last, short, loss, shut, seeds=range(3), steps=60, lr=2e-2)
    assert result.verdict == "harms"
    assert result.low > 0
    assert result.remedy == "shut"


def test_pairs_begin_alike_and_a_remedy_without_effect_changes_nothing_at_all():
    model = nn.Sequential(nn.Dropout(0.5), Last(4))
    result = quick(model=model)
    assert np.array_equal(result.curves["untreated"], result.curves["treated"])
    assert np.array_equal(result.before, result.after)
    assert (result.difference, result.low, result.high, result.verdict) == (0.0, 0.0, 0.0, "no help")
    assert result.curves["untreated"][0, 0] != result.curves["untreated"][1, 0]


def test_the_same_seeds_give_the_same_result():
    assert np.array_equal(quick().before, quick().before)


def test_model_gradients_modes_and_randomness_are_left_as_they_were():
    model = nn.Sequential(nn.Dropout(0.1), Last(4))
    model(torch.zeros(5, 2, 2)).sum().backward()
    model.eval()
    state, gradients = copy.deepcopy(model.state_dict()), [p.grad.clone() for p in model.parameters()]
    loader = torch.utils.data.DataLoader([(x[:, 0], y[0]) for x, y in batches("coin", 12, 4, 5)], 3, shuffle=True)
    transposed = lambda network, batch: loss(network, (batch[0].transpose(0, 1), batch[1]))  # noqa: E731
    randomness, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    with torch.no_grad():
        quick(model=model, batches=loader, loss=transposed, remedy=lambda m: chrono_(m[1].rnn, 5))
    assert torch.equal(randomness, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert not any(module.training for module in model.modules())


def test_an_own_metric_and_its_sense():
    seen = []

    def accuracy(model: nn.Module) -> float:
        seen.append((model.training, torch.is_grad_enabled()))
        return float(model.rnn.bias_ih_l0[4:8].mean() > 0.5)

    result = quick(metric=accuracy, higher_is_better=True, remedy=lambda m: chrono_(m.rnn, 50))
    assert (result.metric, result.verdict) == ("accuracy", "helps")
    assert set(seen) == {(False, False)}
    assert quick(metric=accuracy, remedy=lambda m: chrono_(m.rnn, 50)).verdict == "harms"
    assert quick(metric=accuracy, metric_name="test accuracy").metric == "test accuracy"


def test_one_batch_holds_nothing_out_and_says_so():
    x, y = batches("coin", 1, 4, 5)[0]
    for batch in [(x, y), [x, y], [(x, y)]]:
        result = quick(batches=batch)
        assert result.metric == "training loss"
        assert any("only one batch" in note for note in result.notes)
    by_name = quick(batches={"x": x, "y": y}, loss=lambda network, b: loss(network, (b["x"], b["y"])))
    assert np.array_equal(by_name.before, result.before)


def test_the_last_fifth_is_held_out():
    seen = set()

    def watching(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        seen.add((model.training, batch[1][0].item()))
        return loss(model, batch)

    numbered = [(torch.randn(5, 1, 2), torch.tensor([float(i)])) for i in range(10)]
    quick(batches=numbered, loss=watching, steps=20)
    assert {number for training, number in seen if training} == set(range(8))
    assert {number for training, number in seen if not training} == {8, 9}


def test_an_endless_stream_is_read_only_as_far_as_needed():
    drawn = []
    stream = (drawn.append(1) or (torch.randn(4, 2, 2), torch.zeros(2)) for _ in itertools.count())
    quick(batches=stream, steps=8)
    assert len(drawn) == 10


def test_a_run_that_diverges_counts_as_the_worst():
    def explode(model: nn.Module) -> None:
        model.head.register_forward_hook(lambda module, inputs, output: output * float("inf"))

    result = quick(remedy=explode, seeds=range(3))
    assert np.isfinite(result.after).all()
    assert (result.after >= result.before).all()
    assert np.isnan(result.curves["treated"][:, 1:]).all()
    assert [n for n in result.notes if "not finite at step 1" in n and "treated" in n]
    assert result.verdict in ("no help", "harms")


def test_divergence_after_learning_counts_as_not_having_learned():
    """A treated network that learns, then meets NaN: its value is that of its own network before training."""
    calls = {"steps": 0}

    def scalar(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        value = (model.weight - 1).square().sum() + 0 * batch.sum()
        if model.training and getattr(model, "doomed", False):
            calls["steps"] += 1
            value = value * (float("nan") if calls["steps"] % 20 == 0 else 1.0)
        return value

    doom = lambda model: setattr(model, "doomed", True)  # noqa: E731
    result = verify(lambda: nn.Linear(3, 3), torch.ones(1), scalar, doom, seeds=range(4), steps=20, lr=0.05)
    assert result.verdict == "harms"
    assert (result.after > result.before).all()


def test_a_metric_that_is_never_finite_is_an_error():
    with pytest.raises(InputError, match="before training as well as after"):
        quick(metric=lambda model: float("nan"))


def test_progress_counts_every_step():
    calls = []
    quick(progress=lambda done, total, what: calls.append((done, total, what)))
    assert [done for done, _, _ in calls] == list(range(1, 13))
    assert {total for _, total, _ in calls} == {12}
    assert calls[-1][2] == "seed 1, treated"


@pytest.mark.parametrize(("after_runs", "pairs"), [(4, 2), (5, 2), (6, 3)])
def test_an_interruption_keeps_the_pairs_that_were_finished(after_runs, pairs):
    def interrupt(done: int, total: int, what: str) -> None:
        if done > 3 * after_runs:
            raise KeyboardInterrupt

    result = quick(seeds=range(5), progress=interrupt)
    assert len(result.before) == len(result.curves["treated"]) == len(result.seeds) == pairs
    assert f"interrupted: {pairs} of 5 pairs were finished" in result.notes


def test_an_early_interruption_goes_on_to_the_caller():
    def interrupt(done: int, total: int, what: str) -> None:
        if done > 9:
            raise KeyboardInterrupt

    randomness = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        quick(seeds=range(5), progress=interrupt)
    assert torch.equal(randomness, torch.get_rng_state())


def test_parameters_that_nothing_redraws_are_named():
    model = Last(4)
    model.offset = nn.Parameter(torch.ones(1))
    assert any("offset" in note for note in quick(model=model).notes)


def test_own_optimizer():
    result = quick(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0), clip=None)
    assert np.array_equal(result.before, quick(lr=0.0).before)


OUTSIDE = Last(4)
BAD = {
    "one seed": ({"seeds": [1]}, "1 seeds; expected two at least"),
    "no steps": ({"steps": 0}, "steps=0"),
    "no batches": ({"batches": []}, "no batch"),
    "no batches at all": ({"batches": 3}, "batches of type int"),
    "no scalar": ({"loss": lambda model, batch: model(batch[0])}, r"a loss of shape \(4,\)"),
    "no tensor": ({"loss": lambda model, batch: 1.0}, "a loss that is a float"),
    "another model": ({"loss": lambda model, batch: loss(OUTSIDE, batch)}, "does not depend on the parameters"),
    "detached": ({"loss": lambda model, batch: loss(model, batch).detach()}, "does not depend on the parameters"),
    "frozen": ({"model": Last(4).requires_grad_(False)}, "without trainable parameters"),
    "nothing to redraw": (
        {"model": nn.ParameterList([nn.Parameter(torch.ones(1))])},
        r"no module has reset_parameters",
    ),
    "factory of no model": ({"model": lambda: 3}, "factory that returned a int"),
    "no such layer": ({"remedy": registered()["chrono"], "layer": "nope", "needed_lag": 9}, "layer name 'nope'"),
    "no evidence": ({"remedy": registered()["chrono"]}, "no needed_lag"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD.keys())
def test_errors(changes, message):
    with pytest.raises(InputError, match=message):
        quick(**changes)


def test_a_loss_of_another_model_leaves_no_gradients_in_it():
    with pytest.raises(InputError):
        quick(loss=lambda model, batch: loss(OUTSIDE, batch))
    assert all(parameter.grad is None for parameter in OUTSIDE.parameters())


# Published two-sided 95 % points (Fisher & Yates), and the closed form at ν = 1 and 2.
KNOWN = {1: 12.7062, 2: 4.30265, 3: 3.18245, 4: 2.77645, 5: 2.57058, 9: 2.26216, 10: 2.22814, 30: 2.04227, 120: 1.97993}


@pytest.mark.parametrize(("dof", "value"), KNOWN.items())
def test_t_quantile(dof, value):
    assert t_quantile(0.975, dof) == pytest.approx(value, rel=2e-6)


def test_t_quantile_closed_forms_and_limits():
    for p in (0.5, 0.6, 0.9, 0.995):
        assert t_quantile(p, 1) == pytest.approx(np.tan(np.pi * (p - 0.5)), abs=1e-9)
        assert t_quantile(p, 2) == pytest.approx((2 * p - 1) / np.sqrt(2 * p * (1 - p)), abs=1e-9)
    assert t_quantile(0.975, 100_000) == pytest.approx(1.959988, abs=1e-5)
    with pytest.raises(ValueError, match="dof"):
        t_quantile(0.975, 0)


def test_the_interval_covers_as_often_as_it_says():
    """2,000 experiments of five pairs without a true difference: 5 % ± 1.5 % of the intervals exclude zero."""
    draws = np.random.default_rng(0).normal(size=(2000, 2, 5))
    options = {"remedy": "", "metric": "", "higher_is_better": True, "steps": 1, "seeds": tuple(range(5)), "curves": {}}
    verdicts = [judge(before, after, **options).verdict for before, after in draws]
    assert 0.035 < 1 - verdicts.count("no help") / 2000 < 0.065
