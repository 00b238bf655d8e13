"""Other workers, the same sums: joblib's, Ray's, and the processes of a torch.distributed job."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch

import throughtime as tt
from test_accumulate import same
from test_stream import data, error, layer, net
from throughtime.errors import InputError
from throughtime.streaming.state import state_of

ROUNDING = 1e-10  # sums are added in another order


def test_joblib_tells_the_same():
    batches = data(11)
    wanted = tt.diagnose(net(), batches, error, stop_when=None).flow
    got = tt.diagnose(net(), batches, error, stop_when=None, engine="joblib", workers=2).flow
    same(got.layers["rnn"], wanted.layers["rnn"], rtol=ROUNDING)
    assert got.layers["rnn"].intervals is not None
    assert got.stream == wanted.stream


def test_all_engines_stop_at_the_same_batch():
    serial, parallel = (
        tt.diagnose(net().eval(), data(40, size=50), error, stop_when=0.5, engine=engine, workers=2).flow
        for engine in ("serial", "joblib")
    )
    assert serial.stream == parallel.stream
    assert serial.stream.batches < 40


def test_workers_states_go_on_in_another_engine(tmp_path):
    file = tmp_path / "state.pt"
    layer(net(), data(9), error, engine="joblib", workers=2, resume=file, limit=6)
    same(layer(net(), data(9), error, resume=file), layer(net(), data(9), error), rtol=ROUNDING)


def test_what_cannot_be_sent_is_told():
    model = net()
    model.lock = torch.futures.Future()
    with pytest.raises(InputError, match="cannot be sent to another process"):
        layer(model, data(3), error, engine="joblib", workers=2)


def test_a_batch_that_cannot_be_sent_is_told():
    batches = [(x, y, torch.futures.Future()) for x, y in data(9)]
    with pytest.raises(InputError, match=r"batch 1, which cannot be sent to another process"):
        layer(net(), batches, lambda model, batch: error(model, batch[:2]), engine="joblib", workers=2)


def not_a_number(model, batch):
    return error(model, batch) * (torch.nan if batch[0][0, 0, 0] > 0.5 else 1)


def test_an_error_in_a_worker_keeps_its_words():
    with pytest.raises(InputError) as found:
        layer(net(), data(9), not_a_number, engine="joblib", workers=2)
    assert str(found.value).startswith("got nan in the gradient")
    assert found.value.expected == "finite numbers"


@pytest.mark.parametrize("engine", ["joblib", "ray"])
def test_a_missing_package_is_named(monkeypatch, engine):
    monkeypatch.setitem(sys.modules, engine, None)
    with pytest.raises(InputError, match=rf"throughtime\[{engine}\]"):
        layer(net(), data(3), error, engine=engine)


def test_distributed_needs_a_job():
    with pytest.raises(InputError, match=r"outside a torch\.distributed job"):
        layer(net(), data(3), error, engine="distributed")


def test_a_job_goes_on_with_as_many_processes_only(tmp_path, monkeypatch):
    """Batches are numbered by the number of processes: with another one, some would be counted twice and some never."""
    asked = {"engine": "distributed", "resume": tmp_path / "state.pt"}
    group = torch.distributed
    group.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        layer(net(), data(3), error, **asked)
        with_two = lambda model, task, file, rng, processes: state_of(model, task, file, rng, 2)  # noqa: E731
        monkeypatch.setattr("throughtime.streaming.distributed.state_of", with_two)
        with pytest.raises(InputError, match="another number of processes"):
            layer(net(), data(3), error, **asked)
    finally:
        group.destroy_process_group()


PROCESS = """
    import sys
    sys.path.insert(0, {tests!r})
    import torch
    from torch import distributed
    from test_stream import data, error, layer, net

    rank = int(sys.argv[1])
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method="file://{meeting}", rank=rank, world_size=2)
    told = layer(net(), iter(data(7)[rank::2]), error, engine="distributed")
    torch.save(told, "{out}." + str(rank))
    distributed.destroy_process_group()
"""


def test_two_processes_of_a_job_tell_the_whole(tmp_path):
    out = tmp_path / "told.pt"
    tests = os.path.dirname(__file__)
    script = textwrap.dedent(PROCESS.format(tests=tests, meeting=tmp_path / "meeting", out=out))
    processes = [subprocess.Popen([sys.executable, "-c", script, str(rank)]) for rank in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    wanted = layer(net(), data(7), error)
    for rank in range(2):
        same(torch.load(f"{out}.{rank}", weights_only=False), wanted, rtol=ROUNDING)


FAILING = """
    import os, signal, sys
    sys.path.insert(0, {tests!r})
    import torch
    from torch import distributed
    from test_stream import data, error, layer, net

    rank, how, died = int(sys.argv[1]), sys.argv[2], {died!r}
    torch.set_num_threads(1)

    def failing(model, batch):
        if rank == 1 and torch.equal(batch[0], data(7)[3][0]) and not os.path.exists(died):
            open(died, "w").close()
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            return error(model, batch) * torch.nan
        return error(model, batch)

    distributed.init_process_group("gloo", init_method="file://" + sys.argv[3], rank=rank, world_size=2)
    torch.save(layer(net(), iter(data(7)[rank::2]), failing, engine="distributed", resume={state!r}), {out!r} + str(rank))
"""


def both_of(script, *arguments):
    """Two processes of a job, and what they wrote of errors."""
    started = [
        subprocess.Popen([sys.executable, "-c", script, str(rank), *arguments], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    told = [process.communicate(timeout=60)[1] for process in started]
    return [process.returncode for process in started], told


@pytest.mark.slow
@pytest.mark.parametrize("how", ["error", "kill"])
def test_where_one_process_fails_none_waits_and_all_go_on(tmp_path, how):
    """A batch that is no number, or kill -9, in process 1: then process 0 ends too, and the next job tells the whole."""
    out, died, state = (str(tmp_path / name) for name in ("told", "died", "state.pt"))
    tests = os.path.dirname(__file__)
    script = textwrap.dedent(FAILING.format(tests=tests, died=died, state=state, out=out))
    codes, told = both_of(script, how, str(tmp_path / "first"))
    assert 0 not in codes
    if how == "error":
        assert "an error in process 1 of the job (got nan in the gradient" in told[0]
        assert "in batch 3" in told[1]
    else:
        assert codes[1] == -signal.SIGKILL
    assert both_of(script, how, str(tmp_path / "second"))[0] == [0, 0]
    wanted = layer(net(), data(7), error)
    for rank in range(2):
        same(torch.load(f"{out}{rank}", weights_only=False), wanted, rtol=ROUNDING)


class Deadly:
    """A loss that kills the process that works on the batch numbered 5, the first times."""

    def __init__(self, folder, times):
        self.folder, self.times, self.parent = str(folder), times, os.getpid()

    def __call__(self, model, batch):
        x, y, number = batch
        if number == 5 and os.getpid() != self.parent and len(os.listdir(self.folder)) < self.times:
            with open(os.path.join(self.folder, str(os.getpid())), "w"):
                os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.02)
        return error(model, (x, y))


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray", reason="ray is not installed (pip install 'throughtime[ray]')")
    paths = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}},
    )
    yield ray
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 3])
def test_ray_tells_the_same_and_a_killed_worker_loses_nothing(cluster, tmp_path, times):
    numbered = [(x, y, number) for number, (x, y) in enumerate(data(9))]
    got = layer(net(), numbered, Deadly(tmp_path, times), engine="ray", workers=2)
    assert len(os.listdir(tmp_path)) == times
    same(got, layer(net(), data(9), error), rtol=ROUNDING)
