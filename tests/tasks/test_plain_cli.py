"""Our classes in other people's LightningCLI, as the README shows it."""

import re
import runpy
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI

from cct_lightning import ImageDataModule, InputError, LitClassifier, OptimConfig

README = (Path(__file__).parents[2] / "README.md").read_text()
QUIET = ("--trainer.fast_dev_run=true", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")
SEED = "--seed_everything=0"  # else Lightning warns


def blocks(title):
    """Returns the code of a section of the README."""
    (section,) = re.findall(rf"^## {title}\n(.*?)(?=^## )", README, re.M | re.S)
    return re.findall(r"```\w+\n(.*?)```", section, re.S)


@pytest.fixture
def cli(monkeypatch, tmp_path):
    """Runs a plain LightningCLI on these words, in an empty folder."""
    # Lightning 2.6 calls what jsonargparse 5 will drop: https://github.com/Lightning-AI/pytorch-lightning/issues/21900
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    monkeypatch.chdir(tmp_path)

    def run(*words, classes=(LitClassifier, ImageDataModule), **more):
        monkeypatch.setattr("sys.argv", ["train.py", *words, SEED])
        return LightningCLI(*classes, **{"run": False, "save_config_callback": None, **more})

    return run


def test_the_readmes_script_trains(cli, monkeypatch, tmp_path):
    script = blocks("In your own LightningCLI")[0]
    (command,) = re.findall(r"^# python (.*)", script)
    name, *words = command.split()
    (tmp_path / name).write_text(script)
    monkeypatch.setattr("sys.argv", [name, *words, *QUIET, SEED])
    made = runpy.run_path(name, run_name="__main__")["cli"]
    assert made.trainer.global_step == 1
    module, data = made.model, made.datamodule
    assert (module.model.num_classes, module.model.encoder.in_chans, module.model.encoder.image_size) == (10, 1, (16, 16))
    assert (module.class_names, module.mean, module.std) == (data.class_names, data.mean, data.std)
    assert module.optim == OptimConfig(lr=0.001)


def test_the_readmes_yaml_trains(cli, tmp_path):
    (tmp_path / "mine.yaml").write_text(blocks("In your own LightningCLI")[1])
    made = cli("fit", "-c", "mine.yaml", "--model.init_args.pooling=mean", *QUIET, classes=(), run=True)
    assert type(made.model) is LitClassifier
    assert type(made.datamodule) is ImageDataModule
    assert made.trainer.global_step == 1
    assert (made.model.model_config["pooling"], made.model.optim.lr, made.model.model_config["image_size"]) == ("mean", 0.001, [16, 16])


def test_what_is_printed_is_read_again(cli, capsys, tmp_path):
    with pytest.raises(SystemExit):
        cli("--model.image_size=16", "--model.optim.betas=[0.9, 0.95]", "--data.augment.flip=0.5", "--print_config")
    first = capsys.readouterr().out
    (tmp_path / "first.yaml").write_text(first)
    with pytest.raises(SystemExit):
        cli("--config=first.yaml", "--print_config")
    assert capsys.readouterr().out == first
    assert yaml.safe_load(first)["model"]["optim"]["betas"] == [0.9, 0.95]
    assert yaml.safe_load(first)["data"]["augment"]["flip"] == 0.5


def test_its_help_says_what_the_keys_mean(cli, capsys):
    with pytest.raises(SystemExit):
        cli("--help")
    told = " ".join(capsys.readouterr().out.split())
    assert "How tokens become one feature" in told
    assert "Images in a training batch, over all devices." in told
    assert "--model.optim.layer_decay" in told


@pytest.mark.parametrize("word", ["--model.poling=map", "--model.optim.lrr=1", "--model.freeze=head", "--data.batch_sze=1"])
def test_wrong_words_are_refused(cli, capsys, word):
    with pytest.raises(SystemExit):
        cli(word)
    assert word.removeprefix("--").partition("=")[0].rpartition(".")[2] in capsys.readouterr().err


def test_numbers_out_of_range_are_refused(cli):
    with pytest.raises(InputError, match=r"optim\.lr=-1\.0 is out of range"):
        cli("--model.optim.lr=-1")
    with pytest.raises(InputError, match=r"data\.batch_size=0 is out of range"):
        cli("--data.batch_size=0")


def test_the_readmes_network_of_ones_own_works():
    names = {"__name__": "readme"}
    exec(compile(blocks("A network of your own")[0], "README.md", "exec"), names)
    module = names["module"]
    assert module.own_model
    assert module(torch.zeros(2, 1, 16, 16)).shape == (2, 10)
