"""The one-step derivatives of all steps, from the trace: closed form, computed a window of steps at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from throughtime.budget import Room
from throughtime.cells.cell import Pulled, Tensors, pull_by_autograd
from throughtime.trace import PORTION, Trace, slices

Pick = Callable[[Tensor], Tensor]
FAR = 2.0**-36  # of what enters: where a gradient lies so far below, squares of its terms may leave float32


class Window:
    """The factors of the steps first … last − 1, or of `steps` (n,) ascending, computed when they are first asked for."""

    def __init__(self, linearization: Linearization, first: int, last: int, steps: Tensor | None = None) -> None:
        trace = linearization.trace
        self.linearization, self.trace, self.first, self.last, self.steps = linearization, trace, first, last, steps
        self.x = linearization.inputs[first:last] if steps is None else linearization.inputs[steps]
        self.before = trace.carries[first:last] if steps is None else trace.carries[steps]
        self.after = trace.carries[first + 1 : last + 1] if steps is None else trace.carries[steps + 1]

    def __len__(self) -> int:
        return len(self.x)

    def at(self, steps: slice | Tensor) -> slice | Tensor:
        """What picks these steps along an axis of the window's arrays."""
        if self.steps is None:
            if isinstance(steps, slice):
                return slice(steps.start - self.first, steps.stop - self.first)
            return steps if self.first == 0 else steps - self.first
        if isinstance(steps, slice):
            steps = torch.arange(steps.start, steps.stop)
        return torch.searchsorted(self.steps, steps.to(self.steps.device).contiguous())

    @cached_property
    def factors(self) -> Tensors:
        """(steps, B, …) by name."""
        parts = slices(len(self), PORTION // max(1, self.before[:1].numel()))
        if len(parts) == 1:
            return self._factors(parts[0])
        made: Tensors = {}
        for at in parts:  # what they are made of is many times as large
            for name, value in self._factors(at).items():
                if name not in made:
                    made[name] = _like(value, len(self))
                made[name][at] = value
        return made

    def _factors(self, at: slice) -> Tensors:
        x, before, after = self.x[at], self.before[at], self.after[at]
        pre = None
        if self.trace.cell.sigmoids and self.steps is None:
            pre = self.linearization.pre_activations(self.first + at.start, self.first + at.stop)
        return self.trace.cell.factors(self.trace.weights, x, before, after, pre)

    @cached_property
    def of_step(self) -> list[Tensors]:
        """The factors of each step alone, (1, B, …) by name."""
        parts = {name: value.split(1) for name, value in self.factors.items()}
        return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]

    @cached_property
    def operands(self) -> Tensors:
        """(steps, B, width) by name: what the parameters multiply."""
        return self.trace.cell.operands(self.factors, self.x, self.before)


class Linearization:
    """The one-step derivatives of a trace. derivative: "closed" (the default) or "autograd", which needs no closed form.

    compile: whether a sweep may compile chunks of steps, see `throughtime.compiled`. room: how much may be kept; all of it
    without one.
    """

    def __init__(
        self, trace: Trace, derivative: str = "closed", compile: bool = False, room: Room | None = None
    ) -> None:
        if derivative not in ("closed", "autograd"):
            raise ValueError(f"derivative: got {derivative!r}; expected 'closed' or 'autograd'")
        self.trace, self.cell, self.derivative, self.compile, self.room = trace, trace.cell, derivative, compile, room
        self.inputs = trace.x if trace.noise is None else torch.cat((trace.x, trace.noise), dim=-1)
        self._logits: Tensors = {}
        self._lack = torch.ones(trace.steps, trace.batch, dtype=torch.bool)  # whose logits have not been kept yet
        self._home: tuple[Linearization, slice] = self, slice(None)  # where logits are kept

    @cached_property
    def whole(self) -> Window:
        """All steps, kept: for many origins, which pass through every step at every lag."""
        return self.window(0, self.trace.steps)

    @cached_property
    def _keeps_whole(self) -> bool:
        return self.room is None or self.room.take(self.room.window * self.trace.steps * self.trace.batch)

    @cached_property
    def keeps_logits(self) -> bool:
        """Whether `logits` of all steps are kept."""
        return self.room is None or self.room.take(self.room.logits * self.trace.steps * self.trace.batch)

    @cached_property
    def terms_in(self) -> torch.dtype:
        """The dtype in which terms are made and multiplied: float64 where a gate block has a gradient below `FAR`.

        Of a gate at σ(−60) the terms are 1e-26 of the others', and their squares no numbers of float32.
        """
        home, trace = self._home[0], self.trace
        if home is not self:
            return home.terms_in
        blocks = [
            value.reshape(max(1, len(self.cell.blocks(name))), -1).abs().amax(1)
            for name, value in trace.weight_gradients.items()
            if value.numel()
        ]
        if trace.carries.dtype != torch.float32 or not blocks:
            return trace.carries.dtype
        peaks = torch.cat(blocks)
        far = (peaks > 0) & (peaks < FAR * trace.gradient.abs().amax())
        return torch.float64 if far.any() else torch.float32

    def part(self, sequences: slice) -> Linearization:
        """The same of some sequences; logits that it meets are kept in the whole."""
        share = len(range(*sequences.indices(self.trace.batch))) * self.trace.steps
        keeps = self.room is None or self.room.take(self.room.window * share)
        part = Linearization(self.trace.part(sequences, copy=keeps), self.derivative, self.compile, self.room)
        part._home, part._keeps_whole = (self, sequences), keeps
        return part

    def alone(self, step: int, sequence: int) -> Linearization:
        """One step of one sequence."""
        part = self.trace.part(slice(sequence, sequence + 1), copy=False)
        noise = None if part.noise is None else part.noise[step : step + 1]
        x, carries, gradient = part.x[step : step + 1], part.carries[step : step + 2], part.gradient[step : step + 1]
        return Linearization(replace(part, x=x, carries=carries, gradient=gradient, noise=noise), self.derivative)

    def window(self, first: int, last: int) -> Window:
        """The steps first … last − 1."""
        return Window(self, first, last)

    def around(self, steps: Tensor, lags: int = 1) -> Window:
        """A window that holds these steps (R,), and as many before each that it makes so many lags. Origins pass them one after
        another: all steps, kept, or where there is no room these alone."""
        if self._keeps_whole:
            return self.whole
        steps = steps - torch.arange(lags)[:, None]
        first, last = int(steps.min()), int(steps.max())
        if last - first < 2 * steps.numel():
            return self.window(first, last + 1)
        landing = (steps - 1).clamp_min(0)  # where paths end
        return Window(
            self, first, last + 1, torch.cat((steps.flatten(), landing.flatten())).unique().to(self.trace.x.device)
        )

    def pull_step(self, window: Window, step: int, adjoint: Tensor, paths: bool) -> Pulled:
        """Pull adjoints (1, B, S·H) back through one step of the window, counted from its first."""
        if self.derivative == "autograd":
            return self.pull(window, lambda array: array[step : step + 1], adjoint, paths)
        return self.cell.pull(self.trace.weights, window.of_step[step], adjoint, paths)

    def pre_activations(self, first: int, last: int) -> Tensors:
        """Of the steps first … last − 1, (steps, B, H) by name. Those of sigmoid gates are kept for `logits`."""
        trace = self.trace
        pre = self.cell.pre_activations(trace.weights, self.inputs[first:last], trace.carries[first:last])
        home, sequences = self._home
        if not home.keeps_logits:
            return pre
        for name in self.cell.sigmoids:
            if name not in home._logits:
                home._logits[name] = pre[name].new_empty(home.trace.steps, home.trace.batch, *pre[name].shape[2:])
            home._logits[name][first:last, sequences] = pre[name]
        home._lack[first:last, sequences] = False
        return pre

    @property
    def logits(self) -> Tensors:
        """(T, B, H) of each sigmoid gate, at all steps; what a sweep has passed is not computed again."""
        lacking = self._lack.any(1) if self.cell.sigmoids else self._lack[:0]
        for at in self.trace.portions() if lacking.any() else ():
            there = lacking[at].nonzero().flatten()
            if len(there):
                self.pre_activations(at.start + int(there[0]), at.start + int(there[-1]) + 1)
        return self._logits

    def logits_at(self, at: slice) -> Tensors:
        """`logits` of some steps, which are made anew where none are kept."""
        if self.keeps_logits:
            return {name: value[at] for name, value in self.logits.items()}
        pre = self.pre_activations(at.start, at.stop) if self.cell.sigmoids else {}
        return {name: pre[name] for name in self.cell.sigmoids}

    def forget(self) -> None:
        """Keep nothing any longer that can be made again."""
        self.__dict__.pop("whole", None)
        self._logits = {}
        self._lack.fill_(True)

    def take_logits(self) -> Tensors:
        """`logits`, for whoever wants to change them: who asks again has them made again."""
        taken, self._logits = self.logits, {}
        self._lack.fill_(True)
        return taken

    def pull(self, window: Window, pick: Pick, adjoint: Tensor, paths: bool) -> Pulled:
        """Pull adjoints (..., S·H) back through the steps that `pick` takes out of the window's arrays."""
        weights = self.trace.weights
        if self.derivative == "autograd":
            return pull_by_autograd(self.cell, weights, pick(window.x), pick(window.before), adjoint)
        picked = {name: pick(value) for name, value in window.factors.items()}
        return self.cell.pull(weights, picked, adjoint, paths)


def _like(value: Tensor, steps: int) -> Tensor:
    """An empty (steps, …) whose axes lie in memory in the order of those of `value`."""
    order = sorted(range(value.ndim), key=lambda axis: -value.stride(axis))
    made = value.new_empty([steps if axis == 0 else value.shape[axis] for axis in order])
    return made.permute([order.index(axis) for axis in range(value.ndim)])
