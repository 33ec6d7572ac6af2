import os
import sys

import pytest
from pictures import write_images

from cct_lightning.data.files import Found, find_images, is_glob


@pytest.fixture(autouse=True)
def photos(tmp_path, monkeypatch):
    """photos/class0000/{0,1}.png, photos/class0001/{0,1}.png, hidden images and a text."""
    monkeypatch.chdir(tmp_path)
    folder = write_images(tmp_path / "photos", 2, 2)
    (folder / "notes.txt").write_text("none")
    (folder / ".hidden.png").write_bytes(b"")
    (folder / ".trash").mkdir()
    (folder / ".trash" / "0.png").write_bytes(b"")
    return folder


ALL = [f"photos/class000{label}/{number}.png" for label in (0, 1) for number in (0, 1)]


@pytest.mark.parametrize("path", ["photos", "photos/", "photos/**/*.png", "photos/class*", "photos/*/*.png", "photos/**"])
def test_a_folder_and_globs_list_the_same_images_sorted(path):
    assert [os.path.normpath(found.path) for found in find_images([path])] == ALL
    assert not any(found.error for found in find_images([path]))


def test_the_order_of_what_is_named_is_kept():
    named = ["photos/class0001/1.png", "photos/class0000", "photos/class0001/0.png"]
    assert [found.path for found in find_images(named)] == [ALL[3], ALL[0], ALL[1], ALL[2]]


def test_a_path_that_leads_nowhere_is_told(tmp_path):
    (tmp_path / "empty").mkdir()
    assert list(find_images(["none.png", "empty", "photos/*.jpg", ALL[0]])) == [
        Found("none.png", "there is no such file"),
        Found("empty", "there is no image in this folder"),
        Found("photos/*.jpg", "no image matches"),
        Found(ALL[0]),
    ]


def test_a_named_file_is_taken_whatever_its_name(tmp_path):
    (tmp_path / "a[1].png").write_bytes(b"")
    assert list(find_images(["photos/notes.txt", "photos/.hidden.png", "a[1].png"])) == [
        Found("photos/notes.txt"),
        Found("photos/.hidden.png"),
        Found("a[1].png"),
    ]
    assert not is_glob("a[1].png")
    assert is_glob("b[1].png")


def test_a_link_that_leads_back_ends_the_walk(photos):
    (photos / "class0001" / "again").symlink_to(photos)
    assert [found.path for found in find_images(["photos"])] == ALL


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may open every folder")
def test_a_closed_folder_is_told(photos):
    (photos / "class0000").chmod(0)
    assert next(find_images(["photos"])) == Found("photos/class0000", "can't be opened (Permission denied)")
    (photos / "class0000").chmod(0o700)


def test_no_more_is_listed_than_asked_for(monkeypatch):
    opened = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: opened.append(folder) or scandir(folder))
    listing = find_images(["photos"])
    assert opened == []
    next(listing)
    assert opened == ["photos", "photos/class0000"]
