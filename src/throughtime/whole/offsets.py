"""Sums by signed offset over the blocks of a series (see `throughtime.whole.series`): terms, shares, norms, adjoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from throughtime.cells.cell import gradients_by_autograd
from throughtime.linearize import Linearization
from throughtime.recording.layout import flipped
from throughtime.reducers.products import AUTOGRAD, Blocks, Entry, entries, grouped
from throughtime.scaled import DEAD, Scaled, power_of_two
from throughtime.whole.series import Rows, Series, walk

TERMS = 2**26
"""Numbers of all G(δ) together that may be held (512 MB): beyond it norms and bias are not told."""


@dataclass(frozen=True)
class _Sums:
    """Of one part. blocks: G by group of ledger rows. inner: (rows, 2T − 1) ⟨G(δ), G⟩. totals: Σ_δ G(δ) by group;
    terms: G(δ) by group, (2T − 1, K, H, width), or None."""

    rows: list[Entry]
    groups: list[Blocks]
    blocks: list[Tensor]
    inner: Tensor
    totals: list[Tensor]
    terms: list[Tensor] | None


class Offsets:
    """Fed with the series of one or several batches, with the same parts; index δ + T − 1 stands for the offset δ.

    references: for each part G by parameter, of all batches together. steps: T, of the longest. norms: keep the terms of
    every offset, which norms and bias need.
    """

    def __init__(self, series: Series, references: Sequence[Mapping[str, Tensor]], steps: int, norms: bool) -> None:
        self.steps, self.norms = steps, norms
        count, self.references = 2 * steps - 1, references
        self.sums: list[_Sums] = []
        for part, reference in zip(series.parts, references, strict=True):
            lin = Linearization(part.trace)
            rows, groups = entries(lin), grouped(lin)
            blocks = [group.of(reference[group.parameter].double()) for group in groups]
            inner = blocks[0].new_zeros(len(rows), count)
            terms = [block.new_zeros(count, *block.shape) for block in blocks] if norms else None
            self.sums.append(_Sums(rows, groups, blocks, inner, [torch.zeros_like(b) for b in blocks], terms))
        self.squares = Scaled.zeros(count)
        self.entered = torch.zeros(count, dtype=torch.float64)
        self.pairs = torch.zeros(count, dtype=torch.int64)

    def add(self, series: Series, progress=None) -> None:
        """One batch."""
        self._count(series)
        walk(series, self._update, progress)

    def _count(self, series: Series) -> None:
        """The pairs (t, b) that each offset has, and what entered at them."""
        for values, sums in ((series.pairs, self.pairs), (series.entered, self.entered)):
            back = values.cpu().flip(0).cumsum(0).sum(1)  # of the last step, the last two, …
            ahead = flipped(values[..., None], series.lengths).flip(0).cumsum(0).sum((1, 2)).cpu()
            reach = series.steps
            sums[self.steps - 1 : self.steps - 1 + reach] += back.flip(0)
            sums[self.steps - reach : self.steps - 1] += ahead[:-1]

    def _update(self, place: int, rows: Rows) -> None:
        at = _At(rows, self.steps)
        sizes = at.take(rows.size[..., None])[..., 0]
        largest = sizes.flatten(1).amax(1)
        peak = torch.frexp(largest).exponent.long()
        scaled = sizes * power_of_two(-peak)[:, None, None]
        self.squares.add_at(at.index, scaled.square().sum((1, 2)), torch.where(largest > 0, 2 * peak, DEAD))
        sums = self.sums[place]
        if sums.terms is None:
            self._shares(sums, rows, at)
            return
        first = int(at.index[0])
        for group, terms in zip(sums.groups, sums.terms, strict=True):
            made = at.terms(group)
            for place, own in enumerate(group.places):
                terms[first : first + len(made), place] += made[:, own]

    def settle(self) -> None:
        """When all batches are in: shares and totals from the terms, where they are kept."""
        for sums in self.sums:
            row = 0
            for block, total, terms in zip(sums.blocks, sums.totals, sums.terms or (), strict=False):
                total.copy_(terms.sum(0))
                for place, own in enumerate(block):
                    sums.inner[row] = terms[:, place].flatten(1) @ own.flatten()
                    row += 1

    def _shares(self, sums: _Sums, rows: Rows, at: _At) -> None:
        """⟨G(δ), G⟩ without G(δ): every pair's adjoint of the pre-activations with what G makes of its operand."""
        first = 0
        for number, group in enumerate(sums.groups):
            block, total = sums.blocks[number], sums.totals[number]
            count = len(block)
            if group.operand == AUTOGRAD:
                term = at.terms(group)
                total += term.sum(0)
                told = (term * block).sum((2, 3)).T
            else:
                pre = rows.pre[group.bank][..., group.places, :]  # (T, S, B, K, H)
                x = None if group.operand == "1" else rows.linearization.whole.operands[group.operand]  # (T, B, width)
                summed = pre.sum(1).flatten(0, 1).transpose(0, 1)  # (K, T·B, H)
                if x is None:
                    projected = block[:, :, 0].expand(*rows.size.shape[::2], -1, -1)
                    total += summed.sum(1).unsqueeze(-1)
                elif group.elementwise:
                    projected = x[..., None, :] * block[:, :, 0]
                    total += (summed * x.flatten(0, 1)).sum(1).unsqueeze(-1)
                else:
                    projected = torch.einsum("tbw,khw->tbkh", x, block)
                    total += summed.mT @ x.flatten(0, 1)
                told = at.take((pre * projected[:, None]).sum(-1)).sum((1, 2)).T
            sums.inner[first : first + count, at.index] += told
            first += count

    # Results, all by index δ + T − 1.

    def row_norms(self) -> Scaled | None:
        """‖G(δ)‖² of each ledger row of each part (rows, 2T − 1); None where the terms are not kept."""
        if not self.norms:
            return None
        every = [terms for sums in self.sums for terms in sums.terms or ()]
        peak = torch.stack([terms.flatten(1).abs().amax(1) for terms in every]).amax(0)
        exponent = torch.frexp(peak).exponent.long()
        scale = power_of_two(-exponent)[:, None]
        squares = [
            (terms[:, place].flatten(1) * scale).norm(dim=1).square()
            for terms in every
            for place in range(terms.shape[1])
        ]
        return Scaled(torch.stack(squares).cpu(), 2 * exponent.cpu())

    def beyond(self) -> Tensor | None:
        """(T,) ‖Σ_{|δ| > K} G(δ)‖ by K, added up from the farthest offsets; None where the terms are not kept."""
        if not self.norms:
            return None
        middle, out = self.steps - 1, torch.zeros(self.steps, dtype=torch.float64)
        rests = [(terms, torch.zeros_like(terms[0])) for sums in self.sums for terms in sums.terms or ()]
        for window in reversed(range(self.steps - 1)):
            squares = out.new_zeros(())
            for terms, rest in rests:
                rest += terms[middle + window + 1] + terms[middle - window - 1]
                squares += rest.square().sum().cpu()
            out[window] = squares.sqrt()
        return out


class _At:
    """Which own step of a part each offset of a block reads: index (n,) of the offsets."""

    def __init__(self, rows: Rows, steps: int) -> None:
        self.rows = rows
        self.banks: dict[int, Tensor] = {}
        self.made: dict[tuple[int, str, bool], Tensor] = {}
        origins, part = rows.origins, rows.part
        length, batch = part.real.shape
        there = origins[origins >= 0]
        deltas = torch.arange(int(there.min()) - length + 1, int(there.max()) + 1, device=origins.device)
        self.index = deltas + steps - 1
        real = origins - deltas[:, None, None]  # (n, S, B)
        lengths = length if part.trace.lengths is None else part.trace.lengths.to(origins.device)
        self.inside = (origins >= 0) & (real >= 0) & (real < lengths)
        self.slot = torch.arange(origins.shape[0], device=origins.device)[:, None]
        self.sequence = torch.arange(batch, device=origins.device)
        self.own = part.real[real.clamp(0, length - 1), self.sequence]

    def take(self, values: Tensor) -> Tensor:
        """Values (T, S, B, …) at the offsets: (n, S, B, …), zero outside of the sequence."""
        count, batch = values.shape[1:3]
        at = (self.own * count + self.slot) * batch + self.sequence
        taken = values.flatten(0, 2).index_select(0, at.flatten()).unflatten(0, at.shape)  # row by row: much faster
        return taken.mul_(self.inside.reshape(*self.inside.shape, *(1,) * (values.ndim - 3)))

    def of_step(self, values: Tensor) -> Tensor:
        """Values (T, B, …), which all origins share."""
        at = self.own * values.shape[1] + self.sequence
        return values.flatten(0, 1).index_select(0, at.flatten()).unflatten(0, at.shape)

    def terms(self, group: Blocks) -> Tensor:
        """(n, P, H, width): the terms of all pre-activations of the group's bank, at its `places` those of the group."""
        if group.operand == AUTOGRAD:
            return self._by_autograd(group.parameter)
        key = group.bank, group.operand, group.elementwise
        if key not in self.made:
            if group.bank not in self.banks:
                self.banks[group.bank] = self.take(self.rows.pre[group.bank]).flatten(1, 2)  # (n, S·B, P, H)
            p = self.banks[group.bank]
            if group.operand == "1":
                self.made[key] = p.sum(1).unsqueeze(-1)
            else:
                x = self.of_step(self.rows.linearization.whole.operands[group.operand]).flatten(1, 2)
                if group.elementwise:
                    self.made[key] = (p * x.unsqueeze(2)).sum(1).unsqueeze(-1)
                else:
                    self.made[key] = torch.bmm(p.flatten(2).mT, x).unflatten(1, p.shape[2:])
        return self.made[key]

    def _by_autograd(self, name: str) -> Tensor:
        """(n, 1, numbers of the parameter, 1): the terms of a parameter that stands in no product."""
        lin, adjoint = self.rows.linearization, self.rows.adjoint
        assert adjoint is not None
        told = []
        for x, before, rows in zip(
            *(self.of_step(value) for value in (lin.whole.x, lin.whole.before)), self.take(adjoint), strict=True
        ):
            told.append(gradients_by_autograd(lin.cell, lin.trace.weights, [name], x, before, rows)[0].flatten())
        return torch.stack(told)[:, None, :, None]
