import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import write_images
from trained import NAMES, write_checkpoint, write_export

import cct_lightning
from cct_lightning import InputError
from cct_lightning.inference.export import export
from cct_lightning.weights.trained import calibration_path, read_saved, read_temperature, write_temperature

FROZEN = Path(__file__).parents[1] / "frozen"


@pytest.fixture
def best(tmp_path):
    return write_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt", recipe=False)


def labelled(count=60):
    source = np.random.default_rng(0)
    return list(source.integers(0, 256, (count, 16, 16, 3)).astype(np.uint8)), source.integers(0, 3, count)


def test_a_temperature_is_kept_and_used_and_changes_no_class(best):
    images, targets = labelled()
    opened = cct_lightning.load(best)
    before = opened.probabilities(np.stack(images))
    found = opened.calibrate(images, targets)
    assert (found.n, opened.temperature) == (60, found.temperature)
    assert found.temperature > 1  # random weights with large logits
    assert found.after.calibration_error < found.before.calibration_error
    assert found.after.loss < found.before.loss
    assert json.loads(calibration_path(best).read_text())["after"] == found.after._asdict()
    for again in (opened, cct_lightning.load(best), cct_lightning.load(best.parents[1])):
        probabilities = again.probabilities(np.stack(images))
        assert again.temperature == found.temperature
        np.testing.assert_array_equal(probabilities.argmax(1), before.argmax(1))
        np.testing.assert_allclose(again.predict(images[0], top_k=3).probability, probabilities[0].max(), atol=1e-6)
        np.testing.assert_allclose(next(again.embeddings(images)).probability, probabilities[0].max(), atol=1e-6)
        logits = again.logits(torch.from_numpy((np.stack(images) / 255 - 0.4) / 0.2).float().permute(0, 3, 1, 2))
        np.testing.assert_allclose((logits / found.temperature).softmax(1), probabilities, atol=1e-5)
    assert ", temperature " in repr(opened)
    raw = cct_lightning.load(best, calibrated=False)
    np.testing.assert_array_equal(raw.probabilities(np.stack(images)), before)
    assert raw.calibrate(iter(images), [NAMES[label] for label in targets], keep=False) == found  # logits are those before any temperature


def test_predict_uses_it(cct, best, tmp_path):
    write_images(tmp_path / "photos", 1, 2, size=16)
    before = cct("predict", best, "photos").out
    write_temperature(best, 50.0, {})
    after = cct("predict", best, "photos").out
    assert before != after
    opened = cct_lightning.load(best)
    assert [line.split(",")[-2] for line in after.splitlines()[1:]] == [f"{p.probability:.6g}" for p in opened.predict(["photos"])]
    assert all(p.probability < 0.5 for p in opened.predict(["photos"]))


def test_a_folder_of_class_folders_gives_images_and_targets(tmp_path):
    photos = write_images(tmp_path / "photos", 3, 4)
    names = sorted(folder.name for folder in photos.iterdir())
    opened = cct_lightning.load(write_checkpoint(tmp_path / "best.ckpt", class_names=names))
    files = sorted(photos.rglob("*.png"))
    assert opened.calibrate(photos, keep=False) == opened.calibrate(files, [file.parent.name for file in files], keep=False)
    assert not calibration_path(tmp_path / "best.ckpt").exists()
    (photos / "owl").mkdir()
    with pytest.raises(InputError, match=r"photos is no folder of class folders of this network \('owl' is none of 'class0000', "):
        opened.calibrate(photos)
    with pytest.raises(InputError, match=r"class0000 is no folder of class folders of this network \(it holds none"):
        opened.calibrate(str(photos / "class0000"))


def test_what_does_not_fit_is_refused_and_nothing_kept(best, tmp_path):
    images, targets = labelled(5)
    opened = cct_lightning.load(best)
    for given, message in (
        ((images,), "images are given without targets"),
        ((images, targets[:4]), "5 images and 4 targets are given"),
        ((images, [*targets[:4], 3]), "target 3 is none of the network's classes, 0 to 2"),
        ((images, [*targets[:4], "owl"]), "target 'owl' is none of the network's classes: 'cat, tabby', "),
        (([], []), "there is no image"),
        (([tmp_path / "none.png"], [0]), "none.png: there is no such file"),
        (([torch.zeros(3, 16, 16)], [0]), "no Tensor"),
    ):
        with pytest.raises(InputError, match=message):
            opened.calibrate(*given)
    with pytest.raises(InputError, match=r"opened with image_size=\[32, 32\], its own is \[16, 16\]"):
        cct_lightning.load(best, image_size=32).calibrate(images, targets)
    with pytest.raises(InputError, match="is an export, beside which no temperature is kept"):
        cct_lightning.load(write_export(tmp_path / "export", best)).calibrate(images, targets)
    assert opened.temperature == 1
    assert not calibration_path(best).exists()
    assert cct_lightning.load(best, image_size=32).calibrate(images, targets, keep=False).n == 5


def test_a_changed_checkpoint_refuses_it(best, cct, tmp_path):
    write_temperature(best, 2.0, {})
    assert read_temperature(read_saved(best)) == 2
    write_checkpoint(best, recipe=False, drop_path=0.2)
    write_images(tmp_path / "photos", 1, 2)
    message = r"best\.calibration\.json was fitted to another best\.ckpt, which has changed since: fit it anew with cct test .*best\.ckpt --calibrate"
    with pytest.raises(InputError, match=message):
        cct_lightning.load(best)
    assert "was fitted to another best.ckpt" in cct("predict", best, "photos").err
    assert "was fitted to another best.ckpt" in cct("export", best, "--format", "safetensors").err
    cct_lightning.load(best, calibrated=False).calibrate(*labelled(5))
    assert cct_lightning.load(best).temperature != 2


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"sha256": 3}', "\xff"])
def test_a_damaged_file_is_named(best, text):
    calibration_path(best).write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"best\.calibration\.json can't be read as a temperature \(\w+\): fit it anew"):
        cct_lightning.load(best)


@pytest.mark.parametrize("temperature", [0, -1, math.inf, "hot", None])
def test_no_temperature_but_a_number_above_zero_is_taken(best, tmp_path, temperature):
    write_temperature(best, 2.0, {})
    path = calibration_path(best)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"temperature": temperature}))
    for source in (best, write_export(tmp_path / "export", best, temperature=temperature)):
        with pytest.raises(InputError, match=r"temperature=.* is no number above 0"):
            cct_lightning.load(source)


@pytest.mark.parametrize("format", ["safetensors", "torch-export"])
def test_an_export_has_the_temperature_and_gives_the_same_probabilities(best, tmp_path, format):
    images, targets = labelled()
    opened = cct_lightning.load(best, accelerator="cpu")
    opened.calibrate(images, targets)
    folder = export(best, format, tmp_path / "export").folder
    assert json.loads((folder / "config.json").read_text())["cct_lightning"]["temperature"] == opened.temperature
    exported = cct_lightning.load(folder, accelerator="cpu")
    assert exported.temperature == opened.temperature
    np.testing.assert_allclose(exported.probabilities(np.stack(images)), opened.probabilities(np.stack(images)), atol=1e-5)
    assert cct_lightning.load(folder, calibrated=False).temperature == 1
    assert cct_lightning.load(FROZEN / "exports" / "safetensors").temperature == 1  # older ones say none


def test_an_evaluation_calibrates_on_the_runs_validation_images(cct, tmp_path):
    best = tmp_path / "digits.ckpt"
    shutil.copy(FROZEN / "ema.ckpt", best)
    quiet = ("--trainer.enable_progress_bar", "false")
    plain = cct("test", best, *quiet).out
    calibration_path(best).write_text("of another one")  # does not stand in the way of a new one
    outcome = cct("test", best, "--calibrate", *quiet)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith(plain.rstrip("\n"))  # the measures are those of the logits as they are
    kept = json.loads(calibration_path(best).read_text())
    validation, test = outcome.out.splitlines()[-2:]
    assert f"calibration  temperature {kept['temperature']:.4f}, kept in {calibration_path(best)}\n" in outcome.out
    assert validation.startswith("  validation: 143 images, calibration error ")
    assert test.startswith("  test: 359 images, calibration error ")
    before, after = (float(word) for word in test.partition("calibration error ")[2].partition(" %;")[0].replace(" %", "").split(" -> "))
    assert after < before / 2
    assert f"calibration error {before:.2f} %" in plain
    assert f"measured without the temperature in {calibration_path(best)}, which predictions use\n" in cct("test", best, *quiet).out
    first = calibration_path(best).read_bytes()
    outcome = cct("validate", best, "--calibrate", *quiet)
    assert f"{kept['before']['calibration_error'] * 100:.2f} %" in outcome.out.splitlines()[1]
    assert calibration_path(best).read_bytes() == first
    assert cct_lightning.load(best).temperature == kept["temperature"]


@pytest.mark.parametrize(("words", "message"), [
    (("fit", "-c", "digits", "--calibrate"), "--calibrate is for `cct test` and `cct validate`."),
    (("test", "digits.ckpt", "--calibrate", "--data.val_fraction", "0"), "--calibrate needs validation images, and there are none"),
])  # fmt: skip
def test_where_it_can_not_be_done_that_is_said(cct, tmp_path, words, message):
    shutil.copy(FROZEN / "ema.ckpt", tmp_path / "digits.ckpt")
    outcome = cct(*words)
    assert outcome.code == 2
    assert message in outcome.err


def test_a_temperature_can_be_that_of_what_is_seen_mirrored(best):
    images, targets = labelled()
    opened = cct_lightning.load(best)
    plain, mirrored = opened.calibrate(images, targets, keep=False), opened.calibrate(images, targets, tta="mirror")
    assert mirrored.temperature != plain.temperature
    assert json.loads(calibration_path(best).read_text())["tta"] == "mirror"
    probabilities = opened.probabilities(np.stack(images), "mirror")
    assert mirrored.after.confidence == pytest.approx(probabilities.max(1).mean(), abs=1e-5)
    assert mirrored.accuracy == (probabilities.argmax(1) == targets).mean()
