"""What the states of a run go through on their way from one call into the next, as the cells around a cell read it."""

from __future__ import annotations

import torch
from torch import Tensor

from throughtime.recording.run import Run, beside


def masks_and_shifts(run: Run, carries: Tensor, place: int) -> Tensor:
    """(T, B, 2C): what the carry before each step is multiplied by, and what is added to it. See `Between`."""
    mask, shift = torch.ones_like(carries[:-1]), torch.zeros_like(carries[:-1])
    for start in run.starts:
        mask[start.step] = beside(start.masks, place)
        shift[start.step] = beside(start.states, place) - mask[start.step] * carries[start.step]
    return torch.cat((mask, shift), dim=-1)


def held_states(run: Run, carries: Tensor, place: int) -> tuple[Tensor, Tensor]:
    """(T, B, 5C) what `Held` reads beside the input, and (T + 1, B, C) the origins, up to what has no gradient."""
    from_new, take, hold = (torch.ones_like(carries[:-1]) for _ in range(3))
    from_held, shift = torch.zeros_like(from_new), torch.zeros_like(from_new)
    take.zero_()
    origin = beside(run.initial, place)
    origins = [origin]
    begins = {0: (run.initial, run.first_masks or [torch.ones_like(state) for state in run.initial])}
    begins |= {start.step: (start.states, start.masks) for start in run.starts}
    ends = {start.step - 1: (start.takes, start.holds) for start in run.starts}
    if run.ended is not None:
        ends[run.steps - 1] = run.ended
    for step in range(run.steps):
        if step in begins:
            states, masks = begins[step]
            from_new[step] = 0
            from_held[step] = beside(masks, place)
            shift[step] = beside(states, place) - from_held[step] * origin
        if step in ends:
            take[step], hold[step] = (beside(each, place) for each in ends[step])
            origin = take[step] * carries[step + 1] + hold[step] * origin
        origins.append(origin)
    return torch.cat((from_new, from_held, shift, take, hold), dim=-1), torch.stack(origins)
