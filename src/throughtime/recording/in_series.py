"""Several modules in series as one whole: what a later one sends to earlier ones, by the passages between them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from throughtime.recording.calls import Call, Form
from throughtime.recording.input_gradient import input_gradient
from throughtime.recording.layout import laid, time_first
from throughtime.recording.passages import Passage, Passages
from throughtime.recording.run import NOTHING, Run, besides, run_of
from throughtime.scaled import power_of_two
from throughtime.whole.series import Level, Sent, Series, levels_of, outputs_of, widened

SERIES = "series"
"""Of the whole of several modules."""
LOOSE = 50  # what came from above by two ways differs by this times the rounding of one
RANGE = -36.0
"""log10 of what single precision holds beside the largest number of a step."""


@dataclass(frozen=True)
class Through:
    """The way of a module's lowest level to modules below. form: of the later call; by id of a call places: of its highest
    level, and forms."""

    passage: Passage
    form: Form
    forms: dict[int, Form]
    places: dict[int, int]

    def back(self, at_input: Tensor) -> Iterator[Sent]:
        """See `throughtime.whole.series.Way`."""
        for _, sent in self.told(at_input):
            yield sent

    def told(self, at_input: Tensor) -> Iterator[tuple[int, Sent]]:
        """The same, with the id of the call that it goes to."""
        sums: dict[tuple[int, int], list[Tensor]] = {}
        for row in at_input.unbind(1):
            for key, value in self._row(row).items():
                sums.setdefault(key, []).append(value)
        for (call, place), rows in sums.items():
            if place == 0:
                yield call, Sent(self.places[call], torch.stack(rows, dim=1), moved=self.moves)
                continue
            directions = self.forms[call].directions
            states = torch.stack(rows, dim=1)  # (N, S, B, width), the lowest layer first
            for number, value in enumerate(states):
                highest = self.places[call] + self.forms[call].layers - 1
                yield call, Sent(highest - number // directions, value, number % directions, place - 1, moved=True)

    @cached_property
    def moves(self) -> bool:
        """Whether a gradient goes to other steps on the way: tried with those of single steps."""
        like = time_first(self.passage.call.x, self.form)
        for step in {0, len(like) // 2, len(like) - 1}:
            row = torch.zeros_like(like, dtype=torch.float64)
            row[step] = torch.randn(row.shape[1:], generator=torch.Generator().manual_seed(0)).to(row)
            for (_, place), sent in self._row(row).items():
                if place == 0 and (sent[:step].any() or sent[step + 1 :].any()):
                    return True
        return False

    def _row(self, row: Tensor) -> dict[tuple[int, int], Tensor]:
        """One origin: (T, B, D) at the input, to (T, B, W) at outputs and (N, B, width) at last states, float64."""
        call = self.passage.call
        exponent = torch.frexp(row.abs().amax()).exponent.long()
        given = row * power_of_two(-exponent)
        sent = self.passage.back(laid(given, self.form).to(call.x.dtype))
        out = {}
        for (key, place), value in sent.items():
            form = self.forms[key]
            value = value.double()
            value = (
                time_first(value, form)
                if place == 0
                else value.reshape(form.layers * form.directions, -1, value.shape[-1])
            )
            out[key, place] = value * power_of_two(exponent)
        return out


def whole_of(passages: Passages, calls: list[Call], name: str) -> Series | str | None:
    """The series of the modules of these calls, in the order in which they ran; why there is none, or None where none is."""
    if passages.lost or not passages.between:
        return passages.lost or None
    runs = [(call, run_of(call)) for call in calls]
    sizes = {(run.steps, run.x.shape[1]) for _, run in runs}
    if len(sizes) > 1:
        steps = ", ".join(f"{run.layer} {run.steps} × {run.x.shape[1]}" for _, run in runs)
        return f"the layers do not have the same steps and sequences ({steps}), so that they have no common time"
    why = passages.fail()
    if why:
        return why
    forms = {id(call): run.form for call, run in runs}
    levels: list[Level] = []
    places: dict[int, int] = {}
    sent: dict[int, list[Sent]] = {}  # by id of the call, with the level counted from its highest
    tops: list[Tensor] = []
    for call, run in reversed(runs):
        outside = _from_outside(run, sent.get(id(call), []))
        places[id(call)] = len(levels)
        passage = passages.between.get(id(call))
        below = () if passage is None else (Through(passage, run.form, forms, places),)
        made = levels_of(run, outside, len(levels), below)
        levels += made
        if outside.at_output.any():
            tops.append(outputs_of(made[0]))
        if passage is not None:
            own = Through(passage, run.form, forms, dict.fromkeys(forms, 0))
            at_input = torch.stack([p.turned(input_gradient(widened(p.trace))[:, None]) for p in made[-1].parts]).sum(0)
            for lower, each in own.told(at_input):
                sent.setdefault(lower, []).append(each)
    lengths = [run.lengths for _, run in runs]
    alike = all(each is None for each in lengths) or (
        all(run.form.batch_sizes is not None for _, run in runs)
        and all(each is not None and lengths[0] is not None and torch.equal(each, lengths[0]) for each in lengths)
    )
    return Series(
        name=name,
        module="",
        kind={"modules": ", ".join(run.layer for _, run in runs)},
        levels=tuple(levels),
        source=torch.cat([run.x for call, run in runs if id(call) not in passages.between], dim=-1),
        at_output=torch.cat(tops, dim=-1) if tops and alike else None,
        together=True,
        range=RANGE if any(call.x.dtype != torch.float64 for call, _ in runs) else -math.inf,
    )


def _from_outside(run: Run, sent: list[Sent]) -> Run:
    """A run with what enters it from outside of the series: without what later modules sent it."""
    at_output, ends = run.at_output, [state.clone() for state in run.at_states[-1]]
    loose = LOOSE if run.dtype in NOTHING else 2.5
    outputs = [each.value[:, 0] for each in sent if each.part is None]
    if outputs:
        at_output = besides(at_output, torch.stack(outputs).sum(0).to(at_output.dtype), run.dtype, loose)
    for state, whole in enumerate(ends):
        part = torch.zeros_like(whole)
        for each in sent:
            if each.part is not None and each.state == state:
                layer = run.form.layers - 1 - each.level
                part[layer * run.form.directions + each.part] += each.value[0].to(whole.dtype)
        ends[state] = besides(whole, part, run.dtype, loose) if part.any() else whole
    return replace(run, at_output=at_output, at_states={**run.at_states, -1: ends})
