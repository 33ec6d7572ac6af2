import inspect
from dataclasses import fields

import pytest

from cct_lightning import ImageDataModule, InputError, LitClassifier
from cct_lightning.options import helps
from cct_lightning.tasks.options import FROM_DATA, ClassificationOptions, from_config, to_config
from cct_lightning.training.options import LossConfig, OptimConfig, TrainingOptions


def test_a_configuration_is_plain_and_makes_the_same_options():
    options = ClassificationOptions("cct_2_3x2_32", image_size=16, class_names=("a", "b"), optim=OptimConfig(lr=0.1, betas=(0.9, 0.95)))
    config = to_config(options)
    assert {type(value) for value in config.values()} <= {str, int, float, bool, list, tuple, dict, type(None)}
    assert ClassificationOptions(**from_config(config)) == ClassificationOptions(**{**vars(options), "class_names": ["a", "b"]})


def test_groups_may_be_given_as_they_are():
    assert from_config({"loss": LossConfig("balanced"), "optim": {"lr": 1}}) == {"loss": LossConfig("balanced"), "optim": OptimConfig(lr=1)}


def test_the_weights_that_a_run_began_with_its_teacher_and_what_a_test_sees_are_not_what_it_is():
    kept = {option.name for option in fields(ClassificationOptions)} - {"pretrained", "new_head", "tta", "teacher", "distill"}
    assert to_config(ClassificationOptions()).keys() == kept


def test_every_key_has_a_help():
    assert set(helps(ClassificationOptions)) == {option.name for option in fields(ClassificationOptions)}
    assert {option.name for option in fields(TrainingOptions)} <= set(helps(ClassificationOptions))


def test_what_flows_from_the_data_is_there_and_asked_for():
    data = ImageDataModule("digits")
    assert all(getattr(data, name) is not None for name in FROM_DATA)
    assert set(FROM_DATA) <= inspect.signature(LitClassifier).parameters.keys()


def test_numbers_out_of_range_are_refused():
    with pytest.raises(InputError, match=r"label_smoothing=2 is out of range: it must be at least 0 and at most 1\."):
        ClassificationOptions(label_smoothing=2)
    with pytest.raises(InputError, match="depth=0 is out of range"):
        ClassificationOptions(depth=0)
