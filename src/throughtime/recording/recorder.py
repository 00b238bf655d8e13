"""Record one backward pass of the user's own training step, and tell what it was: traces, and the flow made of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Unpack

from torch import nn

from throughtime.asked import Options
from throughtime.cells.between import Between
from throughtime.errors import RecordError, UnsupportedError
from throughtime.flow import Flow, Missing
from throughtime.recording.calls import Call
from throughtime.recording.chains import runs_of
from throughtime.recording.in_series import SERIES, whole_of
from throughtime.recording.listening import Listener
from throughtime.recording.run import Run
from throughtime.recording.traces import traces_of
from throughtime.trace import Trace, joined
from throughtime.whole.series import Series, series_of

if TYPE_CHECKING:
    from throughtime.sampling import Sampled


def record(model: nn.Module, layers: list[str] | None = None) -> Record:
    """A context in which one training step of `model` is recorded; then `Record.flow()` explains it.

    model: any module that holds nn.GRU, nn.LSTM or nn.RNN, of any number of layers, in one direction or both, packed or
    not, or their cells in a loop of its own. layers: names of those to record; all by default. The forward and the backward
    pass must both happen inside the block; the model, its gradients, modes, hooks and the random state are as they would
    have been without it.

    Raises UnsupportedError for layers that cannot be explained exactly yet, and InputError where there is none.
    """
    return Record(model, layers)


class Record(Listener):
    """See `record`."""

    @property
    def unreached(self) -> list[str]:
        """The layers of which nothing can be told: not called with gradients, or no backward pass came back to them."""
        reached = {call.layer for call in self.calls if call.passes}
        return [name for name in self.layers if name not in reached]

    def traces(self) -> list[Trace]:
        """What was recorded, one trace a layer that the backward pass reached. Raises RecordError, see `flow`."""
        if self._mode is not None:
            raise RecordError(
                "flow() asked for inside the block", "the block to be closed", "call flow() after the with block"
            )
        if self._refused:
            raise self._refused[0]
        if not self.calls:
            raise RecordError(
                f"no call with gradients of the recurrent layers {sorted(self.layers)}",
                "a forward pass through them, with gradients enabled, inside the block",
                "call the model in the block, outside torch.no_grad and TorchScript, in this thread, not in a reentrant "
                "checkpoint (use_reentrant=False is fine), and with the layer's own weights in torch's own forward",
            )
        reached = [call for call in self.calls if call.passes]
        if not reached:
            raise RecordError(
                f"no backward pass that reached the layers {sorted({call.layer for call in self.calls})}",
                "a loss that depends on their output, and its backward() inside the block",
                "call loss.backward() inside `with tt.record(model)`; check for a detach between layer and loss",
            )
        traces = [trace for name in self.layers for trace in self._traces_of(name, reached)]
        if len({call.layer for call in reached}) > 1:
            traces = [replace(trace, lag="within-layer") for trace in traces]
        return [replace(trace, bare=self._bare) for trace in traces]

    def _traces_of(self, layer: str, reached: list[Call]) -> list[Trace]:
        calls = [call for call in reached if call.layer == layer]
        if len({id(call.shared) for call in calls}) > 1:
            raise UnsupportedError(
                f"calls of layer '{layer}' with different weights in one record",
                "the same weights in all of them",
                "record one optimizer step at a time",
            )
        runs = runs_of(calls)
        made = [traces_of(run) for run in runs]
        passed = [any(isinstance(trace.cell, Between) for trace in each) for each in made]
        held = [run.held for run in runs]
        if len(set(held)) > 1 or len(set(passed)) > 1:  # to be joined they need one cell
            made = [traces_of(replace(run, passed=any(passed), held=any(held))) for run in runs]
        by_name: dict[str, list[Trace]] = {}
        for trace in chain.from_iterable(made):
            by_name.setdefault(trace.name, []).append(trace)
        # What autograd gave the weights is the calls' sum already, in each of them.
        whole = [replace(joined(each), weight_gradients=each[0].weight_gradients) for each in by_name.values()]
        ways = self._ways.get(layer)
        return [replace(trace, external=None) for trace in whole] if ways is not None and ways.lost else whole

    def series(self) -> tuple[list[Series], tuple[Missing, ...]]:
        """What is told by signed offset, see `throughtime.whole.series`, and why not, where that would be asked for.

        Raises as `traces` does.
        """
        calls = [call for call in self.calls if call.passes]
        runs = [run for name in self.layers for run in self._runs_of(name)]
        found = [each for run in runs if (each := series_of(run)) is not None]
        if len({call.layer for call in calls}) < 2:
            return found, ()
        found = [replace(each, lag="within-layer") for each in found]
        whole = whole_of(self._passages, calls, SERIES if SERIES not in self.layers else "all layers")
        if isinstance(whole, str):
            return found, (Missing(f"layers.{SERIES}", whole),)
        return [whole, *found] if whole is not None else found, ()

    def _runs_of(self, layer: str) -> list[Run]:
        return runs_of([call for call in self.calls if call.layer == layer and call.passes])

    def flow(self, **options: Unpack[Options]) -> Flow:
        """The exact decomposition of the recorded backward pass; options: see `throughtime.Options`.

        Raises RecordError where no exact decomposition exists (nothing reached the layer, the input was changed in place,
        a second-order pass), ResidualError where the terms do not add up, InputError for NaN and infinities.
        """
        from throughtime.explain import explain

        traces = self.traces()
        series, apart = self.series() if options.get("total") is not False else ([], ())
        flow = explain(traces, series=series, **options)
        again = {
            call.layer for call in self.calls if not call.passes and (call.follows is None or not call.follows.passes)
        } - set(self.unreached)
        other = "another call of it in this step got no gradient: its state was detached, or not used"
        silent = tuple(
            Missing(f"layers.{name}", "no gradient reached it in the recorded step") for name in self.unreached
        )
        around = "an operation between its states and its later inputs could not run again on its part of the gradient"
        lost = tuple(Missing(f"layers.{name}.external", around) for name, ways in self._ways.items() if ways.lost)
        anew = (
            "a state went into a second call, or by a way that is not followed (masks, sums, mixtures and torch.where are): "
            "what came back by it entered as a gradient of its own, and its lags begin anew there"
        )
        lost += tuple(Missing(f"layers.{name}.lag", anew) for name, ways in self._ways.items() if ways.cut)
        told_again = tuple(Missing(f"layers.{name}", other) for name in sorted(again))
        return replace(flow, missing=(*flow.missing, *silent, *told_again, *lost, *apart))

    def sample(self, origins: int, groups: int = 8, **options: Any) -> dict[str, Sampled]:
        """By layer: shares, norms and bias from some of the steps with a loss, with standard errors.

        For a loss at many steps, of which all would take too long. See `throughtime.sampling.sample`.
        """
        from throughtime.sampling import sample

        return {trace.name: sample(trace, origins, groups, **options) for trace in self.traces() if trace.origins()}
