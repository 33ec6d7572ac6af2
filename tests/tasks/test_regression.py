"""Numbers instead of classes through all commands, and as a task by itself."""

import csv
import json
import re

import pytest
import torch
from spots import FIT, SMALL, write_spots

import cct_lightning
from cct_lightning import InputError, LitClassifier
from cct_lightning.tasks.regression import Regression
from cct_lightning.training.options import NumbersLossConfig


@pytest.fixture(scope="module")
def spots(tmp_path_factory):
    return write_spots(tmp_path_factory.mktemp("spots"))


def test_numbers_are_learned_tested_predicted_and_exported_in_their_units(cct, spots, tmp_path):
    keys = ("--data.augment.mixup", 0.5, "--model.loss.name", "smooth_l1")
    outcome = cct(*FIT, "regression", *SMALL, *keys, "--data.root", spots / "numbers.csv", draws=True)
    assert outcome.code == 0, outcome.err
    assert "validation R²        best " in outcome.out
    (run,) = (tmp_path / "runs/image_folder").iterdir()
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["measure"], summary["test_measure"]) == ("r2", summary["test"]["r2"])
    assert {path.name for path in (run / "pictures").iterdir()} >= {"batch.png", "pooling-epoch002.png", "scatter.png", "mistakes.png"}
    page = (run / "report.html").read_text()
    assert all(part in page for part in ("Test R²", "Each number (2)", "Furthest off"))

    best = run / "checkpoints/best.ckpt"
    module = Regression.load_from_checkpoint(best)
    assert 1000 < module.scale[0, 0] < 1200
    assert 0 < module.scale[1, 1] < 0.02
    tested = cct("test", best)
    assert tested.code == 0, tested.err
    assert f"R² {100 * summary['test']['r2']:.2f} %" in tested.out
    exported = tmp_path / "out"
    assert cct("export", best, "--format", "safetensors", "--out", exported).code == 0
    predictor = cct_lightning.load(run)
    for source in (best, exported):
        told = cct("predict", source, spots / "00*.png", "--out", "told.csv", "--overwrite")
        assert told.code == 0, told.err
        with (tmp_path / "told.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert all(900 < float(row["light"]) < 1300 for row in rows)
        for row, found in zip(rows, predictor.predict([row["path"] for row in rows]), strict=True):
            assert [float(row[name]) for name in ("light", "width")] == pytest.approx([value for _, value in found.values], rel=1e-4)
    line = json.loads(cct("predict", best, spots / "003.png", "--format", "jsonl").out)
    assert set(line["values"]) == {"light", "width"}
    refused = cct("predict", best, spots / "003.png", "--top_k", 2)
    assert "--top_k=2 is for classes and labels, and this network tells numbers" in refused.err


def module(**options):
    task = Regression("cct_2_3x2_32", num_classes=2, image_size=16, in_chans=1, mean=[0.3], std=[0.4], **options)
    task.take_up({"output": {"kind": "numbers", "thresholds": [], "mean": [100.0, 0.5], "std": [10.0, 0.1]}})
    return task


def test_the_loss_counts_in_deviations_and_the_measures_in_units():
    task = module()
    batch = torch.rand(3, 1, 16, 16), torch.tensor([[110.0, 0.5], [90.0, 0.7], [100.0, 0.4]])
    _, standard = task.step_inputs(batch)
    torch.testing.assert_close(standard, torch.tensor([[1.0, 0.0], [-1.0, 2.0], [0.0, -1.0]]))
    logits = standard + torch.tensor([0.5, 0.0])
    task.measure_batch("val", logits, batch[1])
    found = task.take_measures("val")
    assert float(found["val/mae/0"]) == pytest.approx(5.0)
    assert float(found["val/rmse/1"]) == pytest.approx(0.0, abs=1e-6)
    assert float(found["val/loss"]) == pytest.approx(0.125)
    smooth = module(loss=NumbersLossConfig("smooth_l1", beta=0.1))
    assert float(smooth._losses(logits, standard)[0]) == pytest.approx((0.5 - 0.05) / 2)


def test_of_several_numbers_each_error_has_a_name():
    assert Regression.measured(["light"]) == Regression.measures
    assert Regression.measured(["light", "width"])[2:] == ("val/mae/light", "val/rmse/light", "val/mae/width", "val/rmse/width")
    assert "val/top5" not in LitClassifier.measured(["a"] * 5)
    assert "val/top5" in LitClassifier.measured(["a"] * 6)


def test_a_network_that_was_not_trained_tells_no_units():
    with pytest.raises(InputError, match="has not been trained: nobody knows the units of its numbers"):
        _ = Regression("cct_2_3x2_32", num_classes=1, image_size=16, in_chans=1).output


@pytest.mark.parametrize(("words", "message"), [
    (("--model.label_smoothing", 0.1), r"label_smoothing is a key of another task.*\n  It is for classification and multilabel, and"),
    (("--data.per_class", 5), "data.per_class=5 is for classes, and the images of .* are told by numbers"),
    (("--data.targets", "[light, lenght]"), "data.targets names 'lenght', which is no column"),
    (("--checkpoint.monitor", "val/mae", *SMALL), "no measure of the validation of these images. Did you mean val/mae/width or val/mae/light"),
    (("--data.targets", "light"), r"data.targets=light: it takes a list of names, such as \[light\]"),
])  # fmt: skip
def test_what_does_not_fit_is_told_in_short(cct, spots, words, message):
    outcome = cct("fit", "-c", "image_folder", "--task", "regression", "--data.dataset", "csv", "--data.root", spots / "numbers.csv", *words)
    assert outcome.code == 2
    assert re.search(message, outcome.err), outcome.err


def test_a_precision_that_rounds_the_true_numbers_is_refused(cct, spots):
    outcome = cct(*FIT, "regression", *SMALL, "--data.root", spots / "numbers.csv", "--trainer.precision", "bf16-true")
    assert outcome.code == 2
    assert "trainer.precision=bf16-true rounds the true numbers, too" in outcome.err
