import json
import shutil
import signal

import numpy as np
import PIL.Image
import pytest
import torch
from pictures import write_images

import cct_lightning
from cct_lightning import InputError
from cct_lightning.data.fingerprint import Past
from cct_lightning.data.sets import _digits, _digits_table
from cct_lightning.runs.sitting import Sitting

SMALL = (
    "--data.image_size", 8, "--data.batch_size", 8, "--trainer.max_epochs", 2, "--trainer.precision", "32-true", "--data.num_workers", 0,
    "--trainer.enable_progress_bar", "false",
)  # fmt: skip


@pytest.fixture
def stopped(cct, tmp_path, monkeypatch):
    """Returns how to begin a run that is stopped in its second epoch, and to get its folder."""

    def stop_once(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 1 and not trainer.callback_metrics.get("stopped"):
            trainer.callback_metrics["stopped"] = torch.ones(())
            if self.number == 1:
                signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Sitting, "on_train_batch_start", stop_once)

    def begin(*words):
        outcome = cct("fit", "-c", "digits", *SMALL, *words)
        assert outcome.code == 143, outcome.err
        (run,) = (tmp_path / "runs" / "digits").iterdir()
        return run

    return begin


def noise(path, seed=1):
    PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)).save(path)


def replace_in_kind(path):
    """Puts another image of as many bytes in the place of one."""
    before = path.read_bytes()
    path.write_bytes(before[:-13] + bytes(255 - byte for byte in before[-13:-12]) + before[-12:])


def swap(root):
    (root / "train/class0000").rename(root / "train/other")
    (root / "train/class0001").rename(root / "train/class0000")
    (root / "train/other").rename(root / "train/class0001")


def rename_class(root):
    for split in ("train", "val", "test"):
        (root / split / "class0002").rename(root / split / "class0003")


CHANGES = {
    "deleted": (lambda root: (root / "train/class0001/3.png").unlink(), "train/class0001/3.png is gone"),
    "added": (lambda root: noise(root / "train/class0002/99.png"), "train/class0002/99.png is new"),
    "replaced": (lambda root: noise(root / "train/class0000/5.png"), "train/class0000/5.png has "),
    "replaced by as many bytes": (
        lambda root: replace_in_kind(root / "train/class0000/5.png"),
        "train/class0000/5.png has the same size and other content",
    ),
    "swapped classes": (swap, "train/class0000/0.png has "),
    "renamed class": (rename_class, "class 2 is labelled class0003, and was class0002"),
    "validation": (lambda root: (root / "val/class0000/1.png").unlink(), "val/class0000/1.png is gone"),
    "test": (lambda root: noise(root / "test/class0001/0.png"), "test/class0001/0.png has "),
}


def test_r02b_a_run_whose_images_changed_is_not_resumed_unless_that_is_accepted(cct, stopped, tmp_path):
    photos = tmp_path / "photos"
    for split, each in (("train", 8), ("val", 2), ("test", 2)):
        write_images(photos / split, classes=3, each=each, size=8)
    run = stopped("--data.dataset", "image_folder", "--data.root", photos)
    last = (run / "checkpoints/last.ckpt").read_bytes()
    metrics = (run / "metrics.csv").read_bytes()
    for name, (change, told) in CHANGES.items():
        elsewhere = tmp_path / name.replace(" ", "-")
        shutil.copytree(photos, elsewhere)
        change(elsewhere)
        outcome = cct("resume", run, "--data.root", elsewhere)
        assert outcome.code == 2, name
        assert f"are not those that {run} was trained on: {told}" in outcome.err, name
        assert f"cct resume {run} --accept-changed-data" in outcome.err
        assert outcome.err.count("\n") <= 5
    assert (run / "checkpoints/last.ckpt").read_bytes() == last
    assert (run / "metrics.csv").read_bytes() == metrics

    (run / "images.csv.gz").rename(tmp_path / "away")  # without the list the difference is told all the same
    assert "which image it is can't be told" in cct("resume", run, "--data.root", tmp_path / "deleted").err
    (tmp_path / "away").rename(run / "images.csv.gz")

    copy = tmp_path / "copied"
    shutil.copytree(run, copy)
    assert cct("resume", copy, "--accept-changed-data=yes").code == 2
    outcome = cct("resume", copy, "--data.root", tmp_path / "deleted", "--accept-changed-data")
    assert outcome.code == 0, outcome.err
    said = "with other images: train/class0001/3.png is gone"
    assert said in outcome.out
    assert said in (copy / "config.yaml").read_text().splitlines()[0]
    assert said in json.loads((copy / "summary.json").read_text())["changed_data"][0]
    # from then on these are its images
    assert cct("resume", copy, "--extend-to", 3, "--data.root", photos).code == 2
    outcome = cct("resume", copy, "--extend-to", 3, "--data.root", tmp_path / "deleted")
    assert outcome.code == 0, outcome.err
    assert said in outcome.out
    assert said in (copy / "config.yaml").read_text().splitlines()[0]
    # the same images in another place are the same
    photos.rename(tmp_path / "moved")
    outcome = cct("resume", run, "--data.root", tmp_path / "moved")
    assert outcome.code == 0, outcome.err
    assert "changed data" not in outcome.out


def test_r02b_a_table_in_another_order_is_told(cct, stopped, tmp_path):
    write_images(tmp_path / "heap", classes=2, each=12, size=8)
    rows = [f"heap/class000{label}/{number}.png,{'dog' if label else 'cat'}" for label in range(2) for number in range(12)]
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["path,label", *rows]))
    run = stopped("--data.dataset", "csv", "--data.root", "labels.csv")
    table.write_text("\n".join(["path,label", *rows[::-1]]))
    assert "they come in another order" in cct("resume", run).err
    table.write_text("\n".join(["path,label", *rows[:-1], rows[-1].replace("dog", "cat")]))
    with pytest.raises(InputError, match=r"heap/class0001/11.png is labelled cat, and was dog"):
        cct_lightning.resume(run)
    table.write_text("\n".join(["path,label", *rows]))
    assert cct("resume", run, "--data.root", table).code == 0  # the same by its whole path


def test_r02b_arrays_of_other_content_are_told(cct, stopped, monkeypatch):
    run, table = stopped("--data.per_class", 4), _digits_table()
    table[17, :64] = 15 - table[17, :64] % 16
    monkeypatch.setattr("cct_lightning.data.sets._digits_table", lambda: table)
    monkeypatch.setattr("cct_lightning.data.sets._digits", _digits.__wrapped__)  # which reads them once in a process
    with pytest.raises(InputError, match="the set of train images has the same size and other content"):
        cct_lightning.resume(run)
    assert cct_lightning.resume(run, accept_changed_data=True).summary.changed_data


@pytest.mark.parametrize("said", ["a list", {"digest": 3}, {"digest": "00", "accepted": 5}, {"digest": "00", "left_out": {"train": ["x"]}}])
def test_what_a_checkpoint_says_of_its_images_must_be_of_the_right_kind(tmp_path, said):
    with pytest.raises(InputError, match=r"last\.ckpt.*damaged"):
        Past.read(said, tmp_path / "images.csv.gz", tmp_path, tmp_path / "last.ckpt", 0, False)
