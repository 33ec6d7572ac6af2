import csv
import json
import multiprocessing
import os
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from pictures import write_images

from cct_lightning import LitClassifier
from cct_lightning.commands import running
from cct_lightning.runs.stopping import Stopping
from cct_lightning.training.hardware import default_precision
from cct_lightning.weights.files import KEY

CHECKOUT = Path(__file__).parents[2]
SHORT = ("--data.per_class", 10, "--data.batch_size", 32, "--trainer.max_epochs", 2, "--trainer.enable_progress_bar", "false")


def _no_network(_):
    raise OSError("no network in a test")


def only(paths):
    (path,) = paths
    return path


def test_a_run_leaves_everything_in_its_folder(cct, tmp_path):
    outcome = cct("fit", "-c", "digits", *SHORT)
    assert outcome.code == 0, outcome.err
    run = only(tmp_path.glob("runs/digits/*"))
    assert {path.name for path in run.iterdir()} == {"config.yaml", "metrics.csv", "summary.json", "checkpoints", "images.csv.gz"}
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt", "best-digits-test"}

    summary = json.loads((run / "summary.json").read_text())
    assert summary["run_dir"] == str(run.relative_to(tmp_path))
    assert summary["num_parameters"] == 276_427
    assert 0 <= summary["test_accuracy"] <= 1
    assert summary["epochs"] == 2
    assert summary["finished"]

    if default_precision("cpu") == "bf16-mixed":
        assert len(speeds := summary["product_speeds"]) == 3
        assert summary["cpu_seconds_at_350"] == pytest.approx(summary["cpu_seconds"] * sum(speeds) / 3 / 350)
    else:
        assert summary["product_speeds"] is summary["cpu_seconds_at_350"] is None

    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    validated = [float(row["val/accuracy"]) for row in rows if row.get("val/accuracy")]
    assert len(validated) == 2
    assert summary["val_accuracy"] == pytest.approx(max(validated))
    assert summary["val_accuracy_last"] == pytest.approx(validated[-1])

    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"]["per_class"] == 10
    assert config["model"]["optim"]["lr"] == 1e-3
    assert "num_classes" not in config["model"]

    for text in ("validation accuracy", "test accuracy", "276,427 parameters", "MFLOPs", "images/s", "cct test runs/digits/"):
        assert text in outcome.out
    assert len(outcome.out.strip().splitlines()) <= 12


def test_the_checkpoint_knows_its_run_and_flags_win(cct, tmp_path):
    cct("fit", "-c", "digits", *SHORT, "--model.pooling", "mean")
    run = only(tmp_path.glob("runs/digits/*"))
    best, summary = run / "checkpoints" / "best.ckpt", json.loads((run / "summary.json").read_text())
    about = torch.load(best, weights_only=True)[KEY]
    assert about["recipe"]["data"]["per_class"] == 10
    assert about["model"]["pooling"] == "mean"

    tested = cct("test", best.relative_to(tmp_path))
    assert tested.code == 0, tested.err
    measures = json.loads((best.parent / "best-digits-test" / "measures.json").read_text())
    assert {name: measures[name] for name in summary["test"]} == pytest.approx(summary["test"])
    assert f"accuracy {100 * measures['accuracy']:.2f} %" in tested.out

    cct("validate", best, "--model.tta", "shift")  # the flag wins over what the checkpoint says
    other = json.loads((best.parent / "best-digits-val" / "measures.json").read_text())
    cct("validate", best)
    assert json.loads((best.parent / "best-digits-val" / "measures.json").read_text()) != other
    assert len(list(tmp_path.glob("runs/*/*"))) == 1
    assert cct("test", "-c", "smoke", best).code == 0  # a recipe is laid over what the checkpoint says

    module = LitClassifier.load_from_checkpoint(best)
    assert type(module.model.pooling).__name__ == "MeanPooling"


def test_flags_win_over_the_checkpoint_and_hyper_parameters_of_lightnings_are_not_heeded(cct, tmp_path, monkeypatch):
    write_images(tmp_path / "pets", 2, 12)
    write_images(tmp_path / "more", 2, 20)
    cct(
        "fit", "-c", "image_folder", "--data.root", "pets", "--data.image_size", 32, "--model.arch", "cct_2_3x2_32", "--data.batch_size", 16,
        "--trainer.max_epochs", 1, "--trainer.enable_progress_bar", "false",
    )  # fmt: skip
    best = only(tmp_path.glob("runs/*/*/checkpoints/best.ckpt"))
    other = tmp_path / "other.ckpt"  # what Lightning's save_hyperparameters would leave in a checkpoint
    torch.save(torch.load(best, weights_only=True) | {"hyper_parameters": {"label_smoothing": 0.75}}, other)
    seen = []
    measure = running.evaluate

    def look(stage, trainer, checkpoint, module, data, *rest):
        told = measure(stage, trainer, checkpoint, module, data, *rest)
        seen.append((trainer, module, data))
        return told

    monkeypatch.setattr(running, "evaluate", look)

    def tested(*words):
        outcome = cct("test", other, *words)
        assert outcome.code == 0, outcome.err
        trainer, model, data = seen.pop()
        n = len(model.outcomes.indices)
        return str(data.root), data.batch_size, data.crop_pct, model.label_smoothing, trainer["precision"], trainer["limit_test_batches"], n

    flags = (
        "--data.root", "more", "--data.batch_size", 3, "--data.crop_pct", 1, "--model.label_smoothing", 0.5, "--trainer.precision", "64-true",
        "--trainer.limit_test_batches", 2,
    )  # fmt: skip
    assert tested("--trainer.precision", "32-true") == ("pets", 16, 0.9, 0.1, "32-true", None, 4)
    assert tested(*flags) == ("more", 3, 1.0, 0.5, "64-true", 2, 6)
    (tmp_path / "overlay.yaml").write_text("data: {root: more, batch_size: 3}")
    assert tested("-c", "overlay.yaml", "--data.batch_size", 5)[:2] == ("more", 5)  # flag, recipe, checkpoint


def test_a_written_configuration_repeats_the_run_to_the_bit(cct, tmp_path):
    cct("fit", "-c", "digits", *SHORT)
    first = only(tmp_path.glob("runs/digits/*"))
    assert cct("fit", "-c", first / "config.yaml").code == 0
    again = next(run for run in tmp_path.glob("runs/digits/*") if run != first)
    weights = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in (first, again)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_last_checkpoint_is_the_last_epoch_and_the_best_the_last_of_equals(cct, tmp_path):
    cct("fit", "-c", "digits", *SHORT, "--model.optim.lr", 1e-30, "--model.schedule.warmup_lr", 0, "--model.schedule.min_lr", 0)
    run = sorted(tmp_path.glob("runs/digits/*"))[-1]
    epochs = [torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)["epoch"] for name in ("best", "last")]
    assert epochs == [1, 1]  # nothing was learned, so both epochs are equally good


def test_the_training_loss_and_rate_reach_the_loggers(cct, tmp_path):
    cct("fit", "-c", "digits", *SHORT, "--trainer.log_every_n_steps", 2, "--model.schedule.warmup_epochs", 0, "--model.optim.lr", 1e-3)
    rows = list(csv.DictReader(only(tmp_path.glob("runs/digits/*/metrics.csv")).read_text().splitlines()))
    steps = [int(row["step"]) for row in rows if row["train/loss"]]
    rates = [float(row["train/lr"]) for row in rows if row["train/lr"]]
    assert steps == [1, 3, 5]
    assert rates == sorted(rates, reverse=True)
    assert len([row for row in rows if row["train/loss_epoch"]]) == 2


def test_the_best_epoch_may_be_chosen_by_another_measure(cct, tmp_path):
    cct("fit", "-c", "digits", *SHORT, "--checkpoint.monitor", "val/loss")
    run = only(tmp_path.glob("runs/digits/*"))
    assert yaml.safe_load((run / "config.yaml").read_text())["checkpoint"] == {"monitor": "val/loss", "mode": "min"}
    rows = [row for row in csv.DictReader((run / "metrics.csv").read_text().splitlines()) if row["val/loss"]]
    best = min(rows, key=lambda row: float(row["val/loss"]))
    assert json.loads((run / "summary.json").read_text())["val_accuracy"] == pytest.approx(float(best["val/accuracy"]))


def test_runs_may_be_put_elsewhere(cct, tmp_path):
    cct("fit", "-c", "digits", *SHORT, "--trainer.default_root_dir", "else where")
    assert only(tmp_path.glob("else where/digits/*/summary.json"))


def test_weights_of_another_network_are_refused(cct, tmp_path):
    cct("fit", "-c", "digits", *SHORT)
    best = only(tmp_path.glob("runs/digits/*/checkpoints/best.ckpt"))
    outcome = cct("test", best, "--model.pooling", "map")
    assert outcome.code == 2
    assert "the checkpoint's weights do not fit this network" in outcome.err
    assert cct("test", "--trainer.accelerator", "cpu", best).code == 0
    assert cct("test", "--ckpt_path", best).code == 0
    (tmp_path / "bad.ckpt").write_bytes(b"garbage")
    assert "bad.ckpt is damaged" in cct("test", "bad.ckpt").err


def test_an_interrupted_run_says_what_is_there(cct, tmp_path):
    (tmp_path / "stop.py").write_text(STOP)
    sys.path.insert(0, str(tmp_path))
    outcome = cct("fit", "-c", "digits", *SHORT, "--trainer.max_epochs", 5, "--trainer.callbacks+=stop.Stop", "--allow-import", "stop")
    sys.path.remove(str(tmp_path))
    assert outcome.code == 130
    summary = json.loads(only(tmp_path.glob("runs/digits/*/summary.json")).read_text())
    assert not summary["finished"]
    assert summary["test_accuracy"] is None  # the test images are for finished runs
    assert summary["last_checkpoint"]
    assert "(interrupted)" in outcome.out


STOP = """
from lightning.pytorch import Callback

class Stop(Callback):
    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 2:
            raise KeyboardInterrupt
"""


def test_loggers_of_the_user_stay_beside_ours(cct, tmp_path):
    outcome = cct("fit", "-c", "digits", *SHORT, "--trainer.logger+=CSVLogger", "--trainer.logger.save_dir=mine")
    assert outcome.code == 0, outcome.err
    assert list(tmp_path.glob("mine/**/metrics.csv"))
    assert list(tmp_path.glob("runs/digits/*/metrics.csv"))


def test_callbacks_by_their_short_names(cct, tmp_path):
    outcome = cct("fit", "-c", "digits", *SHORT, "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss")
    assert outcome.code == 0, outcome.err


def test_a_run_without_validation_or_checkpoints(cct, tmp_path):
    outcome = cct("fit", "-c", "digits", *SHORT, "--data.val_fraction", 0)
    assert outcome.code == 0, outcome.err
    run = only(tmp_path.glob("runs/digits/*"))
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"last.ckpt", "last-digits-test"}
    assert json.loads((run / "summary.json").read_text())["val_accuracy"] is None
    assert cct("fit", "-c", "digits", *SHORT, "--trainer.enable_checkpointing", "false").code == 0
    assert cct("fit", "-c", "digits", *SHORT, "--trainer.fast_dev_run", "true").code == 0


def test_weights_start_a_run(cct, tmp_path):
    cct("fit", "-c", "digits", *SHORT)
    best = only(tmp_path.glob("runs/digits/*/checkpoints/best.ckpt"))
    outcome = cct("fit", "-c", "digits", *SHORT, "--model.pretrained", best, "--model.freeze", "backbone")
    assert outcome.code == 0, outcome.err
    assert f"weights from {best} (cct-lightning): 31 tensors loaded" in outcome.out


def test_an_offline_run_of_wandb_needs_no_network(cct, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    outcome = cct("fit", "-c", "digits", *SHORT, "--wandb.mode", "offline", "--wandb.tags", "[a, b]")
    assert outcome.code == 0, outcome.err
    binary = only(tmp_path.glob("runs/digits/*/wandb/offline-run-*/*.wandb")).read_bytes()
    for text in (b"cct_2_3x2_32", b"warmup_epochs", b"per_class", b"val/accuracy"):
        assert text in binary


@pytest.mark.parametrize(("words", "message"), [
    (("--model.arch", "vit_2_4_32", "--data.image_size", 15), "image_size=15 is not a multiple of patch_size=4"),
    (("--model.arch", "timm/vit_tiny_patch16_224", "--model.pooling", "masked_class_token"), "class_token=read_only asked of timm's"),
    (("--data.dataset", "image_folder", "--data.root", "/nowhere"), "data.root=/nowhere is no folder on this machine."),
    (("--data.dataset", "cifar10", "--data.root", "empty"), "data.dataset=cifar10 is not in data.root=empty"),
    (("--data.batch_size", "many"), "data.batch_size=many: the value does not fit.\n  It takes int."),
    (("--data.image_size", "wide"), "data.image_size=wide: the value does not fit.\n  It takes int, tuple[int, int] or null."),
    (("--trainer.precision", "bf17"), "It takes 32-true, 16-mixed, bf16-mixed, 16-true, bf16-true, 64-true or null."),
    (("--trainer.callbacks+=EarlyStopping",), "EarlyStopping needs monitor; give --trainer.callbacks.monitor"),
    (("--trainer.strategy", "foo"), "foo"),
    (("--trainer.overfit_batches", 2), "trainer.overfit_batches would replace the order of the images"),
    (("--seed_everything", -1), "-1"),
    (("--model.optim.lr", 0), "optim.lr=0.0 is out of range: it must be more than 0."),
    (("--model.drop_path", 1.5), "drop_path=1.5 is out of range: it must be at least 0 and less than 1."),
    (("--model.label_smoothing", 2), "label_smoothing=2.0 is out of range"),
    (("--data.augment.mixup", -1), "augment.mixup=-1.0 is out of range"),
    (("--data.augment.crop_scale", "[2, 3]"), "augment.crop_scale[1]=3.0 is out of range"),
    (("--data.augment.shift", 16), "data.augment.shift=16 is out of range"),
    (("--data.num_workers", -1), "data.num_workers=-1 is out of range"),
    (("--data.crop_pct", 0), "data.crop_pct=0.0 is out of range"),
    (("--model.optim.lr", "fast"), "model.optim.lr=fast"),
    (("--model.optim.name", "adamx"), "optim.name='adamx' is no optimizer of timm"),
    (("--trainer.max_epochs", "x"), "trainer.max_epochs=x: the value does not fit.\n  It takes int or null."),
    (("--trainer.callbacks", "Foo"), "trainer.callbacks=Foo: the value does not fit.\n  It takes a Callback's class."),
    (("--trainer.callbacks+=EarlyStopin",), "It takes a Callback's class. Did you mean EarlyStopping?"),
    (("--trainer.logger", "TensorBoardLoger"), "It takes a Logger's class. Did you mean TensorBoardLogger?"),
    (("--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitr=x"), "monitr"),
    (("--trainer.logger", "Foo"), "trainer.logger=Foo: the value does not fit.\n  It takes a Logger's class."),
    (("--model.pretrained", "nowhere.pth"), "There is no file nowhere.pth."),
    (("--checkpoint.monitor", "val/acc"), "checkpoint.monitor=val/acc is no measure of the validation. Did you mean val/accuracy"),
    (("--trainer.accelerator", "tpu"), "torch_xla"),
])  # fmt: skip
def test_bad_input_costs_five_lines_and_no_traceback(cct, words, message, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.CIFAR10.download", _no_network)
    outcome = cct("fit", "-c", "digits", *SHORT, *words)
    assert outcome.code == 2, outcome
    error = outcome.err[outcome.err.index("error: ") :]
    assert message in error
    assert len(error.strip().splitlines()) <= 5
    assert "Traceback" not in outcome.err
    assert not list(Path().glob("runs/*/*"))  # a run that never began leaves no folder


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_breaks_while_training_is_named(cct, tmp_path, workers):
    write_images(tmp_path / "images", 2, 12)
    broken = tmp_path / "images" / "class0001" / "3.png"
    broken.write_bytes(broken.read_bytes()[:-40])  # its header is whole
    outcome = cct(
        "fit", "-c", "image_folder", "--data.root", "images", "--data.image_size", 32, "--model.arch", "cct_2_3x2_32", "--data.cache", "none",
        "--data.batch_size", 16, "--data.num_workers", workers, "--trainer.max_epochs", 1, "--trainer.enable_progress_bar", "false",
    )  # fmt: skip
    assert outcome.code == 2, outcome.err
    assert re.search(r"error: .*3\.png can't be read as an image", outcome.err)
    assert "Traceback" not in outcome.err[outcome.err.index("error: ") :]


def test_r19_a_killed_process_that_reads_images_costs_one_line(cct, tmp_path, monkeypatch):
    write_images(tmp_path / "images", 2, 40)
    killed = []

    def kill(self, trainer, module, batch, batch_idx):
        if trainer.current_epoch == 1 and not killed:  # one: torch would tell of a second whenever any process ends, in another test, too
            killed.append(multiprocessing.active_children()[0])
            killed[0].kill()

    monkeypatch.setattr(Stopping, "on_train_batch_start", kill)
    outcome = cct(
        "fit", "-c", "image_folder", "--data.root", "images", "--data.image_size", 32, "--model.arch", "cct_2_3x2_32", "--data.cache", "none",
        "--data.batch_size", 8, "--data.num_workers", 1, "--trainer.max_epochs", 9, "--trainer.enable_progress_bar", "false",
    )  # fmt: skip
    assert outcome.code == 1, outcome.err
    (line,) = [line for line in outcome.err.splitlines() if "INFO" not in line and line.strip()]
    how = r"(is killed by signal: Killed|exited unexpectedly)"  # whichever torch finds first
    assert re.fullmatch(rf"error: a process that reads images \(process \d+\) {how}\. Where memory is short, fewer help: --data.num_workers N.", line)
    assert list(tmp_path.glob("runs/*/*/checkpoints/last.ckpt"))


@pytest.fixture(scope="module")
def of_one_process():
    """Keeps what one process finds, for all who compare with it."""
    return {}


@pytest.fixture
def cct_on_two_processes(cct, tmp_path, monkeypatch):
    """Runs ``cct WORDS`` with this process as the first of two, which starts the second as it was started itself; then it is alone again."""
    monkeypatch.syspath_prepend(tmp_path)

    def run(*words):
        with monkeypatch.context() as patch:
            patch.setattr(sys.modules["__main__"], "__spec__", None)  # else Lightning repeats `python -m pytest`
            patch.setenv("OMP_NUM_THREADS", "1")
            patch.setenv("PYTHONPATH", str(tmp_path))
            before = dict(os.environ)
            try:
                return cct(*words, program=CHECKOUT / "cli.py")
            finally:
                if torch.distributed.is_initialized():
                    torch.distributed.destroy_process_group()
                for name in set(os.environ) - set(before):
                    del os.environ[name]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("overlay", ["ddp", "fsdp"])
def test_two_processes_make_one_run(overlay, cct, cct_on_two_processes, tmp_path, of_one_process):
    (tmp_path / "spy.py").write_text(SPY)
    words = [
        "--trainer.max_epochs", "2", "--data.batch_size", "64", "--data.per_class", "64", "--model.drop_path", "0", "--model.optim.lr", "3e-4",
        "--wandb.mode", "disabled", "--trainer.enable_progress_bar", "false",
    ]  # fmt: skip
    two = ["-c", overlay, "--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.callbacks", "[spy.Spy]", "--allow-import", "spy"]
    done = cct_on_two_processes("fit", "-c", "digits", *two, *words)
    assert done.code == 0, done.err[-3000:]
    run = only(tmp_path.glob("runs/digits/*"))  # one folder
    assert done.out.count("test accuracy") == 1  # one summary
    assert {path.name for path in run.iterdir()} == {"config.yaml", "metrics.csv", "summary.json", "checkpoints", "images.csv.gz"}
    seen = [json.loads((tmp_path / f"seen-{rank}.json").read_text()) for rank in range(2)]
    for epoch in range(2):
        train = [index for rank in seen for index in rank["train"][epoch]]
        assert len(train) == len(set(train)) == 640
        val = [index for rank in seen for index in rank["val"][epoch]]
        assert len(val) == len(set(val)) == 143  # each once, though two does not divide it
    test = [index for rank in seen for index in rank["test"][0]]
    assert len(test) == len(set(test)) == 359

    both = [(run / "checkpoints" / "best-digits-test" / name).read_text() for name in ("classes.csv", "confusion.csv")]
    # Measures are over both ranks: one process finds the same on the same weights, from one plain checkpoint.
    summary = json.loads((run / "summary.json").read_text())
    assert summary["devices"] == 2
    assert cct("test", run / "checkpoints" / "best.ckpt").code == 0
    assert [(run / "checkpoints" / "best-digits-test" / name).read_text() for name in ("classes.csv", "confusion.csv")] == both
    alone = json.loads((run / "checkpoints" / "best-digits-test" / "measures.json").read_text())
    assert alone["accuracy"] == pytest.approx(summary["test_accuracy"], abs=1e-6)
    assert alone["calibration_error"] == pytest.approx(summary["test"]["calibration_error"], abs=1e-5)

    # Without dropout two processes do what one does, up to the order of sums.
    if not of_one_process:
        assert cct("fit", "-c", "digits", *words).code == 0
        single = next(path for path in tmp_path.glob("runs/digits/*") if path != run)
        of_one_process.update(json.loads((single / "summary.json").read_text()))
    assert of_one_process["test"]["loss"] == pytest.approx(summary["test"]["loss"], rel=1e-3)


SPY = '''
import json
from lightning.pytorch import Callback

class Spy(Callback):
    """Notes which images each rank sees."""
    def setup(self, trainer, module, stage):
        if stage == "fit":
            self.seen = {"train": [], "val": [], "test": []}
    def on_train_epoch_start(self, trainer, module):
        self.seen["train"].append([])
    def on_validation_epoch_start(self, trainer, module):
        if not trainer.sanity_checking:
            self.seen["val"].append([])
    def on_test_epoch_start(self, trainer, module):
        self.seen["test"].append([])
    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.seen["train"][-1] += batch.indices.tolist()
    def on_validation_batch_end(self, trainer, module, outputs, batch, index, loader=0):
        if not trainer.sanity_checking:
            self.seen["val"][-1] += batch.indices.tolist()
    def on_test_batch_end(self, trainer, module, outputs, batch, index, loader=0):
        self.seen["test"][-1] += batch.indices.tolist()
    def teardown(self, trainer, module, stage):
        with open(f"seen-{trainer.global_rank}.json", "w") as file:
            json.dump(self.seen, file)
'''


def test_a_full_gpu_is_two_lines_that_say_who_has_it(cct, monkeypatch):
    free = "Tried to allocate 96.00 MiB. GPU 0 has a total capacity of 79.10 GiB of which 18.75 MiB is free. Process 7 has 70.00 GiB memory in use."
    more = "Including non-PyTorch memory, this process has 9.00 GiB memory in use. Of the allocated memory 8.90 GiB is allocated by PyTorch."

    def full(*_):
        raise torch.OutOfMemoryError(f"CUDA out of memory. {free} {more}")

    monkeypatch.setattr(LitClassifier, "training_loss", full)
    outcome = cct("fit", "-c", "digits", "-c", "smoke")
    assert outcome.code == 1
    assert "Traceback" not in outcome.err
    lines = outcome.err.strip().splitlines()[-2:]
    assert lines[0].endswith(free)
    assert lines[1].startswith("  Smaller batches need less: --data.batch_size N")
