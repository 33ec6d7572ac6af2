import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from pictures import write_images

from cct_lightning.data import fingerprint
from cct_lightning.data.fingerprint import Fingerprint, Unseen, differences, digest_of, read_rows
from cct_lightning.data.folders import Split, folder_class_names, read_folder
from cct_lightning.errors import InputError


def of_folder(root):
    return Fingerprint.take({split: read_folder(root, split) for split in ("train", "val", "test")}, folder_class_names(root), root)


@pytest.fixture
def photos(tmp_path):
    return write_images(tmp_path / "photos", classes=2, each=5, size=8)


def test_it_is_the_same_wherever_the_images_lie_and_whenever_they_were_written(photos, tmp_path, monkeypatch):
    first = of_folder(photos).digest
    os.utime(photos / "class0000/1.png", (1, 1))
    assert of_folder(photos).digest == first
    photos.rename(tmp_path / "moved")
    assert of_folder(tmp_path / "moved").digest == first
    monkeypatch.chdir(tmp_path)
    assert of_folder(Path("moved")).digest == first
    monkeypatch.chdir(tmp_path / "moved")
    assert of_folder(Path()).digest == first


def test_what_is_written_is_read_again_with_any_names(photos, tmp_path):
    odd = photos / "class0001" / "=1,\n\"'\udce9.png"
    (photos / "class0001/1.png").rename(odd)
    found = of_folder(photos)
    file = io.BytesIO()
    found.write(file)
    (tmp_path / "images.csv.gz").write_bytes(file.getvalue())
    assert read_rows(tmp_path / "images.csv.gz") == [*found.rows()]
    assert digest_of(read_rows(tmp_path / "images.csv.gz")) == found.digest
    odd.unlink()
    assert [*differences(found.rows(), of_folder(photos).rows())] == ["class0001/=1,\\n\"'\\udce9.png is gone"]


def test_a_damaged_list_is_no_list(photos, tmp_path):
    file = io.BytesIO()
    of_folder(photos).write(file)
    path = tmp_path / "images.csv.gz"
    for content in (b"", b"no gzip", file.getvalue()[:-20], file.getvalue()[:30] + b"\0" + file.getvalue()[31:]):
        path.write_bytes(content)
        assert read_rows(path) == []


def test_images_are_set_aside_for_a_test_of_all_that_a_run_knows_or_of_none(photos, tmp_path):
    listing = tmp_path / "images.csv.gz"
    unseen = Unseen(tmp_path / "run", listing, ["test", "val"])
    unseen.check(of_folder(photos))  # nothing is known
    with listing.open("wb") as file:
        of_folder(photos).write(file)
    unseen.check(of_folder(photos))
    unseen.check(of_folder(write_images(tmp_path / "others", classes=2, each=7, size=9)))
    (photos / "class0000/1.png").rename(photos / "class0001/new.png")
    with pytest.raises(InputError) as raised:
        unseen.check(of_folder(photos))
    lines = str(raised.value).splitlines()
    assert lines[0] == f"The images in {photos} are not those that {tmp_path / 'run'} was trained on: class0000/1.png is gone, and 1 more differs."
    assert "test and val images are drawn from all of them" in lines[1]
    assert len(lines) == 3


def test_a_part_of_a_large_set_is_known_by_names_and_sizes_where_contents_were_not_read(photos, tmp_path, monkeypatch):
    listing = tmp_path / "images.csv.gz"
    with monkeypatch.context() as patched, listing.open("wb") as file:
        patched.setattr(fingerprint, "CONTENT_FILES", 3)
        patched.setattr(fingerprint, "SAMPLE", 1)
        of_folder(photos).write(file)
    shutil.copytree(photos, tmp_path / "some")
    (tmp_path / "some/class0000/0.png").unlink()
    with pytest.raises(InputError, match="are not those that"):
        Unseen(tmp_path / "run", listing, ["test"]).check(of_folder(tmp_path / "some"))


@pytest.mark.parametrize(("limit", "value"), [("CONTENT_FILES", 9), ("CONTENT_BYTES", 100)])
def test_of_larger_sets_the_contents_of_some_files_count(photos, monkeypatch, limit, value):
    assert all(row.content for row in of_folder(photos).rows() if row.split == "train")
    monkeypatch.setattr(fingerprint, limit, value)
    monkeypatch.setattr(fingerprint, "SAMPLE", 3)
    contents = [bool(row.content) for row in of_folder(photos).rows() if row.split == "train"]
    assert 0 < sum(contents) < 5
    assert contents[0]


def test_a_fifo_is_not_opened_and_a_lost_link_is_no_error(photos):
    os.mkfifo(photos / "class0000/a.png")
    (photos / "class0000/b.png").symlink_to("nowhere")
    rows = {row.name: row for row in of_folder(photos).rows()}
    assert (rows["class0000/a.png"].size, rows["class0000/b.png"].size) == (-1, -1)


def test_arrays_count_with_their_labels():
    images, targets = np.zeros((6, 4, 4, 1), np.uint8), np.arange(6) % 2

    def digest(images, targets):
        return Fingerprint.take({"train": Split(images, targets), "val": None}, ["a", "b"], Path()).digest

    first = digest(images, targets)
    assert digest(images.copy(), targets.copy()) == first
    assert digest(images + np.uint8(1), targets) != first
    assert digest(images, 1 - targets) != first
