"""The README's tables of what is supported are those that the command makes, and say what they tried."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from throughtime.cells import REGISTRY
from throughtime.importers import importer

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("support_table", ROOT / "scripts/support_table.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_the_tables_are_up_to_date(script):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert script.BLOCK.search(readme) is not None
    assert script.with_tables(readme) == readme, "run `make support`"


def test_every_cell_and_format_has_its_place(script):
    cells, formats = "\n".join(script.cell_table()), "\n".join(script.format_table())
    assert all(f"`{name}`" in cells for name in REGISTRY)
    assert all(each.name in formats for each in importer.registry().values())


def test_what_cannot_be_explained_is_told_no(script):
    class Detached(nn.GRU):
        def forward(self, *args):
            return super().forward(*args)[0].detach().requires_grad_(), None

    assert script.tried(Detached(script.INPUTS, script.UNITS), script.plain) == "no"
    assert script.tried(nn.GRU(script.INPUTS, script.UNITS), script.plain) == "yes"


def test_a_layer_that_does_not_add_up_is_told_no(script, monkeypatch):
    monkeypatch.setattr(script, "CLOSED", 0.0)
    torch.manual_seed(0)
    assert script.tried(nn.GRU(script.INPUTS, script.UNITS), script.plain) == "no"
