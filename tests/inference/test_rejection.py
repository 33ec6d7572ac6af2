import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import write_images
from trained import write_checkpoint, write_export

import cct_lightning
from cct_lightning import InputError
from cct_lightning.inference.export import export
from cct_lightning.weights.ensemble import write_ensemble
from cct_lightning.weights.trained import calibration_path, write_temperature

FROZEN = Path(__file__).parents[1] / "frozen"
QUIET = ("--trainer.enable_progress_bar", "false")


@pytest.fixture
def best(tmp_path):
    return write_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt", recipe=False)


def labelled(network, count=60):
    """Images of noise, of which the network is right in most."""
    source = np.random.default_rng(0)
    images = source.integers(0, 256, (count, 16, 16, 3)).astype(np.uint8)
    targets = network.probabilities(images).argmax(axis=1)
    targets[::5] = (targets[::5] + 1) % 3
    return list(images), targets


def energies(network, images):
    return np.array([np.log(np.exp(logits.astype(np.float64)).sum()) for logits in network.logits_of(images)])


@pytest.mark.parametrize("by", ["energy", "probability"])
def test_answers_below_the_threshold_are_none_and_it_is_kept(best, by):
    opened = cct_lightning.load(best, accelerator="cpu")
    images, targets = labelled(opened)
    opened.calibrate(images, targets)
    before = list(opened.predict(images, top_k=2))
    found = opened.reject(images, targets, 0.8, by)
    scores = energies(opened, images) if by == "energy" else np.array([prediction.probability for prediction in before])
    right = np.array([opened.class_names.index(prediction.class_name) for prediction in before]) == targets
    assert (scores[right] >= opened.rejection.threshold - 1e-6).sum() == np.ceil(0.8 * right.sum())
    assert found.coverage == pytest.approx((scores >= opened.rejection.threshold - 1e-6).mean())
    for again in (opened, cct_lightning.load(best, accelerator="cpu"), cct_lightning.load(best.parents[1], accelerator="cpu")):
        assert again.rejection == opened.rejection
        for prediction, was, score in zip(again.predict(images, top_k=2), before, scores, strict=True):
            assert prediction.score == pytest.approx(score, abs=1e-5)
            if prediction.score >= opened.rejection.threshold:
                assert prediction._replace(score=None) == was
            else:
                assert (prediction.class_name, prediction.probability, prediction.top) == ("none", None, was.top)
    assert cct_lightning.load(best, accelerator="cpu", calibrated=False).predict(images[0]).score is None
    kept = json.loads(calibration_path(best).read_text())
    assert (kept["reject"]["by"], kept["reject"]["kept"], kept["temperature"]) == (by, 0.8, opened.temperature)


def test_views_leave_the_energy_that_of_the_image(best):
    opened = cct_lightning.load(best)
    images, targets = labelled(opened)
    opened.reject(images, targets, by="energy", tta="mirror", keep=False)
    found = [prediction.score for prediction in opened.predict(images, tta="mirror")]
    np.testing.assert_allclose(found, energies(opened, images), atol=1e-5)
    opened.reject(images, targets, by="probability", tta="mirror", keep=False)
    found = [prediction.score for prediction in opened.predict(images, tta="mirror")]
    np.testing.assert_allclose(found, opened.probabilities(np.stack(images), "mirror").max(axis=1), atol=1e-6)


def test_a_later_temperature_leaves_energies_and_drops_probabilities(best):
    images, targets = labelled(cct_lightning.load(best))
    for by, temperature in (("energy", 2.0), ("probability", 3.0)):
        opened = cct_lightning.load(best)
        opened.reject(images, targets, by=by)
        write_temperature(best, temperature, {})
        assert (cct_lightning.load(best).rejection is not None) == (by == "energy")
    with pytest.raises(InputError, match=r"after the temperature 2 can't be kept beside the temperature 3"):
        opened.reject(images, targets, by="probability")
    for by in ("energy", "probability"):
        opened.reject(images, targets, by=by, keep=False)
        opened.calibrate(images, targets, keep=False)
        assert (opened.rejection is not None) == (by == "energy")
    opened.reject(images, targets)
    write_checkpoint(best, recipe=False, drop_path=0.2)  # another one of this name
    write_temperature(best, 2.0, {})
    assert cct_lightning.load(best).rejection is None


@pytest.mark.parametrize("by", ["energy", "probability"])
def test_an_export_has_the_threshold_and_its_rule_which_gives_the_same_answers(best, tmp_path, by):
    opened = cct_lightning.load(best, accelerator="cpu")
    images, targets = labelled(opened)
    opened.calibrate(images, targets)
    opened.reject(images, targets, 0.7, by)
    folder = export(best, "safetensors", tmp_path / "export").folder
    about = json.loads((folder / "config.json").read_text())["cct_lightning"]
    assert (about["reject"]["by"], about["reject"]["threshold"]) == opened.rejection
    exported = cct_lightning.load(folder, accelerator="cpu")
    answers = [prediction.class_name for prediction in opened.predict(images)]
    assert [prediction.class_name for prediction in exported.predict(images)] == answers
    # As a program of somebody else's does, which has the rule's words alone
    logits = torch.from_numpy(np.stack(list(cct_lightning.load(folder, calibrated=False).logits_of(images))))
    names = {"logits": logits, "temperature": about["temperature"], "exp": torch.exp, "log": torch.log, "sum": lambda x: x.sum(1),
             "max": lambda x: x.amax(1), "softmax": lambda x: x.softmax(1)}  # fmt: skip
    score = eval(re.match(r"score = (.*?)[,;] ", about["reject"]["rule"])[1], names)
    assert (score < about["reject"]["threshold"]).tolist() == [name == "none" for name in answers]


@pytest.mark.parametrize("reject", [3, {"by": "luck", "threshold": 1}, {"by": "energy"}, {"by": "energy", "threshold": float("inf")}])
def test_no_threshold_but_a_number_is_taken(best, tmp_path, reject):
    write_temperature(best, 2.0, {})
    path = calibration_path(best)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"reject": reject}))
    for source in (best, write_export(tmp_path / "export", best, reject=reject)):
        with pytest.raises(InputError, match=r"reject=.* is no threshold of energy or probability"):
            cct_lightning.load(source)


def test_what_can_have_no_threshold_says_so(tmp_path, best):
    named = cct_lightning.load(write_checkpoint(tmp_path / "named.ckpt", class_names=["cat", "none", "owl"]))
    with pytest.raises(InputError, match="a class of this network is called 'none'"):
        named.reject(*labelled(named))
    write_ensemble(tmp_path / "ensemble.ckpt", [best, best])
    ensemble = cct_lightning.load(tmp_path / "ensemble.ckpt")
    with pytest.raises(InputError, match="an ensemble gives the mean of probabilities, which has no energy"):
        ensemble.reject(*labelled(ensemble))
    assert ensemble.reject(*labelled(ensemble), by="probability").n == 60
    exported = cct_lightning.load(write_export(tmp_path / "export", best))
    with pytest.raises(InputError, match="is an export, beside which no threshold is kept"):
        exported.reject(*labelled(exported))


def test_an_evaluation_chooses_it_on_the_runs_validation_images_and_measures_outliers(cct, tmp_path):
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    best.parent.mkdir(parents=True)
    shutil.copy(FROZEN / "ema.ckpt", best)
    (tmp_path / "run" / "summary.json").write_text(json.dumps({"best_checkpoint": str(best)}))
    (tmp_path / "run" / "report.html").touch()
    write_images(tmp_path / "noise", 2, 10, 8)
    outcome = cct("test", best, "--calibrate", "--reject", 0.9, "--reject-by", "probability", "--outliers", "noise", *QUIET)
    assert outcome.code == 0, outcome.err
    kept = json.loads(calibration_path(best).read_text())
    told = outcome.out.splitlines()[-4:]
    threshold, temperature = kept["reject"]["threshold"], kept["temperature"]
    after = f"probability below {threshold:.4f} after the temperature {temperature:.4f}"
    assert told[0] == f"rejection  {after} is answered 'none', kept in {calibration_path(best)}"
    assert told[1].startswith("  validation: 143 images, ")
    assert told[2].startswith("  test: 359 images, ")
    assert told[3].startswith("  noise: 20 outliers, ")
    assert "beside the test images AUROC " in told[3]
    test, outliers = kept["reject"]["test"], kept["reject"]["outliers"]
    assert 0.8 < test["coverage"] < 1
    assert test["accuracy"] > test["accuracy_of_all"]
    assert 0 <= outliers["fpr95"] <= 1
    assert f"<dd>where the probability is below {threshold:.4g}, " in (tmp_path / "run" / "report.html").read_text()
    outcome = cct("predict", best, "noise", "--top-k", 2, "--out", "found.csv")
    with (tmp_path / "found.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    none = [row for row in rows if row["class"] == "none"]
    assert f"none bad, {len(none)} none of the classes" in outcome.out
    assert len(none) == round((1 - outliers["answered"]) * 20) > 0
    assert all(row["probability"] == "" and row["class_2"] and float(row["score"]) < threshold for row in none)
    lines = [json.loads(line) for line in cct("predict", best, "noise", "--format", "jsonl").out.splitlines()]
    assert [(line["class"], line["probability"]) for line in lines if line["score"] < threshold] == [("none", None)] * len(none)
    assert "measured without the temperature and the threshold of `none` in " in cct("test", best, *QUIET).out


@pytest.mark.parametrize(("words", "said"), [
    (("--reject", "1.5"), "--reject=1.5 is out of range"),
    (("--reject", "most"), "--reject most: it takes a share"),
    (("--reject_by", "energy"), "--reject_by says more of --reject SHARE"),
    (("--reject", "0.9", "--reject_by", "energie"), "--reject_by energie is unknown. Did you mean energy?"),
    (("--reject", "0.9", "--outliers", "none"), "--outliers none is no folder"),
    (("--reject", "0.9", "--outliers", "empty"), "--outliers empty holds no image"),
    (("--reject", "0.9", "--data.val_fraction", "0"), "--reject needs validation images, and there are none"),
])  # fmt: skip
def test_what_can_not_be_rejected_by_is_said(cct, tmp_path, words, said):
    shutil.copy(FROZEN / "ema.ckpt", tmp_path / "digits.ckpt")
    (tmp_path / "empty").mkdir()
    outcome = cct("test", "digits.ckpt", *words)
    assert outcome.code == 2
    assert said in outcome.err
