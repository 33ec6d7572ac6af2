import json

import pytest
import torch
import yaml
from trained import write_checkpoint

from cct_lightning import InputError
from cct_lightning.commands.keys import flatten
from cct_lightning.inference.card import PLACE, Told, _without_places, card, look_up, recipe_of, with_license
from cct_lightning.weights.sources import sha256
from cct_lightning.weights.trained import read_saved

RECIPE = {
    "seed_everything": 3,
    "task": "classification",
    "model": {"arch": "timm/vit_tiny", "pooling": None, "pretrained": "/home/anna/secret.ckpt", "teacher": "hf:me/big@v1",
              "distill": {"kind": "soft", "cache": "/home/anna/cache"}, "optim": {"lr": 1e-3, "betas": (0.9, 0.95)}},
    "data": {"dataset": "image_folder", "root": "/home/anna/patients", "unlabelled": "/home/anna/more", "val_fraction": 0.1, "test_fraction": 0.2,
             "split_seed": 0, "per_class": None, "fraction": 0.5, "num_workers": 3, "fold": "1/5"},
    "trainer": {"max_epochs": 9, "precision": "bf16-mixed", "default_root_dir": "/home/anna/runs", "accelerator": "cpu", "logger": None,
                "callbacks": ["BatchPreview", {"class_path": "cct_lightning.callbacks.EMA", "init_args": {"decay": 0.99}}]},
    "wandb": {"entity": "anna", "project": "patients"},
    "checkpoint": {"monitor": "val/accuracy", "mode": "max"},
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """A run's folder as `cct fit` leaves it, but for images."""
    folder = tmp_path / "runs" / "finetune" / "20260101-000000"
    path = write_checkpoint(folder / "checkpoints" / "best.ckpt")
    content = torch.load(path, weights_only=True)
    content["cct_lightning"]["recipe"] = RECIPE
    torch.save(content, path)
    summary = {
        "val_accuracy": 0.9,
        "test_accuracy": 0.8,
        "epochs": 9,
        "steps": 90,
        "num_parameters": 283723,
        "seconds": 61.2,
        "device": "CPU, 2 thread(s)",
        "finished": True,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    tables = folder / "checkpoints" / "best-image_folder-test"
    tables.mkdir()
    measures = {"accuracy": 0.8, "f1": 0.75, "loss": 0.512345, "n": 120, "split_size": 120, "split": "test", "tta": "none",
                "data": {"root": "/home/anna/patients"}}  # fmt: skip
    (tables / "measures.json").write_text(json.dumps(measures))
    return path


def write(path):
    saved = read_saved(path)
    text = card(saved, look_up(saved))
    head, body = text.removeprefix("---\n").split("\n---\n", 1)
    return yaml.safe_load(head), body


def test_a_card_says_what_the_run_found_and_nothing_of_where(run):
    head, body = write(run)
    (result,) = head.pop("model-index")[0]["results"]
    assert head == {
        "library_name": "cct-lightning", "pipeline_tag": "image-classification",
        "tags": ["cct-lightning", "vision-transformer", "pytorch", "cct_2_3x2_32"], "metrics": ["accuracy", "f1"],
    }  # fmt: skip
    assert result["metrics"] == [{"type": "accuracy", "value": 0.8}]
    assert result["dataset"] == {"name": "images of its author's own", "type": "imagefolder", "split": "test"}
    assert "cct_2_3x2_32 (283,723 parameters), for images of 16 x 16 pixels and 3 channels." in body
    assert "test, 120 images, each seen once, as it is: accuracy 80.00 %, f1 75.00 %, loss 0.5123" in body
    assert "validation: accuracy 90.00 %, by which the epoch was chosen, so it flatters" in body
    assert "It learned from the share 0.5 of them." in body
    assert "It began with weights of its author. It learned, too, from the weights hf:me/big@v1." in body
    assert "one of its 3 classes whatever it is shown" in body
    assert "9 epochs, 90 steps, 61 s on CPU, 2 thread(s)" in body
    assert "cct fit -c recipe.yaml --data.root YOUR_IMAGES" in body
    assert f"cct predict {PLACE} photo.jpg" in body
    for secret in ("anna", "patients", "/home", str(run.parent)):
        assert secret not in body


def test_its_recipe_is_one_and_says_what_counts(run, tmp_path):
    saved = read_saved(run)
    found = recipe_of(look_up(saved))
    assert flatten(found) == {
        "seed_everything": 3, "task": "classification", "model.arch": "timm/vit_tiny", "model.teacher": "hf:me/big@v1", "model.distill.kind": "soft",
        "model.optim.lr": 1e-3, "model.optim.betas": [0.9, 0.95], "data.dataset": "image_folder", "data.val_fraction": 0.1, "data.test_fraction": 0.2,
        "data.split_seed": 0, "data.fraction": 0.5, "data.fold": "1/5", "trainer.max_epochs": 9, "trainer.precision": "bf16-mixed",
        "trainer.callbacks": [{"class_path": "EMA", "init_args": {"decay": 0.99}}], "checkpoint.monitor": "val/accuracy", "checkpoint.mode": "max",
    }  # fmt: skip
    body = write(run)[1]
    (tmp_path / "recipe.yaml").write_text(body.split("```yaml\n")[1].split("```")[0])
    from cct_lightning.commands.recipes import read_recipe

    assert read_recipe(tmp_path / "recipe.yaml", trains=True)["model.optim.lr"] == 1e-3


def test_what_is_not_known_is_not_said(tmp_path):
    _, body = write(write_checkpoint(tmp_path / "x.ckpt", recipe=False))
    assert "nothing was measured, or what was is not known here" in body
    assert "## Again" not in body


def test_damaged_side_files_cost_their_figures_alone(run):
    (run.parent / "best-image_folder-test" / "measures.json").write_text('{"accuracy": "0.8", "n": [1], "tta": {}, "f1": 0.5}')
    (run.parent.parent / "summary.json").write_text('{"val_accuracy": "a"}')
    assert "nothing was measured" in write(run)[1]


@pytest.mark.parametrize("other", [{"data": {"root": "/home/anna/others"}}, {"sha256": "0" * 64}])
def test_a_test_of_other_images_or_weights_is_not_the_run_s(run, other):
    path = run.parent / "best-image_folder-test" / "measures.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sha256": sha256(run)}))
    assert "test, 120 images" in write(run)[1]
    path.write_text(json.dumps({**json.loads(path.read_text()), **other}))
    assert "test, " not in write(run)[1]


def test_sets_by_name_and_weights_of_the_hub_are_named_as_there(run):
    saved = read_saved(run)
    recipe = {"data": {"dataset": "cifar10"}, "model": {"pretrained": "hf:me/small@abc"}}
    text = card(saved, Told(recipe, {}, {"accuracy": 0.5, "n": 10}, {"train": 50000, "test": 10000}))
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["datasets"] == ["uoft-cs/cifar10"]
    assert head["base_model"] == "me/small"
    assert "Trained on cifar10. There were 50,000 train images, 10,000 test images." in text


def test_folds_are_told_as_folds(tmp_path, run):
    saved = read_saved(run)
    from dataclasses import replace

    summary = {"folds": 5, "n": 244, "accuracy": 0.91, "deviation": 0.02, "test_accuracy": None}
    text = card(replace(saved, members=5), Told(RECIPE, summary, {}, {}))
    assert "5 networks cct_2_3x2_32, the mean of whose probabilities counts" in text
    assert "- folds, 244 images, each tested once by the one network that had not seen it: accuracy 91.00 ± 2.00 %" in text


def test_a_licence_is_put_where_the_hub_reads_it(run):
    saved = read_saved(run)
    text = with_license(card(saved, look_up(saved)), "mit")
    assert text.startswith("---\nlicense: mit\nlibrary_name: cct-lightning\n")
    assert "\nLicence: mit.\n" in text
    again = with_license(text, "apache-2.0")
    assert again.count("license:") == 1
    for wrong in ("MIT License", "a\nb", ""):
        with pytest.raises(InputError, match="it is named as on the hub"):
            with_license(text, wrong)
    with pytest.raises(InputError, match="does not begin with a head"):
        with_license("# mine", "mit")


def test_names_of_classes_are_text_in_it(tmp_path):
    _, body = write(write_checkpoint(tmp_path / "x.ckpt", class_names=["a\n---\nlicense: x", "b", "c"]))
    assert "a\\n---\\nlicense: x, b, c" in body


@pytest.mark.parametrize("file", ["of_jane.ckpt", "/home/jane/x.ckpt", "runs/1"])
def test_a_file_of_weights_is_not_named(file):
    assert _without_places({"pretrained": file, "teacher": file, "arch": "cct_2_3x2_32"}, "model.") == {"arch": "cct_2_3x2_32"}
