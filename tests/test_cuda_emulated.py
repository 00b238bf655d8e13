"""The analysis on an emulated CUDA device: the same numbers, nothing on the wrong device, no wait inside the sweep's loop."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import throughtime as tt
from emulated_cuda import CUDA, EmulatedCuda
from test_decomposition import Scene, every_cell, play, same
from throughtime.asked import Asked
from throughtime.collect import reducers
from throughtime.explain import explain
from throughtime.flow import LayerFlow
from throughtime.linearize import Linearization
from throughtime.reducers.ledger import Ledger
from throughtime.sampling import sample
from throughtime.sweep import sweep
from throughtime.trace import Trace
from throughtime.truncation.gradient import Window, truncated


def on_device(trace: Trace, **options) -> tuple[LayerFlow, EmulatedCuda]:
    """Its flow, told on the emulated device, and what was seen there."""
    with EmulatedCuda() as cuda:
        return explain([cuda.put(trace)], **options).layers[trace.name], cuda


def trace_of(scene: Scene) -> Trace:
    return play(scene).record.traces()[0]


@every_cell
@pytest.mark.parametrize("entries", [20, 2**24])
@pytest.mark.parametrize("loss", ["last step", "some steps", "every step", "masked"])
def test_the_flow_is_that_of_the_cpu(key, entries, loss, monkeypatch):
    monkeypatch.setattr("throughtime.sweep.DEVICE_ENTRIES", entries)
    trace = trace_of(Scene(key, loss, steps=7, start="with gradient"))
    got, _ = on_device(trace, demand=False)
    same(got, explain([trace], demand=False).layers[trace.name])


@pytest.mark.parametrize("loss", ["every step", "masked"])
@pytest.mark.parametrize(
    "options", [{"max_lag": 3}, {"tolerance": 1e-3}, {"bias": "horizon"}, {"derivative": "autograd"}]
)
def test_options(options, loss):
    trace = trace_of(Scene("gru", loss, steps=40, gain=0.5))
    (got, _), wanted = on_device(trace, demand=False, **options), explain([trace], demand=False, **options)
    wanted = wanted.layers[trace.name]
    if "tolerance" not in options:  # the device looks at what is left now and then only: it tells a few lags more
        same(got, wanted)
        return
    assert wanted.tail is not None
    told = wanted.tail.first_lag
    assert got.tail is None or told <= got.tail.first_lag < told + 16
    torch.testing.assert_close(torch.tensor(got.share[:told]), torch.tensor(wanted.share[:told]))


def test_demand():
    trace = trace_of(Scene("lstm", "every step", steps=12, batch=8))
    got, _ = on_device(trace)
    same(got, explain([trace]).layers[trace.name])


@pytest.mark.parametrize("key", ["gru", "lstm"])
@pytest.mark.parametrize("loss", ["last step", "every step", "masked"])
def test_the_host_waits_once_in_many_lags(key, loss):
    """Looks at what is left, every 16 lags, and at how far rows have gone, every 24 steps or as soon as they leave the range:
    those of the adjoints and those of what stayed on the carry."""

    def waits(steps: int) -> int:
        trace = trace_of(Scene(key, loss, steps=steps))
        with EmulatedCuda() as cuda:
            lin = Linearization(cuda.put(trace))
            consumers = [*reducers(lin, Asked()).all, Ledger(lin, lin.trace.weight_gradients, "all")]
            cuda.waits.clear()
            sweep(lin, consumers, tolerance=1e-300)
        return sum(cuda.waits.values())

    short, long = waits(48), waits(240)
    assert long - short <= (240 - 48) / 8


@pytest.mark.parametrize("loss", ["every step", "masked"])
def test_truncated_gradients(loss):
    trace = trace_of(Scene("lstm", loss, steps=12))
    for window in (Window.of(4), Window.of((3, 6))):
        wanted = truncated(Linearization(trace), window)
        with EmulatedCuda() as cuda:
            got = truncated(Linearization(cuda.put(trace)), window)
        torch.testing.assert_close(got, wanted)


def test_samples():
    trace = trace_of(Scene("gru", "masked", steps=12))
    wanted = sample(trace, 4, 2)
    with EmulatedCuda() as cuda:
        got = sample(cuda.put(trace), 4, 2)
    for name, value in asdict(wanted).items():
        np.testing.assert_allclose(getattr(got, name), value) if name != "name" else None


@pytest.mark.parametrize(
    "build", [lambda: nn.GRU(3, 4, num_layers=2), lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True)]
)
def test_stacks(build):
    torch.manual_seed(0)
    model = build().double()
    with tt.record(model) as record:
        model(torch.randn(7, 3, 3).double())[0].square().sum().backward()
    series, _ = record.series()
    wanted = explain(record.traces(), series=series, total=True, demand=False)
    with EmulatedCuda() as cuda:
        got = explain(cuda.put(record.traces()), series=cuda.put(series), total=True, demand=False)
    assert got.layers.keys() == wanted.layers.keys()
    for name, layer in wanted.layers.items():
        same(got.layers[name], layer)


# The emulation itself.


@pytest.fixture
def there() -> Tensor:
    with EmulatedCuda():
        return torch.ones(3).to("cuda")


def test_what_is_made_there_stays_there(there):
    with EmulatedCuda():
        made = (there.unsqueeze(0) * 2)[0].double()
        assert made.device == CUDA
        assert torch.zeros(2, device=made.device).is_cuda
        assert torch.zeros_like(made).new_ones(2).device == CUDA
        assert made.cpu().device.type == torch.ones(1).device.type == "cpu"
    assert there.device.type == "cpu"


def test_two_devices_do_not_mix(there):
    with EmulatedCuda():
        with pytest.raises(RuntimeError, match="same device"):
            _ = there + torch.ones(3)
        with pytest.raises(RuntimeError, match="same device"):
            torch.cat((torch.ones(3), there))
        with pytest.raises(RuntimeError, match="indices"):
            torch.ones(3)[there.long()]
        with pytest.raises(RuntimeError, match="on cpu"):
            torch.ones(()).add_(there[0])


@pytest.mark.parametrize(
    "read",
    [
        lambda a: a[0].item(),
        lambda a: float(a[0]),
        lambda a: bool(a.any()),
        lambda a: a.tolist(),
        lambda a: a.cpu(),
        lambda a: a.nonzero(),
        lambda a: a[a > 0],
        lambda a: a[torch.tensor([0, 1])],
        lambda a: torch.where(a > 0),
        lambda a: torch.ones(3).to(a.device),
        lambda a: torch.tensor([1.0], device=a.device),
        lambda a: a.copy_(torch.ones(3)),
    ],
)
def test_what_makes_the_host_wait_is_counted(read, there):
    with EmulatedCuda() as cuda:
        _ = there.sum() + 1
        assert not cuda.waits
        read(there)
        assert sum(cuda.waits.values()) == 1
