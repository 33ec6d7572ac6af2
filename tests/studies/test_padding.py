from dataclasses import replace

import pytest

from cct_lightning.commands.study import prepare, study_paths
from cct_lightning.errors import InputError
from cct_lightning.studies.options import Study
from cct_lightning.studies.padding import num_parameters, padding

ARMS = {"mean": {"model.pooling": "mean"}, "map": {"model.pooling": "map"}, "class_attention": {"model.pooling": "class_attention"}}
STUDY = Study("mine", "model.pooling", ARMS, "mean", pad="model.mlp_ratio")
RECIPE = {"model.arch": "cct_2_3x2_32", "data.dataset": "cifar10"}


@pytest.mark.parametrize("recipe", [RECIPE, {**RECIPE, "model.mlp_ratio": 1.5}, {"data.dataset": "digits", "data.image_size": 16}])
def test_smaller_arms_get_the_weights_of_the_largest(recipe):
    found = padding(STUDY, recipe)
    assert set(found) == {"mean", "map"}
    largest = num_parameters({**recipe, **ARMS["class_attention"]})
    for arm, keys in found.items():
        size = num_parameters({**recipe, **ARMS[arm], **keys})
        assert 0.995 * largest < size <= largest


def test_a_key_that_changes_no_size_can_not_pad():
    with pytest.raises(InputError, match=r"pad=model.drop_path does not change how many weights"):
        padding(replace(STUDY, pad="model.drop_path"), {**RECIPE, "model.drop_path": 0.01})
    with pytest.raises(InputError, match=r"pad=model.position: it takes a key that is a number"):
        padding(replace(STUDY, pad="model.position"), RECIPE)


def test_comparisons_that_differ_in_size_are_not_padded_alike():
    with pytest.raises(InputError, match=r"pad=model.mlp_ratio: arch cct_7_3x1_32 takes other values than arch cct_2_3x2_32"):
        padding(replace(STUDY, across={"model.arch": ["cct_2_3x2_32", "cct_7_3x1_32"]}), {"data.dataset": "cifar10"})
    assert padding(replace(STUDY, across={"data.fraction": [0.1, 1.0]}), RECIPE) == padding(STUDY, RECIPE)


@pytest.mark.parametrize("name", study_paths())
def test_every_arm_of_a_shipped_study_is_a_network(name):
    command = study_paths()[name].read_text().splitlines()[1]
    request = prepare(command.removeprefix("#   cct study ").split())
    sizes = {arm: num_parameters({**request.keys, **keys}) for arm, keys in request.study.arms.items()}
    assert min(sizes.values()) > 100_000
