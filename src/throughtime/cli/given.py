"""What the options of a command name, loaded."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from throughtime.diagnosis.report import Report
    from throughtime.progress import Tell


@dataclass(frozen=True)
class Given:
    """A model, its factory where it has one, batches and loss, as the analyses take them.

    tell: where progress is told. options: keywords of the analysis, by the names of the command's options.
    """

    model: nn.Module
    factory: Callable[[], nn.Module] | None
    batches: Any
    loss: Any
    tell: Tell
    options: dict[str, Any]


@contextmanager
def given(
    model: str,
    data: str,
    run_graph: bool,
    loss: str | None,
    layers: tuple[str, ...],
    seed: int,
    trust: bool,
    **others: Any,
) -> Iterator[Given]:
    """What the options name. others: the convention of a file of weights, and keywords of the analysis."""
    from throughtime.errors import InputError
    from throughtime.progress import bar

    # What the user's own code prints must not stand in the report.
    with bar() as tell, redirect_stdout(sys.stderr):
        tell(0, 1, "loading")
        from throughtime import sources
        from throughtime.importers.convention import Convention

        words = Convention.__dataclass_fields__
        convention = {name: word for name, word in others.items() if name in words and word is not None}
        options = {name: value for name, value in others.items() if name not in words}
        wanted: str | None = None
        if sources.is_file(model):
            wanted, layers = (_one(layers), ())
        try:
            network, factory = sources.model(model, convention, seed, wanted, trust)
            if run_graph:
                network, batches = sources.in_graph(network, model, wanted, data)
            else:
                batches = sources.data(data)
            fn = None if loss is None else sources.named(loss)
            yield Given(network, factory, batches, fn, tell, options | {"layers": list(layers) or None})
        except SystemExit as error:
            raise InputError(
                f"a module of yours that ended the program, sys.exit({error.code!r})",
                "a module that can be imported",
                'put what it runs under `if __name__ == "__main__":`',
            ) from error


def _one(layers: tuple[str, ...]) -> str | None:
    """The layer of a file that is named, if one is."""
    from throughtime.errors import InputError

    if len(layers) > 1:
        raise InputError(f"--layer {' --layer '.join(layers)}", "one layer of a file", "name one at a time")
    return layers[0] if layers else None


def diagnosed(history: str | None, stop_when: float, all_batches: bool, **others: Any) -> Report:
    """The report of what the options name. others: those of `given`."""
    with given(**others) as it:
        from throughtime import sources
        from throughtime.diagnosis.diagnose import diagnose

        return diagnose(
            it.model,
            it.batches,
            it.loss,
            history=None if history is None else sources.history(history),
            stop_when=None if all_batches else stop_when,
            factory=it.factory,
            progress=it.tell,
            **it.options,
        )
