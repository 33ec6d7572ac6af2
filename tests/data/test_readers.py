import numpy as np
import PIL.Image
import pytest
from readers import CODE

from cct_lightning import ImageDataModule
from cct_lightning.data.files import decode, size_of
from cct_lightning.data.readers import read_own
from cct_lightning.errors import InputError


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "scanning.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)


def test_images_and_labels_are_those_of_the_reader(module, tmp_path):
    table = read_own("scanning.Scans", tmp_path)
    assert table.class_names == ["cat", "dog"]
    assert list(table.splits) == ["train", "test"]
    train, test = table.splits["train"], table.splits["test"]
    assert [int(decode(image, 3)[0, 0, 0]) for image in train.images] == list(range(12))
    assert [int(decode(image, 1)[0, 0, 0]) for image in test.images] == [100, 101, 102, 103]
    assert train.targets.tolist() == [0, 1] * 6
    assert [size_of(image) for image in train.images[:2]] == [(20, 24)] * 2
    assert str(test.images[3]) == "scanning.Scans, test 3"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_reads_them_in_its_processes(module, tmp_path, workers):
    data = ImageDataModule("scanning.Scans", str(tmp_path), image_size=16, batch_size=4, cache="none", num_workers=workers, seed=0)
    data.setup("fit")
    assert {name: len(chosen) for name, (_, chosen) in data.splits.items()} == {"train": 10, "val": 2, "test": 4}
    for batch in data.train_dataloader():
        assert batch.images[:, 0, 0, 0].tolist() == batch.indices.tolist()
        assert batch.targets.tolist() == (batch.indices % 2).tolist()
    assert [row.label for row in data.fingerprint.rows() if row.split == "train"] == ["cat", "dog"] * 6


@pytest.mark.parametrize(("name", "said"), [
    ("scanning.Odd", r"train has the label 2, and class_names are 0 to 1"),
    ("scanning.NoNames", r"its train has 0 class_names and 12 labels"),
    ("scanning.Fails", r"scanning\.Fails\('.*', 'train'\) failed \(OSError: no disk\)"),
    ("scanning.Nothing", r"scanning\.Nothing lacks class_names, labels, __getitem__: cct_lightning\.data\.readers\.Reader says"),
    ("scanning.None_", r"can't be imported .*PYTHONPATH=\. finds modules"),
    ("nowhere.Scans", r"can't be imported \(No module named 'nowhere'\)"),
    ("a b.Scans", r"a b\.Scans is no name of a class"),
])  # fmt: skip
def test_what_is_no_reader_is_refused(module, tmp_path, name, said):
    with pytest.raises(InputError, match=said):
        read_own(name, tmp_path)


def test_an_image_that_a_reader_fails_to_give_is_named(module, tmp_path):
    data = ImageDataModule("scanning.Broken", str(tmp_path), image_size=16)
    with pytest.raises(InputError, match=r"scanning\.Broken, train 5 can't be read as an image \('?no such slice'?\)"):
        data.setup("fit")


def test_arrays_of_many_channels_are_given_as_they_are(tmp_path):
    from cct_lightning.data.members import Own

    values = np.random.default_rng(0).integers(0, 4096, (6, 8, 5)).astype(np.uint16)
    assert np.array_equal(decode(Own([values], 0, "x"), 5), (values // 257).astype(np.uint8))
    with pytest.raises(InputError, match=r"x 0 can't be read as an image \(it has 5 channels, and data\.in_chans=3\)"):
        decode(Own([values], 0, "x"), 3)
    with pytest.raises(InputError, match=r"an array \(2,\) is no image"):
        decode(Own([np.zeros(2)], 0, "x"), 3)
    assert decode(Own([PIL.Image.new("L", (3, 2))], 0, "x"), 3).shape == (2, 3, 3)
