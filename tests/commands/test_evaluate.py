from pathlib import Path

import pytest
import torch

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
