"""Files of data that the command line is given."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
import torch

from throughtime import sources
from throughtime.errors import InputError

X, Y = torch.randn(3, 5, 2), torch.randn(3, 1)


class Code:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize("saved", [{"x": X, "y": Y}, {"inputs": X, "targets": Y}, (X, Y), [X, Y]])
def test_tensors_that_torch_saved_are_data(saved, tmp_path):
    torch.save(saved, tmp_path / "data.pt")
    x, y = sources.data(str(tmp_path / "data.pt"))
    assert torch.equal(x, X)
    assert torch.equal(y, Y)


def test_a_tensor_alone_is_the_input(tmp_path):
    torch.save(X, tmp_path / "data.pt")
    assert torch.equal(sources.data(str(tmp_path / "data.pt")), X)


@pytest.mark.parametrize("saved", [{"x": X, "note": "text"}, (X, Y, X), 3])
def test_other_things_that_torch_saved_are_refused(saved, tmp_path):
    torch.save(saved, tmp_path / "data.pt")
    with pytest.raises(InputError, match="of more than tensors"):
        sources.data(str(tmp_path / "data.pt"))


def test_data_that_run_code_are_refused(tmp_path, capsys):
    torch.save({"x": Code()}, tmp_path / "data.pt")
    with pytest.raises(InputError, match="can run code"):
        sources.data(str(tmp_path / "data.pt"))
    assert "run" not in capsys.readouterr().out


def test_an_archive_of_other_things_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("notes.txt", "text")
    with pytest.raises(InputError, match=r"notes\.txt"):
        sources.data(str(tmp_path / "data.npz"))
    np.savez(tmp_path / "good.npz", x=X.numpy())
    assert torch.equal(sources.data(str(tmp_path / "good.npz")), X)
