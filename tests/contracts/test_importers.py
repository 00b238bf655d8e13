"""What holds for every importer: the layer it makes runs as the file's own runtime ran it, and nothing in a file runs."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import throughtime as tt
from throughtime.cli import main
from throughtime.importers import importer
from throughtime.importers.load import layers

D, H, T, B = 3, 5, 7, 2
TORCH = {
    "gru": nn.GRU,
    "lstm": nn.LSTM,
    "rnn-tanh": nn.RNN,
    "rnn-relu": lambda *a, **o: nn.RNN(*a, nonlinearity="relu", **o),
}


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def write_state_dict(module: nn.Module, path: Path) -> None:
    torch.save(
        {"epoch": 3, "model_state": {f"net.rnn.{name}": value for name, value in state_of(module).items()}}, path
    )


def write_safetensors(module: nn.Module, path: Path) -> None:
    from safetensors.torch import save_file

    save_file({f"net.rnn.{name}": value for name, value in state_of(module).items()}, path)


def write_npz(module: nn.Module, path: Path) -> None:
    with open(path, "wb") as file:
        np.savez(file, **{f"net.rnn.{name}": value.numpy() for name, value in state_of(module).items()})


WRITERS: dict[str, Callable[[nn.Module, Path], None]] = {
    "PyTorch state dict (.pt, .pth, .bin, .ckpt)": write_state_dict,
    "safetensors (.safetensors)": write_safetensors,
    "numpy arrays (.npz)": write_npz,
}
every_format = pytest.mark.parametrize("name", WRITERS)


def test_every_importer_is_tested_here():
    assert set(importer.registry()) == set(WRITERS)


@every_format
@pytest.mark.parametrize("kind", TORCH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_layer_runs_as_torchs_own(name, kind, dtype, tmp_path):
    torch.manual_seed(0)
    module = TORCH[kind](D, H).to(dtype)
    path = tmp_path / "weights.of-no-known-suffix"
    WRITERS[name](module, path)
    asked = kind.startswith("rnn") or name.startswith("numpy")
    layer = tt.load(path, **({"cell": kind} if asked else {}))
    x = torch.randn(T, B, D, dtype=dtype)
    output, last = layer(x)
    expected, states = module(x)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(last, states, rtol=1e-5, atol=1e-6)
    assert output.dtype == dtype
    with tt.record(layer) as rec:
        layer(x)[0][-1].sum().backward()
    assert rec.flow().residual < 1e-4


@every_format
def test_several_layers_are_listed_and_one_is_named(name, tmp_path):
    torch.manual_seed(0)
    stack, path = nn.GRU(D, H, num_layers=2, bidirectional=True), tmp_path / "stack"
    WRITERS[name](stack, path)
    under = "model_state.net.rnn" if write_state_dict is WRITERS[name] else "net.rnn"
    names = [f"{under}_l{level}{way}" for level in (0, 1) for way in ("", "_reverse")]
    assert sorted(each.name for each in layers(path)) == sorted(names)
    with pytest.raises(tt.ThroughtimeError, match=r"4 recurrent layers.*net\.rnn_l0_reverse"):
        tt.load(path)
    with pytest.raises(tt.ThroughtimeError, match=r"'rnn'.*net\.rnn_l1"):
        tt.load(path, layer="rnn", cell="gru")
    x = torch.randn(T, B, D)
    below = [tt.load(path, layer=each, cell="gru") for each in names[:2]]
    halves = torch.cat([layer(x)[0] for layer in below], dim=-1)
    above = [tt.load(path, layer=each, cell="gru") for each in names[2:]]
    whole = torch.cat([layer(halves)[0] for layer in above], dim=-1)
    torch.testing.assert_close(whole, stack(x)[0], rtol=1e-5, atol=1e-6)


def test_a_reverse_layer_takes_and_returns_its_state_as_torch_does(tmp_path):
    torch.manual_seed(0)
    both, path, x = nn.LSTM(D, H, bidirectional=True), tmp_path / "both.pt", torch.randn(T, B, D)
    write_state_dict(both, path)
    state = (torch.randn(2, B, H), torch.randn(2, B, H))
    output, (h, c) = tt.load(path, layer="model_state.net.rnn_reverse")(x, tuple(part[1] for part in state))
    expected, (last_h, last_c) = both(x, state)
    torch.testing.assert_close(output, expected[..., H:], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close((h[0], c[0]), (last_h[1], last_c[1]), rtol=1e-5, atol=1e-6)


def test_single_step_cells_are_read(tmp_path):
    torch.manual_seed(0)
    cell, x = nn.LSTMCell(D, H), torch.randn(T, B, D)
    torch.save({"decoder": {"rnn": cell.state_dict()}}, tmp_path / "cell.pt")
    layer, state = tt.load(tmp_path / "cell.pt"), (torch.zeros(B, H), torch.zeros(B, H))
    for step in x:
        state = cell(step, state)
    torch.testing.assert_close(layer(x)[0][-1], state[0], rtol=1e-5, atol=1e-6)


def test_half_precision_is_read_as_float32(tmp_path):
    torch.manual_seed(0)
    module = nn.GRU(D, H).half()
    write_state_dict(module, tmp_path / "half.pt")
    assert tt.load(tmp_path / "half.pt")(torch.randn(T, B, D))[0].dtype == torch.float32


def test_a_file_before_torch_1_6_is_read(tmp_path):
    module = nn.GRU(D, H)
    torch.save(module.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    x = torch.randn(T, B, D)
    torch.testing.assert_close(tt.load(tmp_path / "old.pth")(x)[0], module(x)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "asked", "words"),
    [
        (lambda: nn.GRU(D, H), {"cell": "lstm"}, "cell=gru, which the file states"),
        (lambda: nn.GRU(D, H), {"gates": "zrn"}, "gates=rzn, which the file states"),
        (lambda: nn.GRU(D, H), {"order": "zrn"}, "options of cell, gates"),
        (lambda: nn.RNN(D, H), {}, "one of rnn-tanh, rnn-relu"),
        (lambda: nn.RNN(D, H), {"cell": "gru"}, "one of rnn-tanh, rnn-relu"),
        (lambda: nn.LSTM(D, H, proj_size=2), {}, "proj_size"),
        (lambda: nn.Linear(D, H), {}, "no array is named as a recurrent layer's"),
    ],
)
def test_what_does_not_fit_is_said(make, asked, words, tmp_path):
    write_state_dict(make(), tmp_path / "file.pt")
    with pytest.raises(tt.ThroughtimeError) as error:
        tt.load(tmp_path / "file.pt", **asked)
    assert words in str(error.value)


# --- untrusted files ---------------------------------------------------------------------------------------------------


class Runs:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Whole(nn.Module):
    """A module that a pickle can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(D, H)

    def forward(self, x):
        return self.rnn(x)[0]


def test_nothing_in_a_pickle_runs(tmp_path):
    ran = tmp_path / "ran"
    torch.save({"model": Runs(ran), "rnn": nn.GRU(D, H).state_dict()}, tmp_path / "evil.pt")
    with pytest.raises(tt.ThroughtimeError, match="--trust"):
        tt.load(tmp_path / "evil.pt")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Runs(ran)))
    with pytest.raises(tt.ThroughtimeError):
        tt.load(tmp_path / "plain.pkl", trust=True)
    np.savez(tmp_path / "evil.npz", weight_ih=np.array([Runs(ran)], dtype=object), weight_hh=np.zeros((3, 1)))
    with pytest.raises(tt.ThroughtimeError):
        tt.load(tmp_path / "evil.npz", cell="gru", trust=True)
    assert not ran.exists()


@pytest.mark.parametrize("kind", ["module", "script"])
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_modules_and_torchscript_only_with_the_users_word(kind, tmp_path):
    torch.manual_seed(0)
    model, path, x = Whole(), tmp_path / "model.pt", torch.randn(T, B, D)
    torch.jit.script(model).save(str(path)) if kind == "script" else torch.save(model, path)
    with pytest.raises(tt.ThroughtimeError, match=r"run code.*--trust"):
        tt.load(path)
    torch.testing.assert_close(tt.load(path, trust=True)(x)[0], model(x), rtol=1e-5, atol=1e-6)


def test_a_tensor_that_claims_more_than_there_is(tmp_path):
    state = nn.GRU(D, H).state_dict()
    state["weight_hh_l0"] = torch.zeros(1).expand(3 * 100_000, 100_000)
    torch.save(state, tmp_path / "wide.pt")
    with pytest.raises(tt.ThroughtimeError, match="at most"):
        tt.load(tmp_path / "wide.pt")


def test_zip_bombs_are_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(importer, "LARGEST", 1_000_000)
    for name, inner in (("bomb.npz", "weight_ih.npy"), ("bomb.pt", "archive/data.pkl")):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(inner, b"\0" * 5_000_000)
        with pytest.raises(tt.ThroughtimeError, match=r"5,000,000.*at most"):
            tt.load(tmp_path / name, cell="gru")


@pytest.mark.parametrize("content", [b"", b"PK", b"\x80\x02", b"{}", b"\x93NUMPY", b"\x89HDF\r\n\x1a\n", b"hello"])
def test_what_is_no_file_of_weights_is_said(content, tmp_path):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(tt.ThroughtimeError, match=r"got .+; expected .+; do this: .+"):
        tt.load(tmp_path / "file")
    with pytest.raises(tt.ThroughtimeError, match="cannot be opened"):
        tt.load(tmp_path)
    with pytest.raises(tt.ThroughtimeError, match="cannot be opened"):
        tt.load(tmp_path / "nowhere")


def whole(name: str) -> bytes:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        WRITERS[name](nn.GRU(1, 2), path)
        return path.read_bytes()


@every_format
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_end_in_the_librarys_own_error(name, data, tmp_path):
    content = bytearray(whole(name))
    for _ in range(data.draw(st.integers(0, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    path = tmp_path / "damaged"
    path.write_bytes(bytes(content[:cut]))
    with contextlib.suppress(tt.ThroughtimeError):  # and no other
        layer = tt.load(path, **({"cell": "gru"} if name.startswith("numpy") else {}))
        layer(torch.zeros(2, 1, layer.input_size, dtype=layer.weight_hh_l0.dtype))


def test_inspect_lists_layers_and_what_the_weights_tell(tmp_path):
    torch.manual_seed(0)
    model = nn.ModuleDict({"lstm": nn.LSTM(D, H), "plain": nn.RNN(D, H), "gru": nn.GRU(D, H)})
    nn.init.orthogonal_(model["gru"].weight_hh_l0)
    for bias in (model["lstm"].bias_ih_l0, model["lstm"].bias_hh_l0):
        nn.init.ones_(bias.data[H : 2 * H])
    torch.save(model.state_dict(), tmp_path / "model.pt")
    told = CliRunner().invoke(main, ["inspect", str(tmp_path / "model.pt")])
    assert told.exit_code == 0, told.output
    lines = told.output.splitlines()
    assert lines[0] == f"lstm: lstm, {D} inputs, {H} units; gates ifgo, layout W@x, reset after, z keeps"
    assert "TT402" in lines[1]
    assert lines[2].startswith("plain: layer 'plain'")
    assert "rnn-tanh, rnn-relu" in lines[2]
    assert lines[3].startswith("gru: gru")
    assert "TT401" in lines[4]
    assert len(lines) == 5
    document = json.loads(CliRunner().invoke(main, ["inspect", str(tmp_path / "model.pt"), "--format", "json"]).output)
    assert [each["name"] for each in document] == ["lstm", "plain", "gru"]
    assert document[0]["findings"][0]["code"] == "TT402"


@pytest.mark.network
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_the_layer_of_silero_vad(tmp_path):
    """silero-vad 6.2.3 (MIT): a TorchScript archive with an LSTMCell 128 → 128; against torch's own cell."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(tmp_path), "silero-vad==6.2.3"]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        (tmp_path / "vad.jit").write_bytes(wheel.read("silero_vad/data/silero_vad.jit"))
    names = [each.name for each in layers(tmp_path / "vad.jit", trust=True)]
    assert "_model.decoder.rnn" in names
    layer = tt.load(tmp_path / "vad.jit", layer="_model.decoder.rnn", trust=True)
    script = torch.jit.load(io.BytesIO((tmp_path / "vad.jit").read_bytes())).state_dict()
    cell = nn.LSTMCell(128, 128)
    cell.load_state_dict({name: script[f"_model.decoder.rnn.{name}"] for name in cell.state_dict()})
    x, state = torch.randn(20, 1, 128), (torch.zeros(1, 128), torch.zeros(1, 128))
    for step in x:
        state = cell(step, state)
    torch.testing.assert_close(layer(x)[0][-1], state[0], rtol=1e-5, atol=1e-5)
