import csv
import inspect
import json
import math
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import wandb
import yaml
from lightning.pytorch.loggers import WandbLogger
from wandb_server import wandb_server

from cct_lightning import InputError
from cct_lightning.run_folder import RunFolder
from cct_lightning.runs.options import WandbConfig
from cct_lightning.runs.tracking import tracker
from cct_lightning.runs.tracking.server import PROBE_SECONDS, is_disabled, wandb_id, wandb_mode
from cct_lightning.runs.tracking.tracker import Tracker

SHORT = (
    "--data.per_class", 10, "--data.batch_size", 32, "--trainer.max_epochs", 2, "--trainer.enable_progress_bar", "false",
    "--trainer.log_every_n_steps", 1, "--trainer.callbacks", "[]",
)  # fmt: skip
ENDED = "; the training goes on, its figures are in "


@pytest.fixture(autouse=True)
def no_environment(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))  # the settings of whoever runs the tests
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")
    wandb.teardown()  # it remembers the settings of an earlier run in this process
    yield
    assert not tracker._running
    wandb.teardown()
    assert not [name for name in os.environ if name.startswith("WANDB_") and name not in KNOWN]


KNOWN = ("WANDB_CONFIG_DIR", "WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_SWEEP_ID")  # which the tests set


@pytest.fixture
def server(monkeypatch):
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.address)
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
        yield server


def make(folder, mode="offline", **config):
    return Tracker(WandbConfig(mode, **config), folder, "digits", "name", "fit")


def run_of(tmp_path):
    (run,) = tmp_path.glob("runs/digits/*")
    return run


def rows_of(run):
    with (run / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def assert_complete(run, epochs=2):
    rows = rows_of(run)
    for name, count in (("val/accuracy", epochs), ("train/loss_epoch", epochs), ("test/accuracy", 1)):
        assert len([row for row in rows if name in row]) == count, name
    assert json.loads((run / "summary.json").read_text())["finished"]


# Which mode


@pytest.mark.parametrize(("mode", "variable", "disabled"), [
    ("disabled", None, True), ("auto", "disabled", True), ("auto", "offline", False), ("online", "disabled", False), ("auto", None, False),
])  # fmt: skip
def test_the_recipe_or_for_auto_the_environment_leaves_wandb_out(monkeypatch, mode, variable, disabled):
    if variable:
        monkeypatch.setenv("WANDB_MODE", variable)
    assert is_disabled(mode) is disabled


def test_auto_is_offline_without_a_key(monkeypatch):
    assert wandb_mode("auto") == ("offline", "no key is configured")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert wandb_mode("auto") == ("offline", "WANDB_MODE says so")
    assert wandb_mode("offline") == ("offline", "")


def test_online_without_a_key_says_where_one_comes_from(monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    monkeypatch.setattr("getpass.getpass", lambda *_: pytest.fail("asked"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"wandb\.mode=online: no key for http://127\.0\.0\.1:9 is configured. Run `wandb login`"):
        wandb_mode("online")


@pytest.mark.parametrize("key", ["environment", "netrc"])
def test_auto_is_online_where_a_key_is_and_the_server_answers(server, monkeypatch, tmp_path, key):
    if key == "netrc":
        monkeypatch.delenv("WANDB_API_KEY")
        assert wandb_mode("auto") == ("offline", "no key is configured")
        wandb.teardown()
        (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login user password {'k' * 40}\n")
        (tmp_path / "netrc").chmod(0o600)
    server.behaviour = "failing"  # which is an answer
    assert wandb_mode("auto") == ("online", "")


def test_auto_asks_the_server_of_the_settings(server, monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_BASE_URL")
    (tmp_path / "wandb-config").mkdir()
    (tmp_path / "wandb-config" / "settings").write_text(f"[default]\nbase_url = {server.address}\n")  # as `wandb login --host` leaves it
    assert wandb_mode("auto") == ("online", "")
    assert server.asked


def test_auto_waits_no_longer_than_its_probe(monkeypatch):
    monkeypatch.setattr("cct_lightning.runs.tracking.server.PROBE_SECONDS", 0.5)
    monkeypatch.setenv("WANDB_API_KEY", "k")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and never says a word
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        wandb.setup()  # starts its process
        began = time.perf_counter()
        assert wandb_mode("auto") == ("offline", "the server does not answer")
        assert 0.4 < time.perf_counter() - began < 3


# How it starts and ends


@pytest.mark.parametrize("behaviour", ["silent", "failing"])
def test_auto_goes_offline_where_the_server_does_not_take_the_run_and_online_says_so(server, monkeypatch, tmp_path, behaviour):
    monkeypatch.setattr(tracker, "START_SECONDS", tracker.CALL_SECONDS + tracker.TEARDOWN_SECONDS + 2)
    monkeypatch.setattr("cct_lightning.runs.tracking.server._answers", lambda url: True)  # just before
    server.behaviour = behaviour
    began = time.perf_counter()
    auto = make(tmp_path, "auto")
    auto.begin()
    assert time.perf_counter() - began < tracker.START_SECONDS
    assert auto.is_running
    assert auto.mode == "offline"
    refused = wandb_id(tmp_path)
    assert auto.experiment.id == refused  # one id, so that a later sitting finds the right one
    assert auto.finish().startswith("W&B: offline (the server does not take the run: ")
    assert {path.name.rsplit("-", 1)[1] for path in (tmp_path / "wandb").glob("*run-*-*")} == {refused}

    with pytest.raises(
        InputError, match=r"wandb\.mode=online: .*(context deadline exceeded|it did not answer within \d s)\. Choose wandb\.mode offline or auto"
    ):
        make(tmp_path / "other", "online").begin()


def test_an_online_run_says_where_it_is_and_a_sweep_which_it_is(server, monkeypatch, tmp_path, capsys):
    online = make(tmp_path / "one", "online", project="ours", entity="someone", tags=["a"], group="mine")
    online.log_metrics({"val/accuracy": 0.5}, step=3)
    line = f"W&B: {server.address}/someone/ours/runs/{online.experiment.id}"
    assert capsys.readouterr().out.strip() == line
    assert online.finish() == line
    given = next(variables for operation, variables in server.asked if operation == "UpsertBucket")
    wanted = {"project": "ours", "entity": "someone", "displayName": "name", "groupName": "mine", "jobType": "fit", "tags": ["a"]}
    assert {name: given[name] for name in wanted} == wanted

    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    assert make(tmp_path / "two", project="ours", entity="someone")._wandb_init.keys().isdisjoint({"project", "entity", "id"})


def test_a_server_that_falls_silent_costs_no_figures_and_little_time(server, monkeypatch, tmp_path, cct):
    monkeypatch.setattr(tracker, "FINISH_SECONDS", 2)
    monkeypatch.setattr(Tracker, "log_recipe", lambda self, path: setattr(server, "behaviour", "silent"))
    monkeypatch.delenv("WANDB_MODE")
    began = time.perf_counter()
    outcome = cct("fit", "-c", "digits", *SHORT, "--wandb.mode", "online")
    assert time.perf_counter() - began < 40
    assert outcome.code == 0, outcome.err
    run = run_of(tmp_path)
    assert_complete(run)
    (folder,) = run.glob("wandb/run-*")
    folder = folder.relative_to(tmp_path)
    line = f"W&B: the server did not take all of the run within 2 s: upload the rest with  wandb sync --include-online {folder}"
    assert outcome.out.splitlines()[-1] == line
    records = inspect_run(folder)  # all that the command will upload
    assert len([record for record in records if record["type"] == "history"]) == len(rows_of(run))
    assert records[-1]["type"] == "exit"


def test_no_wait_takes_the_time_of_another():
    assert PROBE_SECONDS + tracker.CALL_SECONDS + tracker.TEARDOWN_SECONDS < tracker.START_SECONDS <= 15
    assert tracker.FINISH_SECONDS + tracker.CALL_SECONDS + 2 * tracker.TEARDOWN_SECONDS < tracker.END_SECONDS <= 30


@pytest.mark.parametrize("name", ["run-20261120_095029-a1-b2", "offline-run-20261120_095029-a1-b2"])
def test_a_run_that_was_tracked_has_an_id(tmp_path, name):
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "latest-run").touch()
    assert wandb_id(tmp_path) is None
    (tmp_path / "wandb" / name).mkdir()
    assert wandb_id(tmp_path) == "a1-b2"
    assert make(tmp_path)._wandb_init["id"] == "a1-b2"


def test_the_line_uploads_all_pieces_of_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    earlier = Path("my runs", "wandb", "offline-run-20200101_000000-abc")
    earlier.mkdir(parents=True)
    resumed = make(Path("my runs"))
    resumed.begin()
    folder = next(path for path in earlier.parent.glob("offline-run-*") if path != earlier)
    assert resumed.finish() == f"W&B: offline: upload with  wandb sync '{earlier}' '{folder}'"
    assert resumed.finish() is None


def test_other_ranks_do_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tracker.rank_zero_only, "rank", 1)
    other = make(tmp_path)
    other.begin()
    other.log_metrics({"a": 1.0}, step=0)
    other.log_recipe(tmp_path / "config.yaml")
    other.experiment.log({"a": 1})
    assert other.finish() is None
    assert not list(tmp_path.iterdir())


# What may befall it


class Broken:
    """A run whose every use fails."""

    def __init__(self, folder):
        self.settings = type("Settings", (), {"sync_dir": str(folder)})

    def __getattr__(self, name):
        raise ConnectionResetError


@pytest.fixture
def running(tmp_path):
    """Returns a tracker that has begun, but for W&B."""
    begun = make(tmp_path)
    begun._state = "running"
    tracker._running.append(begun)
    yield begun
    begun._release()


HARMLESS = {"after_save_checkpoint", "finalize", "download_artifact"}  # nothing of W&B's, without log_model; no instance's
METHODS = sorted(name for name, method in vars(WandbLogger).items() if inspect.isfunction(method) and name[0] != "_" and name not in HARMLESS)


@pytest.mark.parametrize("name", METHODS)
def test_the_first_failure_ends_the_tracking_with_one_line(running, tmp_path, capsys, name):
    running._experiment = Broken(tmp_path)
    arguments = {
        "watch": (None,), "log_hyperparams": ({"a": 1},), "log_metrics": ({"a": 1.0}, 1), "log_table": ("a", ["b"], [[1]]),
        "log_text": ("a", ["b"], [["c"]]), "log_image": ("a", []), "log_audio": ("a", []), "log_video": ("a", []), "use_artifact": ("a",),
    }  # fmt: skip
    for _ in range(2):
        assert getattr(running, name)(*arguments[name]) is None
    running.finalize("success")
    assert running.finish() is None
    assert capsys.readouterr().err == f"W&B tracking ended (its process has died){ENDED}{tmp_path}/metrics.csv\n"


def test_what_a_users_callback_does_with_the_run_is_watched(running, tmp_path, capsys):
    class Run:
        settings = Broken(tmp_path).settings
        id = "abc"

        def __init__(self):
            self.seen = []

        def log(self, values):
            self.seen.append(values)
            if len(self.seen) == 2:
                raise BrokenPipeError

    running._experiment = run = Run()
    assert running.experiment.id == "abc"
    running.experiment.note = "b"
    assert run.note == "b"
    running.experiment.log({"x": 1})
    running.experiment.log({"x": 2})
    running.experiment.log({"x": 3})
    running.experiment.config.update({"y": 1})
    running.experiment.summary["best"] = 1
    assert running.experiment.summary["best"] is None
    assert run.seen == [{"x": 1}, {"x": 2}]
    assert capsys.readouterr().err.count("\n") == 1


def test_a_call_that_does_not_come_back_is_left_behind(running, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tracker, "CALL_SECONDS", 0.3)
    released = threading.Event()

    class Run:
        settings = Broken(tmp_path).settings

        def log(self, values):
            released.wait(20)

    running._experiment = Run()
    began = time.perf_counter()
    for step in range(100):
        running.log_metrics({"a": 1.0}, step)
    assert time.perf_counter() - began < 5
    released.set()
    assert "W&B tracking ended (it did not answer within 0 s)" in capsys.readouterr().err


def test_a_folder_that_vanishes_ends_the_tracking(running, tmp_path, capsys):
    running._experiment = Broken(tmp_path / "gone")
    running.log_metrics({"a": 1.0}, 0)
    assert f"(No such file or directory: {tmp_path}/gone/.room)" in capsys.readouterr().err


def test_a_disk_without_room_ends_the_tracking_and_not_the_training(cct, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # cut off, it would be there for good
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))  # of this process and W&B's; metrics.csv is smaller
    try:
        outcome = cct("fit", "-c", "digits", *SHORT, "--wandb.mode", "offline", "--trainer.enable_checkpointing", "false")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert outcome.code == 0, outcome.err
    run = run_of(tmp_path)
    assert [line for line in outcome.err.splitlines() if "W&B" in line] == [
        f"W&B tracking ended (File too large){ENDED}{run.relative_to(tmp_path)}/metrics.csv"
    ]
    assert "W&B" not in outcome.out
    assert_complete(run)


def test_a_folder_that_can_not_be_made_ends_the_tracking_and_not_the_training(cct, tmp_path, monkeypatch):
    def blocked(*arguments, make=RunFolder.make):
        run = make(*arguments)
        (run.path / "wandb").write_text("a file")
        return run

    monkeypatch.setattr(RunFolder, "make", blocked)
    monkeypatch.delenv("WANDB_MODE")
    outcome = cct("fit", "-c", "digits", *SHORT)
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("W&B tracking ended (Not a directory: ") == 1
    assert_complete(run_of(tmp_path))


FAULT = """
import os
import signal

import wandb
from lightning.pytorch import Callback

class Fault(Callback):
    def __init__(self, signal_name: str):
        self.signal = getattr(signal, signal_name)

    def on_train_epoch_end(self, trainer, module):
        if trainer.current_epoch == 0:
            os.kill(wandb.setup()._connection._proc._process.pid, self.signal)
"""


@pytest.mark.slow
def test_the_death_of_wandbs_process_ends_the_tracking_and_not_the_training(forks, tmp_path):
    (tmp_path / "fault.py").write_text(FAULT)
    words = ("--trainer.callbacks+=fault.Fault", "--allow-import", "fault", "--trainer.callbacks.signal_name=SIGKILL")
    done = forks.start("fit", "-c", "digits", *SHORT, *words, cwd=tmp_path, WANDB_MODE="offline")
    assert done.wait(100) == 0, done.out[-3000:]
    run = run_of(tmp_path)
    assert [line for line in done.out.splitlines() if "W&B" in line or "Traceback" in line] == [
        f"W&B tracking ended (its process has died){ENDED}{run.relative_to(tmp_path)}/metrics.csv"
    ]
    assert_complete(run)


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="Windows stops no process")
def test_a_hung_process_of_wandbs_is_killed(cct, tmp_path, monkeypatch):
    (tmp_path / "fault.py").write_text(FAULT)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(tracker, "END_SECONDS", 3)
    monkeypatch.setattr(tracker, "TEARDOWN_SECONDS", 1)
    processes = []
    init = wandb.init
    monkeypatch.setattr(wandb, "init", lambda **named: (init(**named), processes.append(wandb.setup()._connection._proc._process))[0])
    words = ("--trainer.callbacks+=fault.Fault", "--trainer.callbacks.signal_name=SIGSTOP", "--wandb.mode", "offline", "--allow-import", "fault")
    outcome = cct("fit", "-c", "digits", *SHORT, *words)
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[-1].startswith(
        (
            "W&B tracking ended (it did not answer within 1 s); the run's figures are in runs/digits/",
            "W&B tracking ended (it did not answer within 0 s); the run's figures are in runs/digits/",
        )
    )
    assert processes[0].poll() == -signal.SIGKILL
    assert_complete(run_of(tmp_path))


def test_a_run_that_never_began_leaves_nothing(cct, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    outcome = cct("fit", "-c", "digits", *SHORT, "--wandb.mode", "offline", "--model.optim.name", "adamx")
    assert outcome.code == 2
    assert not list(tmp_path.glob("runs/*/*"))
    assert not tracker._running
    assert cct("fit", "-c", "digits", *SHORT, "--wandb.mode", "offline", "--trainer.fast_dev_run", "true").code == 0
    assert not list(tmp_path.glob("runs/*/*/wandb"))


# What is tracked


def strict(pairs):
    """Refuses what is there twice."""
    assert len({name for name, _ in pairs}) == len(pairs), pairs
    return dict(pairs)


def inspect_run(folder):
    words = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", str(folder)]
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    return [json.loads(line, object_pairs_hook=strict) for line in lines]


PAINTER = """
from lightning.pytorch import Callback
from matplotlib.figure import Figure

from cct_lightning.evaluation.pictures import save_picture

class Painter(Callback):
    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking:
            save_picture(trainer, f"drawn-epoch{trainer.current_epoch:03}", Figure(figsize=(1, 1)))
"""


def test_an_offline_run_holds_all_of_it_once(cct, tmp_path, monkeypatch):
    (tmp_path / "painter.py").write_text(PAINTER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("WANDB_MODE")
    outcome = cct(
        "fit", "-c", "digits", *SHORT, "--trainer.max_epochs", 3, "--model.pooling", "map", "--seed_everything", 5, "--wandb.tags", "[a, b]",
        "--wandb.log_model", "best", "--trainer.callbacks+=painter.Painter", "--allow-import", "painter",
        "--trainer.logger+=TensorBoardLogger", "--trainer.logger.save_dir=tb",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    run = run_of(tmp_path)
    (folder,) = run.glob("wandb/offline-run-*")
    assert outcome.out.splitlines()[-1] == f"W&B: offline (no key is configured): upload with  wandb sync {folder.relative_to(tmp_path)}"
    assert "W&B" not in outcome.err
    assert list(tmp_path.glob("tb/**/events.*"))  # other loggers beside ours

    records = inspect_run(folder)
    (began,) = (record["run"] for record in records if record["type"] == "run")
    wanted = {"display_name": "digits-cct_2_3x2_32-map-s5", "run_group": "digits", "job_type": "fit", "project": "cct-lightning", "tags": ["a", "b"]}
    assert {name: began[name] for name in wanted} == wanted

    config = {}
    for record in records:
        if record["type"] == "config":
            assert config.keys().isdisjoint(record["config"]["update"])
            config |= record["config"]["update"]
    about = config.pop("about")
    assert config == yaml.safe_load((run / "config.yaml").read_text())  # nested as it is, nothing else
    summary = json.loads((run / "summary.json").read_text())
    assert {name: about[name] for name in ("num_parameters", "flops_per_image")} == {
        name: summary[name] for name in ("num_parameters", "flops_per_image")
    }
    assert about.keys() == {"versions", "git_commit", "num_parameters", "flops_per_image"}

    rows, tracked, media = rows_of(run), [], []
    for record in records:
        if record["type"] == "history":
            item = {name: value for name, value in record["history"]["item"].items() if name[0] != "_"}
            drawn = {name for name in item if name.startswith("pictures/drawn")}
            media += [item[name] for name in drawn if name.endswith(".filenames")]
            if not drawn:
                tracked.append({"step": item.pop("trainer/global_step"), **item})
    assert [row.keys() for row in tracked] == [row.keys() for row in rows]
    for ours, theirs in zip(rows, tracked, strict=True):
        assert theirs == pytest.approx(ours)
    assert {name for row in rows for name in row} >= {"train/loss", "train/lr", "train/loss_epoch", "val/accuracy", "test/accuracy"}
    assert len(media) == 3
    assert all((folder / "files" / name).is_file() for (name,) in media)

    words = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--summary", "--json", str(folder)]
    best = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)["summary"]
    others = {"val/knn", "val/mAP", "val/r2"}  # of other tasks
    assert not best.keys() & others
    for name, kind in [(name, kind) for name, kind in tracker.BEST.items() if name not in others]:
        assert best[name] == {kind: pytest.approx({"max": max, "min": min}[kind](row[name] for row in rows if name in row))}
    assert best["val/accuracy"]["max"] == pytest.approx(summary["val_accuracy"])
    assert best["test/accuracy"] == pytest.approx(summary["test_accuracy"])
    assert best["train/loss"] == pytest.approx([row["train/loss"] for row in rows if "train/loss" in row][-1])

    artifacts = {record["artifact"]["type"]: record["artifact"] for record in records if record["type"] == "artifact"}
    assert artifacts.keys() == {"recipe", "model"}
    assert artifacts["recipe"]["name"] == "recipe-digits"
    (kept,) = artifacts["recipe"]["manifest"]["contents"]
    assert kept["path"] == "config.yaml"
    assert Path(kept["local_path"]).read_text() == (run / "config.yaml").read_text()
    (kept,) = artifacts["model"]["manifest"]["contents"]
    assert (kept["path"], kept["local_path"]) == ("best.ckpt", str(run / "checkpoints" / "best.ckpt"))
    assert "best" in artifacts["model"]["aliases"]
    assert not math.isnan(best["test/loss"])


@pytest.mark.parametrize("command", ["fit", "finetune"])
def test_a_run_is_of_the_command_that_was_typed(cct, tmp_path, monkeypatch, command):
    from pictures import write_images

    made = []

    def stop(*arguments):
        made.append(arguments)
        raise InputError("far enough")

    monkeypatch.setattr("cct_lightning.runs.trainer.Tracker", stop)
    monkeypatch.delenv("WANDB_MODE")
    write_images(tmp_path / "pets", 2, 12)
    words = ("pets", "--data.image_size", 32) if command == "finetune" else ("-c", "digits")
    assert cct(command, *words, "--model.arch", "cct_2_3x2_32").code == 2
    (_, _, recipe, name, job_type) = made[0]
    assert (recipe, job_type) == (command if command == "finetune" else "digits", command)
    assert name == f"{recipe}-cct_2_3x2_32-seqpool-s0"


def test_a_signal_while_tracking_begins_is_no_fault_of_its(tmp_path, monkeypatch):
    """`auto` said that tracking had ended (143) and trained on; `online` that W&B refuses, exit 2."""
    for mode in ("auto", "online"):
        tracked = make(tmp_path, mode)
        monkeypatch.setattr(tracker, "within", lambda *_: (_ for _ in ()).throw(SystemExit(143)))
        with pytest.raises(SystemExit):
            tracked.begin()
        monkeypatch.undo()
        tracker.end_tracking()


def test_a_call_with_which_wandb_would_leave_is_an_error_of_its(tmp_path):
    with pytest.raises(RuntimeError, match="its process failed"):
        tracker.within(5, lambda: sys.exit("its process failed"))
