"""The two demos: everything they show is computed when they run."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch

from throughtime.diagnosis.diagnose import judge, measure
from throughtime.diagnosis.report import Report
from throughtime.progress import Tell, quiet
from throughtime.remedies import registered
from throughtime.tasks import digits, opus_demo
from throughtime.training_step import as_step

SEQUENCES = 256  # of the batch that is measured


@digits.one_thread()
def digits_report(
    progress: Tell = quiet,
    noise_steps: int = digits.NOISE_STEPS,
    seeds: Sequence[int] = digits.SEEDS,
    steps: int = digits.STEPS,
) -> Report:
    """8 rows of a digit, then noise: what the loss needs, what arrives, and what chrono initialisation changes.

    seeds, steps: of the paired training, see `throughtime.tasks.digits.paired_training`.
    """
    task = digits.digits(noise_steps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = digits.DigitClassifier()
        batches = task.batches(1, SEQUENCES)
        before = measure(model, batches, digits.loss, progress=progress)
        report = judge(before)
        farthest = report.needed[0].farthest
        lag = task.needed_lags[-1] if farthest is None else farthest
        treated = registered()["chrono"].apply(copy.deepcopy(model), "rnn", needed_lag=lag)
        after = measure(treated, batches, digits.loss, progress=progress, demand=False)
        done = digits.paired_training(task, lag, seeds, steps, progress)
    title = f"Digits, then {noise_steps} steps of noise: a GRU of {model.rnn.hidden_size} units"
    return replace(report, title=title, before=before, after=after, verification=done)


def opus_report(progress: Tell = quiet) -> Report:
    """The speech/music network of the Opus codec on 24.7 s of speech, its voice-activity log-odds at every frame."""
    model = opus_demo.SpeechMusic()
    flow = measure(model, [opus_demo.inputs()], as_step(opus_demo.activity), progress=progress)
    return replace(judge(flow), title="The speech/music GRU of the Opus codec on 24.7 s of speech")
