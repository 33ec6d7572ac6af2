"""The program that puts weights inside the package writes a folder that is read as those are."""

import json
from pathlib import Path

import pytest
import yaml
from trained import NAMES, write_checkpoint

from cct_lightning.weights.files import open_weights
from cct_lightning.weights.sources import card, locate

RECIPE = {"seed_everything": 3, "model": {"arch": "cct_2_3x2_32"}, "data": {"dataset": "digits", "root": "/home/me"}, "trainer": {"max_steps": 20}}
SUMMARY = {"seed": 3, "steps": 20, "cpu_seconds": 61.25, "cpu_seconds_at_350": 40.04, "device": "CPU, 1 thread(s)", "resumed": 0}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of a recipe of its own, tested on all of 50 images."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    monkeypatch.setattr("cct_lightning.weights.sources.INSIDE", tmp_path / "inside")
    (tmp_path / "inside").mkdir()
    run = tmp_path / "runs" / "mine" / "1"
    checkpoint = write_checkpoint(run / "checkpoints" / "last.ckpt", recipe=False)
    (run / "config.yaml").write_text(yaml.safe_dump(RECIPE))
    (run / "summary.json").write_text(json.dumps(SUMMARY))
    tables = checkpoint.with_name("last-digits-test")
    tables.mkdir()
    (tables / "measures.json").write_text(json.dumps({"accuracy": 0.82, "n": 50, "split_size": 50, "tta": "none"}))
    return run


def put(monkeypatch, tmp_path, *words):
    from benchmarks import inside

    monkeypatch.setattr(inside, "INSIDE", tmp_path / "inside")
    monkeypatch.setattr("sys.argv", ["inside", *map(str, words)])
    inside.main()


def test_file_and_card_are_read_as_they_are_found(run, tmp_path, monkeypatch, capsys):
    for _ in range(2):  # again over the first
        put(monkeypatch, tmp_path, run, "--name", "ours", "--note", "Chosen by nothing.")
    says, text = card("ours")
    opened = open_weights(locate("ours"), "ours")
    assert opened.about["sha256"] == says["sha256"]
    assert (says["classes"], says["recipe"], says["seed"], says["test_accuracy"], says["test_images"]) == (NAMES, "mine", 3, 0.82, 50)
    assert (says["cpu_seconds"], says["cpu_seconds_at_350"]) == (61.2, 40.0)
    assert says["changed_keys"] == {"model.arch": "cct_2_3x2_32", "trainer.max_steps": 20}  # and not where the data lie
    assert "right in 82.00 % of the\n50 test images" in text
    assert "\nChosen by nothing.\n" in text
    assert "written: " in capsys.readouterr().out


@pytest.mark.parametrize("change", [{"n": 49}, {"tta": "mirror"}])
def test_a_run_that_was_not_tested_on_all_images_as_they_are_is_refused(run, tmp_path, monkeypatch, change):
    path = run / "checkpoints" / "last-digits-test" / "measures.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SystemExit, match="holds no test of all images as they are: cct test"):
        put(monkeypatch, tmp_path, run)
    assert not list((tmp_path / "inside").iterdir())


def test_keys_are_told_that_are_not_as_the_recipe_says(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    from benchmarks.inside import changed_keys
    from cct_lightning.commands.recipes import recipe_paths

    config = yaml.safe_load(recipe_paths()["cifar10_cct2"].read_text())
    assert changed_keys(config, "cifar10_cct2") == {}
    config["model"] |= {"attn_drop": 0.2, "pooling": None}
    config["data"]["augment"]["shift"] = 4
    assert changed_keys(config, "cifar10_cct2") == {"model.attn_drop": 0.2, "data.augment.shift": 4}
