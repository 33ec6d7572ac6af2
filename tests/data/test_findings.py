import os
import shutil
import unicodedata

import numpy as np
import PIL.Image
import pytest
from pictures import write_images

from cct_lightning import InputError
from cct_lightning.data.check import examine
from cct_lightning.data.findings import find, list_images
from cct_lightning.data.folders import read_folder


def found(root, dataset="image_folder"):
    listing = list_images(dataset, root)
    return find(listing, [examine(image) for image in listing.images])


def of_kind(findings, problem):
    return [finding for finding in findings if finding.problem == problem]


@pytest.fixture
def photos(tmp_path):
    for seed, split in enumerate(("train", "val")):
        write_images(tmp_path / "photos" / split, classes=2, each=12, size=8 + seed)
    return tmp_path / "photos"


def test_r07b_a_sound_folder_has_no_findings(photos):
    assert found(photos) == []


def test_r07b_duplicates_say_where_they_lie_and_how_they_are_spelled(photos):
    train, val = photos / "train", photos / "val"
    composed, decomposed = (unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD"))
    (train / "class0000/0.png").rename(train / "class0000" / composed)
    shutil.copy(train / "class0000" / composed, val / "class0000" / decomposed)
    shutil.copy(train / "class0000/1.png", val / "class0000/1.PNG")
    shutil.copy(train / "class0000/2.png", train / "class0001/two.png")
    os.symlink(train / "class0000/3.png", val / "class0000/link.png")
    os.link(train / "class0000/4.png", val / "class0000/hard.png")
    shutil.copy(train / "class0000/5.png", val / "class0000/5.png")
    about = {finding.path: finding for finding in of_kind(found(photos), "duplicate")}
    assert {path: (row.other, row.detail) for path, row in about.items()} == {
        "train/class0001/two.png": ("train/class0000/2.png", "the same bytes"),
        "val/class0000/1.PNG": ("train/class0000/1.png", "the same bytes; case or unicode form of the name alone differ"),
        f"val/class0000/{decomposed}": (f"train/class0000/{composed}", "the same bytes; case or unicode form of the name alone differ"),
        "val/class0000/link.png": ("train/class0000/3.png", "the same file, by a link"),
        "val/class0000/hard.png": ("train/class0000/4.png", "the same file, by a link"),
        "val/class0000/5.png": ("train/class0000/5.png", "the same bytes and name"),
    }
    torn = about["train/class0001/two.png"]
    assert (torn.split, torn.other_split, torn.label, torn.other_label) == ("train", "train", "class0001", "class0000")
    assert about["val/class0000/link.png"].other_split == "train"


def test_r07b_near_duplicates_are_found_across_splits(photos):
    coarse = np.random.default_rng(3).integers(0, 256, (6, 8, 3), np.uint8)
    image = PIL.Image.fromarray(coarse).resize((120, 90), PIL.Image.Resampling.BICUBIC)
    image.save(photos / "train/class0000/big.png")
    image.resize((90, 68)).save(photos / "val/class0001/scaled.jpg", quality=70)
    (near,) = of_kind(found(photos), "near duplicate")
    assert (near.path, near.other, near.split, near.other_split) == ("val/class0001/scaled.jpg", "train/class0000/big.png", "val", "train")
    assert near.detail.endswith(" of 128 bits differ")


def test_r07b_odd_images_and_tiny_classes_are_told_and_block_nothing(photos):
    PIL.Image.new("RGBA", (8, 8), (9, 9, 9, 9)).save(photos / "train/class0000/clear.png")
    PIL.Image.new("RGB", (80, 8), (1, 2, 3)).save(photos / "train/class0000/long.png")
    for number in range(9):
        (photos / f"train/class0001/{number}.png").unlink()
    (photos / "train/class0000/notes.txt").write_text("x")
    (photos / "train/stray.png").write_bytes(b"x")
    (photos / "validation").mkdir()
    findings = found(photos)
    assert not any(finding.blocks for finding in findings)
    assert [(row.path, row.detail) for row in of_kind(findings, "odd mode")] == [("train/class0000/clear.png", "RGBA")]
    assert [row.detail for row in of_kind(findings, "odd size")] == ["80 x 8"]
    assert [(row.label, row.detail) for row in of_kind(findings, "tiny class")] == [("class0001", "3 image(s)")]
    assert {row.detail for row in of_kind(findings, "passed over")} >= {"1 file(s) .txt", "1 file(s) in no class folder"}


def empty_class(root):
    shutil.rmtree(root / "train/class0001")
    (root / "train/class0001").mkdir()


def no_class_in_val(root):
    shutil.rmtree(root / "val/class0001")


def other_class_in_val(root):
    write_images(root / "val/more", classes=1, each=1, size=8)


def one_class(root):
    for split in ("train", "val"):
        shutil.rmtree(root / split / "class0001")


def no_train(root):
    shutil.rmtree(root / "train")


@pytest.mark.parametrize("change", [empty_class, no_class_in_val, other_class_in_val, one_class, no_train])
def test_r07b_what_a_training_refuses_blocks(photos, change):
    change(photos)
    with pytest.raises(InputError):
        [read_folder(photos, split) for split in ("train", "val")]
    assert any(finding.blocks for finding in found(photos))


def test_r07b_unreadable_images_block_and_come_first(photos):
    for name in ("train/class0000/3.png", "val/class0001/7.png"):
        (photos / name).write_bytes((photos / name).read_bytes()[:50])
    findings = found(photos)
    assert [(finding.problem, finding.path) for finding in findings] == [
        ("unreadable", "train/class0000/3.png"),
        ("unreadable", "val/class0001/7.png"),
    ]
    assert all(finding.blocks for finding in findings)


def test_tables_and_named_sets_are_listed_too(tmp_path):
    write_images(tmp_path / "heap", classes=2, each=12, size=8)
    rows = [f"heap/class000{label}/{number}.png,{'dog' if label else 'cat'}" for label in range(2) for number in range(12)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]))
    assert found(tmp_path / "labels.csv", "csv") == []
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows, "gone.png,dog"]))
    (finding,) = found(tmp_path / "labels.csv", "csv")
    assert finding.blocks
    assert "there is no file" in finding.detail
    listing = list_images("digits", tmp_path)
    assert (len(listing.images), listing.name(3), listing.labels[3]) == (1797, "train image 3", "3")
    assert find(listing, [examine(image) for image in listing.images]) == []


def test_of_a_heap_all_that_a_pre_training_takes_is_listed(tmp_path):
    for split in ("train", "val", "test", "more"):
        write_images(tmp_path / "heap" / split / "2025", classes=2, each=3, size=8)
    listing = list_images("images", tmp_path / "heap")
    assert {split: listing.splits.count(split) for split in listing.splits} == {"train": 6, "val": 6}
    assert [(finding.problem, finding.path) for finding in listing.findings] == [("passed over", "more"), ("passed over", "test")]
    shutil.rmtree(tmp_path / "heap/train")
    assert len(list_images("images", tmp_path / "heap").images) == 18


def test_classes_of_two_spellings_are_told(tmp_path):
    write_images(tmp_path / "photos", classes=2, each=12, size=8)
    shutil.copytree(tmp_path / "photos/class0001", tmp_path / "photos/Class0001")
    (finding,) = of_kind(found(tmp_path / "photos"), "classes alike")
    assert {finding.label, finding.other_label} == {"class0001", "Class0001"}
