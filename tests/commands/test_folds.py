import csv
import json
import signal
from statistics import mean, stdev
from types import SimpleNamespace

import numpy as np
import pytest
from cct_lightning.callbacks import Throughput
from pictures import write_photos

import cct_lightning
from cct_lightning import InputError
from cct_lightning.commands.folds import are_asked, prepare
from cct_lightning.run_folder import RunFolder
from cct_lightning.studies.folds_report import images_of

QUICK = (
    "--trainer.max_epochs", 1, "--data.batch_size", 4, "--data.num_workers", 0, "--data.image_size", 16, "--data.val_fraction", 0.3,
)  # fmt: skip


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def probabilities(network, path):
    return [probability for _, probability in sorted(network.predict(path, top_k=2).top)]


@pytest.fixture
def photos(tmp_path):
    """Two classes of eight images, two more in a test folder."""
    write_photos(tmp_path / "photos" / "train", 8, 48)
    write_photos(tmp_path / "photos" / "test", 2, 48, first=8)
    return tmp_path / "photos"


@pytest.fixture
def stopped(photos, monkeypatch, capfd):
    """Folds that were stopped inside the second one."""
    end = Throughput.on_train_batch_end

    def interrupted(self, trainer, *rest):
        end(self, trainer, *rest)
        if "fold2" in trainer.default_root_dir and trainer.global_step == 1:
            signal.raise_signal(signal.SIGINT)

    keys = dict(zip((str(key).removeprefix("--") for key in QUICK[::2]), QUICK[1::2], strict=True))
    with monkeypatch.context() as patched:
        patched.chdir(photos.parent)
        patched.setattr(Throughput, "on_train_batch_end", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cct_lightning.finetune(photos, {**keys, "trainer.callbacks": None, "wandb.mode": "disabled"}, folds=2)
    said = capfd.readouterr()
    assert "[1/2] fold 1/2, seed 0: " in said.out
    assert "[2/2] fold 2/2, seed 0: stopped, it goes on from there" in said.out
    (folder,) = photos.parent.glob("runs/finetune/folds-*")
    assert f"stopped; cct resume {folder.relative_to(photos.parent)} goes on." in said.err
    return folder


def test_every_image_is_tested_once_by_the_network_that_has_not_seen_it_also_after_a_stop(cct, photos, stopped):
    first = json.loads(next(stopped.glob("runs/fold1/finetune/*/summary.json")).read_text())
    photos = photos.rename(photos.with_name("moved"))
    outcome = cct("resume", stopped, "--data.root", photos)
    assert outcome.code == 0, outcome.err
    assert "2 folds, of which 1 are there" in outcome.out
    assert "16 images, each tested once, by the network that has not seen it" in outcome.out
    assert json.loads(next(stopped.glob("runs/fold1/finetune/*/summary.json")).read_text()) == first
    assert json.loads(next(stopped.glob("runs/fold2/finetune/*/summary.json")).read_text())["resumed"] == 1
    found = rows(stopped / "results.csv")
    assert sorted(row["image"] for row in found) == sorted(map(str, photos.glob("train/*/*.png")))
    summary = json.loads((stopped / "summary.json").read_text())
    right = {number: [row["predicted"] == row["label"] for row in found if row["fold"] == number] for number in ("1", "2")}
    accuracies = [mean(values) for values in right.values()]
    assert summary["accuracies"] == pytest.approx(accuracies)
    assert (summary["accuracy"], summary["deviation"]) == pytest.approx((mean(accuracies), stdev(accuracies)))
    assert summary["pooled"]["accuracy"] == pytest.approx(mean([*right["1"], *right["2"]]))
    for fold, network in enumerate(sorted(stopped.glob("runs/fold*/finetune/*/checkpoints/best.ckpt")), start=1):
        mine = [row for row in found if row["fold"] == str(fold)]
        for row, prediction in zip(mine, cct_lightning.load(network).predict([row["image"] for row in mine], top_k=2), strict=True):
            assert {name: f"{value:.6g}" for name, value in prediction.top} == {name: row[f"p({name})"] for name in dict(prediction.top)}
    networks = [cct_lightning.load(path) for path in sorted(stopped.glob("runs/fold*/finetune/*/checkpoints/best.ckpt"))]
    tests, ensemble = sorted(photos.glob("test/*/*.png")), cct_lightning.load(stopped)
    for path, prediction in zip(tests, ensemble.predict(tests), strict=True):
        assert prediction.probability == pytest.approx(max(mean(p) for p in zip(*(probabilities(n, path) for n in networks), strict=True)), abs=1e-5)
    predicted = [ensemble.predict(path).class_name == path.parent.name for path in tests]
    assert (summary["test_accuracy"], summary["num_tested"]) == (mean(predicted), 4)
    page = (stopped / "report.html").read_text()
    assert page.count("data:image/") == 4
    assert "mean and standard deviation of 2 folds" in page
    again = cct_lightning.resume(stopped)
    assert "2 folds, accuracy " in repr(again)
    assert again.summary.accuracies == summary["accuracies"]
    assert [run.summary.finished for run in again.runs] == [True, True]


def test_folds_do_not_go_on_with_other_images(cct, photos):
    folder = photos.parent / "folds"
    folder.mkdir()
    (folder / "folds.json").write_text(json.dumps({"folds": 2, "words": [str(photos)], "images": "of others"}))
    outcome = cct("resume", folder)
    assert outcome.code == 2
    assert "the images are not those that the folds began with" in outcome.err


def test_folds_that_another_process_computes_are_left_to_it(cct, photos, monkeypatch):
    folder = photos.parent / "folds"
    folder.mkdir()
    (folder / "folds.json").write_text(json.dumps({"folds": 2, "words": [str(photos)], "images": "of others"}))
    monkeypatch.setattr("cct_lightning.commands.folds.PATIENCE", 0)
    with RunFolder(folder).held():
        outcome = cct("resume", folder)
    assert outcome.code == 2
    assert f"{folder} is being trained by another process on this machine" in outcome.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--folds", "1"), "--folds 1: it takes a whole number, 2 or more."),
        (("--folds", "many"), "--folds many: it takes a whole number"),
        (("--folds", "2", "--jobs", "0"), "--jobs 0: it takes a whole number, 1 or more."),
        (("--folds", "2", "--find-lr"), "--find-lr is for one run"),
        (("--folds", "2", "--data.fold", "1/2"), "--data.fold is for one run"),
        (("--folds", "2", "--trainer.devices", "2"), "trainer.devices=2: a fold is one process on one device; --jobs N has several"),
        (("--folds", "9"), "9 folds need 9 images of each class, one to test on in each; there are fewer of 2 class(es): flower 8, temple 8."),
    ],
)
def test_folds_that_can_not_be_had_are_refused_before_a_training(cct, photos, words, said):
    outcome = cct("finetune", photos, *words)
    assert outcome.code == 2
    assert said in outcome.err
    assert not (photos.parent / "runs").exists()


def test_what_would_make_other_folds_of_them_is_refused(tmp_path):
    (tmp_path / "folds.json").write_text(json.dumps({"folds": 2, "words": ["photos"], "images": ""}))
    assert are_asked(["resume", str(tmp_path)])
    assert are_asked(["finetune", "photos", "--folds=3"])
    assert not are_asked(["finetune", "photos"])
    assert not are_asked(["resume", str(tmp_path / "runs")])
    with pytest.raises(InputError, match=r"--model.depth would make other folds of these"):
        prepare(["resume", str(tmp_path), "--model.depth", "3"])
    for word in ("--allow-import", "--allow-path=/", "--jobs"):  # nothing in a folder permits itself anything
        (tmp_path / "folds.json").write_text(json.dumps({"folds": 2, "words": ["photos", word, "subprocess"], "images": ""}))
        with pytest.raises(InputError, match=r"folds.json says of itself what it may import or write"):
            prepare(["resume", str(tmp_path)])
    (tmp_path / "folds.json").write_text("{}")
    with pytest.raises(InputError, match=r"folds.json is damaged"):
        prepare(["resume", str(tmp_path)])


def fail(job, words, given):
    raise ValueError(f"no {job.keys['data.fold']}")


def test_a_fold_that_fails_is_told_and_tried_again(cct, photos, monkeypatch):
    monkeypatch.setattr("cct_lightning.commands.folds.train", fail)
    outcome = cct("finetune", photos, "--folds", 2)
    assert outcome.code == 1
    assert "[2/2] fold 2/2, seed 0: FAILED, no 2/2" in outcome.out
    assert "2 of the 2 folds failed" in outcome.err
    assert "cct resume runs/finetune/folds-" in outcome.err


def test_the_pictures_of_folds_show_images_as_the_runs_read_them(tmp_path):
    """Those of five channels could not be drawn, those of 12 bits were nearly black."""
    bands = np.full((4, 4, 5), 4095, np.uint16)
    np.save(tmp_path / "a.npy", bands)
    config = {
        "data": {"dataset": "image_folder", "root": str(tmp_path), "in_chans": 5, "value_range": [0, 4095], "mean": [0.5] * 5, "std": [0.2] * 5}
    }
    found = SimpleNamespace(items=[str(tmp_path / "a.npy")], runs=[SimpleNamespace(config=config)])
    (seen,) = images_of(found, [0])
    assert (seen.shape, seen.dtype, seen.min()) == ((4, 4, 1), np.uint8, 255)
