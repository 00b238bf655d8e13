"""ONNX's own conformance cases of GRU, LSTM and RNN, with their answers (Debian's libonnx-testdata; `make test-real`)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import throughtime as tt

pytestmark = pytest.mark.network
KINDS = ("test_gru_", "test_lstm_", "test_rnn_", "test_simple_rnn_")


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> list[Path]:
    if shutil.which("apt-get") is None:
        pytest.skip("no apt-get: the cases come in a Debian package")
    folder = tmp_path_factory.mktemp("cases")
    subprocess.run(["apt-get", "download", "-qq", "libonnx-testdata"], cwd=folder, check=True)
    subprocess.run(["dpkg", "-x", next(folder.glob("*.deb")), folder], check=True)
    nodes = folder / "usr/share/libonnx-testdata/data/node"
    return sorted(case for case in nodes.iterdir() if case.name.startswith(KINDS))


def test_every_case_gives_its_answer(cases, tmp_path):
    """The weights are inputs in the cases; in a file they stand as initializers."""
    import onnx
    from onnx import numpy_helper

    assert len(cases) == 12
    for case in cases:
        model, data = onnx.load(case / "model.onnx"), case / "test_data_set_0"
        graph = model.graph
        x, *weights = (
            numpy_helper.to_array(onnx.load_tensor(str(data / f"input_{place}.pb")))
            for place in range(len(graph.input))
        )
        named = zip(list(graph.input)[1:], weights, strict=True)
        graph.initializer.extend(numpy_helper.from_array(value, info.name) for info, value in named)
        del graph.input[1:]
        (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
        batchwise = case.name.endswith("batchwise")
        given = torch.from_numpy(x.copy()).transpose(0, 1) if batchwise else torch.from_numpy(x.copy())
        output, last = tt.load(tmp_path / "model.onnx")(given)
        made = {"Y": output, "Y_h": last[0] if isinstance(last, tuple) else last}
        for place, told in enumerate(graph.output):
            expected = numpy_helper.to_array(onnx.load_tensor(str(data / f"output_{place}.pb"))).squeeze()
            ours = made[told.name].detach().numpy()
            ours = ours.swapaxes(0, 1) if batchwise else ours
            np.testing.assert_allclose(ours.squeeze(), expected, atol=1e-6, err_msg=case.name)
