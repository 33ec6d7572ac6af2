import os

import numpy as np
import pytest
import torch
from doors import pack
from pictures import write_images

from cct_lightning import AugmentConfig, ImageDataModule
from cct_lightning.data.members import Packed
from cct_lightning.data.packed import as_names, as_table, check_packed, from_names, keep, read_kept, shards
from cct_lightning.data.places import dataset_of
from cct_lightning.errors import InputError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CCT_HOME", str(tmp_path / "home"))


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_files_are_told_by_split_in_the_order_of_their_names(tmp_path):
    names = ("data/train-00001.tar", "data/train-00000.tar", "data/validation-00000.tar", "test/b.tar", "data/.hidden.tar", "trains.tar", "x.json")
    root = touch(tmp_path / "set", *names)
    found = {split: [file.name for file in files] for split, files in shards(root, "webdataset").items()}
    assert found == {"train": ["train-00000.tar", "train-00001.tar", "trains.tar"], "val": ["validation-00000.tar"], "test": ["b.tar"]}
    assert shards(root / "test" / "b.tar", "webdataset") == {"train": [root / "test" / "b.tar"]}
    with pytest.raises(InputError, match=r"holds no \.parquet file"):
        shards(root, "parquet")
    with pytest.raises(InputError, match=r"files of test, and none of train: name them train-\*\.tar"):
        shards(touch(tmp_path / "other", "test-0.tar"), "webdataset")
    with pytest.raises(InputError, match="There is no folder or file"):
        check_packed(tmp_path / "none", "webdataset")


@pytest.mark.parametrize(("names", "dataset"), [
    (("a.csv",), "image_folder"), (("a.tar",), "webdataset"), (("data/train-0.parquet",), "parquet"), (("train/x.tar",), "webdataset"),
    (("dataset_dict.json",), "huggingface"), (("state.json", "data-0.arrow"), "huggingface"), (("cat/a.tar", "dog/1.jpg"), "image_folder"),
])  # fmt: skip
def test_the_kind_of_a_folder_is_told_by_names(tmp_path, names, dataset):
    assert dataset_of(touch(tmp_path / "set", *names)) == dataset


@pytest.mark.parametrize(("name", "dataset"), [("a.csv", "csv"), ("a.TSV", "csv"), ("a.parquet", "parquet"), ("a.tar", "webdataset")])
def test_the_kind_of_a_file_is_told_by_its_name(tmp_path, name, dataset):
    assert dataset_of(touch(tmp_path, name) / name) == dataset
    with pytest.raises(InputError, match=r"a\.zip is neither a folder of class folders nor a \.csv"):
        dataset_of(touch(tmp_path, "a.zip") / "a.zip")


def labelled(*labels):
    return [Packed(os.path, 0, 1, str(number)) for number in range(len(labels))], list(labels)


@pytest.mark.parametrize(("labels", "names", "targets"), [
    (["dog", "cat", "dog"], ["cat", "dog"], [1, 0, 1]),
    ([10, 2, 10], ["2", "10"], [1, 0, 1]),  # by size, not by letters
    (["10", "2", "02"], ["2", "10"], [1, 0, 0]),
])  # fmt: skip
def test_classes_are_the_labels_in_their_order(tmp_path, labels, names, targets):
    table = as_table({"train": labelled(*labels), "test": labelled(labels[0])}, tmp_path)
    assert table.class_names == names
    assert table.splits["train"].targets.tolist() == targets
    assert table.splits["test"].targets.tolist() == targets[:1]


def test_named_classes_keep_their_numbers(tmp_path):
    table = as_table({"train": labelled(2, 0, 2)}, tmp_path, ["a", "b", "c"])
    assert (table.class_names, table.splits["train"].targets.tolist()) == (["a", "b", "c"], [2, 0, 2])


def test_a_test_whose_labels_are_hidden_is_left_out(tmp_path):
    with pytest.warns(UserWarning, match=r"the images of test have no labels \(-1\) and are left out"):
        table = as_table({"train": labelled(2, 0, 1), "test": labelled(-1, -1), "val": labelled(0)}, tmp_path, ["a", "b", "c"])
    assert set(table.splits) == {"train", "val"}
    assert set(as_table({"train": labelled(-1, 1, -1), "test": labelled(-1)}, tmp_path).splits) == {"train", "test"}  # a class of that name


@pytest.mark.parametrize(("found", "names", "said"), [
    ({"train": labelled("a", "a")}, None, r"1 class\(es\): a; at least two"),
    ({"train": labelled("a", "b"), "val": labelled("b", "c")}, None, "1 of val has the label 'c', which no training image has"),
    ({"train": labelled(0, 1, -1)}, ["x", "y"], "2 of train has the label '-1'"),
    ({"train": labelled(0, 5)}, ["x", "y"], "1 of train has the label '5'"),
])  # fmt: skip
def test_labels_that_are_no_class_are_refused(tmp_path, found, names, said):
    with pytest.raises(InputError, match=said):
        as_table(found, tmp_path, names)


def test_what_is_kept_of_a_file_holds_until_its_size_or_time_changes(tmp_path):
    file = tmp_path / "a.tar"
    file.write_bytes(b"12")
    assert read_kept(file) is None
    keep(file, places=np.arange(4), names=as_names(["a\nb", "ä", ""]))
    kept = read_kept(file)
    assert kept["places"].tolist() == [0, 1, 2, 3]
    assert from_names(kept["names"]) == ["a b", "ä", ""]
    os.utime(file, ns=(0, 0))
    assert read_kept(file) is None
    keep(file, places=np.arange(4))
    next((tmp_path / "home" / "indices").glob("*.npz")).write_bytes(b"damaged")
    assert read_kept(file) is None


@pytest.mark.parametrize("workers", [0, 2])
def test_every_door_leads_to_the_same_batches(tmp_path, workers):
    photos = write_images(tmp_path / "photos", 3, 8, 24)
    places = {"image_folder": photos} | pack(photos, tmp_path / "packed")
    seen = {}
    for dataset, root in places.items():
        augment = AugmentConfig(crop_scale=(0.5, 1.0), flip=0.5)
        options = {"num_workers": workers, "cache": "none", "val_fraction": 0.2, "seed": 3, "augment": augment}
        data = ImageDataModule(dataset, str(root), image_size=16, batch_size=4, **options)
        data.setup("fit")
        loader = data.train_dataloader()
        seen[dataset] = [torch.cat(parts) for parts in zip(*((batch.images, batch.targets, batch.indices) for batch in loader), strict=True)]
    first = seen.pop("image_folder")
    for dataset, batches in seen.items():
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(batches, first, strict=True)), dataset


def test_a_run_notices_that_packed_images_have_changed(tmp_path):
    photos = write_images(tmp_path / "photos", 2, 8, 24)

    def taken(folder):
        found = []
        for dataset, root in pack(photos, folder).items():
            data = ImageDataModule(dataset, str(root), image_size=16)
            data.setup("fit")
            found.append(data.fingerprint)
        return found

    first, again = taken(tmp_path / "one"), taken(tmp_path / "two")
    assert [mark.digest for mark in first] == [mark.digest for mark in again]  # the place does not matter
    rows = list(first[0].rows())[2:]
    assert (rows[0].name, rows[0].label, rows[0].size) == ("all.tar/00000.png", "class0000", (photos / "class0000" / "0.png").stat().st_size)
    file = photos / "class0001" / "3.png"
    file.write_bytes(file.read_bytes() + b"x")
    assert all(mark.digest != other.digest for mark, other in zip(first, taken(tmp_path / "three"), strict=True))


def test_a_damaged_image_inside_of_a_file_is_named(tmp_path):
    photos = write_images(tmp_path / "photos", 2, 8, 24)
    (photos / "class0001" / "3.png").write_bytes(b"no image")
    for dataset, root in pack(photos, tmp_path / "packed").items():
        data = ImageDataModule(dataset, str(root), image_size=16)
        name = {"webdataset": r"all\.tar/00011\.png", "parquet": r"all\.parquet/row 11", "huggingface": r"data-0\.arrow/row 11"}[dataset]
        with pytest.raises(InputError, match=rf"{name} can't be read as an image.*\n.*cct check .*{root.name}"):
            data.setup("fit")
