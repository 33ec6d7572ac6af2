import csv
import json
import signal
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import write_images

import cct_lightning
from cct_lightning import ImageDataModule, InputError
from cct_lightning.data import bad_images, memory
from cct_lightning.data.folders import Split
from cct_lightning.runs.sitting import Sitting

SMALL = (
    "--data.dataset", "image_folder", "--data.image_size", 8, "--data.batch_size", 16, "--trainer.max_epochs", 2, "--trainer.precision", "32-true",
    "--data.num_workers", 0, "--trainer.enable_progress_bar", "false",
)  # fmt: skip


@pytest.fixture
def photos(tmp_path):
    return write_images(tmp_path / "photos", classes=2, each=100, size=8)


def module(root, **options):
    data = ImageDataModule("image_folder", str(root), image_size=8, seed=0, num_workers=0, **options)
    data.setup("fit")
    return data


def chosen(data):
    return {name: indices for name, (_, indices) in data.splits.items()}


@pytest.mark.parametrize("cache", ["host", "none"])
def test_r07b_all_bad_images_are_named_before_the_first_epoch_and_not_one_at_a_time(photos, cache):
    for number in (3, 50, 77):
        (photos / "class0001" / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(InputError) as error:
        module(photos, cache=cache)
    lines = str(error.value).splitlines()
    assert lines[0].startswith("3 images can't be used: ")
    assert all(f"{photos}/class0001/{number}.png can't be read as an image" in lines[0] for number in (3, 50, 77))
    assert f"cct check {photos}" in lines[1]
    assert "--data.on_bad_image skip" in lines[2]


def test_r07b_an_image_that_turns_bad_later_is_named_with_the_others_of_its_batch_and_with_the_way_out(photos):
    data = module(photos, cache="none")
    loader = data.train_dataloader()
    for path in photos.rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"128 images can't be used: .* and 125 more\. .*\n.*cct check .*photos"):
        next(iter(loader))


def test_r07b_looking_ahead_ends_in_time_and_headers_come_first(photos, monkeypatch):
    opened, decoded, clock = [], [], [0.0]

    def decode(file, *_):
        decoded.append(file)
        clock[0] += 0.01

    data = module(photos, cache="none")
    images = bad_images.Readable(bad_images.used_images({"train": data.splits["train"][0]}, data.splits), 3, 100.0, "photos")
    monkeypatch.setattr(bad_images, "size_of", lambda file, *_: opened.append(file))
    monkeypatch.setattr(bad_images, "decode", decode)
    monkeypatch.setattr(bad_images.time, "monotonic", lambda: clock[0])
    images.look_ahead(data.splits, seconds=0.2)
    assert len(opened) == 200
    assert 1 < len(decoded) < 200


@pytest.mark.parametrize("cache", ["host", "none"])
def test_r07b_skip_leaves_out_what_can_not_be_read_and_nothing_else_moves(photos, cache):
    whole = chosen(module(photos, cache=cache))
    bad = photos / "class0001/3.png"
    bad.write_bytes(bad.read_bytes()[:60])  # the header is right
    data = module(photos, cache=cache, on_bad_image="skip")
    ((split, number, path, why),) = data.bad
    assert (split, path) == ("train", bad)
    assert why == "can't be read as an image (it was cut off)"
    assert data.splits["train"][0].files[number] == bad
    for name, indices in chosen(data).items():
        assert indices.tolist() == [index for index in whole[name] if index != number]
    assert sum(map(len, chosen(data).values())) == 199
    for name in ("train", "val", "test"):
        assert all(len(batch.targets) for batch in getattr(data, f"{name}_dataloader")())


def test_r07b_skip_refuses_more_than_one_percent_and_a_class_without_images(photos, tmp_path):
    for number in range(3):
        (photos / "class0000" / f"{number}.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"3 images of 200 can't be used, and data\.on_bad_image=skip leaves out 1% at most.*\n.*cct check"):
        module(photos, on_bad_image="skip")
    split = write_images(tmp_path / "split/train", classes=2, each=100, size=8).parent
    write_images(split / "val", classes=2, each=1, size=8)
    (split / "val/class0001/0.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"No image of 1 class\(es\) of val can be used: .*val/class0001/0\.png"):
        module(split, on_bad_image="skip")


def test_skip_looks_for_lost_classes_only_where_there_are_any(photos):
    files = sorted(photos.glob("*/*.png"))
    files[0].write_bytes(b"")
    alike = (np.arange(len(files)) > 0).astype(int)  # the bad one is like no other
    numbers = Split(files, alike, values=np.arange(len(files), dtype=np.float32)[:, None])
    for split in (numbers, replace(numbers, values=None)):
        splits = {"train": (split, np.arange(len(files)))}
        images = bad_images.Readable(bad_images.used_images({"train": split}, splits), 3, 100.0, "photos")
        with nullcontext() if split.values is not None else pytest.raises(InputError, match=r"No image of 1 class\(es\)"):
            kept, bad = images.leave_out(splits, None)
            assert [one.number for one in bad] == [0]
            assert kept["train"][1].tolist() == list(range(1, len(files)))


def test_r07b_headers_of_images_that_are_left_out_decide_nothing(photos, monkeypatch):
    (photos / "class0001/3.png").write_bytes(b"no image")
    monkeypatch.setattr(memory, "HOST_CACHE_BYTES", 8 * 8 * 3 * 250)  # so that all headers are read
    assert module(photos, on_bad_image="skip").splits["train"][0].images.shape == (200, 8, 8, 3)


def test_r07b_a_resumed_run_leaves_out_exactly_the_same_images(cct, photos, tmp_path, monkeypatch):
    def stop_once(self, trainer, pl_module, batch, batch_idx):
        if self.number == 1 and trainer.current_epoch == 1 and batch_idx == 0:
            signal.raise_signal(signal.SIGTERM)

    (photos / "class0001/3.png").write_bytes(b"no image")
    words = ("fit", "-c", "digits", *SMALL, "--data.root", photos, "--data.on_bad_image", "skip")
    whole = cct(*words)
    assert whole.code == 0, whole.err
    assert f"left out             1 image(s) that can't be read: {photos}/class0001/3.png (left_out.csv)" in whole.out
    (run,) = (tmp_path / "runs/digits").iterdir()
    with (run / "left_out.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["split"], row["path"]) == ("train", f"{photos}/class0001/3.png")
    assert row["why"].startswith("can't be read as an image")
    assert json.loads((run / "summary.json").read_text())["left_out"] == [f"{photos}/class0001/3.png"]

    tested = cct("test", run)
    assert tested.code == 0, tested.err  # the share is of all images, not of those of the test
    assert f"left out of the data set: 1 image(s) that can't be read: {photos}/class0001/3.png\n" in tested.out

    monkeypatch.setattr(Sitting, "on_train_batch_start", stop_once)
    assert cct(*words).code == 143
    (stopped,) = set((tmp_path / "runs/digits").iterdir()) - {run}
    with monkeypatch.context() as patch:
        patch.setattr(bad_images.Readable, "_read", None)  # nothing is looked for again
        ended = cct_lightning.resume(stopped)
    assert ended.summary.left_out == [f"{photos}/class0001/3.png"]
    one, two = (torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for folder in (run, stopped))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert cct("test", stopped).code == 0


def test_r07b_what_a_worker_can_not_read_ends_the_run_with_the_ways_out(cct, photos, monkeypatch):
    monkeypatch.setattr(bad_images.Readable, "look_ahead", lambda *_: None)  # as if the time had been too short
    (photos / "class0001/3.png").write_bytes(b"no image")
    outcome = cct("fit", "-c", "digits", *SMALL, "--data.root", photos, "--data.cache", "none", "--data.num_workers", 1)
    assert outcome.code == 2
    first, *ways = outcome.err[outcome.err.index("error: ") :].splitlines()
    assert first.startswith(f"error: {photos}/class0001/3.png can't be read as an image")
    assert f"cct check {photos}" in ways[0]
    assert "--data.on_bad_image skip" in ways[1]
    assert len(ways) == 2


def test_a_table_of_bad_images_holds_no_formula():
    table = bad_images.table_of([bad_images.Bad("train", 3, Path("=1+1.png"), "can't be read"), bad_images.Bad("val", 0, Path("a,b.png"))])
    assert list(csv.reader(table.splitlines())) == [
        ["split", "number", "path", "why"],
        ["train", "3", "./=1+1.png", "can't be read"],
        ["val", "0", "a,b.png", ""],
    ]
