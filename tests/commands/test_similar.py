import csv
import json
import shutil

import numpy as np
import PIL.Image
import pytest
from doors import pack
from pictures import write_photos
from trained import NAMES, write_checkpoint, write_export

import cct_lightning
from cct_lightning.inference.similar import find_similar


@pytest.fixture
def best(tmp_path):
    return write_checkpoint(tmp_path / "best.ckpt")


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos", 8, 60)


def test_the_nearest_by_cosine_come_first_and_a_copy_before_all(cct, best, photos, tmp_path):
    image = photos / "temple" / "2.png"
    shutil.copy(image, photos / "flower" / "copy.png")
    (photos / "flower" / "bad.png").write_text("no image")
    outcome = cct("similar", best, image, photos, "-n", 4, "--out", "found.csv", "--picture", "found.png")
    assert outcome.code == 0, outcome.err
    assert f"4 of 16 image(s), 1 more could not be read: {photos / 'flower' / 'bad.png'}" in outcome.out
    with (tmp_path / "found.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    opened = cct_lightning.load(best)
    others = [path for path in sorted(photos.rglob("*.png")) if path not in (image, photos / "flower" / "bad.png")]
    features = opened.embed([image, *others])
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = {str(path): cosine for path, cosine in zip(others, features[1:] @ features[0], strict=True)}
    wanted = sorted(cosines, key=lambda path: -cosines[path])[:4]
    assert [row["path"] for row in rows] == wanted
    assert rows[0]["path"] == str(photos / "flower" / "copy.png")
    assert [float(row["cosine"]) for row in rows] == pytest.approx([cosines[path] for path in wanted], abs=1e-5)
    assert rows[0]["class"] == opened.predict(image).class_name in NAMES
    with PIL.Image.open(tmp_path / "found.png") as picture:
        assert picture.width > 500


def test_a_picture_shows_images_of_a_shard_and_of_many_channels(cct, best, photos, tmp_path):
    shard = pack(photos, tmp_path / "doors")["webdataset"]
    outcome = cct("similar", best, photos / "temple" / "2.png", shard, "-n", 3, "--out", "found.csv", "--picture", "found.png")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "found.csv").read_text().splitlines()[1].startswith(f"{shard}/00010.png,1,")  # itself; flower has eight
    deep = write_checkpoint(tmp_path / "deep.ckpt", in_chans=5, mean=[0.5] * 5, std=[0.2] * 5, data={"value_range": [0, 4000]})
    for number in range(4):
        np.save(tmp_path / f"{number}.npy", np.random.default_rng(number).integers(0, 4000, (20, 20, 5), np.uint16))
    outcome = cct("similar", deep, "0.npy", "1.npy", "2.npy", "3.npy", "--out", "bands.csv", "--picture", "bands.png")
    assert outcome.code == 0, outcome.err
    with PIL.Image.open(tmp_path / "bands.png") as picture:
        assert picture.width > 300


def test_rows_on_the_screen_are_lines_of_json_where_asked(cct, best, photos):
    outcome = cct("similar", best, photos / "temple" / "2.png", photos, "--format", "jsonl", "-n", 99)
    rows = [json.loads(line) for line in outcome.out.splitlines()]
    assert len(rows) == 15
    assert rows[0].keys() == {"path", "cosine", "class", "probability"}
    assert "15 of 15 image(s)" in outcome.err


def test_images_from_no_file_are_found_too(best):
    images = list(np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3)).astype(np.uint8))
    found = find_similar(cct_lightning.load(best), images[3], images, 2)
    assert found.looked_at == 5
    assert found.nearest[0].cosine == pytest.approx(1)
    assert found.nearest[0].path is None


@pytest.mark.parametrize(("words", "said"), [
    (("photos/flower/0.png",), "similar needs an image and where to look: cct similar"),
    (("photos", "photos"), "There is no image photos"),
    (("photos/flower/0.png", "photos", "-n", "0"), "-n=0 is out of range"),
    (("photos/flower/0.png", "photos", "--picture", "a.jpg"), "--picture a.jpg: it is written as PNG"),
    (("photos/flower/0.png", "photos", "--picture", "best.png"), "--picture best.png exists"),
    (("photos/flower/0.png", "photos", "--top_k", "3"), "similar has no option --top_k"),
    (("photos/flower/0.png", "none"), "none"),
])  # fmt: skip
def test_what_can_not_be_looked_for_is_said(cct, best, photos, tmp_path, words, said):
    (tmp_path / "best.png").touch()
    outcome = cct("similar", best, *words)
    assert outcome.code == 2
    assert said in outcome.err


def test_where_no_other_image_can_be_read_that_is_said(cct, best, photos, tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    outcome = cct("similar", best, photos / "flower" / "0.png", "bad.png")
    assert outcome.code == 1
    assert "none of 1 image(s) could be looked at: " in outcome.err


def test_an_export_with_features_will_do(cct, best, photos, tmp_path):
    write_export(tmp_path / "export", best)
    words = (photos / "flower" / "0.png", photos, "-n", 3)
    assert cct("similar", "export", *words).out == cct("similar", best, *words).out
