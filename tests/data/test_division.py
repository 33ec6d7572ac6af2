import numpy as np
import pytest

from cct_lightning.data.division import divide, hide_labels
from cct_lightning.data.folders import UNLABELLED, Split


@pytest.fixture
def train():
    return Split(np.zeros((60, 1, 1, 1), np.uint8), np.arange(60) % 3 - 1)  # a third has no labels


def test_images_without_labels_are_for_training_and_validation_alone(train):
    splits = divide({"train": train, "val": None, "test": None}, 0.1, 0.2, 0, 1.0, 2, "root")
    assert {name: len(chosen) for name, (_, chosen) in splits.items()} == {"test": 8, "val": 6, "train": 2 * 2 + 18}
    assert (train.targets[splits["test"][1]] != UNLABELLED).all()
    assert not set(splits["val"][1]) & set(splits["train"][1])


def test_hidden_labels_are_those_of_no_split():
    train = Split(np.zeros((60, 1, 1, 1), np.uint8), np.arange(60) % 3)
    read, splits = hide_labels({"train": train, "val": None}, divide({"train": train, "val": None, "test": None}, 0.1, 0.2, 0, 1.0, 2, "root"))
    hidden, chosen = splits["train"]
    assert read["train"] is hidden
    assert all(split is hidden for split, _ in splits.values())
    assert sorted(np.concatenate([part for _, part in splits.values()])) == list(range(60))
    assert np.bincount(hidden.targets[chosen] + 1).tolist() == [len(chosen) - 6, 2, 2, 2]
    known = hidden.targets != UNLABELLED
    assert np.array_equal(hidden.targets[known], train.targets[known])
