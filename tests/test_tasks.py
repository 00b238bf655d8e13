"""The bundled data are what they say, and the tasks ask what they say."""

from importlib.resources import files

import numpy as np
import pytest
import torch
from torch import nn

from throughtime.errors import InputError
from throughtime.tasks import opus
from throughtime.tasks.digits import DigitClassifier, accuracy, digits, loss, paired_training


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_digits_are_scikit_learns():
    datasets = pytest.importorskip("sklearn.datasets")
    original = datasets.load_digits()
    with np.load(str(files("throughtime.tasks") / "data" / "digits.npz")) as bundled:
        assert np.array_equal(bundled["images"], original.images)
        assert np.array_equal(bundled["labels"], original.target)
        assert bundled["images"].dtype == np.uint8


def test_a_notice_stands_beside_the_data():
    notice = (files("throughtime.tasks") / "data" / "NOTICE").read_text()
    for name in ("scikit-learn developers", "Alpaydin", "Xiph.Org", "Octasic", "LibriVox", "Carnegie Mellon"):
        assert name in notice


def test_every_digit_is_there_once_row_by_row_with_noise_after_it():
    task = digits()
    assert task.train.inputs.shape == (100, 1437, 8)
    assert task.test.inputs.shape == (100, 360, 8)
    assert list(task.needed_lags) == [100 - 1 - step for step in range(7, -1, -1)]
    with np.load(str(files("throughtime.tasks") / "data" / "digits.npz")) as bundled:
        images, labels = bundled["images"], bundled["labels"]
    inputs = torch.cat([task.train.inputs, task.test.inputs], 1).numpy()
    shown = inputs[:8].transpose(1, 0, 2)
    scale = shown.max() - shown.min()
    back = np.rint((shown - shown.min()) * 16 / scale).astype(np.uint8)
    found = sorted(zip(map(bytes, back), torch.cat([task.train.labels, task.test.labels]).tolist(), strict=True))
    assert found == sorted(zip(map(bytes, images), labels.tolist(), strict=True))


def test_mean_and_variance_do_not_tell_noise_from_digits():
    inputs = digits().train.inputs
    for part in (inputs[:8], inputs[8:]):
        assert part.mean().item() == pytest.approx(0, abs=5e-3)
        assert part.std().item() == pytest.approx(1, abs=5e-3)


def test_generators_rule_split_and_noise():
    assert torch.equal(digits().test.inputs, digits().test.inputs)
    assert torch.equal(digits(3, generator(5)).test.inputs, digits(3, generator(5)).test.inputs)
    assert not torch.equal(digits(3, generator(5)).test.inputs, digits(3, generator(6)).test.inputs)
    assert digits(0).train.inputs.shape == (8, 1437, 8)
    with pytest.raises(InputError, match="noise_steps=-1"):
        digits(-1)


def test_batches_take_each_digit_once_an_epoch():
    task = digits(2)
    batches = task.batches(30, 64)
    assert len(batches) == 30
    assert all(x.shape == (10, 64, 8) and y.shape == (64,) for x, y in batches)
    noise = torch.cat([x[-1] for x, _ in batches[:22]])
    assert len({row.numpy().tobytes() for row in noise}) == 22 * 64
    with pytest.raises(InputError, match="batch size of 1438"):
        task.batches(1, 1438)


def test_the_classifier_reads_its_last_output():
    model = DigitClassifier()
    x, y = digits(4).batches(1)[0]
    assert torch.equal(model(x), model.head(model.rnn(x)[0][-1]))
    assert loss(model, (x, y)).item() == pytest.approx(np.log(10), abs=0.2)
    assert 0 <= accuracy(model, digits(4).test) < 0.35


def test_the_paired_training_trains_pairs():
    threads = torch.get_num_threads()
    result = paired_training(digits(2), seeds=(0, 1), steps=3)
    assert (result.remedy, result.metric, result.higher_is_better) == ("chrono", "test accuracy", True)
    assert result.curves["treated"].shape == (2, 3)
    assert torch.get_num_threads() == threads


@pytest.mark.slow
def test_chrono_cures_the_digits():
    """200 steps, two seeds: chance without, more than .4 with (measured over four seeds: .09–.10 and .62–.69)."""
    result = paired_training(digits(), seeds=(0, 1), steps=200)
    assert result.before.max() < 0.15
    assert result.after.min() > 0.4


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_opus_states_are_those_of_the_c_code():
    """The documented equations in float64, one step after the other."""
    net = opus.load()
    u = {gate: net.recurrent_kernel[:, 24 * i : 24 * (i + 1)].astype(float) for i, gate in enumerate(opus.GATES)}
    x = net.inputs.astype(float) @ net.kernel.astype(float) + net.bias
    h, states = np.zeros(opus.UNITS), []
    for xz, xr, xh in (np.split(step, 3) for step in x):
        z, r = sigmoid(xz + h @ u["z"]), sigmoid(xr + h @ u["r"])
        h = z * h + (1 - z) * np.tanh(xh + (r * h) @ u["h"])
        states.append(h)
    assert np.abs(np.array(states) - net.reference_states).max() < 1e-5


def test_opus_convention_is_the_only_one_that_fits():
    """torch's reset after the product, with these weights, is far off: the importer must not use nn.GRU."""
    net = opus.load()
    gru = nn.GRU(32, 24)
    order = [1, 0, 2]  # torch stacks r, z, n
    with torch.no_grad():
        for weight, kernel in ((gru.weight_ih_l0, net.kernel), (gru.weight_hh_l0, net.recurrent_kernel)):
            weight.copy_(torch.from_numpy(np.concatenate([np.split(kernel, 3, 1)[i] for i in order], 1).T))
        gru.bias_ih_l0.copy_(torch.from_numpy(np.concatenate([np.split(net.bias, 3)[i] for i in order])))
        gru.bias_hh_l0.zero_()
        states = gru(torch.from_numpy(net.inputs))[0].numpy()
    assert np.abs(states - net.reference_states).max() > 0.1


def test_opus_hears_speech_as_activity():
    net = opus.load()
    log_odds = net.vad_log_odds(net.reference_states)
    assert log_odds.shape == (1236,)
    assert (log_odds > 0).mean() > 0.5
    both = sigmoid(net.reference_states @ net.head_kernel + net.head_bias)
    assert np.allclose(sigmoid(log_odds), both[:, opus.ACTIVITY])
    assert both[:, opus.ACTIVITY].mean() > both[:, opus.MUSIC].mean()
    states = torch.from_numpy(net.reference_states).double().requires_grad_()
    net.vad_log_odds(states).sum().backward()
    assert np.allclose(net.vad_log_odds(states).detach(), log_odds)
    assert np.allclose(states.grad, net.head_kernel[:, 1])
    with pytest.raises(InputError, match=r"states of shape \(3,\)"):
        net.vad_log_odds(np.zeros(3))
