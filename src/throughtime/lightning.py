"""The gradient horizon of a Lightning training, measured while it runs. Extra: [lightning].

    from lightning.pytorch import Trainer
    from throughtime.lightning import GradientHorizon

    trainer = Trainer(callbacks=[GradientHorizon(every=200, needed_lag=50)])
    trainer.fit(model, loader)             # logs throughtime/<layer>/gradient_horizon and …/arriving_at_50

Lightning makes the backward pass itself, and its hooks see gradients that are summed, scaled or clipped. So a record is open
around every so many training batches and measures by its own hooks in autograd's graph; the callback only opens and logs.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from torch import nn

from throughtime.asked import Options
from throughtime.diagnosis.diagnose import judge
from throughtime.diagnosis.report import Report
from throughtime.diagnosis.supply import arrival
from throughtime.errors import InputError, MissingExtraError, ThroughtimeError, UnsupportedError
from throughtime.flow import Flow, LayerFlow
from throughtime.recording.recorder import Record

LEVEL = 0.01
"""Of the gradient horizon that is logged: what lies beyond changes the gradient by 1 %."""
QUICK = Options(bias="horizon", demand=False, hops=False, signal_to_noise=False, origin_step=False, total=False)
"""Only what is logged is measured."""
ENOUGH = 1e-4
"""Tolerance at which lags are no longer told apart, where no lag is asked for: far under what decides a horizon of 1 %."""
METRICS: dict[str, Callable[[LayerFlow], float]] = {
    "gradient_horizon": lambda layer: layer.steps if layer.horizon[LEVEL] is None else layer.horizon[LEVEL] or 0,
    "residual": lambda layer: layer.residual,
    "cancellation": lambda layer: layer.cancellation,
}
"""gradient_horizon is the length of the sequence where the lags that were told apart do not hold it."""


def _callback() -> Any:
    """Callback of the Lightning in use: both packages of it call any object that has the hooks."""
    packages = sorted(("lightning.pytorch", "pytorch_lightning"), key=lambda name: name not in sys.modules)
    for name in packages:
        try:
            return import_module(name).Callback
        except ImportError:
            continue
    raise MissingExtraError(
        "no module lightning.pytorch or pytorch_lightning",
        "the extra [lightning]",
        "pip install 'throughtime[lightning]'",
    )


_Callback = _callback()


def first_pass(record: Record) -> Record:
    """The record, of the first backward pass only: a batch may hold several optimisers, or call its closure repeatedly."""
    passes = [number for call in record.calls for number in call.passes]
    record.calls[:] = [call for call in record.calls if passes and min(passes) in call.passes]
    return record


class GradientHorizon(_Callback):
    """Every so many training batches, log how far back the gradient reaches in each recurrent layer.

    every: training batches between two measurements; the first batch is measured. needed_lag: the lag that the task is
    known to need; the fraction of the gradient that arrives there is logged too. log: some of "gradient_horizon",
    "residual", "cancellation". layers: names of recurrent layers; all by default. max_lag: tell no lag beyond this one
    apart. keep: how many flows are kept.

    Logged under throughtime/<layer>/<metric>, at the step that Lightning's own log has. `flows` holds the flows by that
    step, `last` the report of the newest. Weights, gradients and random numbers are what they would be without it. What
    cannot be measured is told by one warning, and the training goes on; with a layer of an unsupported kind it stays off.
    One measurement costs about three training steps where the loss is at the end, and some twenty where it is at every step.
    """

    def __init__(
        self,
        every: int = 200,
        *,
        needed_lag: int | None = None,
        log: Sequence[str] = ("gradient_horizon",),
        layers: Sequence[str] | None = None,
        max_lag: int | None = None,
        keep: int = 100,
    ) -> None:
        super().__init__()
        for name, value, least in (("every", every, 1), ("needed_lag", needed_lag, 0), ("keep", keep, 1)):
            if value is not None and value < least:
                raise InputError(f"{name}={value}", f"{least} or more", f"pass another {name}=…")
        names = [log] if isinstance(log, str) else list(log)
        unknown = [name for name in names if name not in METRICS]
        if unknown:
            raise InputError(f"log={unknown}", f"some of {', '.join(METRICS)}", "name metrics of the layer")
        self.every, self.needed_lag, self.names, self.keep = every, needed_lag, names, keep
        self.layers = None if layers is None else list(layers)
        self.options = QUICK | Options(max_lag=max_lag)
        if needed_lag is None:
            self.options["tolerance"] = ENOUGH
        self.flows: dict[int, Flow] = {}
        self.last: Report | None = None
        self.off = False
        self._seen = 0
        self._record: Record | None = None
        self._told: set[str] = set()

    def on_train_batch_start(self, trainer: Any, pl_module: nn.Module, *_: Any) -> None:
        """Open a record, if this batch is to be measured."""
        self._close()  # of a batch that another callback cut short
        due = self._seen % self.every == 0
        self._seen += 1
        if not due or self.off or not trainer.is_global_zero:
            return
        try:
            self._record = Record(pl_module, self.layers)
            self._record.__enter__()
        except Exception as error:
            self._record = None
            self._give_up(error)

    def on_train_batch_end(self, trainer: Any, pl_module: nn.Module, *_: Any) -> None:
        """Close the record, explain and log it."""
        record = self._record
        if record is None:
            return
        self._close()
        try:
            flow = first_pass(record).flow(**self.options)
            report = judge(flow, self.needed_lag)
        except Exception as error:
            self._give_up(error)
            return
        step = self._step(trainer)
        self.flows[step], self.last = flow, report
        while len(self.flows) > self.keep:
            del self.flows[next(iter(self.flows))]
        metrics = self.metrics(flow)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)

    def on_exception(self, trainer: Any, pl_module: nn.Module, exception: BaseException) -> None:
        """Close the record of the step that raised."""
        self._close(exception)

    def teardown(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        """Leave no hook behind."""
        self._close()

    def metrics(self, flow: Flow) -> dict[str, float]:
        """What is logged of a flow, by the names it is logged under."""
        told: dict[str, float] = {}
        for name, layer in flow.layers.items():
            told |= {f"throughtime/{name}/{metric}": float(METRICS[metric](layer)) for metric in self.names}
            there = None if self.needed_lag is None else arrival(layer, self.needed_lag)
            if there is not None:
                told[f"throughtime/{name}/arriving_at_{there.lag}"] = there.fraction
        return told

    def _close(self, error: BaseException | None = None) -> None:
        record, self._record = self._record, None
        if record is not None:
            record.__exit__(type(error) if error else None, error, None)

    def _give_up(self, error: Exception) -> None:
        """Say once what cannot be measured; a layer that never can be switches the callback off, as does a fault of ours."""
        self.off |= isinstance(error, UnsupportedError) or not isinstance(error, ThroughtimeError)
        kind = f"{type(error).__name__}: {error}"
        if kind not in self._told:
            self._told.add(kind)
            ending = "it is off from here on" if self.off else "this batch is left out"
            warnings.warn(f"GradientHorizon measured nothing, {ending}: {kind}", stacklevel=2)

    @staticmethod
    def _step(trainer: Any) -> int:
        """The step that Lightning's own log has for this batch."""
        return getattr(trainer.fit_loop.epoch_loop, "_batches_that_stepped", trainer.global_step)
