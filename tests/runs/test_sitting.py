import csv
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from pictures import write_images
from runs_alike import SMALL, assert_same, measured

from cct_lightning.commands import running
from cct_lightning.data.loaders import KeyedSampler, _leave_signals_to_the_run
from cct_lightning.runs import sitting as resume
from cct_lightning.runs.checkpointing import WholeFileIO
from cct_lightning.runs.options import WHERE
from cct_lightning.runs.session import Session
from cct_lightning.runs.tracking.server import wandb_id

CHECKOUT = Path(__file__).parents[2]


class Killed(BaseException):
    """What a kill leaves behind: no hook of a callback writes anything."""


def kill(*_):
    raise Killed


@pytest.fixture
def stop(monkeypatch):
    """Returns where to stop a run: (epoch, batch, signal or exception), in order, each once."""
    stops = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        while stops and stops[0][:2] == (trainer.current_epoch, batch_idx):
            how = stops.pop(0)[2]
            if not isinstance(how, int):
                raise how
            signal.raise_signal(how)

    monkeypatch.setattr(resume.Sitting, "on_train_batch_start", on_train_batch_start)
    return stops


@pytest.fixture
def fit(cct, tmp_path):
    """Runs ``cct fit`` and returns its outcome and the run's folder."""

    def run(*words, recipe="digits"):
        before = set(tmp_path.glob("runs/*/*"))
        outcome = cct("fit", "-c", recipe, *SMALL, *words)
        (folder,) = set(tmp_path.glob("runs/*/*")) - before
        return outcome, folder

    return run


FILES = (
    "--data.root", "images", "--data.image_size", 32, "--model.arch", "cct_2_3x2_32", "--data.cache", "none", "--data.num_workers", 2,
    "--data.batch_size", 8, "--data.per_class", 12, "--data.augment.policy", "randaugment",
)  # fmt: skip
# A stop inside an epoch, and one in the last step of another, whose validation it cuts off.
CASES = {
    "average": ("digits", ("--trainer.callbacks+=EMA", "--trainer.callbacks.decay=0.9", "--trainer.accumulate_grad_batches", 2,
                           "--data.augment.cutmix", 0.5, "--data.augment.policy", "randaugment"), (0, 1), (1, 3)),
    "epochs": ("digits", ("--model.schedule.per", "epoch", "--model.optim.name", "muon", "--data.sampler", "balanced"), (1, 0), (2, 3)),
    "files": ("image_folder", FILES, (0, 2), (1, 1)),
    # in steps, ending inside an epoch, with validations inside epochs: a stop behind one, and one in another
    "steps": ("digits", ("--trainer.max_epochs", -1, "--trainer.max_steps", 11, "--trainer.val_check_interval", 2), (0, 2), (1, 1)),
    "end": ("digits", ("--trainer.max_epochs", -1, "--trainer.max_steps", 11), (0, 2), (2, 2)),  # the second in the validation after the last step
    "unvalidated": ("digits", ("--data.val_fraction", 0, "--trainer.callbacks+=EMA"), (0, 3), (2, 0)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_stopped_run_ends_like_one_that_never_stopped(fit, cct, stop, tmp_path, name):
    recipe, words, first, second = CASES[name]
    if recipe == "image_folder":
        write_images(tmp_path / "images", 3, 20)
    _, reference = fit(*words, recipe=recipe)
    stop += [(*first, signal.SIGTERM), (*second, signal.SIGINT)]
    outcome, run = fit(*words, recipe=recipe)
    assert outcome.code == 143, outcome.err
    assert "stopping after this step; Ctrl-C again leaves at once" in outcome.err
    assert f"cct resume {run.relative_to(tmp_path)}" in outcome.out
    assert cct("resume", run / "config.yaml").code == 130
    assert not json.loads((run / "summary.json").read_text())["finished"]
    last = cct("resume", run.relative_to(tmp_path) / "checkpoints" / "last.ckpt")
    assert last.code == 0, last.err
    assert "in 3 sittings" in last.out
    assert_same(run, reference)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["resumed"] == 2
    assert len(list(tmp_path.glob("runs/*/*"))) == 2


def test_a_killed_run_goes_on_from_the_last_epoch_that_ended(fit, cct, stop, tmp_path):
    _, reference = fit()
    stop.append((1, 2, Killed()))
    with pytest.raises(Killed):
        fit()
    run = max(tmp_path.glob("runs/*/*"))
    # A kill between the checkpoint of an epoch and the line of its loss, and in the middle of the next checkpoint.
    first = next(number for number, row in enumerate(measured(run), 1) if row["train/loss_epoch"])
    lines = (run / "metrics.csv").read_bytes().splitlines(keepends=True)
    (run / "metrics.csv").write_bytes(b"".join(lines[:first]))
    (run / "checkpoints" / "last.ckpt.part").write_bytes(b"half")
    assert cct("resume", run).code == 0
    assert_same(run, reference)


def test_a_run_is_held_before_its_checkpoint_is_read(fit, cct, stop, tmp_path, monkeypatch):
    """Another process that was about to end wrote a newer one in between."""
    import fcntl

    stop.append((1, 2, KeyboardInterrupt()))
    with suppress(KeyboardInterrupt):
        fit()
    run, held = max(tmp_path.glob("runs/*/*")), []
    real = running._open_last

    def opened(request):
        folder = os.open(run, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held.append(True)
        os.close(folder)
        return real(request)

    monkeypatch.setattr(running, "_open_last", opened)
    assert cct("resume", run).code == 0
    assert held == [True]


def test_a_run_killed_before_its_summary_gets_its_test(fit, cct, stop, tmp_path, monkeypatch):
    _, reference = fit()
    monkeypatch.setattr(Session, "_end", kill)
    with pytest.raises(Killed):
        fit()
    monkeypatch.undo()
    run = max(tmp_path.glob("runs/*/*"))
    trained = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["sitting"]["seconds"]
    assert cct("resume", run).code == 0
    assert_same(run, reference)
    assert json.loads((run / "summary.json").read_text())["seconds"] > trained  # of both sittings

    outcome = cct("resume", run)
    assert outcome.code == 0
    assert f"{run} is finished: 3 epochs, 12 steps." in outcome.out
    assert f"cct resume {run} --extend-to EPOCHS" in outcome.out


def test_early_stopping_that_was_killed_stops(fit, cct, monkeypatch, tmp_path):
    words = ("--trainer.max_epochs", 9, "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss",
             "--trainer.callbacks.patience=1", "--trainer.callbacks.min_delta=9")  # fmt: skip
    _, reference = fit(*words)
    monkeypatch.setattr(Session, "_end", kill)
    with pytest.raises(Killed):
        fit(*words)
    monkeypatch.undo()
    run = max(tmp_path.glob("runs/*/*"))
    assert cct("resume", run).code == 0
    assert json.loads((run / "summary.json").read_text())["epochs"] == 2
    assert_same(run, reference)


def rates(run):
    rows = csv.DictReader((run / "metrics.csv").read_text().splitlines())
    return {int(row["step"]): float(row["train/lr"]) for row in rows if row["train/lr"]}


@pytest.mark.parametrize("per", ["step", "epoch"])
def test_an_extended_run_has_the_rates_of_the_longer_one(fit, cct, stop, tmp_path, per):
    words = ("--model.schedule.per", per, "--model.schedule.warmup_epochs", 1, "--trainer.log_every_n_steps", 1)
    _, longer = fit(*words, "--trainer.max_epochs", 5)
    _, run = fit(*words)
    assert "--extend-to 3: the run has 3 epochs already. Give the epochs in all, more than those." in cct("resume", run, "--extend-to", 3).err
    stop.append((3, 2, signal.SIGINT))
    outcome = cct("resume", run, "--extend-to=5")
    assert outcome.code == 130, outcome.err
    assert not json.loads((run / "summary.json").read_text())["finished"]
    assert "--extend-to 4: the run is to have 5 epochs as it is" in cct("resume", run, "--extend-to", 4).err
    assert cct("resume", run).code == 0  # to the new length
    got, expected = rates(run), rates(longer)
    assert [got[step] for step in range(12, 20)] == [expected[step] for step in range(12, 20)]
    assert got[11] != expected[11]
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_epochs"] == 5
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["epochs"], summary["steps"], summary["finished"]) == (5, 20, True)
    assert [row["epoch"] for row in measured(run) if row["val/accuracy"]] == ["0", "1", "2", "3", "4"]
    assert len([row for row in measured(run) if row["test/accuracy"]]) == 1


def test_a_run_may_be_moved_and_resumed_from_anywhere_without_the_weights_it_started_from(fit, cct, stop, tmp_path, monkeypatch):
    _, source = fit("--trainer.max_epochs", 1)
    start = ("--model.pretrained", source / "checkpoints" / "best.ckpt")
    _, reference = fit(*start)
    stop.append((2, 1, signal.SIGTERM))
    _, run = fit(*start)
    (source / "checkpoints" / "best.ckpt").unlink()
    config = (run / "config.yaml").read_text()
    moved = tmp_path / "elsewhere" / "digits" / "run"
    moved.parent.mkdir(parents=True)
    run.rename(moved)
    monkeypatch.chdir(moved.parent)
    outcome = cct("resume", "run", "--data.num_workers", 0)
    assert outcome.code == 0, outcome.err
    assert_same(moved, reference)
    assert (moved / "config.yaml").read_text() == config
    summary = json.loads((moved / "summary.json").read_text())
    assert summary["best_checkpoint"] == "run/checkpoints/best.ckpt"
    about = torch.load(moved / "checkpoints" / "last.ckpt", weights_only=True)["cct_lightning"]
    assert about["recipe"] == yaml.safe_load(config)


def test_the_pieces_of_an_offline_run_have_one_id(fit, cct, stop, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    stop.append((1, 1, signal.SIGTERM))
    _, run = fit("--wandb.mode", "offline")
    time.sleep(1.1)  # W&B names the pieces by the second
    assert cct("resume", run).code == 0
    pieces, resume_id = list((run / "wandb").glob("offline-run-*")), wandb_id(run)
    assert len(pieces) == 2
    found = []
    for piece in pieces:
        words = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", next(piece.glob("*.wandb"))]
        lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
        found.append(next(record["run"] for line in lines if (record := json.loads(line))["type"] == "run"))
    assert found[0]["run_id"] == found[1]["run_id"] == resume_id
    assert found[0]["display_name"] == found[1]["display_name"] == "digits-cct_2_3x2_32-seqpool-s0"
    assert found[0]["run_group"] == found[1]["run_group"] == "digits"


def test_a_second_interrupt_leaves_at_once(fit, cct, stop):
    stop += [(1, 1, signal.SIGINT), (1, 1, signal.SIGINT)]
    outcome, run = fit()
    assert outcome.code == 130
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4  # of the epoch before
    assert cct("resume", run).code == 0


def test_signals_find_their_old_handlers_again(fit, cct, stop):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    stop.append((0, 1, signal.SIGTERM))
    fit()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_what_would_make_another_run_is_refused(fit, cct, stop, tmp_path):
    stop.append((1, 1, signal.SIGTERM))
    _, run = fit()
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    config = yaml.safe_load((run / "config.yaml").read_text())

    def refused(message, *words):
        outcome = cct("resume", run, *words)
        assert (outcome.code, outcome.out) == (2, "")
        assert message in outcome.err
        assert len(outcome.err.splitlines()) <= 5
        assert all(path.read_bytes() == content for path, content in files.items() if path.name != "config.yaml")

    refused(f"--model.drop_path would make it another run, and resume goes on with the same one.\n"
            f"  A new one that differs in this: cct fit -c {run}/config.yaml --model.drop_path 0.2", "--model.drop_path", 0.2)  # fmt: skip
    refused("To train on: --extend-to EPOCHS.", "--trainer.max_epochs", 5)
    refused("there is no key 'data.rot'. Did you mean data.root?", "--data.rot=x")
    refused("resume takes no -c: the run's own config.yaml and last.ckpt say all.", "-c", "smoke")
    refused("--extend-to x: give the number of epochs in all, such as 100.", "--extend-to", "x")
    refused("data.cache=disk is unknown.", "--data.cache", "disk")
    refused("--data.root needs a value.", "--data.root")

    folder = os.open(run, os.O_RDONLY)
    import fcntl

    fcntl.flock(folder, fcntl.LOCK_EX)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", lambda seconds: patch.setattr(time, "monotonic", lambda: float("inf")))
        refused(f"{run} is being trained by another process on this machine: wait for its end, or stop it.")
    os.close(folder)

    (run / "config.yaml").write_text(yaml.safe_dump({**config, "data": {**config["data"], "batch_size": 8}}))
    refused(f"{run}/config.yaml was changed since the checkpoint was written: data.batch_size=8, and the run has 16.")
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "model": {**config["model"], "pooling": "mean"}}))
    refused("model.pooling=mean, and the run has None.")
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "trainer": {**config["trainer"], "max_steps": 30}}))
    refused("trainer.max_steps=30, and the run has -1.")
    for epochs, way in ((5, 5), (2, "EPOCHS")):
        (run / "config.yaml").write_text(yaml.safe_dump({**config, "trainer": {**config["trainer"], "max_epochs": epochs}}))
        refused(f"trainer.max_epochs={epochs}, and the run has 3; its rates follow from that.\n"
                f"  To train longer: cct resume {run} --extend-to {way}. To go on as it was, put 3 back.")  # fmt: skip

    last = run / "checkpoints" / "last.ckpt"
    del files[last]
    last.write_bytes(last.read_bytes()[:-1000])
    refused(f"Is it complete?\n"
            f"  Without it the run can't go on; it can start anew: cct fit -c {run}/config.yaml")  # fmt: skip
    torch.save({"state_dict": {}}, last)
    refused("last.ckpt does not say where the run stopped")
    last.unlink()
    refused(f"{run} has no checkpoints/last.ckpt: it was stopped before its first epoch ended, or keeps no checkpoints.\n"
            f"  It can start anew: cct fit -c {run}/config.yaml")  # fmt: skip


def test_r12_an_extension_that_was_killed_at_its_start_is_made_again(fit, cct, stop):
    _, run = fit()
    stop.append((3, 0, Killed()))
    with pytest.raises(Killed):
        cct("resume", run, "--extend-to", 4)
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_epochs"] == 4
    (run / "summary.json").unlink()
    assert f"cct resume {run} --extend-to 4" in cct("resume", run).err
    outcome = cct("resume", run, "--extend-to", 4)
    assert outcome.code == 0, outcome.err
    assert json.loads((run / "summary.json").read_text())["epochs"] == 4


@pytest.mark.parametrize(("begun", "resumed"), [("none", "host"), ("host", "auto")])
def test_r12_where_images_are_kept_changes_no_resumed_run(fit, cct, stop, tmp_path, begun, resumed):
    write_images(tmp_path / "images", 3, 20)
    words = (*FILES, "--data.num_workers", 0, "--data.cache", begun, "--trainer.max_epochs", 2)
    _, reference = fit(*words, recipe="image_folder")
    stop.append((1, 1, signal.SIGTERM))
    _, run = fit(*words, recipe="image_folder")
    outcome = cct("resume", run, "--data.cache", resumed)
    assert outcome.code == 0, outcome.err
    assert_same(run, reference)


@pytest.mark.parametrize(("begun", "resumed", "message"), [
    ("auto", "none", "data.cache=none has images augmented one by one, and this run augments them a batch at a time, with other draws: leave"),
    ("none", "device", "data.cache=device has images augmented a batch at a time, and this run augments them one by one, with other draws: leave"),
])  # fmt: skip
def test_r12_a_cache_that_would_change_the_augmentation_is_refused(fit, cct, stop, tmp_path, begun, resumed, message):
    write_images(tmp_path / "images", 3, 20)
    stop.append((1, 1, signal.SIGTERM))
    _, run = fit(*FILES, "--data.num_workers", 0, "--data.cache", begun, recipe="image_folder")
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    outcome = cct("resume", run, "--data.cache", resumed)
    assert outcome.code == 2
    assert message in outcome.err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == files
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    del content["ImageDataModule"]["road"]  # of a version before
    torch.save(content, run / "checkpoints" / "last.ckpt")
    outcome = cct("resume", run, "--data.cache", resumed)
    assert outcome.code == 2
    assert f"--data.cache {resumed}: {run}/checkpoints/last.ckpt is of a version that did not note how images are augmented" in outcome.err
    assert cct("resume", run).code == 0


def test_the_help_names_what_may_differ(cct):
    outcome = cct("resume", "--help")
    assert "cct resume RUN [--extend-to EPOCHS] [--accept-changed-data] [--key value]" in outcome.out
    for key in WHERE:
        assert f"  --{key} " in outcome.out


@pytest.mark.parametrize(
    ("words", "steps"), [((), [3, 5]), (("--trainer.check_val_every_n_epoch", 9), [5]), (("--trainer.val_check_interval", 2), [1, 3, 5])]
)
def test_a_run_in_steps_is_validated_after_the_last(fit, words, steps):
    _, run = fit("--trainer.max_epochs", -1, "--trainer.max_steps", 6, "--wandb.mode", "disabled", *words)  # of 4 an epoch
    assert [int(row["step"]) for row in measured(run) if row["val/loss"]] == steps
    assert json.loads((run / "summary.json").read_text())["val_accuracy_last"] == float(
        [row for row in measured(run) if row["val/loss"]][-1]["val/accuracy"]
    )


def test_runs_in_steps_are_not_extended(fit, cct):
    _, run = fit("--trainer.max_epochs", -1, "--trainer.max_steps", 3)
    assert "--extend-to" not in cct("resume", run).out
    outcome = cct("resume", run, "--extend-to", 2)
    assert outcome.code == 2
    assert "--extend-to 2: the run is given by trainer.max_steps=3 and may end inside an epoch" in outcome.err


@pytest.mark.parametrize(("words", "message"), [
    ((), "resume goes on with one run: cct resume runs/<recipe>/<time>. The last run there: cct resume runs/digits/b"),
    (("runs/digits/a", "runs/digits/b"), "resume goes on with one run"),
    (("runs/digits/c",), "There is no run runs/digits/c. The last run there: cct resume runs/digits/b"),
    (("runs/digits",), "runs/digits is no run: it holds no config.yaml. Runs lie in runs/<recipe>/<time>. The last run there: cct resume runs/d"),
    (("runs/digits/a",), "runs/digits/a has no checkpoints/last.ckpt"),
    (("runs/digits/b/checkpoints/best.ckpt",), "best.ckpt: a run is resumed from its last.ckpt: cct resume runs/digits/b"),
])  # fmt: skip
def test_what_is_no_run_is_named_with_the_way_out(cct, tmp_path, words, message):
    for name in ("a", "b"):
        (tmp_path / "runs" / "digits" / name / "checkpoints").mkdir(parents=True)
        (tmp_path / "runs" / "digits" / name / "config.yaml").write_text("data: {dataset: digits}")
    (tmp_path / "runs" / "digits" / "b" / "checkpoints" / "last.ckpt").touch()
    outcome = cct("resume", *words)
    assert outcome.code == 2
    assert message in outcome.err


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    io, path = WholeFileIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"x": 1}, path)
    with pytest.raises(AttributeError):  # some way into the file
        io.save_checkpoint({"x": torch.zeros(1000), "y": lambda: 0}, path)
    assert torch.load(path) == {"x": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_metrics_are_written_as_lightning_does_and_cut_by_rows(tmp_path):
    logger = resume.MetricsFile(tmp_path, name="", version="")
    for step in range(3):
        logger.log_metrics({"a": step / 3}, step=step)
    logger.save()
    logger.log_metrics({"b": 1.0, "B, of two": 2.0}, step=3)
    logger.save()
    again = resume.MetricsFile(tmp_path, name="", version="")
    assert again.experiment.rows == 4
    again.experiment.cut(2)
    again.log_metrics({"a": 9.0}, step=2)
    again.save()
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert [(row["step"], row["a"], row["b"]) for row in rows] == [("0", "0.0", ""), ("1", str(1 / 3), ""), ("2", "9.0", "")]


def test_a_sampler_skips_what_is_done_in_one_epoch_alone():
    sampler = KeyedSampler(torch.arange(40).numpy(), 8, seed=0, train=True)
    sampler.set_epoch(3)
    whole = list(sampler)
    sampler.skip = 2
    sampler.set_epoch(3)
    assert list(sampler) == whole[2:]
    assert list(sampler) == whole
    sampler.skip = 2
    sampler.set_epoch(4)
    assert len(list(sampler)) == 5


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="the system does not tell who sent a signal")
def test_workers_obey_no_signal_but_their_parents():
    said, says = os.pipe()
    worker = os.fork()
    if worker == 0:
        _leave_signals_to_the_run(0)
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        while signal.SIGTERM in signal.sigpending():
            time.sleep(0.01)
        os.write(says, b".")
        time.sleep(60)
        os._exit(5)
    assert os.read(said, 1) == b"."
    time.sleep(0.1)
    assert os.waitpid(worker, os.WNOHANG) == (0, 0)
    os.kill(worker, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == 0
    for end in (said, says):
        os.close(end)


WAIT = """
import time
from pathlib import Path
from lightning.pytorch import Callback

class Wait(Callback):
    def on_train_epoch_start(self, trainer, module):
        while trainer.current_epoch == 4 and Path("wait").exists():
            time.sleep(0.01)
"""


@pytest.mark.slow
def test_a_process_that_is_killed_is_resumed(fit, cct, forks, tmp_path, request, monkeypatch):
    (tmp_path / "waits.py").write_text(WAIT)
    (tmp_path / "wait").touch()  # so that it can't end before it is killed
    monkeypatch.syspath_prepend(tmp_path)
    words = ("--trainer.max_epochs", 8, "--trainer.callbacks", "[waits.Wait]", "--allow-import", "waits")
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    torch.set_num_threads(1)  # as the processes of forks have
    process = forks.start("fit", "-c", "digits", *SMALL, *words, cwd=tmp_path)
    while not any(b"\n2," in path.read_bytes() for path in tmp_path.glob("runs/*/*/metrics.csv")):  # the third epoch has begun
        assert process.wait(0.01) is None, process.out
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(120) == -signal.SIGKILL
    (tmp_path / "wait").unlink()
    (run,) = tmp_path.glob("runs/*/*")
    assert cct("resume", run, "--allow-import", "waits").code == 0
    _, reference = fit(*words)
    assert_same(run, reference)
