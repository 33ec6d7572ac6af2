import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from cct_lightning import InputError
from cct_lightning.evaluation.calibration import (
    HIGHEST,
    LARGE,
    LOWEST,
    SHORT,
    fit_temperature,
    how_to_calibrate,
    measure_temperature,
    why_uncalibrated,
)


def drawn(n=20_000, k=5, seed=0, scale=2.0):
    """Logits, and targets drawn with the probabilities that these say: calibrated as they are."""
    source = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, k, generator=source)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=source)[:, 0]


@pytest.mark.parametrize("temperature", [0.05, 0.3, 1.0, 2.5, 20.0])
def test_a_temperature_is_found_again(temperature):
    logits, targets = drawn()
    # 20,000 targets tell it to a hundredth or so
    assert fit_temperature(logits * temperature, targets) == pytest.approx(temperature, rel=0.03)
    assert fit_temperature(logits * temperature + 100, targets) == pytest.approx(fit_temperature(logits * temperature, targets), rel=1e-4)


def test_it_is_the_least_loss():
    logits, targets = drawn(500)
    logits = 3 * logits
    found = fit_temperature(logits, targets)
    spread = F.one_hot(targets, 5).double() * (1 - 1 / 501) + 1 / 501 / 5

    def loss(temperature):
        return float(F.cross_entropy(logits.double() / temperature, spread))

    assert loss(found) < min(loss(found * 1.01), loss(found / 1.01), loss(1.0))


def test_what_is_measured_is_what_torchmetrics_measures_and_the_error_falls():
    logits, targets = drawn()
    logits = 4 * logits
    found = measure_temperature(logits, targets, fit_temperature(logits, targets))
    for temperature, part in ((1.0, found.before), (found.temperature, found.after)):
        probabilities = (logits / temperature).softmax(1)
        expected = multiclass_calibration_error(probabilities, targets, 5, n_bins=15)
        assert part.calibration_error == pytest.approx(float(expected), abs=1e-4)
        assert part.confidence == pytest.approx(float(probabilities.amax(1).mean()), abs=1e-5)
        assert part.loss == pytest.approx(float(F.cross_entropy(logits / temperature, targets)), rel=1e-4)
    assert found.accuracy == pytest.approx(float((logits.argmax(1) == targets).double().mean()))
    assert found.after.calibration_error < 0.02 < 0.1 < found.before.calibration_error
    assert found.after.loss < found.before.loss


@pytest.mark.parametrize(("logits", "targets"), [
    (torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0])),  # one image, right
    (torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([2])),  # one image, wrong
    (5 * torch.eye(4).repeat(20, 1), torch.arange(4).repeat(20)),  # all right
    (5 * torch.eye(4).repeat(20, 1), (torch.arange(4).repeat(20) + 1) % 4),  # all wrong
    (torch.zeros(3, 4), torch.tensor([0, 1, 2])),
    (torch.full((3, 4), 1e30), torch.tensor([0, 1, 2])),
    (1e30 * torch.eye(4), torch.arange(4)),
    (1e-30 * torch.eye(4), torch.arange(4)),
    (torch.zeros(5, 1), torch.zeros(5, dtype=torch.int64)),  # one class
])  # fmt: skip
def test_what_tells_little_gives_a_finite_temperature(logits, targets):
    temperature = fit_temperature(logits, targets)
    assert LOWEST <= temperature <= HIGHEST
    found = measure_temperature(logits, targets, temperature)
    assert np.isfinite([found.accuracy, *found.before, *found.after]).all()


@pytest.mark.parametrize("n", [10, 100, 1000])
def test_few_images_that_are_all_right_are_no_proof(n):
    """As sure as the number of images allows, and not as sure as float32 can be."""
    logits, targets = 3 * torch.eye(4).repeat(n // 4 + 1, 1)[:n], torch.arange(n) % 4
    confidence = measure_temperature(logits, targets, fit_temperature(logits, targets)).after.confidence
    assert confidence == pytest.approx(1 - 0.75 / (n + 1), abs=1e-6)


def test_what_can_not_be_fitted_is_refused():
    logits, targets = drawn(6)
    for given, message in (
        ((logits[:0], targets[:0]), "there is no image"),
        ((logits, targets[:5]), r"logits \(6, 5\) and targets \(5,\)"),
        ((logits[0], targets), r"logits \(5,\)"),
        ((logits.log(), targets), "a logit is no number"),
        ((logits, targets + 5), r"of 5 classes they are 0 to 4"),
        ((logits, targets - 5), r"of 5 classes they are 0 to 4"),
    ):
        with pytest.raises(InputError, match=message):
            fit_temperature(*given)


def test_why_tells_only_what_is_known():
    summary = {"test": {"calibration_error": 0.2}, "test_accuracy": 0.9, "test_confidence": 0.7, "label_smoothing": 0.1, "steps": 10}
    why = why_uncalibrated(summary)
    assert why.endswith("too unsure, as label smoothing (0.1) and a short run (10 steps) make a network")
    assert why_uncalibrated(summary | {"steps": SHORT}).endswith("too unsure, as label smoothing (0.1) makes a network")
    assert why_uncalibrated(summary | {"label_smoothing": 0.0}).endswith("too unsure, as a short run (10 steps) makes a network")
    assert why_uncalibrated(summary | {"label_smoothing": 0.0, "steps": SHORT}).endswith(": too unsure")
    assert "too sure, as long trainings" in why_uncalibrated(summary | {"test_confidence": 0.99, "steps": SHORT})
    assert why_uncalibrated(summary | {"test_confidence": 0.99}).endswith(": too sure")  # of ten steps nothing can be said
    for other in ({"test": {"calibration_error": LARGE}}, {"test": {}}, {"test": None}, {"test_confidence": None}, {"test_accuracy": None}):
        assert why_uncalibrated(summary | other) == ""
    assert why_uncalibrated({}) == how_to_calibrate({}) == how_to_calibrate({"best_checkpoint": "a"}) == ""
    assert how_to_calibrate({"last_checkpoint": "a", "val_accuracy_last": 0.5}) == "cct test a --calibrate"
