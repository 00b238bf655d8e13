"""The Lightning callback measures, logs and leaves the training as it is."""

import csv
import subprocess
import sys
import warnings
from importlib import import_module

import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_modules
from torch.overrides import _get_current_function_mode_stack

import throughtime as tt
from throughtime.errors import InputError

pytest.importorskip("lightning.pytorch")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*(num_workers|log_every_n_steps|val_dataloader|treespec).*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
STEPS, BATCH = 12, 5


def hooks() -> tuple[int, int, int]:
    """Everything global that a record opens."""
    pre, post = torch_modules._global_forward_pre_hooks, torch_modules._global_forward_hooks
    return len(pre), len(post), len(_get_current_function_mode_stack())


def module(package: str = "lightning.pytorch", **given):
    """A tiny network: a GRU (and an LSTM above it), the loss on the last step."""
    pl = import_module(package)

    class Tiny(pl.LightningModule):
        def __init__(self, two=False, layers=1, manual=False, raise_at=None, twice=False):
            super().__init__()
            self.rnn = nn.GRU(3, 8, num_layers=layers)
            self.top = nn.LSTM(8, 6) if two else None
            self.head = nn.Linear(6 if two else 8, 2)
            self.drop = nn.Dropout(0.2)
            self.automatic_optimization = not manual
            self.raise_at, self.twice = raise_at, twice

        def training_step(self, batch, batch_idx):
            x = batch.transpose(0, 1)
            out = self.rnn(x)[0]
            if self.twice:
                out = out + self.rnn(x.flip(0))[0]
            out = self.drop(out)
            out = self.top(out)[0] if self.top is not None else out
            if batch_idx == self.raise_at:
                raise RuntimeError("the user's own")
            loss = self.head(out[-1]).square().mean()
            if not self.automatic_optimization:
                optimizer = self.optimizers()
                for _ in range(2):
                    optimizer.zero_grad()
                    self.manual_backward(self.head(self.rnn(x)[0][-1]).square().mean())
                    optimizer.step()
            return loss

        def validation_step(self, batch, batch_idx):
            self.rnn(batch.transpose(0, 1))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 1e-2)

    torch.manual_seed(0)
    return Tiny(**given)


def fit(tmp_path, model, callback=None, package: str = "lightning.pytorch", validate=False, **options):
    """Six batches, two epochs."""
    pl = import_module(package)
    torch.manual_seed(1)
    data = torch.randn(6 * BATCH, STEPS, 3)
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH, shuffle=True)
    logger = import_module(f"{package}.loggers").CSVLogger(tmp_path)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=logger,
        callbacks=[callback] if callback else [],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=1 if validate else 0,
        **options,
    )
    trainer.fit(model, loader, loader if validate else None)
    return logger


def logged(logger) -> list[dict[str, str]]:
    logger.save()
    with open(f"{logger.log_dir}/metrics.csv") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_it_logs_one_number_a_layer_at_its_steps(tmp_path, package):
    callback = tt.lightning.GradientHorizon(every=5)
    rows = logged(fit(tmp_path, module(package, two=True), callback, package))
    assert [int(row["step"]) for row in rows] == [0, 5, 10] == list(callback.flows)
    for row, flow in zip(rows, callback.flows.values(), strict=True):
        assert set(row) == {"step", "throughtime/rnn/gradient_horizon", "throughtime/top/gradient_horizon"}
        for name, layer in flow.layers.items():
            expected = layer.steps if layer.horizon[0.01] is None else layer.horizon[0.01]
            assert float(row[f"throughtime/{name}/gradient_horizon"]) == expected
    assert callback.last.flow is callback.flows[10]
    assert hooks() == (0, 0, 0)


def test_more_is_logged_where_it_is_asked_for(tmp_path):
    callback = tt.lightning.GradientHorizon(every=6, needed_lag=4, log=("gradient_horizon", "residual"), keep=1)
    rows = logged(fit(tmp_path, module(), callback))
    assert set(rows[0]) == {
        "step",
        "throughtime/rnn/gradient_horizon",
        "throughtime/rnn/residual",
        "throughtime/rnn/arriving_at_4",
    }
    assert float(rows[-1]["throughtime/rnn/arriving_at_4"]) == pytest.approx(
        callback.last.flow.layers["rnn"].arriving[4]
    )
    assert callback.last.needed[0].lags == (4,)
    assert list(callback.flows) == [6]


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({}, {}),
        ({"two": True}, {"accumulate_grad_batches": 2}),
        ({"manual": True}, {}),
        ({}, {"validate": True, "val_check_interval": 2}),
        ({}, {"gradient_clip_val": 0.1}),
    ],
    ids=["plain", "accumulation", "manual", "validation", "clipping"],
)
def test_the_training_is_the_same_to_the_last_bit(tmp_path, given, options):
    without, beside = module(**given), module(**given)
    fit(tmp_path / "a", without, **options)
    random = torch.get_rng_state()
    callback = tt.lightning.GradientHorizon(every=1)
    fit(tmp_path / "b", beside, callback, **options)
    assert torch.equal(torch.get_rng_state(), random)
    for (name, one), other in zip(without.named_parameters(), beside.parameters(), strict=True):
        assert torch.equal(one, other), name
    assert callback.flows
    assert callback.last.flow.residual < 1e-4
    assert hooks() == (0, 0, 0)


def test_accumulated_batches_are_each_told_at_the_step_of_their_update(tmp_path):
    callback = tt.lightning.GradientHorizon(every=3)
    rows = logged(fit(tmp_path, module(), callback, accumulate_grad_batches=2))
    assert [int(row["step"]) for row in rows] == [0, 1, 3, 4]  # batches 0, 3, 6, 9


@pytest.mark.parametrize("at", [0, 3])
def test_an_exception_in_the_step_leaves_nothing_behind(tmp_path, at):
    callback = tt.lightning.GradientHorizon(every=1)
    with pytest.raises(RuntimeError, match="the user's own"):
        fit(tmp_path, module(raise_at=at), callback)
    assert hooks() == (0, 0, 0)
    assert len(callback.flows) == at


@pytest.mark.parametrize("given", [{"layers": 2}, {"twice": True}], ids=["stack", "called twice"])
def test_stacks_and_layers_called_twice(tmp_path, given):
    callback = tt.lightning.GradientHorizon(every=4)
    fit(tmp_path, module(**given), callback)
    assert callback.last.flow.residual < 1e-4


def test_what_is_not_supported_is_told_once_and_the_training_goes_on(tmp_path):
    callback, model = tt.lightning.GradientHorizon(every=1), module()
    model.rnn.bias_hh_l0 = model.rnn.bias_ih_l0
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fit(tmp_path, model, callback)
    ours = [str(each.message) for each in told if "GradientHorizon" in str(each.message)]
    assert len(ours) == 1
    assert "one tensor as both" in ours[0]
    assert callback.off
    assert not callback.flows
    assert hooks() == (0, 0, 0)


def test_a_layer_can_be_left_out(tmp_path):
    callback = tt.lightning.GradientHorizon(every=4, layers=["top"])
    fit(tmp_path, module(two=True), callback)
    assert {name for flow in callback.flows.values() for name in flow.layers} == {"top"}


@pytest.mark.parametrize(
    "options", [{"every": 0}, {"needed_lag": -1}, {"keep": 0}, {"log": "horizon"}, {"log": ["residual", "x"]}]
)
def test_wrong_options_are_refused(options):
    with pytest.raises(InputError, match="expected"):
        tt.lightning.GradientHorizon(**options)


def test_without_lightning_the_extra_is_named():
    code = (
        "import sys; sys.modules['lightning'] = sys.modules['pytorch_lightning'] = None\n"
        "import throughtime as tt\n"
        "try: tt.lightning\n"
        "except tt.errors.MissingExtraError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'throughtime[lightning]'" in done.stdout
