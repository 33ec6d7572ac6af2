import numpy as np
import pytest

from cct_lightning.data.division import divide
from cct_lightning.data.folders import Split, read_table
from cct_lightning.data.folds import assign_folds, heap_of
from cct_lightning.data.module import ImageDataModule
from cct_lightning.data.options import read_fold
from cct_lightning.errors import InputError

COUNTS = [7, 23, 11, 10]
TARGETS = np.repeat(np.arange(4), COUNTS)


def split_of(targets, groups=None):
    return Split(np.zeros((len(targets), 1, 1, 1), np.uint8), targets, groups=groups)


def divided(targets, fold, groups=None, val_fraction=0.2, test=None):
    read = {"train": split_of(targets, groups), "val": None, "test": test}
    splits = divide(read, val_fraction, 0.2, 0, 1.0, None, "photos", fold, [f"class{label}" for label in range(targets.max() + 1)])
    return {name: chosen for name, (_, chosen) in splits.items()}


@pytest.mark.parametrize("folds", [2, 3, 5, 7])
def test_folds_are_equal_in_every_class_and_in_all(folds):
    placed = assign_folds(TARGETS, None, folds, 0)
    for members in (TARGETS >= 0, *(label == TARGETS for label in range(4))):
        sizes = np.bincount(placed[members], minlength=folds)
        assert sizes.max() - sizes.min() <= 1
    assert not np.array_equal(placed, assign_folds(TARGETS, None, folds, 1))
    assert np.array_equal(placed, assign_folds(TARGETS, None, folds, 0))


def test_every_image_is_tested_once_and_none_is_in_two_parts():
    parts = [divided(TARGETS, (number, 5)) for number in range(1, 6)]
    assert np.array_equal(np.sort(np.concatenate([part["test"] for part in parts])), np.arange(len(TARGETS)))
    for part in parts:
        assert np.array_equal(np.sort(np.concatenate(list(part.values()))), np.arange(len(TARGETS)))
        assert set(TARGETS[part["train"]]) == set(TARGETS[part["val"]]) == {0, 1, 2, 3}


def test_no_group_is_in_two_parts_and_folds_are_as_equal_as_scikit_learn_s():
    from sklearn.model_selection import StratifiedGroupKFold

    source = np.random.default_rng(0)
    groups = source.integers(0, 60, 600)
    targets = (groups % 3 + source.integers(0, 2, 600)) % 3

    def unevenness(tests):
        shares = np.stack([np.bincount(targets[test], minlength=3) for test in tests]) / np.bincount(targets)
        return shares.std(axis=0).mean()

    parts = [divided(targets, (number, 5), groups) for number in range(1, 6)]
    for part in parts:
        of_part = [set(groups[chosen]) for chosen in part.values()]
        assert sum(map(len, of_part)) == len(set.union(*of_part))
        assert 0.1 < len(part["val"]) / (len(part["val"]) + len(part["train"])) < 0.3
    assert np.array_equal(np.sort(np.concatenate([part["test"] for part in parts])), np.arange(600))
    theirs = [test for _, test in StratifiedGroupKFold(5, shuffle=True, random_state=0).split(targets, targets, groups)]
    assert unevenness([part["test"] for part in parts]) <= 1.1 * unevenness(theirs)


def test_own_test_images_are_in_no_fold_and_those_of_a_val_folder_are():
    own = split_of(np.array([0, 1]))
    assert len(divided(TARGETS, (1, 2), test=own)["test"]) in (25, 26)
    joined = heap_of(split_of(TARGETS, np.arange(51)), split_of(TARGETS[:3], np.arange(3)))
    assert (len(joined), len(joined.images), len(joined.groups)) == (54, 54, 54)
    assert heap_of(own, None) is own


@pytest.mark.parametrize(
    ("targets", "groups", "folds", "said"),
    [
        (TARGETS, None, 8, "8 folds need 8 images of each class, one to test on in each; there are fewer of 1 class(es): class0 7."),
        (TARGETS, np.zeros(51, int), 2, "2 folds of 1 group(s) can't be made"),
        (np.array([0, 0, 0, 1, 1, 1]), np.array([0, 1, 2, 3, 3, 3]), 2, "all images of class1 are in fold"),
    ],
)
def test_folds_that_can_not_be_made_are_refused(targets, groups, folds, said):
    with pytest.raises(InputError) as error:
        divided(targets, (1, folds), groups)
    assert said in str(error.value)


def test_no_group_is_set_aside_for_validation_that_is_all_of_a_class():
    targets, groups = np.array([0, 0, 1, 1]), np.array([0, 1, 2, 3])
    with pytest.raises(InputError, match=r"photos: no group can be set aside for val, (?s:.*)--data.val_fraction 0 trains"):
        divided(targets, (1, 2), groups)
    assert "val" not in divided(targets, (1, 2), groups, val_fraction=0)
    with pytest.raises(InputError, match=r"photos: no group can be set aside for test, (?s:.*)--data.test_fraction 0 tests"):
        divided(targets, None, targets)


def test_no_group_is_parted_where_there_are_no_folds():
    source = np.random.default_rng(0)
    groups = source.integers(0, 60, 600)
    parts = divided(np.arange(600) % 3, None, groups)
    assert sum(len(set(groups[chosen])) for chosen in parts.values()) == len(set(groups))
    assert {name: len(chosen) for name, chosen in parts.items()} == pytest.approx({"test": 120, "val": 96, "train": 384}, abs=25)


def test_classes_of_one_image_stay_in_the_training_beside_groups():
    targets = np.array([0] * 20 + [1] * 20 + list(range(2, 42)))
    groups = np.concatenate([np.arange(40) // 2, np.arange(40, 80)])
    parts = divided(targets, None, groups)
    assert set(targets[parts["train"]]) == set(range(42))
    assert set(targets[parts["test"]]) == set(targets[parts["val"]]) == {0, 1}


@pytest.mark.parametrize("fold", ["0/5", "6/5", "1/1", "2", "1/5/2", "-1/5", "a"])
def test_a_fold_that_is_none_is_refused(fold):
    with pytest.raises(InputError, match=f"data.fold={fold}: give which of how many"):
        read_fold(fold)


def test_a_table_says_what_belongs_together(tmp_path):
    rows = [("a.png", "cat", "x"), ("b.png", "dog", ""), ("c.png", "dog", "x"), ("d.png", "cat", "")]
    for name, _, _ in rows:
        (tmp_path / name).touch()
    (tmp_path / "a.csv").write_text("\n".join(["path,label,group", *map(",".join, rows)]))
    groups = read_table(tmp_path / "a.csv").splits["train"].groups
    assert groups[0] == groups[2]
    assert len(set(groups)) == 3
    (tmp_path / "b.csv").write_text("\n".join(["path,label", *(f"{name},{label}" for name, label, _ in rows)]))
    assert read_table(tmp_path / "b.csv").splits["train"].groups is None


def test_the_data_module_tests_on_the_fold():
    parts = [ImageDataModule(dataset="digits", fold=f"{number}/3") for number in (1, 2, 3)]
    for part in parts:
        part.setup("test")
        assert part.has_test
    assert sum(len(part.splits["test"][1]) for part in parts) == 1797


def test_of_several_labels_every_image_is_tested_once_however_rare_a_combination_is():
    targets = np.array([0, 0, 0, 0, 1, 1, 2])  # which are alike, and no classes
    for groups in (None, np.arange(7)):
        train = Split(np.zeros((7, 1, 1, 1), np.uint8), targets, groups=groups, values=np.zeros((7, 3), bool))
        parts = [divide({"train": train, "val": None, "test": None}, 0.3, 0, 0, 1.0, None, "photos", (number, 3))["test"][1] for number in (1, 2, 3)]
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(7))
    assert heap_of(train, train).values.shape == (14, 3)
