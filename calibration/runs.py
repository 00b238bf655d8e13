"""The labelled runs. A label comes from how the network was built, or from what training then did; never from a rule.
 Each function makes the cases of one group from a seed. A case is one measured layer with what a user would know, and
for each rule that it is to judge whether the fault is there. Groups whose label is unclear (nothing learned the task,
or half of it was learned) judge nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from calibration.networks import Network, begin
from calibration.tasks import TASKS, Task
from calibration.training import Training, measured, train
from throughtime.diagnosis.diagnose import needs
from throughtime.diagnosis.report import Needed
from throughtime.diagnosis.rule import History
from throughtime.flow import LayerFlow

STEPS = 200
"""Of a training of the memory runs; at half of them its user looks at what goes wrong."""
LAST = 20
"""Losses that make the outcome."""


@dataclass(frozen=True)
class Case:
    """One judgement: truth says for each rule code whether its fault is there. moment: when the layer was measured."""

    family: str
    name: str
    seed: int
    moment: str
    layer: LayerFlow
    needed: Needed
    history: History | None
    truth: Mapping[str, bool]


Group = Callable[[], list[Case]]


# --- memory: the same task, cell and seed, begun in ways that remember for different times ---------------------------


def memory(task_name: str, cell: str, seed: int) -> list[Case]:
    """Vanishing: this one fails (under a quarter of the best skill), and another beginning of the same run learns."""
    task = TASKS[task_name]()
    gated = ("default", "keep 1", "keep 2", "chrono")
    ways = gated if cell != "RNN" else ("default", "orthogonal 0.8", "orthogonal 0.9", "orthogonal 1")
    runs = {way: _trained(task, cell, way, seed) for way in ways}
    skill = {way: 1 - run.late(LAST) / task.chance for way, (_, run) in runs.items()}
    best = max(skill.values())
    cases = []
    for way, (before, run) in runs.items():
        learned, failed = skill[way] > best / 2, skill[way] < best / 4
        clear = best > 0.2 and (learned or failed)
        fault = {"TT101": failed, "TT102": False, "TT103": False} if clear else {}
        name = f"{task_name}, {cell}, {way}"
        family = "unclear" if not clear else "vanishing" if failed else "healthy"
        cases.append(_case(family, name, seed, "before", before, task, None, fault))
        assert run.network is not None
        during = measured(run.network, task, seed)
        plateau = _plateau(run, task)
        still = {"TT190": plateau and not failed} if clear and plateau is not None else {}
        cases.append(_case(family, name, seed, "during", during, task, run.history(run.kept_at), fault | still))
    return cases


def _trained(task: Task, cell: str, way: str, seed: int, **options: Any) -> tuple[LayerFlow, Training]:
    network = _network(task, cell, way, seed)
    before = measured(network, task, seed)
    return before, train(network, task, seed, STEPS, snapshot=STEPS // 2, **options)


def _network(task: Task, cell: str, way: str, seed: int, hidden: int = 24, **options: str) -> Network:
    torch.manual_seed(seed)
    network = Network(cell, task.inputs, task.outputs, hidden, **options)
    begin(network.rnn, way, task.lag + 1)
    return network


def _plateau(run: Training, task: Task) -> bool | None:
    """Whether training from the snapshot to its end gained nothing: under 3 % of chance. None where it is not clear.

    Nor is it clear of a task that is solved, to a tenth of chance: its loss has nowhere to fall.
    """
    late = run.late(LAST)
    if not late > 0.1 * task.chance or not np.isfinite(late):
        return None
    gain = (np.mean(run.losses[run.kept_at - LAST : run.kept_at]) - late) / task.chance
    return True if gain < 0.03 else False if gain > 0.1 else None


def _case(
    family: str,
    name: str,
    seed: int,
    moment: str,
    layer: LayerFlow,
    task: Task,
    history: History | None,
    truth: Mapping[str, bool],
) -> Case:
    return Case(family, name, seed, moment, layer, needs(layer, task.lag if task.told else None), history, truth)


# --- broken: memory is in order, something else is not -----------------------------------------------------------------


def broken(cause: str, task_name: str, cell: str, seed: int) -> list[Case]:
    """Begun with chrono, the lag told; what is wrong is the labels, the learning rate, the size, or nothing."""
    task = TASKS[task_name]()
    network = _network(task, cell, "chrono", seed, hidden=1 if cause == "one unit" else 24)
    rate = {"tiny rate": 1e-6, "huge rate": 3.0}.get(cause, 1e-2)
    shuffled = cause == "shuffled labels"

    def loss(output: Tensor, y: Tensor) -> Tensor:
        return task.loss(output, y.roll(1, 0) if shuffled else y)

    run = train(
        network,
        task,
        seed,
        STEPS,
        optimizer=lambda parameters: torch.optim.Adam(parameters, rate),
        snapshot=STEPS // 2,
        loss=loss,
    )
    assert run.network is not None
    layer = measured(run.network, task, seed, demand=False)
    plateau = _plateau(run, task)
    truth = {"TT103": False, "TT102": False}
    if plateau is not None and cause != "huge rate":
        truth["TT190"] = plateau
    family = "healthy" if cause == "nothing" else "not a gradient problem"
    needed = Needed(layer.name, (task.lag,), "user")
    return [
        Case(family, f"{cause}: {task_name}, {cell}", seed, "during", layer, needed, run.history(run.kept_at), truth)
    ]


# --- cut: an exact zero, by construction; and its neighbours, tiny and alive -------------------------------------------


def cut(kind: str, seed: int) -> list[Case]:
    """The label is float64 autograd's: whether the gradient at the state of the needed lag is exactly zero."""
    name, way, change, scale, options = _CUTS[kind]
    task = TASKS["cue 20"]()
    network = _network(task, name, way, seed, **options)
    with torch.no_grad():
        change(network.rnn)
    layer = measured(network, task, seed, demand=False, scale=scale)
    zero = not float(_state_gradient(network, task, seed, scale).abs().max()) > 0
    needed = Needed(layer.name, (task.lag,), "user")
    truth = {"TT103": zero, "TT102": False} | ({"TT101": False} if zero else {})
    return [Case("cut" if zero else "tiny and alive", kind, seed, "before", layer, needed, None, truth)]


def short_window(task_name: str, cell: str, short: int, seed: int) -> list[Case]:
    """Windows of `short` steps out of a task that needs more: the user says which lag."""
    task = TASKS[task_name]()
    x, y = task.draw(64, torch.Generator().manual_seed(seed))
    window = Task(task.inputs, task.outputs, task.lag, lambda *_: (x[-short:], y), task.loss, task.chance, told=True)
    network = _network(task, cell, "default", seed)
    layer = measured(network, window, seed, demand=False)
    fault = short <= task.lag
    truth = {"TT103": fault, "TT190": False, "TT102": False} | ({"TT101": False} if fault else {})
    family = "wrong window" if fault else "window long enough"
    return [_case(family, f"{task_name}, {cell}, {short} steps", seed, "before", layer, window, None, truth)]


def _nothing(layer: Any) -> None:
    pass


def _relu_off(layer: Any) -> None:
    layer.bias_ih_l0.fill_(-8.0)


def _gates_shut(layer: Any) -> None:
    layer.bias_ih_l0[: 2 * layer.hidden_size] = -1000.0


def _gates_nearly_shut(layer: Any) -> None:
    layer.bias_ih_l0[: 2 * layer.hidden_size] = -9.0


_CUTS: dict[str, tuple[str, str, Callable[[Any], None], float, dict[str, Any]]] = {
    "relu units all off": ("RNN", "default", _relu_off, 1.0, {"nonlinearity": "relu"}),
    "relu units": ("RNN", "default", _nothing, 1.0, {"nonlinearity": "relu"}),
    "inputs in thousands, tanh": ("RNN", "default", _nothing, 3e4, {}),
    "inputs of 3, tanh": ("RNN", "default", _nothing, 3.0, {}),
    "keep and reset gates at -1000": ("GRU", "default", _gates_shut, 1.0, {}),
    "keep and reset gates at -9": ("GRU", "default", _gates_nearly_shut, 1.0, {}),
    "input and forget gates at -1000": ("LSTM", "default", _gates_shut, 1.0, {}),
    "recurrent gain 0.001": ("RNN", "gain 0.001", _nothing, 1.0, {}),
}


def _state_gradient(network: Network, task: Task, seed: int, scale: float) -> Tensor:
    """∂L/∂(state at the needed lag) by float64 autograd, the layer called once for the steps before and once for
    those after."""
    double = Network(
        type(network.rnn).__name__, task.inputs, task.outputs, network.rnn.hidden_size, **_kind(network.rnn)
    )
    double.load_state_dict(network.state_dict())
    double.double()
    x, y = task.draw(128, torch.Generator().manual_seed(10_000 + seed))
    x = scale * x.double()
    until = len(x) - task.lag
    with torch.no_grad():
        state = double.rnn(x[:until])[1]
    leaves = [part.requires_grad_() for part in (state if isinstance(state, tuple) else (state,))]
    output = double.rnn(x[until:], tuple(leaves) if len(leaves) > 1 else leaves[0])[0]
    return torch.cat([g.flatten() for g in torch.autograd.grad(task.loss(double.head(output), y), leaves)])


def _kind(layer: nn.RNNBase) -> dict[str, str]:
    return {"nonlinearity": layer.nonlinearity} if isinstance(layer, nn.RNN) else {}


# --- growth: large recurrent gains, by gradient descent without and with clipping ----------------------------------------

DESCENT = 150


def growth(cell: str, way: str, nonlinearity: str, rate: float, seed: int) -> list[Case]:
    """Exploding: without clipping something is thrown off that is not when the same run is clipped at its median norm.

    Thrown off: a loss that is not finite or leaps beyond three times chance, or weights that one step moves by half of their
    length; or a skill under half of what the clipped run has. Unclear: the clipped run is thrown off too.
    """
    task = TASKS["cue 40"]()
    options = {"nonlinearity": nonlinearity} if nonlinearity else {}
    first = _network(task, cell, way, seed, hidden=32, **options)
    before = measured(first, task, seed, demand=False)

    def descend(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, rate)

    free = train(first, task, seed, DESCENT, optimizer=descend, clip=None, keep_burst=True)
    usual = float(np.median([norm for norm in free.norms if np.isfinite(norm)] or [1.0]))
    again = _network(task, cell, way, seed, hidden=32, **options)
    held = train(again, task, seed, DESCENT, optimizer=descend, clip=min(usual, 1.0))
    lost, saved = (1 - run.late(LAST) / task.chance for run in (free, held))
    thrown = _thrown(free, task) or (saved > 0.2 and lost < saved / 2)
    clear = not (thrown and _thrown(held, task))
    family = "unclear" if not clear else "exploding" if thrown else "not exploding"
    truth = {"TT102": thrown} if clear else {}
    name = f"{cell} {nonlinearity} {way}, rate {rate:g}".replace("  ", " ")
    unknown = Needed(before.name, (), "unknown")
    history = free.history(DESCENT)
    cases = [
        Case(family, name, seed, "before", before, unknown, None, truth),
        Case(family, name, seed, "before, norms known", before, unknown, history, truth),
    ]
    if free.burst is not None:
        at_burst = measured(free.burst, task, seed, demand=False)
        cases.append(Case(family, name, seed, "at the largest norm", at_burst, unknown, history, truth))
    return cases


def _thrown(run: Training, task: Task) -> bool:
    return not np.isfinite(run.losses).all() or max(run.losses) > 3 * task.chance or run.leap > 0.5


# --- no dependence, and the set-up of weights -------------------------------------------------------------------------------


def independent(cell: str, rho: float, seed: int) -> list[Case]:
    """A target that has nothing to do with the inputs: nothing is needed, so nothing is at fault."""
    from throughtime.tasks.synthetic import autoregressive

    def draw(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return autoregressive(60, batch, generator, rho=rho), torch.randn(batch, 1, generator=generator)

    task = Task(1, 1, 0, draw, lambda output, y: nn.functional.mse_loss(output[-1], y), 1.0)
    layer = measured(_network(task, cell, "default", seed), task, seed)
    truth: dict[str, bool] = dict.fromkeys(("TT101", "TT102", "TT103", "TT190"), False)
    return [_case("no dependence", f"{cell}, inputs AR({rho:g})", seed, "before", layer, task, None, truth)]


def set_up(kind: str, cell: str, seed: int) -> list[Case]:
    """Weights set as the kind says, some trained for ten steps afterwards: then the set-up is gone."""
    task = TASKS["delayed input 8"]()
    network = _network(task, cell, "default", seed)
    with torch.no_grad():
        _SET_UPS[kind](network.rnn)
    layer = measured(network, task, seed, demand=False)
    stacked = kind.startswith("orthogonal stack") and cell != "RNN"
    both = kind == "all biases of block 1 at one" and cell == "LSTM"
    unknown = Needed(layer.name, (), "unknown")
    truth = {"TT401": stacked, "TT402": both}
    return [Case("set-up", f"{kind}, {cell}", seed, "before", layer, unknown, None, truth)]


def _orthogonal(layer: Any, gain: float = 1.0) -> None:
    nn.init.orthogonal_(layer.weight_hh_l0, gain)


def _orthogonal_by_gate(layer: Any) -> None:
    for block in layer.weight_hh_l0.split(layer.hidden_size):
        nn.init.orthogonal_(block)


def _block_one(layer: Any, names: tuple[str, ...], value: float = 1.0) -> None:
    size = layer.hidden_size
    for name in names:
        getattr(layer, name)[size : 2 * size] = value


BIASES = ("bias_ih_l0", "bias_hh_l0")
_SET_UPS: dict[str, Callable[[Any], Any]] = {
    "default": _nothing,
    "orthogonal stack": _orthogonal,
    "orthogonal stack, gain 1.41": partial(_orthogonal, gain=2**0.5),
    "orthogonal by gate": _orthogonal_by_gate,
    "xavier": lambda layer: nn.init.xavier_uniform_(layer.weight_hh_l0),
    "all biases of block 1 at one": partial(_block_one, names=BIASES),
    "one bias of block 1 at one": partial(_block_one, names=BIASES[:1]),
    "both biases of block 1 at a half": partial(_block_one, names=BIASES, value=0.5),
}


# --- all of them ------------------------------------------------------

SEEDS = (0, 1)
"""Even seeds set the thresholds, odd ones are judged."""
REPEATED = ("cue 20", "near and far 30", "digits 17")
"""Tasks whose labels are seldom unclear: run with four seeds."""
BROKEN = (("cue 20", "GRU"), ("cue 20", "LSTM"), ("digits 17", "GRU"), ("digits 17", "LSTM"))


def groups() -> list[tuple[str, Group]]:
    """(name, function that makes the cases) of every group, the slow ones first."""
    found: list[tuple[str, Group]] = []

    def add(what: Callable[..., list[Case]], *arguments: Any) -> None:
        found.append((f"{what.__name__}: {', '.join(map(str, arguments))}", partial(what, *arguments)))

    for task, cell in itertools.product(TASKS, ("GRU", "LSTM", "RNN")):
        for seed in range(4) if task in REPEATED else SEEDS:
            add(memory, task, cell, seed)
    gains = [("RNN", f"gain {g}", "tanh", 0.1) for g in (1, 1.5, 2, 3)]
    gains += [("RNN", f"identity {g}", "relu", 0.1) for g in (0.95, 1, 1.03, 1.06)]
    gains += [("RNN", f"orthogonal {g}", "tanh", 0.1) for g in (1, 1.2)]
    gains += [(cell, f"gain {g}", "", 0.1) for cell in ("GRU", "LSTM") for g in (1, 4, 8)]
    gains += [("RNN", "orthogonal 1.2", "tanh", 0.003), ("RNN", "identity 1.03", "relu", 0.003)]
    gains += [(cell, "gain 4", "", 0.003) for cell in ("GRU", "LSTM")]
    for (cell, way, kind, rate), seed in itertools.product(gains, SEEDS):
        add(growth, cell, way, kind, rate, seed)
    causes = ("nothing", "shuffled labels", "tiny rate", "one unit", "huge rate")
    for cause, (task, cell), seed in itertools.product(causes, BROKEN, SEEDS):
        add(broken, cause, task, cell, seed)
    for kind, seed in itertools.product(_CUTS, SEEDS):
        add(cut, kind, seed)
    for (task, short), cell, seed in itertools.product(
        (("cue 20", 15), ("cue 20", 21), ("digits 17", 16)), ("GRU", "LSTM", "RNN"), SEEDS
    ):
        add(short_window, task, cell, short, seed)
    for cell, rho, seed in itertools.product(("GRU", "LSTM", "RNN"), (0.0, 0.9), range(6)):
        add(independent, cell, rho, seed)
    for kind, cell, seed in itertools.product(_SET_UPS, ("GRU", "LSTM", "RNN"), SEEDS):
        add(set_up, kind, cell, seed)
    return found


def made(place: int) -> list[Case]:
    """The cases of one group, in a process of its own."""
    return groups()[place][1]()
