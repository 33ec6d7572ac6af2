import csv

import lightning as L
import numpy as np
import pytest
import torch
from cct_lightning.callbacks import KNNAccuracy
from cct_lightning.callbacks.knn_accuracy import vote
from sklearn.neighbors import KNeighborsClassifier

from cct_lightning import AugmentConfig, ImageDataModule, InputError
from cct_lightning.tasks.masked import MaskedPatches

QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


def features(count, seed):
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("k", [1, 5, 20])
def test_votes_are_those_of_scikit_learn(k):
    bank, asked, labels = features(200, 0), features(50, 1), torch.arange(200) % 4
    theirs = KNeighborsClassifier(k, weights=lambda distances: np.exp((1 - distances) / 0.07), metric="cosine").fit(bank, labels)
    assert vote(bank, labels, asked, k, 0.07, 4).tolist() == theirs.predict(asked).tolist()


def test_an_image_is_its_own_nearest_and_few_may_vote():
    bank, labels = features(3, 0), torch.tensor([2, 0, 1])
    assert vote(bank, labels, bank * 5, k=20, temperature=0.01, num_classes=3).tolist() == [2, 0, 1]


def trained(folder, *callbacks, epochs=3, data=None, **options):
    torch.manual_seed(0)
    data = data or ImageDataModule("digits", image_size=16, batch_size=32, per_class=10, unlabelled="rest", seed=0, augment=AugmentConfig(shift=1))
    module = MaskedPatches("cct_2_3x2_32", image_size=16, in_chans=1, mean=data.mean, std=data.std)
    loggers = L.pytorch.loggers.CSVLogger(folder, name="", version="")
    trainer = L.Trainer(max_epochs=epochs, limit_train_batches=2, callbacks=[*callbacks], logger=loggers, default_root_dir=folder, **QUIET, **options)
    trainer.fit(module, data)
    return module, trainer


def test_it_is_measured_every_few_epochs_and_at_the_end_and_changes_nothing(tmp_path):
    plain, _ = trained(tmp_path / "plain")
    module, trainer = trained(tmp_path / "measured", KNNAccuracy(every_n_epochs=2, max_images=60))
    assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in module.state_dict().items())
    with (tmp_path / "measured/metrics.csv").open(newline="") as file:
        found = [row["val/knn"] for row in csv.DictReader(file) if row["val/loss"]]
    assert [bool(value) for value in found] == [False, True, True]
    assert 0 < float(found[-1]) <= 1
    assert float(trainer.callback_metrics["val/knn"]) == pytest.approx(float(found[-1]))


def test_labels_teach_nothing(tmp_path):
    whole = ImageDataModule("digits", image_size=16, batch_size=32, seed=0, augment=AugmentConfig(shift=1))
    ours, (theirs, _) = trained(tmp_path / "few")[0].state_dict(), trained(tmp_path / "all", KNNAccuracy(), data=whole)
    assert all(torch.equal(tensor, ours[name]) for name, tensor in theirs.state_dict().items())


def test_the_share_is_that_of_all_validation_images_by_those_that_have_labels(tmp_path):
    callback = KNNAccuracy(k=3)
    module, trainer = trained(tmp_path, callback, epochs=1)
    data = trainer.datamodule
    read = {stage: [*data.labelled_images(stage, 10**6)] for stage in ("train", "val")}
    assert {stage: sum(len(batch.targets) for batch in batches) for stage, batches in read.items()} == {"train": 100, "val": 143}
    with torch.no_grad():
        encoded = {stage: torch.cat([module.eval().encoder((b.images / 255 - data.mean[0]) / data.std[0]).patches.mean(1) for b in batches])
                   for stage, batches in read.items()}  # fmt: skip
    labels = {stage: torch.cat([batch.targets for batch in batches]) for stage, batches in read.items()}
    found = vote(encoded["train"], labels["train"], encoded["val"], 3, 0.07, 10)
    assert float(trainer.callback_metrics["val/knn"]) == pytest.approx(float((found == labels["val"]).float().mean()), abs=1e-6)


def test_of_many_images_as_many_of_each_class_are_looked_at_always_the_same():
    data = ImageDataModule("digits", image_size=16, batch_size=32, seed=0)
    data.setup("fit")
    first, again = (torch.cat([batch.targets for batch in data.labelled_images("train", 50)]) for _ in range(2))
    assert torch.equal(first, again)
    assert first.bincount().tolist() == [5] * 10


def test_without_labels_nothing_is_measured_and_one_line_says_so(tmp_path, caplog):
    from pictures import write_images

    write_images(tmp_path / "heap", classes=1, each=40, size=16)
    heap = ImageDataModule("images", str(tmp_path / "heap"), image_size=16, batch_size=8, in_chans=1, num_workers=0, seed=0)
    _, trainer = trained(tmp_path, KNNAccuracy(), epochs=1, data=heap)
    assert "val/knn" not in trainer.callback_metrics
    assert caplog.text.count("KNNAccuracy measures nothing: there are no labelled images.") == 1


@pytest.mark.parametrize("options", [{"every_n_epochs": 0}, {"k": 0}, {"temperature": 0.0}, {"max_images": 0}])
def test_numbers_out_of_range_are_refused(options):
    (name,) = options
    with pytest.raises(InputError, match=rf"KNNAccuracy\.{name}={options[name]}"):
        KNNAccuracy(**options)


@pytest.mark.slow
def test_two_devices_find_what_one_finds_and_a_run_that_goes_on_what_it_would_have(forks, tmp_path):
    words = (
        "pretrain", "digits", "--model.mask_block", 1, "--data.per_class", 20, "--data.unlabelled", "rest", "--trainer.max_steps", -1,
        "--model.optim.name", "adamw", "--model.optim.lr", 1e-9,
        "--model.schedule.warmup_lr", 0, "--trainer.limit_train_batches", 2, "--trainer.accelerator", "cpu", "--trainer.precision", "32-true",
        "--trainer.callbacks", "[{class_path: KNNAccuracy, init_args: {every_n_epochs: 1}}]", "--trainer.enable_progress_bar", "false",
    )  # fmt: skip
    two = ("--trainer.devices", 2, "--trainer.max_epochs", 2)
    runs = [forks.start(*words, *more, "--trainer.default_root_dir", name, cwd=tmp_path)
            for name, more in (("one", ("--trainer.max_epochs", 1)), ("two", two))]  # fmt: skip
    assert [run.wait(120) for run in runs] == [0, 0], [run.out for run in runs]
    (one,), (both,) = (tmp_path.glob(f"{name}/pretrain/*") for name in ("one", "two"))
    resumed = forks.start("resume", one, "--extend-to", 2, cwd=tmp_path)
    assert resumed.wait(120) == 0, resumed.out
    measured = []
    for run in (one, both):
        with (run / "metrics.csv").open(newline="") as file:
            measured.append([float(row["val/knn"]) for row in csv.DictReader(file) if row["val/knn"]])
    assert len(measured[0]) == len(measured[1]) == 2
    assert measured[0] == pytest.approx(measured[1], abs=1.1 / 143)  # of near ties one image may go the other way
