"""Make the README's tables of what is supported: `make support`. Layers are tried, cells and formats are the registries'."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import throughtime as tt
from throughtime.cells import REGISTRY, Cell, Weights
from throughtime.importers import importer
from throughtime.recurrent import Recurrent

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"(<!-- support:.*?-->\n).*?(<!-- end -->)", re.S)
STEPS, SEQUENCES, INPUTS, UNITS = 5, 3, 2, 4
CLOSED = 1e-4  # residual in float32, the contract of every report
OPTIONS = {
    "num_layers": {"num_layers": 2},
    "dropout": {"num_layers": 2, "dropout": 0.5},
    "bidirectional": {"bidirectional": True},
    "bidirectional, num_layers": {"num_layers": 2, "bidirectional": True},
    "packed": {},
    "proj_size": {"proj_size": 3},
}
LAYERS = (nn.GRU, nn.LSTM, nn.RNN)
LOOPS = (nn.GRUCell, nn.LSTMCell, nn.RNNCell)


def tried(model: nn.Module, run: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> str:
    """Whether a recorded step's terms add up to autograd's gradient, by the total lag: "yes" or "no"."""
    try:
        with tt.record(model) as rec:
            run(model, torch.randn(STEPS, SEQUENCES, INPUTS)).square().sum().backward(retain_graph=True)
        flow = rec.flow(demand=False)
        if not any(layer.lag == "total" for layer in flow.layers.values()):
            return "no"
        return "yes" if flow.residual <= CLOSED else "no"
    except tt.ThroughtimeError:
        return "no"


def packed(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Sequences of several lengths."""
    return pad_packed_sequence(model(pack_padded_sequence(x, torch.tensor([STEPS, 3, 2])))[0])[0]


def plain(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """One call."""
    return model(x)[0]


def loop(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A single-step cell in a loop."""
    state, outputs = None, []
    for step in x:
        state = model(step, state)
        outputs.append(state[0] if isinstance(state, tuple) else state)
    return torch.stack(outputs)


class InSeries(nn.Module):
    """Two recurrent modules, and what reads the one and feeds the other."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.between, self.high = nn.GRU(INPUTS, UNITS), nn.Linear(UNITS, INPUTS), nn.LSTM(INPUTS, UNITS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.high(self.between(self.low(x)[0]))[0]


def layer_table() -> list[str]:
    """What `throughtime.record` explains exactly, each tried here."""
    rows = ["| `tt.record` of | one layer | " + " | ".join(OPTIONS) + " |", "|---" * (len(OPTIONS) + 2) + "|"]
    for kind in LAYERS:
        cells = [tried(kind(INPUTS, UNITS), plain)]
        for name, options in OPTIONS.items():
            if name == "proj_size" and kind is not nn.LSTM:
                cells.append("–")  # torch has it for the LSTM alone
                continue
            cells.append(tried(kind(INPUTS, UNITS, **options), packed if name == "packed" else plain))
        rows.append(f"| `nn.{kind.__name__}` | {' | '.join(cells)} |")
    empty = " | –" * len(OPTIONS) + " |"
    for kind in LOOPS:
        rows.append(f"| `nn.{kind.__name__}` in a loop | {tried(kind(INPUTS, UNITS), loop)}{empty}")
    rows.append(f"| modules in series, the graph kept | {tried(InSeries(), lambda model, x: model(x))}{empty}")
    every = {tried(Recurrent(cell, weights_of(cell)), plain) for cell in REGISTRY.values()}
    rows.append(f"| `Recurrent` of any cell below | {' / '.join(sorted(every))}{empty}")
    return rows


def weights_of(cell: Cell) -> Weights:
    """Random weights of the cell's own names and shapes."""
    return Weights(**{name: torch.randn(shape) / 2 for name, shape in cell.shapes(INPUTS, UNITS).items()})


def cell_table() -> list[str]:
    """The registered cells, those of one file in one row."""
    files: dict[str, list[str]] = {}
    for name, cell in REGISTRY.items():
        told = ", ".join(f"{word} {value}" for word, value in cell.convention.items())
        files.setdefault(type(cell).__module__, []).append(f"`{name}`" + (f" ({told})" if told else ""))
    rows = ["| cell | equations, and who has them so |", "|---|---|"]
    return rows + [f"| {', '.join(names)} | {first_sentence(module)} |" for module, names in files.items()]


def first_sentence(module: str) -> str:
    """A module's first line, as the cell of a table."""
    return (sys.modules[module].__doc__ or "").strip().splitlines()[0].replace("|", "&#124;")


def format_table() -> list[str]:
    """The importers."""
    rows = ["| file | extra | only with `--trust` | refused by name |", "|---|---|---|---|"]
    for each in importer.registry().values():
        extra = f"`{each.extra}`" if each.extra else ""
        rows.append(f"| {each.name} | {extra} | {each.trusted} | {each.refuses} |")
    return rows


def with_tables(readme: str) -> str:
    """The README with its tables made anew."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about oneDNN
        torch.manual_seed(0)
        tables = "\n\n".join("\n".join(table()) for table in (layer_table, cell_table, format_table))
    return BLOCK.sub(lambda found: f"{found[1]}\n{tables}\n\n{found[2]}", readme)


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text(encoding="utf-8")), encoding="utf-8")
