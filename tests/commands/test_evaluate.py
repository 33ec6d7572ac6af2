import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from pictures import write_images

import cct_lightning
from cct_lightning import ImageDataModule, InputError
from cct_lightning.commands.evaluate import recipe_of
from cct_lightning.commands.requests import Request

FROZEN = Path(__file__).parents[1] / "frozen"


@pytest.mark.parametrize(("group", "key", "value", "message"), [
    ("recipe", "data", {"dataset": "digits", "fraction": 10**400}, "data.fraction=inf is out of range"),
    ("recipe", "data", {"dataset": "digits", "test_fraction": 10**400}, "data.test_fraction=inf is out of range"),
    ("recipe", "data", {"dataset": "digits", "augment": [None]}, "data.augment is a group of keys, and no value"),
    ("recipe", "data", {"dataset": "digits", "augment": True}, "data.augment is a group of keys, and no value"),
    ("recipe", "data", {"dataset": "digits", "fraction": None}, "data.fraction is null, and takes a number"),
    ("recipe", "data", {"dataset": "digits", "root": None}, "recipe.data.root is None, and should be text"),
    ("recipe", "data", {"dataset": "digits", "image_size": 2**31}, "recipe.data.image_size=2147483648 is out of range"),
    ("recipe", "data", {"dataset": "nothing"}, "data.dataset=nothing is unknown"),
    ("recipe", "seed_everything", "x", "recipe.seed_everything is 'x', and should be a whole number"),
    ("model", "num_classes", 0, "says num_classes=0: a network to be measured tells two classes or more"),
])  # fmt: skip
def test_r10d_what_a_checkpoint_says_of_its_data_is_checked_as_a_recipe_is(group, key, value, message, cct, tmp_path):
    content = torch.load(FROZEN / "ema.ckpt", weights_only=True)
    content["cct_lightning"][group][key] = value
    if key == "num_classes":
        content["cct_lightning"]["class_names"] = content["cct_lightning"]["model"]["class_names"] = None
    torch.save(content, tmp_path / "best.ckpt")
    outcome = cct("test", "best.ckpt")
    assert outcome.code == 2
    assert message in outcome.err


MASKED = """
task: masked
model: {arch: cct_2_3x2_32, schedule: {warmup_epochs: 1}}
data: {dataset: digits, image_size: 16, batch_size: 20, per_class: 6}
trainer: {max_epochs: 1, accelerator: cpu, precision: 32-true, callbacks: [{class_path: EMA, init_args: {decay: 0.5}}]}
checkpoint: {monitor: val/loss, mode: min}
"""


def test_what_was_trained_without_labels_is_to_be_fine_tuned_first(cct, tmp_path):
    (tmp_path / "masked.yaml").write_text(MASKED)
    foreign = cct("fit", "-c", "masked.yaml", "--model.label_smoothing", 0.1)
    assert "error: model.label_smoothing is a key of another task than this one (`task: NAME` in a recipe): leave it out." in foreign.err
    trained = cct("fit", "-c", "masked.yaml", draws=True)
    assert trained.code == 0, trained.err
    (run,) = tmp_path.glob("runs/masked/*")
    PIL.Image.new("L", (16, 16)).save("a.png")
    best = run.relative_to(tmp_path) / "checkpoints" / "best.ckpt"
    for words in (
        ("test", best),
        ("validate", run),
        ("predict", run, "a.png"),
        ("embed", run, "a.png", "--out", "f.npz"),
        ("export", run, "--format", "timm"),
    ):
        refused = cct(*words)
        assert refused.code == 2, words
        assert "was trained without labels and tells no classes yet: train it on labelled images first," in refused.err, words
        assert refused.err.rstrip().endswith(f"cct finetune DIR --model.pretrained {best if words[1] == best else run / 'checkpoints' / 'best.ckpt'}")
        assert len(refused.err.splitlines()) == 2
    tuned = cct("fit", "-c", "digits", "--model.pretrained", run, "--data.per_class", 6, "--data.batch_size", 20, "--trainer.max_epochs", 1)
    assert tuned.code == 0, tuned.err
    assert "tensors loaded\n  dropped decoder (18 tensors): it fills in masked patches, for the pre-training alone\n  new " in tuned.out
    resumed = cct("resume", run, "--extend-to", 2)
    assert resumed.code == 0, resumed.err


def measures(folder):
    return json.loads((folder / "measures.json").read_text())


def test_a_test_says_what_it_sees_and_what_that_costs(cct, tmp_path):
    shutil.copy(FROZEN / "ema.ckpt", tmp_path / "best.ckpt")
    plain = cct("test", "best.ckpt")
    assert (plain.code, "tta" in plain.out) == (0, False), plain.err
    assert measures(tmp_path / "best-digits-test")["tta"] == "none"
    seen = cct("test", "best.ckpt", "--tta", "shift", "--calibrate")
    assert seen.code == 0, seen.err
    assert "images, tta shift: 6 forward passes an image\n" in seen.out
    found = measures(tmp_path / "best-digits-test")
    assert found["tta"] == "shift"
    kept = json.loads((tmp_path / "best.calibration.json").read_text())
    assert kept["tta"] == "shift"
    # what it measures is what is predicted
    data = ImageDataModule("digits", image_size=16, seed=0)
    data.setup("test")
    split, chosen = data.splits["test"]
    predictor = cct_lightning.load("best.ckpt", calibrated=False)
    probabilities = predictor.probabilities(np.stack([split.images[index] for index in chosen]), "shift")
    assert found["accuracy"] == pytest.approx((probabilities.argmax(1) == split.targets[chosen]).mean(), abs=1e-6)
    refused = cct("test", "best.ckpt", "--tta", "flip")
    assert (refused.code, "model.tta=flip is unknown. Known: mirror, none, shift." in refused.err) == (2, True)


def test_one_number_is_enough_of_a_regression():
    about = {"model": {"num_classes": 1}, "recipe": {"task": "regression", "data": {"dataset": "csv"}}}
    assert recipe_of(about, Request("test", (), checkpoint=Path("best.ckpt")))["task"] == "regression"
    with pytest.raises(InputError, match="says num_classes=1: a network to be measured tells two classes or more"):
        recipe_of({**about, "recipe": {"data": {"dataset": "csv"}}}, Request("test", (), checkpoint=Path("best.ckpt")))


def test_images_that_were_drawn_from_others_are_not_taken_for_a_test(cct, tmp_path):
    write_images(tmp_path / "photos", 2, 10, 16)
    words = ("--data.image_size", 16, "--data.batch_size", 4, "--trainer.max_epochs", 1, "--trainer.enable_progress_bar", "false")
    trained = cct("fit", "-c", "image_folder", "--data.root", "photos", *words, "--model.arch", "cvt_2_4_32", "--model.depth", 1)
    assert trained.code == 0, trained.err
    (run,) = tmp_path.glob("runs/image_folder/*")
    assert cct("test", run).code == 0
    validated = cct("validate", run, "--calibrate", "--reject", 0.9)
    assert validated.code == 0, validated.err
    assert "validation: " in validated.out
    assert "test: " not in validated.out
    assert "test: " in cct("test", run, "--calibrate").out
    # Another division of the same images would measure on what was trained on, which our own messages advised.
    for command, key, value in (
        ("test", "split_seed", 1),
        ("test", "test_fraction", 0.5),
        ("test", "fold", "1/2"),
        ("validate", "val_fraction", 0.3),
    ):
        refused = cct(command, run, f"--data.{key}", value)
        assert refused.code == 2
        assert f"data.{key}={value} divides the images in photos otherwise than the training did" in refused.err
        assert len(refused.err.splitlines()) == 3
    assert cct("test", run, "--data.val_fraction", 0.3).code == 0  # which a test is drawn before
    write_images(tmp_path / "field", 2, 9, 17)  # of another camera: none was seen, all are measured
    assert "test of field: 18 images\n" in cct("test", run, "--data.root", "field").out
    assert "test of field: 8 images\n" in cct("test", run, "--data.root", "field", "--data.test_fraction", 0.5).out
    shutil.copy(run / "checkpoints" / "best.ckpt", "model.ckpt")
    assert cct("test", "model.ckpt").code == 0
    shutil.copytree("photos", "held/train")
    write_images(tmp_path / "held" / "test", 2, 3, 16)
    for name in ("class0000", "class0001"):
        shutil.copy(f"photos/{name}/0.png", f"photos/{name}/new.png")
    for flags in ((), ("--calibrate",)):
        refused = cct("test", run, *flags)
        assert refused.code == 2
        assert "was trained on: class0000/new.png is new, and 1 more differs.\n" in refused.err
        assert len(refused.err.splitlines()) == 3
    refused = cct("test", "model.ckpt")
    assert refused.code == 2
    assert "are not those that the checkpoint was trained on: which, its run could tell" in refused.err
    # test images of their own are never drawn, validation images then are; the run's tables stay what they are
    tables = run / "checkpoints/best-image_folder-test"
    before = (tables / "measures.json").read_text()
    assert cct("test", run, "--data.root", "held").code == 0
    assert (tables / "measures.json").read_text() == before
    assert measures(tables.with_name("best-image_folder-held-test"))["data"]["root"] == "held"
    assert "val images are drawn from all of them" in cct("validate", run, "--data.root", "held").err
