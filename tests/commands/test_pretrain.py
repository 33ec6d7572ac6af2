import json

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from pictures import write_images

import cct_lightning
from cct_lightning.commands.pretrain import prepare

SMALL = (
    "--data.image_size", 16, "--data.batch_size", 8, "--data.num_workers", 0, "--trainer.max_epochs", 1, "--trainer.max_steps", -1,
    "--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--trainer.enable_progress_bar", "false",
)  # fmt: skip


@pytest.fixture
def photos(tmp_path):
    return write_images(tmp_path / "photos", classes=2, each=10, size=16)


@pytest.fixture
def heap(tmp_path):
    for number in range(24):
        place = tmp_path / "heap" / ("", "a", "a/b")[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (16, 16, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(place / f"{number}.png")
    return tmp_path / "heap"


def newest(folder, recipe="pretrain"):
    return max(folder.glob(f"runs/{recipe}/*"))


def test_images_without_labels_teach_a_network_that_is_fine_tuned(cct, photos, heap, tmp_path):
    learned = cct("pretrain", "heap", *SMALL)
    assert learned.code == 0, learned.err
    run = newest(tmp_path)
    assert f"next\n  cct finetune DIR --model.pretrained {run.relative_to(tmp_path)}" in learned.out
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["task"], summary["test"], summary["val_accuracy"]) == ("masked", {}, None)
    assert summary["val"]["loss"] > 0
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["data"]["dataset"], config["task"]) == ("images", "masked")

    tuned = cct("finetune", "photos", "--model.pretrained", run, *SMALL[2:])
    assert tuned.code == 0, tuned.err
    report = json.loads((newest(tmp_path, "finetune") / "summary.json").read_text())["load_report"]
    config = yaml.safe_load((newest(tmp_path, "finetune") / "config.yaml").read_text())
    assert config["data"]["image_size"] == [16, 16]
    assert config["model"]["arch"] == "cct_2_3x2_32"
    weights = torch.load(run / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert set(report["loaded"]) == {name.removeprefix("model.") for name in weights if name.startswith("model.encoder.")}
    assert all(name.startswith(("head.", "pooling.")) for name in report["new"])
    assert all(name.startswith("decoder") for name in report["dropped"])


def test_a_recipe_begins_with_what_was_learned(cct, tmp_path):
    few = ("--data.per_class", 4, *SMALL, *(word for part in ("train", "val", "test") for word in (f"--trainer.limit_{part}_batches", 2)))
    assert cct("pretrain", "digits", "--data.unlabelled", "rest", *few).code == 0
    for overlay in ((), ("-c", "linear_probe")):
        begun = cct("fit", "-c", "digits", *overlay, "--model.pretrained", newest(tmp_path), *few)
        assert begun.code == 0, begun.err
        summary = json.loads((newest(tmp_path, "digits") / "summary.json").read_text())
        assert {name.split(".")[0] for name in summary["load_report"]["loaded"]} == {"encoder"}
        assert ("its features are computed once" in begun.out) == bool(overlay)
        assert summary["test_accuracy"] is not None


def test_class_folders_are_taken_as_a_fine_tuning_takes_them(cct, photos, heap, tmp_path, capfd):
    assert prepare(["photos"]).keys["data.dataset"] == "image_folder"
    assert prepare(["heap"]).keys["data.dataset"] == "images"
    PIL.Image.new("RGB", (16, 16)).save(photos / "loose.png")  # which class folders would pass over
    assert capfd.readouterr().err == ""
    assert prepare(["photos"]).keys["data.dataset"] == "images"
    assert "photos is taken as one heap, without labels and without a test" in capfd.readouterr().err


def test_a_data_set_by_name_keeps_its_size_and_what_follows_wins(cct):
    assert "data.image_size" not in prepare(["digits"]).keys
    keys = prepare(["digits", "--data.batch_size=24", "-c", "pretrain_mpp", "--trainer.callbacks+=EMA"]).keys
    assert (keys["model.target"], keys["data.dataset"], keys["data.batch_size"]) == ("mpp", "digits", "24")


def test_a_recipe_laid_over_changes_no_images_but_their_size(cct, heap, tmp_path):
    (tmp_path / "own.yaml").write_text("data: {dataset: cifar10, root: elsewhere, image_size: 96}")
    keys = prepare(["heap", "-c", "own.yaml"]).keys
    assert (keys["data.dataset"], keys["data.root"], keys["data.image_size"]) == ("images", "heap", 96)
    assert prepare(["heap", "-c", "own.yaml", "--data.image_size", "32"]).keys["data.image_size"] == "32"
    assert prepare(["heap", "-c", "pretrain_mpp"]).keys["data.image_size"] == "64"


def test_a_run_on_a_heap_goes_on_wherever_that_lies_and_not_with_other_images(cct, photos, heap, tmp_path):
    words = ("--data.unlabelled", "heap", *SMALL, "--trainer.limit_train_batches", 2)
    assert cct("pretrain", "photos", *words).code == 0
    run = newest(tmp_path)
    heap.rename(tmp_path / "moved")
    (tmp_path / "moved/a/1.png").rename(tmp_path / "moved/a/one.png")
    refused = cct("resume", run, "--extend-to", 2, "--data.unlabelled", "moved")
    assert "unlabelled/a/1.png is gone" in refused.err
    (tmp_path / "moved/a/one.png").rename(tmp_path / "moved/a/1.png")
    longer = cct("resume", run, "--extend-to", 2, "--data.unlabelled", "moved")
    assert longer.code == 0, longer.err
    assert json.loads((run / "summary.json").read_text())["epochs"] == 2


def test_python_does_the_same(cct, heap):
    run = cct_lightning.pretrain("heap", dict(zip([str(word).removeprefix("--") for word in SMALL[::2]], SMALL[1::2], strict=True)))
    assert run.summary.task == "masked"
    assert repr(run).endswith("pretrain, not tested)")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "pretrain begins with your images: cct pretrain DIR"),
        (("--data.batch_size", 8), "pretrain begins with your images"),
        (("none",), "There is no folder, file or data set none"),
        (("digitz",), "Did you mean digits?"),
        (("images",), "There is no folder, file or data set images"),
        (("note.doc",), "note.doc is neither a folder of images nor a .csv"),
        (("empty",), "empty holds no image"),
        (("digits", "--model.pretrained", "x.ckpt"), "There is no file x.ckpt"),
        (("digits", "--task", "classification"), "pretrain learns without labels, and task=classification does not"),
        (("digits", "--data.unlabelled", "none"), "none is no folder on this machine"),
    ],
)
def test_a_way_of_calling_that_is_refused(cct, tmp_path, words, message):
    (tmp_path / "note.doc").write_text("none")
    (tmp_path / "empty").mkdir()
    refused = cct("pretrain", *words)
    assert refused.code == 2
    assert message in refused.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("words", [("--data.unlabelled", "rest"), ("--data.dataset", "images", "--data.root", ".")])
def test_a_classifier_needs_labels(cct, words):
    refused = cct("fit", "-c", "digits", *words)
    assert "Images without labels (data.unlabelled, data.dataset=images) are for `cct pretrain`" in refused.err
