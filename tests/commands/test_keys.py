import inspect
from dataclasses import fields

import pytest
from lightning.pytorch import Trainer

from cct_lightning import AugmentConfig, ImageDataModule, OptimConfig, ScheduleConfig
from cct_lightning.commands.keys import allowed, flatten, groups_without_keys, known_keys, unknown_keys
from cct_lightning.data.sets import DATASETS
from cct_lightning.networks.poolings import POOLINGS
from cct_lightning.networks.presets import VARIANTS
from cct_lightning.runs.options import CheckpointConfig, WandbConfig
from cct_lightning.tasks.registry import TASKS, task_class
from cct_lightning.training.options import DistillConfig, LabelsLossConfig, LossConfig, NumbersLossConfig


def test_keys_are_those_of_the_classes():
    expected = {f"model.{name}" for task in TASKS for name in inspect.signature(task_class(task)).parameters} - {
        "model.model",
        "model.loss",
        "model.distill",
        "model.optim",
        "model.schedule",
    }
    expected |= {f"data.{name}" for name in inspect.signature(ImageDataModule).parameters} - {"data.augment"}
    expected |= {f"trainer.{name}" for name in inspect.signature(Trainer).parameters}
    for prefix, config in (
        ("model.loss", LossConfig), ("model.loss", LabelsLossConfig), ("model.loss", NumbersLossConfig),
        ("model.optim", OptimConfig), ("model.schedule", ScheduleConfig), ("data.augment", AugmentConfig),
        ("wandb", WandbConfig), ("checkpoint", CheckpointConfig), ("model.distill", DistillConfig),
    ):  # fmt: skip
        expected |= {f"{prefix}.{field.name}" for field in fields(config)}
    assert set(known_keys()) == expected | {"seed_everything", "task"}


def test_every_key_of_ours_has_a_help_a_type_and_the_default_of_its_class():
    defaults = {f"data.{name}": p.default for name, p in inspect.signature(ImageDataModule).parameters.items()}
    for name, key in known_keys().items():
        if not name.startswith("trainer."):
            assert key.help, name
            assert key.type, name
        if name in defaults:
            assert eval(key.default) == defaults[name], name


def test_types_and_defaults_are_as_one_writes_them():
    told = {name: (key.type, key.default) for name, key in known_keys().items()}
    assert told["model.optim.betas"] == ("tuple[float, float] | None", "None")
    assert told["model.position"] == ("Literal['learned', 'sine', 'none'] | None", "None")
    assert told["data.in_chans"] == ("int | None", "None")
    assert told["model.arch"] == ("str", "'cct_7_3x1_32'")
    assert told["model.drop_path"] == ("float", "0.1")  # another default in the task masked
    assert told["wandb.tags"] == ("list[str]", "[]")
    assert told["trainer.max_epochs"] == ("Optional[int]", "None")


@pytest.mark.parametrize(("key", "known"), [
    ("model.arch", True), ("model.optim", True), ("model.optim.lr", True), ("trainer.strategy.init_args.x", True), ("data.augment.flip", True),
    ("model.optim.lrr", False), ("modle.arch", False), ("model", True), ("trainer.max_epoch", False), ("model.model", False),
])  # fmt: skip
def test_unknown_keys(key, known):
    assert unknown_keys([key]) == ([] if known else [key])


def test_recipes_are_flattened_as_deep_as_our_keys_go():
    recipe = {"model": {"optim": {"lr": 1, "bogus": {"a": 1}}}, "trainer": {"strategy": {"class_path": "x"}}, "seed_everything": 0}
    assert list(flatten(recipe)) == ["model.optim.lr", "model.optim.bogus.a", "trainer.strategy", "seed_everything"]
    assert groups_without_keys({"model": {"optim": "adamw", "arch": "x"}, "data": 3}) == ["model.optim", "data"]


def test_names_are_read_off_the_source():
    assert allowed("model.pooling") == tuple(POOLINGS)
    assert allowed("model.arch") == tuple(VARIANTS)
    assert allowed("data.dataset") == tuple(DATASETS)
    assert allowed("model.freeze") == ("none", "backbone")
    assert allowed("model.position") == ("learned", "sine", "none")
    assert allowed("model.optim.lr") is None
