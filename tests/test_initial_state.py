"""Files that hold the state at which a layer begins: the model that learned it, run by torch or onnxruntime, is the truth."""

from __future__ import annotations

import contextlib
import json
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import throughtime as tt
from throughtime.cli import main
from throughtime.importers.naming import INITIAL

D, H, T, B = 3, 5, 7, 2
KINDS = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn-tanh": nn.RNN}
X = torch.randn(T, B, D, generator=torch.Generator().manual_seed(1))


class Model(nn.Module):
    """A recurrent layer with a learned initial state, and something that is none."""

    def __init__(self, kind: str, **options) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Module()
        self.encoder.rnn = KINDS[kind](D, H, **options)
        rows = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
        self.encoder.h0 = nn.Parameter(torch.randn(rows, 1, options.get("proj_size", 0) or H))
        if kind == "lstm":
            self.encoder.c0 = nn.Parameter(torch.randn(rows, 1, H))
        self.h0 = nn.Parameter(torch.randn(rows, 1, H))  # of another layer, nowhere near this one

    def forward(self, x: Tensor) -> tuple:
        names = ["h0", "c0"] if isinstance(self.encoder.rnn, nn.LSTM) else ["h0"]
        state = [getattr(self.encoder, name).expand(-1, x.shape[1], -1).contiguous() for name in names]
        return self.encoder.rnn(x, tuple(state) if len(state) > 1 else state[0])


def write_state_dict(model: nn.Module, path: Path) -> None:
    torch.save(model.state_dict(), path)


def write_safetensors(model: nn.Module, path: Path) -> None:
    from safetensors.torch import save_file

    save_file(model.state_dict(), path)


def write_npz(model: nn.Module, path: Path) -> None:
    with open(path, "wb") as file:
        np.savez(file, **{name: value.numpy() for name, value in model.state_dict().items()})


def write_pt2(model: nn.Module, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open(path, "wb") as file:
            torch.export.save(torch.export.export(model, (X,)), file)


WRITERS: dict[str, Callable[[nn.Module, Path], None]] = {
    "pt": write_state_dict,
    "safetensors": write_safetensors,
    "npz": write_npz,
    "pt2": write_pt2,
}
OPTIONS = [{}, {"num_layers": 2}, {"bidirectional": True}, {"num_layers": 2, "bidirectional": True}]
PROJECTED = {"num_layers": 2, "proj_size": 2}


def same(mine: tuple, theirs: tuple) -> None:
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def asked(kind: str, form: str) -> dict[str, str]:
    return {"cell": kind} if form == "npz" or kind.startswith("rnn") else {}


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize(
    ("kind", "options"), [(kind, each) for kind in KINDS for each in OPTIONS] + [("lstm", PROJECTED)]
)
@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
def test_a_layer_begins_as_the_model_begins(form, kind, options, tmp_path):
    """One name beside the layer, found by itself; given states come first; each part has its own row."""
    model, path = Model(kind, **options), tmp_path / "model"
    WRITERS[form](model, path)
    made = tt.load(path, **asked(kind, form))
    same(made(X), model(X))
    rows = model.encoder.h0.shape[0]
    names = ["h0", "c0"][: 1 + (kind == "lstm")]
    given_states = tuple(torch.randn(rows, B, getattr(model.encoder, name).shape[-1]) for name in names)
    state = given_states if kind == "lstm" else given_states[0]
    same(made(X, state), model.encoder.rnn(X, state))
    made(X)[0].square().sum().backward()
    model(X)[0].square().sum().backward()
    for name, role in zip(names, INITIAL, strict=False):
        torch.testing.assert_close(
            getattr(made, role).grad, getattr(model.encoder, name).grad.squeeze(1), rtol=1e-4, atol=1e-5
        )
    if options == {"num_layers": 2, "bidirectional": True}:
        lower = tt.load(path, layer="encoder.rnn_l0_reverse", **asked(kind, form))
        one = KINDS[kind](D, H, bidirectional=True)
        one.load_state_dict({key: value for key, value in model.encoder.rnn.state_dict().items() if "_l0" in key})
        begin = [getattr(model.encoder, name)[:2].expand(-1, B, -1).contiguous() for name in names]
        same(lower(X)[0], one(X, tuple(begin) if len(begin) > 1 else begin[0])[0][..., H:])


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_sees_it_as_the_initial_state(kind, tmp_path):
    """As it sees the state of the model itself, to the last term."""
    model = Model(kind).double()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    made, flows = tt.load(tmp_path / "model.pt", **asked(kind, "pt")), []
    for each in (model, made):
        with tt.record(each) as record:
            each(X.double())[0][-1].square().sum().backward()
        flows.append(next(iter(record.flow(demand=False).layers.values())))
    theirs, mine = flows
    assert mine.residual < 1e-12
    assert mine.initial_state
    for name, terms in zip(mine.initial_state, theirs.initial_state.values(), strict=True):
        np.testing.assert_allclose(mine.initial_state[name].share, terms.share, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(mine.initial_state[name].log10_norm, terms.log10_norm, rtol=1e-9)
    report = tt.diagnose(made, X.double())
    assert report.flow.residual < 1e-10


def written(states: dict[str, Tensor], path: Path, prefix: str = "rnn.", **options) -> nn.Module:
    torch.manual_seed(0)
    rnn = nn.GRU(D, H, **options)
    torch.save({f"{prefix}{name}": value for name, value in rnn.state_dict().items()} | states, path)
    return rnn


@pytest.mark.parametrize("name", ["rnn.h0", "rnn_h0", "rnn.initial_state", "rnn.hx", "h0", "init_hidden"])
@pytest.mark.parametrize("shape", [(H,), (1, H), (1, 1, H)])
def test_names_that_tell(name, shape, tmp_path):
    state = torch.randn(H)
    rnn = written({name: state.reshape(shape)}, tmp_path / "model.pt")
    same(tt.load(tmp_path / "model.pt")(X), rnn(X, state.expand(1, B, H).contiguous()))
    same(tt.load(tmp_path / "model.pt", initial_h="zero")(X), rnn(X))


@pytest.mark.parametrize(
    ("states", "options"),
    [
        ({"decoder.h0": torch.ones(H)}, {}),  # of another module
        ({"patch0": torch.ones(H), "epoch0": torch.ones(H)}, {}),  # no such name
        ({"rnn.h0": torch.ones(H + 1)}, {}),  # of another width
        ({"rnn.c0": torch.ones(H)}, {}),  # which a GRU does not have
    ],
)
def test_what_is_no_state_of_the_layer_is_left_alone(states, options, tmp_path):
    rnn = written(states, tmp_path / "model.pt", **options)
    same(tt.load(tmp_path / "model.pt")(X), rnn(X))


@pytest.mark.parametrize(
    ("states", "said", "words"),
    [
        ({"rnn.h0": torch.ones(4, H)}, {}, r"rnn\.h0 of shape \(4, 5\).*--initial-h"),
        ({"rnn.h0": torch.ones(H), "h0": torch.ones(H), "rnn.hx": torch.ones(H)}, {}, r"rnn\.h0.* and rnn\.hx"),
        ({"rnn.h0": torch.ones(4, H)}, {"initial_h": "rnn.h0"}, r"\(5,\), or 1 of them"),
        ({}, {"initial_h": "start"}, "the name of an array in the file"),
        ({"rnn.h0": torch.ones(H)}, {"initial_c": "rnn.h0"}, "for an LSTM only"),
    ],
)
def test_what_is_not_sure_is_asked(states, said, words, tmp_path):
    written(states, tmp_path / "model.pt")
    with pytest.raises(tt.ThroughtimeError, match=words):
        tt.load(tmp_path / "model.pt", **said)


def test_one_state_beside_two_layers_is_asked(tmp_path):
    """And said by name it is that of the layer that is loaded, of any name."""
    rnn = nn.GRU(D, H)
    state = {f"{name}.{key}": value for name in ("a", "b") for key, value in rnn.state_dict().items()}
    start = torch.randn(H)
    torch.save(state | {"h0": start, "begin": start}, tmp_path / "model.pt")
    with pytest.raises(tt.ThroughtimeError, match=r"h0 of shape \(5,\) beside layer 'a'.*initial_h=NAME"):
        tt.load(tmp_path / "model.pt", layer="a")
    for name in ("h0", "begin"):
        made = tt.load(tmp_path / "model.pt", layer="b", initial_h=name)
        same(made(X), rnn(X, start.expand(1, B, H).contiguous()))
    said = ["inspect", str(tmp_path / "model.pt")]
    assert "a: h0 of shape (5,) beside layer 'a'" in CliRunner().invoke(main, said).output
    told = CliRunner().invoke(main, [*said, "--initial-h", "begin"]).output
    assert "a: gru, 3 inputs, 5 units; gates rzn, layout W@x, reset after, z keeps, initial_h begin; begins at" in told
    document = json.loads(CliRunner().invoke(main, [*said, "--initial-h", "begin", "--format", "json"]).output)
    assert document[0]["initial_state"] is True
    np.save(tmp_path / "x.npy", X.numpy())
    words = ["diagnose", str(tmp_path / "model.pt"), "--data", str(tmp_path / "x.npy"), "--fail-on", "never"]
    told = CliRunner().invoke(main, [*words, "--layer", "a", "--initial-h", "begin"])
    assert told.exit_code == 0, told.output


def test_an_lstm_says_both_states(tmp_path):
    rnn, h, c = nn.LSTM(D, H), torch.randn(H), torch.randn(H)
    torch.save({**rnn.state_dict(), "h0": h, "cell": c}, tmp_path / "model.pt")
    with pytest.raises(tt.ThroughtimeError, match="an array for initial_h and none for initial_c"):
        tt.load(tmp_path / "model.pt")
    begin = h.expand(1, B, H).contiguous()
    same(tt.load(tmp_path / "model.pt", initial_c="cell")(X), rnn(X, (begin, c.expand(1, B, H).contiguous())))
    same(tt.load(tmp_path / "model.pt", initial_c="zero")(X), rnn(X, (begin, torch.zeros(1, B, H))))
    same(tt.load(tmp_path / "model.pt", initial_h="zero", initial_c="zero")(X), rnn(X))


def test_one_row_said_of_a_stack_is_that_of_each_layer(tmp_path):
    rnn = written({"begin": torch.ones(H)}, tmp_path / "model.pt", num_layers=2)
    made = tt.load(tmp_path / "model.pt", initial_h="begin")
    same(made(X), rnn(X, torch.ones(2, B, H)))


def test_arrays_in_memory_hold_states_too():
    model = Model("gru")
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    same(tt.load(arrays, cell="gru")(X), model(X))
    same(tt.load(model.state_dict())(X), model(X))


def test_a_single_sequence_and_packed_ones():
    from torch.nn.utils.rnn import pack_padded_sequence

    model = Model("lstm", num_layers=2)
    made = tt.load(model.state_dict())
    output, states = made(X[:, 0])
    expected, theirs = model(X)
    same((output, *states), (expected[:, 0], *(each[:, 0] for each in theirs)))
    packed = pack_padded_sequence(X, torch.tensor([T, 3]))
    state = tuple(getattr(model.encoder, name).expand(-1, B, -1).contiguous() for name in ("h0", "c0"))
    torch.testing.assert_close(made(packed)[0].data, model.encoder.rnn(packed, state)[0].data)


@pytest.mark.parametrize("form", WRITERS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_with_a_state_end_in_the_librarys_own_error(form, data, tmp_path):
    content = bytearray(whole(form))
    for _ in range(data.draw(st.integers(0, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged"
    path.write_bytes(bytes(content))
    said = data.draw(st.sampled_from([{}, {"initial_h": "h0"}, {"initial_h": "encoder.h0", "initial_c": "zero"}]))
    with contextlib.suppress(tt.ThroughtimeError):  # and no other
        tt.load(path, **said, **asked("lstm", form))


@cache
def whole(form: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        WRITERS[form](Model("lstm"), Path(folder) / "file")
        return (Path(folder) / "file").read_bytes()
