"""How often demand raises a false alarm, and what it finds: `python -m calibration.demand [--runs 200]`.

Prints the tables of docs/demand.md. Each case is a function of a seed that returns (gradients, inputs) of an untrained
torch.nn.GRU. Cases named "null" have no dependence at all: the network that makes the gradients reads an independent
copy of the inputs. In all other cases it reads the inputs themselves.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from throughtime.demand import Demand, Method, measure
from throughtime.tasks import synthetic

Pair = tuple[Tensor, Tensor]


def direct_gradients(x: Tensor, y: Tensor, *, hidden: int = 32, seed: int = 0, every_step: bool = False) -> Tensor:
    """(T, B, H) ∂L/∂output of an untrained GRU that reads x (T, B, D); L squared error, cross-entropy where y is int64.

    y: (B, …) for the last step, (T, B, …) with `every_step`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gru = nn.GRU(x.shape[2], hidden)
        head = nn.Linear(hidden, 10 if y.dtype == torch.int64 else y.shape[-1])
    output = gru(x)[0].detach().requires_grad_()
    prediction = head(output if every_step else output[-1])
    if y.dtype == torch.int64:
        loss = nn.functional.cross_entropy(prediction.flatten(0, -2), y.flatten())
    else:
        loss = nn.functional.mse_loss(prediction, y)
    (gradient,) = torch.autograd.grad(loss, output)
    return gradient


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- no dependence ---------------------------------------------------------------------------------------------------


def null_gaussian(seed: int, *, rho: float = 0.0, mean: float = 0.0, own: bool = False, batch: int = 64) -> Pair:
    """Gaussian inputs and a target that does not depend on them, T=60, loss at the last step; `own`: the net reads x."""
    random = _generator(seed)
    x, other = (synthetic.autoregressive(60, batch, random, rho=rho, mean=mean) for _ in range(2))
    return direct_gradients(x if own else other, torch.randn(batch, 1, generator=random), seed=seed), x


def _tokens(random: torch.Generator) -> Tensor:
    """(60, 64, 16): tokens of a vocabulary of 30 through an embedding, a sticky Markov chain."""
    table = torch.randn(30, 16, generator=random)
    token = torch.randint(0, 30, (60, 64), generator=random)
    for t in range(1, 60):
        stay = torch.rand(64, generator=random) < 0.5
        token[t] = torch.where(stay, token[t - 1], token[t])
    return table[token]


def null_tokens(seed: int) -> Pair:
    """Tokens through an embedding and ten class labels that do not depend on them."""
    random = _generator(seed)
    x, other = _tokens(random), _tokens(random)
    return direct_gradients(other, torch.randint(0, 10, (64,), generator=random), seed=seed), x


def null_classes(seed: int) -> Pair:
    """White inputs in three dimensions and ten class labels that do not depend on them."""
    random = _generator(seed)
    x, other = (synthetic.autoregressive(60, 64, random, size=3) for _ in range(2))
    return direct_gradients(other, torch.randint(0, 10, (64,), generator=random), seed=seed), x


def null_every_step(seed: int, *, own: bool = False) -> Pair:
    """AR(.9) inputs, an AR(.9) target of its own at every step; `own`: the net reads x."""
    random = _generator(seed)
    x, other, y = (synthetic.autoregressive(60, 64, random, rho=0.9) for _ in range(3))
    return direct_gradients(x if own else other, y, seed=seed, every_step=True), x


# --- dependence ------------------------------------------------------------------------------------------------------


def delayed(
    seed: int, *, lags: tuple[int, ...] = (40,), rho: float = 0.0, noise: float = 0.0, batch: int = 256
) -> Pair:
    """The sum of the inputs at some lags, T=60."""
    x, y = synthetic.delayed_input(60, batch, _generator(seed), lags=lags, rho=rho, noise=noise)
    return direct_gradients(x, y, seed=seed), x


def delayed_every_step(seed: int, *, lag: int = 10, batch: int = 64) -> Pair:
    """y[t] = x[t − lag] at every step, AR(.9) inputs, T=60."""
    x = synthetic.autoregressive(60, batch, _generator(seed), rho=0.9)
    y = torch.cat([torch.zeros(lag, batch, 1), x[:-lag]])
    return direct_gradients(x, y, seed=seed, every_step=True), x


def digits(seed: int, *, batch: int = 64, blanks: int = 92) -> Pair:
    """Real 8×8 digits read row by row, then `blanks` steps of noise; the class is asked for at the end. GRU-48.

    Pixels are brought to mean 0 and variance 1, the noise is N(0, 1).
    """
    from sklearn.datasets import load_digits

    random = _generator(seed)
    data, target = load_digits(return_X_y=True)
    rows = torch.randperm(len(target), generator=random)[:batch]
    image = torch.tensor((data[rows] - data.mean()) / data.std()).float().reshape(batch, 8, 8).transpose(0, 1)
    x = torch.cat([image, torch.randn(blanks, batch, 8, generator=random)])
    return direct_gradients(x, torch.tensor(target[rows]), hidden=48, seed=seed), x


def adding(seed: int, *, batch: int = 1024) -> Pair:
    """The adding problem, T=60."""
    x, y = synthetic.adding(60, batch, _generator(seed))
    return direct_gradients(x, y, seed=seed), x


def xor(seed: int, *, batch: int = 256) -> Pair:
    """Whether the signs at lags 0 and 40 differ, T=60."""
    x, y = synthetic.delayed_xor(60, batch, _generator(seed), lags=(0, 40))
    return direct_gradients(x, y, seed=seed), x


def square(seed: int, *, batch: int = 256) -> Pair:
    """y = x² at lag 40, white inputs: no covariance at all."""
    x = synthetic.autoregressive(60, batch, _generator(seed))
    return direct_gradients(x, x[59 - 40] ** 2, seed=seed), x


def segment(seed: int, *, batch: int = 64) -> Pair:
    """Inputs that change along the sequence: 20 steps of AR(.9), then 40 of white noise; y is the last of the 20."""
    random = _generator(seed)
    x = torch.cat([synthetic.autoregressive(20, batch, random, rho=0.9), torch.randn(40, batch, 1, generator=random)])
    return direct_gradients(x, x[19], seed=seed), x


# --- the tables ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A row: what it is, how its data are made, which lags are truly needed, and the test that reads it."""

    name: str
    make: Callable[[int], Pair]
    true: frozenset[int] = frozenset()
    method: Method = "covariance"


def _case(name: str, make: Callable[[int], Pair], true: Iterable[int] = (), method: Method = "covariance") -> Case:
    return Case(name, make, frozenset(true), method)


NULL = (
    _case("white inputs", null_gaussian),
    _case("inputs of mean 1", partial(null_gaussian, mean=1.0)),
    _case("AR(.9) inputs", partial(null_gaussian, rho=0.9)),
    _case("tokens through an embedding, 10 classes", null_tokens),
    _case("three inputs, 10 classes", null_classes),
    _case("AR(.9), a loss at every step", null_every_step),
    _case("white inputs, distance covariance", null_gaussian, method="distance"),
)
POWER = (
    _case("input 40 back, white, B=256", delayed, [40]),
    _case("the same, with noise of variance 4", partial(delayed, noise=2.0), [40]),
    _case("sum of the last three inputs, AR(.9), B=256", partial(delayed, lags=(0, 1, 2), rho=0.9), range(3)),
    _case("the same, B=64", partial(delayed, lags=(0, 1, 2), rho=0.9, batch=64), range(3)),
    _case("input 40 back, AR(.9), B=256", partial(delayed, rho=0.9), [40]),
    _case("AR(.9) for 20 steps, 40 of noise, last of the 20, B=64", segment, [40]),
    _case("input 10 back at every step, AR(.9), B=64", delayed_every_step, [10]),
    _case("digits, then 92 steps of noise, B=32", partial(digits, batch=32), range(92, 100)),
    _case("the same, B=64", digits, range(92, 100)),
    _case("the same, B=256", partial(digits, batch=256), range(92, 100)),
    _case("own output only: no dependence, the net reads the inputs, B=64", partial(null_gaussian, own=True)),
    _case("the same, B=1024", partial(null_gaussian, own=True, batch=1024)),
    _case("the same, B=64, AR(.9), a loss at every step", partial(null_every_step, own=True)),
    _case("adding, B=1024 (every lag matters a little)", adding, range(60)),
    _case("XOR of lags 0 and 40, B=256", xor, [0, 40]),
    _case("XOR, distance covariance", xor, [0, 40], "distance"),
    _case("square of the input 40 back, B=256", square, [40]),
    _case("square, distance covariance", square, [40], "distance"),
)


def read(case: Case, runs: int) -> list[Demand]:
    """One Demand a seed."""
    return [measure(*case.make(seed), method=case.method, seed=seed) for seed in range(runs)]


def _rate(hits: int, runs: int) -> str:
    """The rate ± its standard error, with two hits and two misses added so that it is not 0 at the ends."""
    usual = (hits + 2) / (runs + 4)
    return f"{hits / runs:.3f} ± {math.sqrt(usual * (1 - usual) / (runs + 4)):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="false alarms and power of throughtime.demand")
    parser.add_argument(
        "--runs", type=int, default=200, help="seeds a row of the first table; a fifth of it in the second"
    )
    arguments = parser.parse_args()
    runs, fewer = arguments.runs, max(1, arguments.runs // 5)
    print(f"| no dependence at all, T=60, B=64 | any lag named, of {runs} runs (± binomial error) |\n|---|---|")
    for case in NULL:
        alarms = sum(bool(demand.lags) for demand in read(case, runs))
        print(f"| {case.name} | {_rate(alarms, runs)} |", flush=True)
    print(f"\n| task, untrained net, {fewer} runs | nothing detected | all true lags | right farthest | others fire |")
    print("|---|---|---|---|---|")
    for case in POWER:
        found = [frozenset(demand.lags) for demand in read(case, fewer)]
        nothing = _rate(sum(not lags for lags in found), fewer)
        others = _rate(sum(bool(lags - case.true) for lags in found), fewer)
        if case.true:
            every = _rate(sum(case.true <= lags for lags in found), fewer)
            farthest = _rate(sum(max(lags, default=-1) == max(case.true) for lags in found), fewer)
        else:
            every = farthest = "–"
        print(f"| {case.name} | {nothing} | {every} | {farthest} | {others} |", flush=True)


if __name__ == "__main__":
    main()
