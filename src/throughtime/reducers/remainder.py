"""What is left of G when the terms of one lag after another are taken away: truncation bias, horizon and residual.

The bias at every K needs arrays of the weights' size a lag. Where only the horizon is asked for, many lags are taken away at
once, wherever norms show that the bias cannot cross a level among them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from throughtime.reducers.products import outer
from throughtime.scaled import Later

NOTHING = 2.0**-6  # far terms that in sum stay below this times the rounding of G, in every block, are left in it
TERMS = 2**20  # numbers of G(τ) of several lags that may be made at once


class Remainder:
    """G less the terms taken away so far, by group of ledger rows.

    blocks: G by group, each (K, H, width). squares: ‖G‖² of each row. every: tell the bias at every K; else only where it could
    cross one of `levels`, and bounds elsewhere. exact: leave nothing in, however small.
    """

    def __init__(
        self,
        blocks: list[Tensor],
        squares: Tensor,
        steps: int,
        every: bool,
        levels: tuple[float, ...],
        exact: bool = False,
    ) -> None:
        self.squares, self.every, self.levels, self.exact = squares, every, levels, exact
        self.eps = torch.finfo(blocks[0].dtype).eps
        self.left = [block.clone() for block in blocks]
        self.size = norm(self.left)
        self.left_in = torch.zeros_like(squares)  # ‖G(τ)‖ of each row, over the lags that were not taken away
        self.weights = sum(block.numel() for block in blocks)
        self.low = torch.full((steps,), torch.nan, dtype=torch.float64)
        self.high = self.low.clone()
        self.later = Later()

    def take_away(self, ps: list[Tensor], xs: list[Tensor | None], lags: Tensor, sizes: Tensor) -> None:
        """The terms Σ p ⊗ x of a block: ps (K, L, N, H) and xs (L, N, width) by group; sizes (rows, L): ‖G(τ)‖ of each row."""
        if not self.every:
            self._halve(ps, xs, lags, sizes.square().sum(0).sqrt(), 0, len(lags))
            return
        order = torch.argsort(lags)
        room = max(1, TERMS // self.weights)
        for start in range(0, len(order), room):
            places = order[start : start + room]
            if not self.nothing(lags[places], sizes[:, places]):
                self._one_by_one(ps, xs, lags, int(places.min()), int(places.max()) + 1)

    def take_away_formed(self, terms: list[Tensor], lags: Tensor) -> None:
        """Terms G(τ) of a block that were made: (K, L, H, width) by group."""
        for place in torch.argsort(lags).tolist():
            for left, term in zip(self.left, terms, strict=True):
                left -= term[:, place]
            self.size = norm(self.left)
            self._tell(lags[place : place + 1], self.size, self.size)

    def take_away_untold(self, terms: list[Tensor]) -> None:
        """Terms of the tail, by group: nothing is told of their lags."""
        for left, term in zip(self.left, terms, strict=True):
            left -= term
        self.size = norm(self.left)

    def nothing(self, lags: Tensor, sizes: Tensor) -> bool:
        """Whether these terms, with all that were left in before, are too small to be seen in G; then they are left in."""
        left_in = self.left_in + sizes.sum(1)
        if self.exact or (left_in > NOTHING * self.eps * self.squares.sqrt()).any():
            return False
        self.left_in = left_in
        self._tell(lags, self.size, self.size)
        return True

    def _one_by_one(self, ps: list[Tensor], xs: list[Tensor | None], lags: Tensor, a: int, b: int) -> None:
        """Take the block's lags a … b − 1 away and tell the bias after each."""
        if b - a == 1:
            self._subtract(self.left, ps, xs, a, b)
            self.size = norm(self.left)
            self._tell(lags[a:b], self.size, self.size)
            return
        order, squares = torch.argsort(lags[a:b]), []
        turns = order.tolist()
        for group, (p, x) in enumerate(zip(ps, xs, strict=True)):
            left = self.left[group]
            terms = outer(p[:, a:b].transpose(0, 1), None if x is None else x[a:b].unsqueeze(1))  # (lags, K, H, width)
            each = terms.unbind()
            for place in turns:
                left = torch.sub(left, each[place], out=each[place])
            self.left[group] = left.clone()
            squares.append(torch.linalg.vector_norm(terms.flatten(1), dim=1).double().square())
        sizes = torch.stack(squares).sum(0).sqrt()[order.to(squares[0].device)]
        self.size = sizes[-1]
        self._tell(lags[a:b][order], sizes, sizes)

    def _halve(
        self,
        ps: list[Tensor],
        xs: list[Tensor | None],
        lags: Tensor,
        sizes: Tensor,
        a: int,
        b: int,
        after: list[Tensor] | None = None,
    ) -> None:
        """Take the block's lags a … b − 1 away, all at once where their bias keeps off the levels, else in two halves.

        after: what is left behind them, where it is known.
        """
        if b - a == 1 or (b - a) * self.weights <= TERMS:
            self._one_by_one(ps, xs, lags, a, b)
            return
        if after is None:
            after = [left.clone() for left in self.left]
            self._subtract(after, ps, xs, a, b)
        (size, end), order = torch.stack((self.size, norm(after))).cpu(), torch.argsort(lags[a:b])
        passed = sizes[a:b][order].cumsum(0)
        behind = passed[-1] - passed
        low = torch.maximum(size - passed, end - behind).clamp_min(0)
        high = torch.minimum(size + passed, end + behind)
        unit, slack = self.squares.sum().sqrt(), 1e-3  # slack: rounding of the norms that bound the bias
        crosses = any(
            ((low * (1 - slack) <= level * unit) & (high * (1 + slack) >= level * unit)).any() for level in self.levels
        )
        if crosses:
            middle = (a + b) // 2
            near, far = ((a, middle), (middle, b)) if lags[a] < lags[b - 1] else ((middle, b), (a, middle))
            self._halve(ps, xs, lags, sizes, *near)
            self._halve(ps, xs, lags, sizes, *far, after)
            return
        self.left, self.size = after, norm(after)
        self._tell(lags[a:b][order], low, high)

    def _tell(self, lags: Tensor, low: Tensor, high: Tensor) -> None:
        def put(bounds: Tensor) -> None:
            self.low[lags], self.high[lags] = bounds / self.squares.sum().sqrt()

        self.later.tell(torch.stack((low, high)), put)

    @staticmethod
    def _subtract(left: list[Tensor], ps: list[Tensor], xs: list[Tensor | None], a: int, b: int) -> None:
        """Take the terms of the block's lags a … b − 1 away from `left`, in place."""
        for rest, p, x in zip(left, ps, xs, strict=True):
            p = p[:, a:b].flatten(1, 2)
            if x is None:
                rest -= outer(p, None)
            else:
                rest.baddbmm_(p.mT, x[a:b].flatten(0, 1).expand(len(p), -1, -1), alpha=-1)

    def known(self) -> Tensor:
        """(T,) bool: the K that was told, exactly or by bounds."""
        self.later.settle()
        return ~self.high.isnan()

    def bias(self, to_the_end: bool) -> np.ndarray:
        """(T,) truncation bias by K; NaN where it was not told exactly. to_the_end: nothing lies beyond the last lag told."""
        told = self.known().nonzero().flatten()
        bias = torch.where(self.low == self.high, self.low, torch.nan)
        if to_the_end and len(told):  # nothing reaches back further than the last origin does
            bias[int(told[-1]) + 1 :] = bias[told[-1]]
        return bias.numpy()

    def horizon(self) -> dict[float, int | None]:
        """ε → the smallest K with bias(K′) ≤ ε for every K′ ≥ K that was told apart; None where there is none."""
        known, high = np.flatnonzero(self.known()), self.high.numpy()
        out: dict[float, int | None] = {}
        for level in self.levels:
            above = known[high[known] > level]
            first = int(above[-1]) + 1 if len(above) else 0
            out[level] = first if len(known) and first <= known[-1] else None
        return out


def norm(parts: list[Tensor]) -> Tensor:
    """The norm of all parts together, float64."""
    return torch.stack([torch.linalg.vector_norm(part) for part in parts]).double().square().sum().sqrt()
