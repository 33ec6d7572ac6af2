import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from pictures import write_images

from cct_lightning import InputError
from cct_lightning.data import sets
from cct_lightning.data.folders import folder_class_names, read_folder, read_table
from cct_lightning.data.sets import DATASETS, read_split


def test_digits_are_the_whole_set_and_uint8():
    split = read_split("digits", Path("nowhere"), "train")
    assert split.images.shape == (1797, 8, 8, 1)
    assert (split.images.min(), split.images.max()) == (0, 255)
    assert read_split("digits", Path("nowhere"), "test") is None


def test_digits_read_from_their_file_are_scikit_learns(monkeypatch):
    read = sets._digits_table()
    monkeypatch.setattr(sets, "find_spec", lambda name: None)  # where it lies elsewhere
    assert np.array_equal(read, sets._digits_table())


@pytest.mark.parametrize("name", ["digits"])
def test_mean_and_deviation_are_those_of_the_images(name):
    pixels = read_split(name, Path("nowhere"), "train").images / 255
    assert pixels.mean() == pytest.approx(DATASETS[name].mean[0], abs=1e-3)
    assert pixels.std() == pytest.approx(DATASETS[name].std[0], abs=1e-3)


def test_torchvisions_mnist_files_are_read(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.arange(3 * 28 * 28, dtype=np.uint8).reshape(3, 28, 28)
    for stem in ("train", "t10k"):
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, 3, 28, 28) + pixels.tobytes())
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, 3) + bytes([4, 0, 9]))
        for kind in ("images-idx3", "labels-idx1"):
            (raw / f"{stem}-{kind}-ubyte.gz").write_bytes(gzip.compress((raw / f"{stem}-{kind}-ubyte").read_bytes()))
    for split in ("train", "test"):
        read = read_split("mnist", tmp_path, split)
        assert np.array_equal(read.images[..., 0], pixels)
        assert read.targets.tolist() == [4, 0, 9]


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """torchvision's CIFAR-10 files with three images each; their checksums are not those of the real ones."""
    import torchvision.datasets

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (3, 3072), dtype=np.uint8)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        (folder / name).write_bytes(pickle.dumps({"data": images, "labels": [1, 2, 3]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    return tmp_path, images


def test_torchvisions_cifar_files_are_read(cifar):
    root, images = cifar
    read = read_split("cifar10", root, "train")
    assert read.images.shape == (15, 32, 32, 3)
    assert np.array_equal(read.images[0].transpose(2, 0, 1).ravel(), images[0])


@pytest.mark.parametrize("below", [".", "cifar10"])
def test_a_named_set_is_read_from_class_folders(tmp_path, below):
    for split, each in (("train", 3), ("test", 2)):
        write_images(tmp_path / below / split, 10, each)
    assert len(read_split("cifar10", tmp_path, "train")) == 30
    assert len(read_split("cifar10", tmp_path, "test")) == 20
    assert read_split("cifar10", tmp_path, "val") is None


def test_class_folders_of_another_set_are_refused(tmp_path):
    write_images(tmp_path / "train", 4, 1)
    with pytest.raises(InputError, match="train holds 4 classes, cifar10 has 10"):
        read_split("cifar10", tmp_path, "train")


def test_what_is_missing_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(InputError, match=r"(?s)data\.dataset=fashion_mnist is not in data\.root=.*torchvision downloads it"):
        read_split("fashion_mnist", tmp_path, "train")


def test_flowers_keep_the_official_split(tmp_path, monkeypatch):
    import torchvision.datasets
    from scipy.io import savemat

    monkeypatch.setattr(torchvision.datasets.Flowers102, "_check_integrity", lambda self: True)
    (tmp_path / "flowers-102" / "jpg").mkdir(parents=True)
    savemat(tmp_path / "flowers-102" / "imagelabels.mat", {"labels": np.array([[5, 1, 102, 7]], np.uint8)})
    savemat(tmp_path / "flowers-102" / "setid.mat", {"trnid": [[2]], "valid": [[1, 4]], "tstid": [[3, 2]]})
    val = read_split("flowers102", tmp_path, "val")
    assert [path.name for path in val.images] == ["image_00001.jpg", "image_00004.jpg"]
    assert val.targets.tolist() == [4, 6]
    assert read_split("flowers102", tmp_path, "test").targets.tolist() == [101, 0]


def test_folders_are_classes_in_alphabetical_order(tmp_path):
    write_images(tmp_path / "train", 3, 2)
    write_images(tmp_path / "val", 3, 1)
    (tmp_path / "train" / "class0001" / ".hidden.png").touch()
    (tmp_path / "train" / "class0001" / "notes.txt").touch()
    assert read_folder(tmp_path, "train").targets.tolist() == [0, 0, 1, 1, 2, 2]
    assert read_folder(tmp_path, "val").targets.tolist() == [0, 1, 2]
    assert read_folder(tmp_path, "test") is None


def test_hidden_folders_of_a_class_are_passed_over_and_links_are_followed(tmp_path):
    write_images(tmp_path / "photos", 2, 2)
    write_images(tmp_path / "elsewhere", 1, 3)
    for hidden in (".trash", ".@__thumb"):
        write_images(tmp_path / "photos" / "class0000" / hidden, 1, 1)
    (tmp_path / "photos" / "class0001" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "class0001" / "again").symlink_to(tmp_path / "photos")
    names = [file.relative_to(tmp_path / "photos").as_posix() for file in read_folder(tmp_path / "photos", "train").images]
    assert names[:2] == ["class0000/0.png", "class0000/1.png"]
    assert [name for name in names if "/more/" in name] == [f"class0001/more/class0000/{number}.png" for number in range(3)]
    assert not any("/." in name for name in names)
    assert not any("again/class0001" in name for name in names)  # a way back


def test_folders_are_classes_unless_they_were_left_behind(tmp_path):
    for name in ("__background__", "cat"):
        write_images(tmp_path / name, 1, 1)
    for name in ("__MACOSX", "__pycache__", ".git"):
        (tmp_path / name).mkdir()
    assert folder_class_names(tmp_path) == ["__background__", "cat"]


def test_one_heap_of_class_folders_is_the_training_split(tmp_path):
    write_images(tmp_path, 2, 3)
    assert len(read_folder(tmp_path, "train")) == 6
    assert read_folder(tmp_path, "val") is None


@pytest.mark.parametrize(("make", "message"), [
    (lambda root: None, "is no folder on this machine"),
    (lambda root: root.mkdir(), r"holds 0 class folder\(s\)"),
    (lambda root: write_images(root, 1, 1), r"holds 1 class folder\(s\): class0000; at least two"),
    (lambda root: (write_images(root, 2, 1), (root / "empty").mkdir()), r"empty holds no image"),
    (lambda root: (write_images(root / "train", 2, 1), write_images(root / "val", 3, 1)), "different classes: class0002"),
    (lambda root: write_images(root / "test", 2, 1), "test is there but (?s:.*)Where test is a class, its"),
    (lambda root: (write_images(root, 2, 1), (root / "train").mkdir()), r"(?s)holds 0 class.*Where train is a class itself"),
])  # fmt: skip
def test_folders_that_do_not_fit_are_refused(tmp_path, make, message):
    make(tmp_path / "root")
    with pytest.raises(InputError, match=message):
        [read_folder(tmp_path / "root", split) for split in ("train", "val", "test")]


def write_table(folder, text, count=3):
    write_images(folder / "images", 2, count, 8)
    (folder / "labels.csv").write_text(text, encoding="utf-8")
    return folder / "labels.csv"


HEAP = "".join(f"images/class000{label}/{number}.png,{name}\n" for label, name in ((0, "dark, very"), (1, "bright")) for number in range(3))
HEAP = HEAP.replace("dark, very", '"dark, very"')


@pytest.mark.parametrize("text", ["path,label\n" + HEAP, "\ufeffPath,Label\n" + HEAP, "label,path\n" + "".join(
    ",".join(reversed(line.split(",", 1))) + "\n" for line in HEAP.splitlines()
)])  # fmt: skip
def test_a_table_is_one_heap_with_sorted_classes(tmp_path, text):
    table = read_table(write_table(tmp_path, text))
    assert table.class_names == ["bright", "dark, very"]
    assert set(table.splits) == {"train"}
    assert table.splits["train"].images[0] == tmp_path / "images/class0000/0.png"
    assert table.splits["train"].targets.tolist() == [1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("mark", [";", "\t"])
def test_a_table_may_name_splits_and_use_other_marks(tmp_path, mark):
    rows = ["path,label,split"]
    for label in range(2):
        rows += [f"images/class000{label}/{number}.png,c{label},{split}" for number, split in enumerate(("train", "Validation", "test"))]
    table = read_table(write_table(tmp_path, "\n".join(rows).replace(",", mark)))
    assert {name: split.targets.tolist() for name, split in table.splits.items()} == {"train": [0, 1], "val": [0, 1], "test": [0, 1]}


A, B = "images/class0000/0.png,a\n", "images/class0001/0.png,b\n"


@pytest.mark.parametrize(("text", "message"), [
    ("", "its first line names the columns ''"),
    ("file,class\n" + A, "its first line names the columns 'file,class'"),
    ("path,label\n" + A, r"the training images have 1 class\(es\): a;"),
    ("path,label\n" + A + B + A, r"line 4: images/class0000/0\.png is listed in line 2 already"),
    ("path,label\n" + A + "images/none.png,b\n", r"line 3: there is no file .*images/none\.png\. Paths are relative to"),
    ("path,label\n" + A + "images/class0001/0.png,\n", r"line 3: path='images/class0001/0\.png', label=''; every line needs both"),
    ("path,label,split\nimages/class0000/0.png,a,learn\n", "line 2: split='learn' is unknown"),
    ("path,label,split\nimages/class0000/0.png,a,train\nimages/class0001/0.png,b,train\nimages/class0001/1.png,c,val\n",
     r"val has the label\(s\) c, which no training image has"),
])  # fmt: skip
def test_a_table_that_does_not_fit_is_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_table(write_table(tmp_path, text))


def test_a_table_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "labels.csv").write_bytes(b"path,label\n\xff\xfe")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read_table(tmp_path / "labels.csv")
    with pytest.raises(InputError, match=r"none\.csv is no file"):
        read_table(tmp_path / "none.csv")


@pytest.mark.parametrize("names", [("Train", "Val", "TEST"), ("training", "Validation", "testing")])
def test_splits_are_known_by_their_names_in_any_case(tmp_path, names):
    for name in names:
        write_images(tmp_path / name, 2, 1, 8)
    for split in ("train", "val", "test"):
        assert len(read_folder(tmp_path, split)) == 2


def test_a_table_with_two_columns_of_a_name_or_half_a_quotation_is_refused(tmp_path):
    with pytest.raises(InputError, match="path and label once each"):
        read_table(write_table(tmp_path, "path,label,label\n"))
    with pytest.raises(InputError, match="is there a quotation mark without its second"):
        read_table(write_table(tmp_path, 'path,label\n"' + "a" * 200_000))
    with pytest.raises(InputError, match="is there a quotation mark without its second"):
        read_table(write_table(tmp_path, 'path,"label' + "a" * 200_000))


def test_a_name_may_begin_with_a_tilde(tmp_path):
    table = write_table(tmp_path, "path,label\n~$x/0.png,a\nimages/class0001/0.png,b\n")
    (tmp_path / "images" / "class0000").rename(tmp_path / "~$x")
    assert [str(file.relative_to(tmp_path)) for file in read_table(table).splits["train"].images] == ["~$x/0.png", "images/class0001/0.png"]
