"""What holds for every registered remedy; the tests walk the registry."""

import copy
import inspect
import itertools
import pkgutil
import re

import pytest
import torch
from torch import nn

import throughtime.remedies as package
from throughtime.errors import InputError
from throughtime.remedies import Remedy, registered, treating

# Evidence by name, as a report would pass it.
EVIDENCE = {"needed_lag": 40}
LAYERS = {"gru": nn.GRU, "lstm": nn.LSTM, "elman": nn.RNN}


class Model(nn.Module):
    def __init__(self, layer: type[nn.RNNBase]) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"rnn": layer(3, 4)})
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder["rnn"](x)[0][-1])


@pytest.fixture(params=registered().values(), ids=registered().keys())
def remedy(request) -> Remedy:
    return request.param


def treatable(remedy: Remedy) -> list[type[nn.RNNBase]]:
    return [layer for layer in LAYERS.values() if remedy.precondition(layer(3, 4)) is None]


def evidence(remedy: Remedy) -> dict[str, int]:
    return {name: EVIDENCE[name] for name in remedy.evidence}


def test_the_input_model_is_untouched_and_a_new_one_returned(remedy):
    for layer in treatable(remedy):
        model = Model(layer)
        model(torch.randn(5, 2, 3)).sum().backward()
        model.eval()
        state, grads = copy.deepcopy(model.state_dict()), [p.grad.clone() for p in model.parameters()]
        treated = remedy.apply(model, "encoder.rnn", **evidence(remedy))
        assert treated is not model
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
        assert not any(module.training for module in model.modules())
        assert not {id(p) for p in model.parameters()} & {id(p) for p in treated.parameters()}
        assert treated(torch.randn(5, 2, 3)).shape == (2, 2)
        assert any(
            name not in state or not torch.equal(value, state[name]) for name, value in treated.state_dict().items()
        ), "the remedy changed nothing"


def test_a_safe_remedy_keeps_every_parameter_in_its_place(remedy):
    for layer in treatable(remedy) if remedy.safe else []:
        model = Model(layer)
        treated = remedy.apply(model, "encoder.rnn", **evidence(remedy))
        assert [(n, p.shape) for n, p in treated.named_parameters()] == [
            (n, p.shape) for n, p in model.named_parameters()
        ]
        assert type(treated.encoder["rnn"]) is layer


def test_a_model_that_is_the_layer_itself_is_called_rnn(remedy):
    for layer in treatable(remedy):
        model = layer(3, 4)
        for name in ("rnn", ""):
            assert type(remedy.apply(model, name, **evidence(remedy))) is layer


def test_some_layer_can_be_treated_and_others_are_refused_with_a_reason(remedy):
    assert treatable(remedy)
    objection = remedy.precondition(nn.Linear(2, 2))
    assert objection
    with pytest.raises(InputError, match=re.escape(objection)):
        remedy.apply(Model(nn.GRU), "head", **evidence(remedy))


def test_errors_say_what_is_missing(remedy):
    with pytest.raises(InputError, match=r"layer name 'nowhere'; expected one of .*encoder\.rnn"):
        remedy.apply(Model(treatable(remedy)[0]), "nowhere", **evidence(remedy))
    for name in remedy.evidence:
        with pytest.raises(InputError, match=f"no {name}"):
            remedy.apply(Model(treatable(remedy)[0]), "encoder.rnn", **(evidence(remedy) | {name: None}))


def test_it_is_fully_described(remedy):
    assert re.fullmatch(r"[a-z][a-z0-9-]*", remedy.name)
    assert remedy.treats
    assert all(re.fullmatch(r"TT[1-4]\d\d", code) for code in remedy.treats)
    assert isinstance(remedy.safe, bool)
    assert remedy.formula
    assert remedy.references
    assert len(inspect.getdoc(type(remedy)) or "") > 100
    for code in remedy.treats:
        assert remedy in treating(code)


def test_the_lines_to_paste_run(remedy):
    import throughtime as tt

    for layer, name in itertools.product(treatable(remedy), ["encoder.rnn", "layers.0", ""]):
        model = Model(layer)
        model.layers = nn.ModuleList([layer(3, 4)])
        if not name:
            model = layer(3, 4)
        before = copy.deepcopy(model.state_dict())
        exec(remedy.lines(name, **evidence(remedy)), {"model": model, "tt": tt, "torch": torch, "nn": nn})
        assert any(name not in before or not torch.equal(v, before[name]) for name, v in model.state_dict().items())


def test_every_file_of_the_package_registers_one():
    files = {module.name for module in pkgutil.iter_modules(package.__path__)} - {"remedy"}
    assert files == {type(remedy).__module__.rpartition(".")[2] for remedy in registered().values()}


def test_chrono_makes_the_needed_lag_its_longest_timescale():
    lines = registered()["chrono"].lines("encoder.rnn", needed_lag=99)
    assert lines.endswith("tt.init.chrono_(model.encoder.rnn, max_lag=100)")
    treated = registered()["chrono"].apply(nn.GRU(2, 500), "rnn", needed_lag=99)
    longest = treated.bias_ih_l0[500:1000].exp().max().item()
    assert 95 < longest <= 99
