"""Several labels an image through all commands, and as a task by itself."""

import csv
import json

import pytest
import torch
from spots import FIT, NAMES, SMALL, write_spots

import cct_lightning
from cct_lightning import InputError
from cct_lightning.evaluation.labels import choose_thresholds
from cct_lightning.tasks.multilabel import Multilabel
from cct_lightning.training.options import LabelsLossConfig


@pytest.fixture(scope="module")
def spots(tmp_path_factory):
    return write_spots(tmp_path_factory.mktemp("spots"))


def test_labels_are_learned_tested_predicted_and_exported(cct, spots, tmp_path):
    keys = ("--data.augment.mixup", 0.5, "--model.loss.name", "asymmetric", "--model.loss.class_weights", "balanced")
    outcome = cct(*FIT, "multilabel", *SMALL, *keys, "--data.root", spots / "labels.csv", draws=True)
    assert outcome.code == 0, outcome.err
    assert "validation mAP       best " in outcome.out
    assert "test mAP             " in outcome.out
    (run,) = (tmp_path / "runs/image_folder").iterdir()
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["measure"], summary["test_accuracy"], summary["test_measure"]) == ("mAP", None, summary["test"]["mAP"])
    assert {path.name for path in (run / "pictures").iterdir()} >= {"batch.png", "pooling-epoch002.png", "classes.png", "mistakes.png"}
    page = (run / "report.html").read_text()
    assert all(part in page for part in ("Test mAP", "Validation mAP", "Each label, the worst first (3)", "average precision"))
    assert "not readable" not in page

    best = run / "checkpoints/best.ckpt"
    output = torch.load(best, weights_only=True)["cct_lightning"]["output"]
    module = Multilabel.load_from_checkpoint(best)
    assert module.thresholds == output["thresholds"]
    tested = cct("test", best)
    assert tested.code == 0, tested.err
    assert f"mAP {100 * summary['test']['mAP']:.2f} %" in tested.out
    assert f"{output['thresholds'][0]:.3f}" in tested.out

    (exported,) = [tmp_path / "out"]
    assert cct("export", best, "--format", "safetensors", "--out", exported).code == 0
    predictor = cct_lightning.load(run)
    for source in (best, exported):
        told = cct("predict", source, spots / "00*.png", "--out", "told.csv", "--overwrite")
        assert told.code == 0, told.err
        with (tmp_path / "told.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["labels"] for row in rows] == [
            ";".join(name for name, _ in found.labels) for found in predictor.predict([row["path"] for row in rows])
        ]
    (found,) = predictor.predict([spots / "003.png"], top_k=3)
    assert found.labels == tuple(pair for pair in found.top if pair[1] >= predictor.output.thresholds[NAMES.index(pair[0])])
    assert (found.class_name, len(found.top)) == (None, 3)
    line = json.loads(cct("predict", best, spots / "003.png", "--format", "jsonl", "--top_k", 2).out)
    assert [part["class"] for part in line["labels"]] == [name for name, _ in found.labels]
    assert len(line["top"]) == 2
    with pytest.raises(InputError, match="a temperature is fitted to a network that tells one class each"):
        predictor.calibrate([spots / "003.png"], [0])


def logits_for(marks, scale=2.0):
    return (torch.tensor(marks, dtype=torch.float32) - 0.5) * scale


def module(**options):
    return Multilabel("cct_2_3x2_32", num_classes=2, image_size=16, in_chans=1, mean=[0.3], std=[0.4], **options)


def test_a_validation_of_a_training_chooses_the_thresholds_and_another_goes_by_them():
    task, source = module(), torch.Generator().manual_seed(0)
    targets = (torch.rand(40, 2, generator=source) < 0.4).float()
    logits = logits_for(targets.tolist()) + torch.randn(40, 2, generator=source) - 1
    task.measure_batch("val", logits, targets)
    plain = task.take_measures("val")
    assert task.thresholds == [0.5, 0.5]
    task._was_trained = True
    for part in (slice(25), slice(25, 40)):
        task.measure_batch("val", logits[part], targets[part])
    chosen = task.take_measures("val")
    assert task.thresholds == choose_thresholds(logits.sigmoid(), targets > 0.5) != [0.5, 0.5]
    assert chosen["val/f1"] > plain["val/f1"]
    assert chosen["val/mAP"] == plain["val/mAP"]
    assert set(chosen) == {f"val/{name}" for name in ("mAP", "loss", "f1", "f1_micro", "exact")} == set(Multilabel.measures)
    task.measure_batch("test", logits, 1 - targets)
    task.take_measures("test")
    assert task.thresholds == choose_thresholds(logits.sigmoid(), targets > 0.5)  # no test changes them


def test_the_loss_is_what_was_asked_for():
    images, targets = torch.rand(4, 1, 16, 16), torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.3, 0.7]])
    task = module(label_smoothing=0.2).eval()
    softened = targets * 0.8 + 0.1
    torch.testing.assert_close(task.training_loss(images, targets), torch.nn.functional.binary_cross_entropy_with_logits(task(images), softened))
    other = module(loss=LabelsLossConfig("asymmetric", gamma_neg=2)).eval()
    other.load_state_dict(task.state_dict())
    assert other.training_loss(images, targets) < task.training_loss(images, targets)


def test_classes_for_targets_are_refused():
    with pytest.raises(InputError, match=r"targets \(4,\) given: several labels an image are float 0\.\.1 \(B, 2\)"):
        module().step_inputs((torch.rand(4, 1, 16, 16), torch.tensor([0, 1, 0, 1])))


@pytest.mark.parametrize(("words", "message"), [
    (("--task", "multilabel", "--data.dataset", "image_folder"), "task=multilabel learns from images with several labels, and those of"),
    (("--task", "classification"), "those of .* have several labels: give --task multilabel, or other images"),
    (("--task", "multilabel", "--model.distill.kind", "hard"),
     r"distill.kind is a key of another task.*\n  It is for classification, and the task here is mul"),
    (("--task", "multilabel", "--model.loss.name", "hinge"), "model.loss.name=hinge is unknown"),
    (("--task", "multilabel", "--checkpoint.monitor", "val/accuracy"), "checkpoint.monitor=val/accuracy is no measure of the validation"),
    (("--task", "multilabel", "--model.loss.clip", 1), "loss.clip=1"),
])  # fmt: skip
def test_what_does_not_fit_is_told_in_short(cct, spots, words, message):
    import re

    from pictures import write_images

    root = write_images(spots / "folders", classes=2, each=3, size=8) if "image_folder" in words else spots / "labels.csv"
    outcome = cct("fit", "-c", "image_folder", "--data.dataset", "csv", "--data.root", root, *words)
    assert outcome.code == 2
    assert re.search(message, outcome.err), outcome.err
    assert outcome.err.count("\n") <= 5
