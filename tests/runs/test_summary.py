import subprocess
from types import SimpleNamespace

import pytest

from cct_lightning.runs.summary import Summary, about, steps_per_epoch
from cct_lightning.runs.summary import describe as describe_summary

WHOLE = {
    "recipe": "digits", "run_dir": "runs/digits/1", "arch": "cct_2_3x2_32", "val_accuracy": 0.5, "val_accuracy_last": 0.25, "test_accuracy": 0.125,
    "num_parameters": 276_427, "flops_per_image": 16_292_352, "images_per_second": 2438.2, "seconds": 34.12, "epochs": 60, "steps": 1200,
    "best_checkpoint": "runs/digits/1/checkpoints/best.ckpt", "last_checkpoint": "runs/digits/1/checkpoints/last.ckpt", "device": "CPU", "seed": 0,
    "finished": True, "resumed": 0, "val_accuracy_raw": None, "pooling": "SeqPool", "test": {},
    "cpu_seconds": 60.0, "load_report": None, "devices": 1,
}  # fmt: skip


def describe(values):
    return describe_summary(Summary(**values))


def test_a_whole_run():
    text = describe(WHOLE)
    for part in (
        "digits: cct_2_3x2_32, 60 epochs (1200 steps) in 34.1 s on CPU\n", "best 50.00 %, last 25.00 %", "12.50 % with the best weights",
        "276,427 parameters, 16.3 MFLOPs", "2,438 images/s", "checkpoints/best.ckpt, last.ckpt", "cct test runs/digits/1/checkpoints/best.ckpt",
        "--seed_everything 1",
    ):  # fmt: skip
        assert part in text


def test_what_classifies_nothing_has_no_accuracy_and_is_fine_tuned_next():
    learned = {"task": "masked", "val": {"loss": 0.51, "knn": 0.25}, "val_accuracy": None, "val_accuracy_last": None, "test_accuracy": None}
    text = describe({**WHOLE, **learned})
    assert "validation loss      0.5100\n  k-NN accuracy        25.00 % of the validation images" in text
    assert "next\n  cct finetune DIR --model.pretrained runs/digits/1\n" in text
    assert "test" not in text
    assert "k-NN" not in describe({**WHOLE, **learned, "val": {"loss": 0.51}})


def test_cpu_seconds_are_told_with_the_speed_that_they_are_of():
    text = describe({**WHOLE, "product_speeds": [175.0, 180.0, 170.0], "cpu_seconds_at_350": 30.0})
    assert "2,438 images/s; 60.0 CPU-seconds of cores with 175 GFLOP/s, 30.0 at 350\n" in text


@pytest.mark.parametrize(("epochs", "steps", "told"), [
    (0, 610, "cct_2_3x2_32, 610 steps, 0.8 epochs, in 34.1 s"), (12, 9375, "cct_2_3x2_32, 9375 steps, 12.5 epochs, in 34.1 s"),
    (12, 9000, "cct_2_3x2_32, 12 epochs (9000 steps) in 34.1 s"),
])  # fmt: skip
def test_a_run_that_ends_inside_an_epoch_says_how_far_it_got(epochs, steps, told):
    assert told in describe({**WHOLE, "epochs": epochs, "steps": steps, "steps_per_epoch": 750})


@pytest.mark.parametrize(("batches", "accumulated", "steps"), [(20, 1, 20), (20, 3, 7), (float("inf"), 1, None)])
def test_the_steps_of_an_epoch_are_those_of_the_optimizer(batches, accumulated, steps):
    assert steps_per_epoch(SimpleNamespace(num_training_batches=batches, accumulate_grad_batches=accumulated)) == steps


def test_what_is_missing_is_a_dash():
    missing = dict.fromkeys(("val_accuracy", "val_accuracy_last", "test_accuracy", "flops_per_image", "images_per_second", "best_checkpoint"))
    text = describe({**WHOLE, **missing, "finished": False})
    for part in (
        "(interrupted)",
        "best -, last -",
        "test accuracy        -\n",
        "276,427 parameters\n",
        "cct test runs/digits/1/checkpoints/last.ckpt",
    ):
        assert part in text


def test_a_stopped_run_says_how_to_go_on():
    text = describe({**WHOLE, "finished": False, "resumed": 2})
    assert "on CPU, in 3 sittings (interrupted)\n" in text
    assert "next\n  cct resume runs/digits/1\n" in text
    assert "cct resume" not in describe(WHOLE)
    assert "cct resume" not in describe({**WHOLE, "finished": False, "last_checkpoint": None})


def test_a_run_without_test_images_suggests_to_validate():
    assert "  cct validate runs/digits/1/checkpoints/best.ckpt\n" in describe({**WHOLE, "test_accuracy": None})


def test_a_large_calibration_error_is_explained():
    unsure = {"test_accuracy": 0.994, "test": {"calibration_error": 0.172}, "test_confidence": 0.822, "label_smoothing": 0.1}
    text = describe(WHOLE | unsure)
    assert (
        "  calibration          calibration error 17.2 %: right in 99.4 %, sure to 82.2 % on average: too unsure, as label smoothing (0.1) and "
        in text
    )
    assert "a short run (1,200 steps) make a network\n  " in text
    assert "a temperature mends it: cct test runs/digits/1/checkpoints/best.ckpt --calibrate\n" in text
    assert "calibration" not in describe(WHOLE)
    assert "calibration" not in describe(WHOLE | unsure | {"test": {"calibration_error": 0.04}})
    assert "--calibrate" not in describe(WHOLE | unsure | {"val_accuracy": None, "val_accuracy_last": None})


def test_an_average_is_set_beside_the_raw_weights():
    assert "best 50.00 %, last 25.00 %; last without EMA 12.50 %\n" in describe({**WHOLE, "val_accuracy_raw": 0.125})


def test_a_run_tells_the_commit_it_was_started_at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    found = about(7, None)
    assert (found["git_commit"], found["num_parameters"], found["flops_per_image"]) == (None, 7, None)
    assert found["versions"].keys() == {"cct-lightning", "python", "torch", "lightning", "timm"}

    def git(*words):
        return subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *words], check=True, capture_output=True, text=True
        ).stdout.strip()

    (tmp_path / "file").write_text("1")
    git("init")
    git("add", "file")
    git("commit", "-m", "one")
    git("tag", "v1")
    commit = git("rev-parse", "HEAD")
    assert about(7, 3)["git_commit"] == commit
    (tmp_path / "new").touch()  # the commit does not know it
    assert about(7, 3)["git_commit"] == commit
    (tmp_path / "file").write_text("2")
    assert about(7, 3)["git_commit"] == f"{commit}-dirty"
    monkeypatch.setenv("PATH", "")
    assert about(7, 3)["git_commit"] is None
