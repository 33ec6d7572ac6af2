"""Every shipped recipe through the real command line, a few steps on small stand-ins for its data."""

import json
from pathlib import Path

import pytest
import yaml
from pictures import write_images

from cct_lightning.commands.keys import flatten, groups_without_keys, unknown_keys
from cct_lightning.commands.recipes import header, recipe_paths

OVERLAYS = {"smoke", "ddp", "fsdp", "linear_probe"}
RECIPES = sorted(set(recipe_paths()) - OVERLAYS)
# recipe: classes, side and channels of the stand-in; None needs none
STAND_INS = {
    "digits": None, "mnist": (10, 28, True), "fashion_mnist": (10, 28, True), "cifar10": (10, 32, False), "cifar10_small": (10, 32, False),
    "cifar100": (100, 32, False), "vit_lite": (10, 32, False), "cvt": (10, 32, False), "flowers102": (102, 64, False),
    "imagenet": (3, 64, False), "image_folder": (3, 64, False), "finetune": (3, 64, False),
    "pretrain": (10, 32, False), "pretrain_mpp": (10, 32, False), "pretrain_mae": (10, 32, False), "cifar10_few": (10, 32, False),
    **dict.fromkeys(("cifar10_cct2", "cifar10_weights", "cifar10_cpu_2min", "cifar10_cpu_10min"), (10, 32, False)),
    **dict.fromkeys(("cifar10_1min", "cifar10_3min", "cifar10_9min"), (10, 32, False)),
}  # fmt: skip
# of those that have a command of their own
COMMANDS = {
    "finetune": "cct finetune DIR", "pretrain": "cct pretrain DIR|DATASET",
    **{name: f"cct pretrain DIR|DATASET -c {name}" for name in ("pretrain_mae", "pretrain_mpp")},
}  # fmt: skip


def test_all_recipes_are_tried():
    assert set(STAND_INS) == set(RECIPES)
    assert set(recipe_paths()) == {path.stem for path in (Path(__file__).parents[1] / "recipes").glob("*.yaml")}


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe_runs(name, cct, tmp_path):
    words = ["fit", "-c", name, "-c", "smoke", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    if STAND_INS[name]:
        classes, size, grey = STAND_INS[name]
        splits = ("train", "val") if name == "imagenet" else ("train", "val", "test") if name == "flowers102" else ("train", "test")
        for split in splits:
            write_images(tmp_path / "images" / split, classes, max(2, 12 // classes) if split == "train" else 1, size, grey)
        words += ["--data.root", "images"]
    recipe = yaml.safe_load(recipe_paths()[name].read_text())
    if recipe["model"].get("engine") == "graph":  # needs a GPU; the rest of the recipe does not
        refused = cct(*words)
        assert "model.engine=graph records a CUDA graph, and the run is on cpu" in refused.err
        words += ["--model.engine", "eager"]
    drawn = bool(recipe["trainer"].get("callbacks"))
    outcome = cct(*words, draws=drawn)
    assert outcome.code == 0, outcome.err
    (path,) = tmp_path.glob(f"runs/{name}/*/summary.json")
    pictures = {picture.stem.split("-epoch")[0] for picture in path.parent.glob("pictures/*.png")}
    summary = json.loads(path.read_text())
    assert summary["steps"] >= 1
    if "task" in recipe:  # which classifies nothing
        assert (summary["val_accuracy"], summary["test_accuracy"], summary["test"]) == (None, None, {})
        assert summary["val"]["loss"] > 0
        assert 0 <= summary["val"]["knn"] <= 1
        return
    assert ({"batch", "pooling"} <= pictures) == drawn
    assert (path.parent / "report.html").is_file() == drawn
    if recipe["data"].get("val_fraction") == 0:
        assert summary["val_accuracy"] is None
    else:
        assert 0 <= summary["val_accuracy"] <= 1
    assert (summary["test_accuracy"] is None) == (name == "imagenet")
    assert summary["flops_per_image"] > 0


@pytest.mark.parametrize("name", sorted(recipe_paths()))
def test_the_recipe_is_one_short_file_that_says_what_it_is(name):
    path = recipe_paths()[name]
    lines, recipe = header(path), yaml.safe_load(path.read_text())
    assert len(path.read_text().splitlines()) < 80
    assert not unknown_keys(flatten(recipe))
    assert not groups_without_keys(recipe)
    if name in OVERLAYS:
        assert lines[0].startswith("Overlay: ")
    else:
        assert lines[1].split("  ")[0].startswith(COMMANDS.get(name, f"cct fit -c {name}"))
        assert recipe["seed_everything"] == 0
        assert any(line.startswith(("Measured", "Published", "A starting point")) for line in lines)
    for line in lines:
        assert not line.startswith("Published") or any("README" in other for other in lines), "a published figure needs its source"


SWEEPS = sorted((Path(__file__).parents[1] / "recipes" / "sweeps").glob("*.yaml"))


def values_of(parameter):
    """Returns what W&B may draw: all values of a list, both ends of a range."""
    return parameter.get("values") or [parameter[name] for name in ("value", "min", "max") if name in parameter]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_sweep_names_keys_and_values_that_there_are(path, cct):
    sweep = yaml.safe_load(path.read_text())
    assert header(path)[1].startswith(f"wandb sweep recipes/sweeps/{path.name}")
    assert sweep["method"] in ("grid", "random", "bayes")
    assert sweep["metric"]["name"] in ("val/accuracy", "test/accuracy")
    assert sweep["command"][:3] == ["cct", "fit", "-c"]
    assert sweep["command"][4:] == ["${args}"]
    assert sweep["command"][3] in RECIPES
    assert not unknown_keys(list(sweep["parameters"]))
    if sweep["method"] == "grid":
        assert all("values" in parameter or "value" in parameter for parameter in sweep["parameters"].values())
    for turn in range(max(len(values_of(parameter)) for parameter in sweep["parameters"].values())):
        drawn = {key: (found := values_of(parameter))[turn % len(found)] for key, parameter in sweep["parameters"].items()}
        outcome = cct(*sweep["command"][1:4], *(f"--{key}={value}" for key, value in drawn.items()), "--print_config")
        assert outcome.code == 0, outcome.err
        printed = flatten(yaml.safe_load(outcome.out))
        assert {key: printed[key] for key in drawn} == drawn
