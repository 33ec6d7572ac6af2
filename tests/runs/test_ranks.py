"""Two processes of one run, of which one is killed, stopped, slow or at fault."""

import json
import os
import re
import signal
import socket
import subprocess
import time
from contextlib import suppress

import pytest
import torch

from cct_lightning.run_folder import RunFolder
from cct_lightning.runs.ranks import _Watch

pytestmark = pytest.mark.skipif(not hasattr(os, "fork") or not os.path.isdir("/proc/self/task"), reason="needs Linux")
TWO = (
    "fit", "-c", "digits", "-c", "ddp", "--trainer.accelerator", "cpu", "--trainer.devices", "2", "--data.per_class", "32", "--data.batch_size", "64",
    "--trainer.callbacks", "null", "--trainer.enable_progress_bar", "false", "--trainer.log_every_n_steps", "1",
)  # fmt: skip
LONG = (*TWO, "--trainer.max_epochs", "500")


def _until(condition, command, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert command.wait(0.02) is None, command.out
        assert time.monotonic() < until, command.out
        time.sleep(0.05)


@pytest.fixture
def two(forks, tmp_path):
    """Starts a long run on two processes and returns it once it trains: the command, and the pid of rank 1; leaves none behind."""
    started = []

    def start(*words, **environment):
        command = forks.start(*LONG, *words, cwd=tmp_path, **environment)
        started.append(command.pid)
        _until(lambda: any(path.stat().st_size > 300 for path in tmp_path.glob("runs/*/*/metrics.csv")), command)
        (second,) = command.children()
        started.append(second)
        return command, second

    yield start
    for pid in started:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _ends(pid, seconds=60.0):
    """Tells whether a process comes to its end within some seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def _said(command):
    """Returns the lines of a run's error, and what it found in none."""
    assert "Traceback" not in command.out, command.out
    return [line for line in command.out.splitlines() if line.startswith("error: ")]


@pytest.mark.slow
def test_r04_a_rank_that_is_killed_is_named_with_its_signal(two):
    command, second = two()
    os.kill(second, signal.SIGSEGV)
    assert command.wait(120) == 1, command.out
    assert _said(command) == [f"error: rank 1 of 2 (process {second}) was killed by SIGSEGV."]
    assert _ends(second)


@pytest.mark.slow
def test_r04_a_rank_that_is_stopped_ends_the_run_after_the_stated_time(two):
    command, second = two(CCT_RANK_TIMEOUT="10")
    os.kill(second, signal.SIGSTOP)
    time.sleep(1.5)  # for a while is no fault
    os.kill(second, signal.SIGCONT)
    assert command.wait(2) is None
    os.kill(second, signal.SIGSTOP)
    began = time.monotonic()
    assert command.wait(120) == 1, command.out
    assert time.monotonic() - began > 8
    assert _said(command) == [f"error: rank 1 of 2 (process {second}) has said nothing for 10 s: it is stopped, or its machine is gone."]
    assert _ends(second)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_r04_rank_zero_is_named_by_the_next(two, number):
    command, second = two(CCT_RANK_TIMEOUT="10")
    os.kill(command.pid, number)
    assert command.wait(120) == -signal.SIGKILL, command.out  # one that is stopped would hold the folder
    assert _ends(second)
    how = "ended without a word: it was killed" if number == signal.SIGKILL else "has said nothing for 10 s: it is stopped"
    (line,) = _said(command)
    assert line.startswith(f"error: rank 0 of 2 (process {command.pid}) {how}")


@pytest.mark.slow
def test_r04_a_stop_by_one_signal_is_everyones(two, forks, tmp_path):
    command, second = two()
    os.kill(second, signal.SIGTERM)  # not to rank zero
    assert command.wait(120) == 143, command.out
    assert not _said(command)
    (run,) = tmp_path.glob("runs/*/*")
    assert re.search(r"next\n  cct resume runs", command.out)
    step = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    resumed = forks.start("resume", run, cwd=tmp_path)
    size = (run / "metrics.csv").stat().st_size
    _until(lambda: (run / "metrics.csv").stat().st_size > size + 200, resumed)
    os.kill(resumed.pid, signal.SIGINT)
    assert resumed.wait(120) == 130, resumed.out
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] > step


FAULT = """
import os
from lightning.pytorch import Callback
from cct_lightning import InputError

class Fault(Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_rank == 1 and trainer.global_step == 6:
            raise {}
"""


@pytest.mark.slow
@pytest.mark.parametrize(("raised", "line"), [
    ("ZeroDivisionError('nothing left')", "error: rank 1 of 2 raised ZeroDivisionError: nothing left"),
    ("InputError('x.png is broken:\\n  remove it')", "error: rank 1 of 2 found: x.png is broken:"),
])  # fmt: skip
def test_r04_a_rank_that_raises_is_named(forks, tmp_path, raised, line):
    (tmp_path / "fault.py").write_text(FAULT.format(raised))
    command = forks.start(*LONG, "--trainer.callbacks", "[fault.Fault]", "--allow-import", "fault", cwd=tmp_path)
    assert command.wait(120) == 1, command.out
    assert [said for said in command.out.splitlines() if said.startswith("error: ")] == [line]
    assert command.out.count("Traceback") == raised.startswith("Zero")  # of rank 1: a fault of the program


@pytest.mark.slow
def test_ranks_that_others_started_take_the_folder_of_rank_zero(forks, tmp_path):
    """As torchrun starts them; without validation there is no best checkpoint, and FSDP2 waited for ever for the rank that found no last one."""
    words = ["fsdp" if word == "ddp" else word for word in TWO] + ["--data.val_fraction", "0", "--trainer.max_epochs", "1"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    told = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = []
    for rank in ("0", "1"):
        ranks.append(forks.start(*words, cwd=tmp_path, RANK=rank, LOCAL_RANK=rank, **told))
        time.sleep(1.5)  # another second, another name
    assert [command.wait(120) for command in ranks] == [0, 0], [command.out for command in ranks]
    (run,) = tmp_path.glob("runs/digits/*")
    assert {path.name for path in run.iterdir()} >= {"config.yaml", "metrics.csv", "summary.json", "checkpoints"}
    assert ranks[0].out.count("test accuracy") == 1
    assert "test accuracy" not in ranks[1].out


@pytest.mark.slow
def test_the_first_process_of_a_second_machine_is_not_rank_zero(forks, tmp_path):
    """As NODE_RANK tells them, one process on each of two machines, with a disk that both see; then the run is resumed."""

    def start(*words):
        with socket.create_server(("127.0.0.1", 0)) as server:
            told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1])}
        nodes = [forks.start(*words, cwd=tmp_path, NODE_RANK=rank, **told) for rank in ("0", "1")]
        assert [command.wait(120) for command in nodes] == [0, 0], [command.out for command in nodes]

    words = ["1" if word == "2" else word for word in TWO]
    start(*words, "--trainer.num_nodes", "2", "--trainer.max_epochs", "1")
    (run,) = tmp_path.glob("runs/digits/*")
    start("resume", run, "--extend-to", "2")
    assert json.loads((run / "summary.json").read_text())["epochs"] == 2


SIGNAL = """
import os, signal
from lightning.pytorch import Callback

class Signal(Callback):
    def on_fit_start(self, trainer, module):
        if trainer.global_rank == {}:
            signal.raise_signal(signal.SIGTERM)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "code"), [(1, 1), (0, 143)])
def test_r04_a_rank_that_is_stopped_before_the_first_step_ends_the_others(forks, tmp_path, rank, code):
    """It said goodbye, and they waited for it."""
    (tmp_path / "fault.py").write_text(SIGNAL.format(rank))
    command = forks.start(*LONG, "--trainer.callbacks", "[fault.Signal]", "--allow-import", "fault", cwd=tmp_path)
    assert command.wait(120) == code, command.out
    said = [re.sub(r"\(process \d+\) ", "", line) for line in _said(command)]  # as its own word, or its exit, is the first to arrive
    assert said == (["error: rank 1 of 2 was stopped by SIGTERM before its first step."] if rank else [])
    assert ("stopped before its first step\n" in command.out) == (rank == 0)
    assert not list(tmp_path.glob("runs/*/*"))


@pytest.mark.parametrize(("code", "how"), [
    (0, "ended with code 0."), (143, "was stopped by SIGTERM before its first step."), (-9, "was killed by SIGKILL."),
])  # fmt: skip
def test_a_rank_that_ends_before_all_are_connected_is_lost(tmp_path, code, how):
    process = subprocess.Popen(["sh", "-c", f"exit {code}" if code >= 0 else "kill -9 $$"])
    watch = _Watch(RunFolder(tmp_path), 120, None)
    watch.launched = {1: process}
    process.wait()
    watch._look(time.monotonic())
    assert watch.lost == (1, f"(process {process.pid}) {how}")
