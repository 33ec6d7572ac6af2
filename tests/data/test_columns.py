"""What a table says of images that have not just one class."""

import numpy as np
import pytest
import torch
from pictures import write_images

from cct_lightning import AugmentConfig, ImageDataModule, InputError
from cct_lightning.data.columns import strata_of_labels
from cct_lightning.data.findings import find, list_images
from cct_lightning.data.folders import read_table

LABELS = ["cat; dog", "", "dog", "dog;cat;dog", "bird", "dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), classes=2, each=30, size=8)


def write(folder, header, cells, splits=None):
    """Writes a row for each image, in the order of their names, with cells that come again and again."""
    files = sorted(folder.glob("class*/*.png"))
    rows = [f"path,{header}" + ",split" * (splits is not None)]
    for number, file in enumerate(files):
        cell, split = cells[number % len(cells)], f",{splits[number % len(splits)]}" if splits is not None else ""
        rows.append(f"{file.relative_to(folder)},{cell}{split}")
    path = folder / "table.csv"
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def data_of(path, **options):
    data = ImageDataModule("csv", root=str(path), image_size=8, batch_size=8, seed=0, **options)
    data.setup("fit")
    return data


def test_several_labels_stand_in_one_column_or_in_one_of_0_and_1_each(folder):
    named = read_table(write(folder, "labels", LABELS))
    marks = [",".join(str(int(name in cell)) for name in ("bird", "cat", "dog")) for cell in LABELS]
    marked = read_table(write(folder, "bird,cat,dog", marks))
    for table in (named, marked):
        assert (table.kind, table.class_names) == ("labels", ["bird", "cat", "dog"])
        assert table.splits["train"].values[:6].tolist() == [
            [False, True, True], [False] * 3, [False, False, True], [False, True, True], [True, False, False], [False, False, True],
        ]  # fmt: skip
    assert [named.splits["train"].told(index, named.class_names) for index in range(3)] == ["cat; dog", "", "dog"]


def test_columns_of_numbers_are_found_or_named(folder):
    found = read_table(write(folder, "group,age,Height", ["a,3,1.5", "b,4,-2e1"]))
    assert (found.kind, found.class_names) == ("numbers", ["age", "Height"])
    assert found.splits["train"].values[:2].tolist() == [[3, 1.5], [4, -20]]
    assert found.splits["train"].told(1, found.class_names) == "4; -20"
    named = read_table(write(folder, "note,Height,label", ["x,1.5,3", "y,2,4"]), targets=["label", "height"])
    assert (named.kind, named.class_names, named.splits["train"].values[0].tolist()) == ("numbers", ["label", "Height"], [3, 1.5])


def test_the_numbers_of_rows_that_pandas_writes_are_not_learned(folder):
    """They were a number to be learned, and made of marks of 0 and 1 a regression."""
    for index in ("", "Unnamed: 0", "__index_level_0__"):
        path = write(folder, f"{index},cat,dog", ["0,1,0", "1,0,1", "2,1,1"])
        assert (read_table(path).kind, read_table(path).class_names) == ("labels", ["cat", "dog"])
    with pytest.raises(InputError, match="it must have path and label once each"):
        read_table(write(folder, "", ["0", "1"]))


@pytest.mark.parametrize(("header", "cells", "message"), [
    ("labels", [""], "no training image has a label"),
    ("labels", ["cat,dog"], r"line 2: it has more cells than the first line has columns"),
    ("age", ["3,5"], r"line 2: it has more cells than the first line has columns"),
    ("cat,dog", ["1,0", "0,yes"], r"line 3: dog='yes' is no finite number"),
    ("age", ["3", "nan"], r"line 3: age='nan' is no finite number"),
    ("age", ["3", ""], r"line 3: age='' is no finite number"),
    ("age", ["3", "1e60"], r"line 3: age='1e60' is no finite number"),
    ("age,height", ["3,1", "3,2"], r"the column age is 3 in each of 60 training rows"),
    ("cat,dog", ["1,0", "0,0"], r"the column dog is 0 in each of 60 training rows"),
])  # fmt: skip
def test_what_can_not_be_learned_is_refused(folder, header, cells, message):
    with pytest.raises(InputError, match=message):
        read_table(write(folder, header, cells))


def test_a_label_that_no_training_image_has_is_refused(folder):
    with pytest.raises(InputError, match=r"test has the label\(s\) owl, which no training image has"):
        read_table(write(folder, "labels", ["cat", "dog", "cat;owl"], ["train", "train", "test"]))


def test_columns_that_are_not_there_are_refused(folder):
    path = write(folder, "age", ["3", "4"])
    with pytest.raises(InputError, match=r"data.targets names 'agee', which is no column of .*Did you mean age"):
        read_table(path, ["agee"])
    with pytest.raises(InputError, match=r"data.targets=\['a'\] names columns of a table, and data.dataset=digits is none"):
        ImageDataModule("digits", targets=["a"])
    for options, key in (({"per_class": 3}, "per_class=3"), ({"sampler": "balanced"}, "sampler=balanced")):
        with pytest.raises(InputError, match=f"data.{key} is for classes, and the images of .* are told by numbers"):
            ImageDataModule("csv", root=str(path), image_size=8, **options)
    with pytest.raises(InputError, match="it must have path and label once each, or path and labels or columns of"):
        read_table(write(folder, "group", ["a"]))


def test_an_image_counts_for_its_rarest_label():
    marks = np.array([[1, 1, 0], [1, 0, 1], [1, 0, 1], [0, 0, 0], [1, 0, 0]], bool)
    assert strata_of_labels({"train": marks, "val": marks[::-1]})["train"].tolist() == [1, 2, 2, 3, 0]
    assert strata_of_labels({"train": marks, "val": marks[::-1]})["val"].tolist() == [0, 3, 2, 2, 1]


@pytest.mark.parametrize(("header", "cells"), [("labels", LABELS), ("age,height", ["1,5", "2,6", "3,8"])])
def test_values_reach_the_batch_and_are_mixed_as_the_images_are(folder, header, cells):
    path = write(folder, header, cells)
    data = data_of(path, val_fraction=0.2, augment=AugmentConfig(mixup=1.0))
    split, chosen = data.splits["train"]
    batch = next(iter(data.train_dataloader()))
    assert batch.targets.dtype == torch.float32
    assert batch.targets.tolist() == split.values[batch.indices.numpy()].astype(float).tolist()
    data.trainer = type("Trainer", (), {"training": True, "global_step": 0})()
    mixed = data.on_after_batch_transfer(batch, 0)
    share = ((mixed.targets - batch.targets) / (batch.targets[torch.arange(8) ^ 1] - batch.targets)).nan_to_num(0).abs()
    assert 0 < share.max() < 1  # the other image's share, the same of all
    torch.testing.assert_close(share[share > 0], torch.full_like(share[share > 0], float(share.max())))
    read_one_by_one = data_of(path, val_fraction=0.2, cache="none", num_workers=0)
    again = next(iter(read_one_by_one.val_dataloader()))
    torch.testing.assert_close(again.targets, torch.from_numpy(split.learned(again.indices.numpy())))
    assert len(np.intersect1d(chosen, data.splits["val"][1])) == 0


def test_labels_are_counted_and_the_fingerprint_knows_them(folder):
    data = data_of(write(folder, "labels", LABELS), val_fraction=0, test_fraction=0)
    assert data.class_counts == [10, 20, 40]
    first = data.fingerprint.digest
    assert data_of(write(folder, "labels", LABELS[::-1]), val_fraction=0, test_fraction=0).fingerprint.digest != first
    listing = list_images("csv", folder / "table.csv")
    assert listing.counts["train"] == {"bird": 10, "cat": 20, "dog": 40, "-": 10}
    assert list_images("csv", write(folder, "age", ["3", "4"])).counts["train"] == {}
    few = list_images("csv", write(folder, "labels", [*["cat;dog"] * 59, "bird"]))
    assert [(found.problem, found.label) for found in find(few, []) if found.problem == "tiny class"] == [("tiny class", "bird")]
