"""A recorded step is the step without the recorder to the last bit, and nothing stays behind, whatever happens."""

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

import throughtime as tt
from record_cases import CASES, KINDS, READS, Case, Net, built, data, layer, loss_of, plain
from throughtime.errors import RecordError

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks_always_called",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
)
GLOBAL = [name for name in vars(torch_module) if name.startswith("_global_") and name.endswith(("hooks", "called"))]


def structure(model: nn.Module) -> dict[str, Any]:
    """All that a recorder could leave behind, but the numbers."""
    found: dict[str, Any] = {name: list(getattr(torch_module, name)) for name in GLOBAL}
    found["modes"] = len(_get_current_function_mode_stack())
    found["gradients enabled"] = torch.is_grad_enabled()
    for name, module in model.named_modules():
        found[f"{name}: keys"] = list(vars(module))
        found[f"{name}: training"] = module.training
        found[f"{name}: hooks"] = [list(getattr(module, hooks).values()) for hooks in HOOKS if hasattr(module, hooks)]
    for name, p in model.named_parameters(remove_duplicate=False):
        hooks = [len(getattr(p, each) or ()) for each in ("_backward_hooks", "_post_accumulate_grad_hooks")]
        found[f"{name}: parameter"] = (id(p), p.requires_grad, p.is_leaf, hooks)
    return found


def numbers(build: Callable[[], Case], recorded: bool) -> dict[str, Tensor | None]:
    """Every output of every module, every gradient, parameter, buffer and the random state after a step."""
    model, step = built(build)
    found: dict[str, Tensor | None] = {}

    def keep(name: str) -> Callable:
        def hook(module: nn.Module, args: Any, results: Any) -> None:
            parts = results if isinstance(results, tuple) else (results,)
            flat = [each for part in parts for each in (part if isinstance(part, tuple) else (part,))]
            for place, each in enumerate(flat):
                found[f"output {len(found)} of {name}, {place}"] = each.detach().clone()
                if each.requires_grad:
                    each.register_hook(lambda g: found.update({f"gradient {len(found)} at {name}": g.clone()}))

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in model.named_modules()]
    before = structure(model)
    if recorded:
        with tt.record(model) as rec:
            value = step(model)
        rec.traces()
        assert structure(model) == before
    else:
        value = step(model)
    for handle in handles:
        handle.remove()
    if isinstance(value, tuple):
        found |= {f"returned {place}": part for place, part in enumerate(value)}
    found |= {f"gradient of {name}": p.grad for name, p in model.named_parameters()}
    found |= {name: value.detach() for name, value in (*model.named_parameters(), *model.named_buffers())}
    return found | {"random state": torch.get_rng_state()}


def assert_same_bits(build: Callable[[], Case]) -> None:
    expected, got = numbers(build, recorded=False), numbers(build, recorded=True)
    assert list(expected) == list(got)
    for name, value in expected.items():
        other = got[name]
        if value is None or other is None:
            assert value is other, name
        else:
            assert torch.equal(value, other), name
            assert value.stride() == other.stride(), name
            assert value.dtype == other.dtype, name


@pytest.mark.parametrize("name", CASES)
def test_same_bits(name):
    assert_same_bits(CASES[name])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("read", READS)
def test_same_bits_for_losses(kind, read):
    assert_same_bits(lambda: (layer(kind, batch_first=True), lambda m: READS[read](*m(data())).backward()))


@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_under_autocast(kind):
    def step(m: nn.Module) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = m(data().float()).float().square().mean()
        loss.backward()

    assert_same_bits(lambda: (Net(layer(kind)).float(), step))


@pytest.mark.parametrize("name", ["tied", "penalties", "tokens"])
def test_same_training(name):
    """Ten recorded steps of Adam end where ten plain ones do."""

    def train(recorded: bool) -> list[Tensor]:
        model, step = built(CASES[name])
        optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(10):
            optimiser.zero_grad()
            if recorded:
                with tt.record(model):
                    step(model)
            else:
                step(model)
            optimiser.step()
        return [p.detach() for p in model.parameters()]

    for a, b in zip(train(False), train(True), strict=True):
        assert torch.equal(a, b)


def test_flat_weights_stay_the_parameters():
    model = layer("lstm")
    before = [id(weight) for weight in model._flat_weights]
    with tt.record(model) as rec:
        model(data())[0].sum().backward()
        assert [id(weight) for weight in model._flat_weights] == before
    rec.flow()
    assert [id(weight) for weight in model._flat_weights] == before == [id(p) for p in model.parameters()]


def test_nothing_hangs_on_the_model_inside_the_block():
    """So a copy or a pickle made there is clean, too."""
    model = Net(layer())
    before = structure(model)
    with tt.record(model) as rec:
        inside = structure(model)
        twin = copy.deepcopy(model)
        stored = pickle.loads(pickle.dumps(model))
        for each in (twin, stored):
            loss_of(each).backward()
        plain(model)
    changed = {key for key in before if before[key] != inside[key]}
    assert changed <= {*GLOBAL, "modes"}
    assert len(rec.calls) == 1
    assert rec.flow().residual <= 1e-10


def test_model_can_be_saved_afterwards():
    model = Net(layer())
    with tt.record(model) as rec:
        plain(model)
    rec.flow()
    buffer = io.BytesIO()
    torch.save(model, buffer)
    assert structure(copy.deepcopy(model)).keys() == structure(model).keys()


# Exceptions.


class Failing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        raise ArithmeticError("in the backward pass")


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def in_forward(m: Net) -> None:
    m.rnn(data(2, 3, 99))


def in_a_hook(m: Net) -> None:
    handle = m.rnn.register_forward_pre_hook(interrupted)
    try:
        m(data())
    finally:
        handle.remove()


def in_the_loss(m: Net) -> None:
    m(data()).view(-1, 7)


def above_the_layer(m: Net) -> None:
    Failing.apply(m(data())).sum().backward()


def below_the_layer(m: Net) -> None:
    m(Failing.apply(data().requires_grad_())).sum().backward()


FAILURES = {
    in_forward: RuntimeError,
    in_a_hook: KeyboardInterrupt,
    in_the_loss: RuntimeError,
    above_the_layer: ArithmeticError,
    below_the_layer: ArithmeticError,
}


@pytest.mark.parametrize("fail", FAILURES, ids=lambda fail: fail.__name__)
@pytest.mark.parametrize("caught", ["outside", "inside"])
def test_exceptions_pass_and_leave_nothing(fail, caught):
    model = Net(layer("lstm"))
    before = structure(model)
    rec = tt.record(model)
    if caught == "outside":
        with pytest.raises(FAILURES[fail]), rec:
            fail(model)
    else:
        with rec, pytest.raises(FAILURES[fail]):
            fail(model)
    assert structure(model) == before
    with pytest.raises(RecordError, match=r"got .*; expected .*; do this: "):
        rec.flow()

    with rec:  # the same record again
        plain(model)
    assert rec.flow().residual <= 1e-10


def test_a_call_that_failed_does_not_hide_one_that_worked():
    model = Net(layer())
    other = layer()
    with tt.record(model) as rec:
        for fail in (in_forward, in_a_hook):
            with pytest.raises(FAILURES[fail]):
                fail(model)
        other(data())[0].sum().backward()
        plain(model)
    assert [call.layer for call in rec.calls] == ["rnn"]
    assert rec.flow().residual <= 1e-10


def test_a_step_that_raised_after_its_backward_pass_can_be_explained():
    model = Net(layer())
    rec = tt.record(model)

    def step() -> None:
        plain(model)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), rec:
        step()
    assert rec.flow().residual <= 1e-10


# Records within and after one another.


def test_nested_records_agree():
    model = Net(layer())
    with tt.record(model) as outer, tt.record(model) as inner:
        plain(model)
    flows = [outer.flow(), inner.flow()]
    assert flows[0].layers["rnn"].parameters["rnn.weight_hh_l0"].share.tolist() == (
        flows[1].layers["rnn"].parameters["rnn.weight_hh_l0"].share.tolist()
    )
    assert max(flow.residual for flow in flows) <= 1e-10


def test_records_of_two_models_in_one_block():
    one, two = Net(layer()), Net(layer("lstm"))
    with tt.record(one) as first, tt.record(two) as second:
        (loss_of(one) + loss_of(two)).backward()
    assert [first.flow().layers["rnn"].cell, second.flow().layers["rnn"].cell] == ["gru", "lstm"]


def test_inside_another_mode():
    class Counting(TorchFunctionMode):
        seen = 0

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.seen += func is torch.gru
            return func(*args, **(kwargs or {}))

    for order in (0, 1):
        model, mode = Net(layer()), Counting()
        rec = tt.record(model)
        outer, inner = (mode, rec) if order else (rec, mode)
        with outer, inner:
            plain(model)
        assert mode.seen == 1
        assert rec.flow().residual <= 1e-10


def test_one_record_cannot_be_opened_twice():
    rec = tt.record(Net(layer()))
    with rec, pytest.raises(RecordError, match="already open"):
        rec.__enter__()
    assert not _get_current_function_mode_stack()


def test_a_record_used_again_forgets_the_first_step():
    model = Net(layer())
    rec = tt.record(model)
    for length in (3, 5):
        with rec:
            loss_of(model, data(length, 2, 4)).backward()
        assert rec.flow().steps == length


# Lifetimes.


class Mark:
    """Something to see die."""


def test_nothing_keeps_the_model_or_the_graph_alive():
    model = Net(layer("lstm"))
    with tt.record(model) as rec:
        x = data().requires_grad_()
        out = model.rnn(x)[0]
        loss = model.head(out).square().sum()
        mark = Mark()
        out.grad_fn.metadata["mark"] = mark  # lives as long as the node
        held = [weakref.ref(each) for each in (x, out, loss, mark)]
        loss.backward(retain_graph=True)
    assert held[3]() is not None
    del x, out, loss, mark
    gc.collect()
    assert [each() for each in held] == [None] * 4  # though the record lives
    flow = rec.flow()
    references = [weakref.ref(rec), weakref.ref(model), weakref.ref(model.rnn.weight_hh_l0), weakref.ref(rec.calls[0])]
    del rec, model
    gc.collect()
    assert [each() for each in references] == [None] * 4  # though the flow lives
    assert flow.residual <= 1e-10


def test_a_refused_call_keeps_nothing_alive():
    model = layer()
    with tt.record(model) as rec:
        x, first = data().requires_grad_(), model.bias_hh_l0
        model.bias_hh_l0 = model.bias_ih_l0
        held = weakref.ref(x)
        model(x)[0].sum().backward()
        model.bias_hh_l0 = first
    del x
    gc.collect()
    assert held() is None
    with pytest.raises(tt.errors.UnsupportedError):
        rec.flow()


def test_a_graph_kept_by_the_user_is_not_heard_after_the_block():
    model = Net(layer())
    with tt.record(model) as rec:
        loss = loss_of(model)
        loss.backward(retain_graph=True)
    before = rec.traces()[0].weight_gradients["weight_hh"].clone()
    loss.backward()
    assert torch.equal(rec.traces()[0].weight_gradients["weight_hh"], before)


def test_an_input_written_to_after_the_block_changes_nothing():
    model, x = Net(layer()), data()
    with tt.record(model) as rec:
        loss_of(model, x).backward()
    x.zero_()
    assert rec.flow().residual <= 1e-10
