"""The options of a decomposition: one list, which every way to a flow takes."""

import inspect
from dataclasses import fields

import pytest
import torch
from torch import nn

import throughtime as tt
from throughtime.asked import Asked, Options
from throughtime.diagnosis.measure import measure
from throughtime.diagnosis.probe import probe
from throughtime.explain import explain


def last(output) -> torch.Tensor:
    return output[0][-1].square().sum()


def test_the_keywords_are_the_options():
    assert {field.name: field.type for field in fields(Asked)} == {
        name: told.__forward_arg__ for name, told in Options.__annotations__.items()
    }


@pytest.mark.parametrize("way", [tt.Record.flow, tt.diagnose, tt.window, explain, measure, probe])
def test_every_way_to_a_flow_takes_them(way):
    options = inspect.signature(way).parameters["options"]
    assert (options.kind, options.annotation) == (inspect.Parameter.VAR_KEYWORD, "Unpack[Options]")
    assert not set(inspect.signature(way).parameters) & set(Options.__annotations__)


def test_an_option_that_is_none_is_refused():
    model, x = nn.GRU(2, 3), torch.randn(5, 2, 2)
    with tt.record(model) as record:
        last(model(x)).backward()
    for call in (record.flow, lambda **given: tt.diagnose(model, x, lambda model, x: last(model(x)), **given)):
        with pytest.raises(TypeError, match="hop"):
            call(hop=False)


def test_a_run_goes_on_whatever_is_made_of_its_sums(tmp_path):
    """strict and total are not of the sums that the file keeps, and memory and compile are not of their numbers; max_lag is."""
    model = nn.GRU(2, 3)
    batches = [torch.randn(5, 2, 2, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]

    def run(data, **options):
        return tt.diagnose(
            model, iter(data), lambda model, x: last(model(x)), resume=tmp_path / "state.pt", stop_when=None, **options
        )

    run(batches[:2])
    assert run(batches, strict=False, total=False).flow.stream.batches == 3
    assert run(batches, memory="200MB", compile=True).flow.stream.batches == 3
    with pytest.raises(tt.ThroughtimeError, match="max_lag"):
        run(batches, max_lag=2)
