"""A checkpoint or an export is opened once a command, however much of it is wanted."""

import os

import pytest
import safetensors.torch
import torch
from pictures import write_images

import cct_lightning.weights.files

SHORT = ("--model.arch", "cct_2_3x2_32", "--model.embed_dim", 32, "--data.image_size", 16, "--data.batch_size", 4, "--trainer.max_epochs", 1)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Makes a folder with photos and, by the first test that asks, a run on them."""
    place = tmp_path_factory.mktemp("place")
    write_images(place / "photos", 4, 16)
    return place


@pytest.fixture
def opened(monkeypatch):
    """Counts how often the weights of a file are read."""
    files = []

    def counted(read):
        def call(file, *arguments, **named):
            files.append(os.path.basename(str(getattr(file, "name", file))))
            return read(file, *arguments, **named)

        return call

    monkeypatch.setattr(torch, "load", counted(torch.load))
    load = safetensors.torch.load
    monkeypatch.setattr(cct_lightning.weights.files, "load", lambda data: files.append("model.safetensors") or load(data))
    return files


def test_every_command_opens_its_source_once(cct, place, opened, monkeypatch):
    monkeypatch.chdir(place)
    assert cct("finetune", "photos", *SHORT).code == 0
    (run,) = place.glob("runs/finetune/*")
    opened.clear()
    commands = {
        ("predict", run, "photos"): ["best.ckpt"],
        ("export", run, "--format", "safetensors"): ["best.ckpt", "model.safetensors"],  # the second to compare what was written
        ("predict", run / "export" / "safetensors", "photos"): ["model.safetensors"],
        ("test", run): ["best.ckpt"],
        ("validate", run): ["best.ckpt"],
        ("validate", run, "--calibrate"): ["best.ckpt"],
        ("embed", run, "photos", "--out", "features.npz"): ["best.ckpt"],
    }
    for words, files in commands.items():
        outcome = cct(*words)
        assert outcome.code == 0, outcome.err
        assert opened == files, words
        opened.clear()
    assert cct("finetune", "photos", "--model.pretrained", run, *SHORT).code == 0
    assert opened == ["best.ckpt", "best.ckpt"]  # its source, and for the test the best of its own
    opened.clear()
    assert cct("resume", run, "--extend-to", 2).code == 0
    assert opened == ["last.ckpt", "best.ckpt"]
