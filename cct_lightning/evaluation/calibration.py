"""How sure a network is and how right: why the two differ, and the one temperature that brings them together. Plain torch."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cct_lightning.errors import InputError
from cct_lightning.evaluation.outcomes import calibration_bins, calibration_error
from cct_lightning.wording import percent

LOWEST, HIGHEST = 0.01, 100.0  # of a temperature
HALVINGS = 40  # of the logarithm's interval: to 1e-11
LARGE = 0.05  # a calibration error from which on a summary says why
SHORT = 5_000  # steps of a run that is called short


class Sureness(NamedTuple):
    """How probable a network holds its answers to be: mean probability of the predicted classes, calibration error, mean loss (nats)."""

    confidence: float
    calibration_error: float
    loss: float


class Calibration(NamedTuple):
    """A temperature, and what it changes on some images.

    Attributes:
        temperature: That logits are divided by; above 1 the network was too sure.
        n: Number of images.
        accuracy: 0..1; no temperature changes it.
        before: With the logits as they are.
        after: With the temperature.
    """

    temperature: float
    n: int
    accuracy: float
    before: Sureness
    after: Sureness


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """Finds the temperature T for which softmax(logits / T) has the least loss (mean negative log likelihood).

    The loss is convex in 1 / T, so its derivative's one root is found by halving, in float64. "On Calibration of Modern Neural Networks" (arXiv
    1706.04599, section 4.2, "temperature scaling"). Unlike there, one image's worth of the targets, a share of 1 / (n + 1), is spread over all
    classes, after section 2.2 of "Probabilistic Outputs for Support Vector Machines" (Platt, 1999): where all of few images are right, the least
    loss would be that of a network that is sure of everything.

    Args:
        logits: (n, K), of images that were not trained on.
        targets: Class indices (n,).

    Returns:
        T, from 0.01 to 100.

    Raises:
        InputError: There is no image, the shapes don't fit, or a logit is no number.
    """
    check_logits(logits, targets)
    z = logits.double()
    z = z - z.amax(dim=1, keepdim=True)
    spread = 1 / (len(z) + 1)
    wanted = ((1 - spread) * z.gather(1, targets[:, None].long())[:, 0] + spread * z.mean(dim=1)).mean()

    def slope(temperature: float) -> float:  # of the loss, by 1 / T: rises with it
        return float(((z / temperature).softmax(dim=1) * z).sum(dim=1).mean() - wanted)

    if slope(1.0) == 0:  # logits that are all the same: every temperature is as good
        return 1.0
    low, high = math.log(LOWEST), math.log(HIGHEST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(math.exp(middle)) > 0 else (low, middle)
    return min(max(math.exp((low + high) / 2), LOWEST), HIGHEST)


def check_logits(logits: Tensor, targets: Tensor) -> None:
    """Refuses what nothing can be fitted to.

    Raises:
        InputError: As ``fit_temperature``.
    """
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise InputError(f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} given: they must be (n, K) and (n,).")
    if not len(logits):
        raise InputError("there is no image to fit a temperature to.")
    if not logits.isfinite().all():
        raise InputError("a logit is no number: the network diverged, and no temperature mends that.")
    if not 0 <= int(targets.min()) <= int(targets.max()) < logits.shape[1]:
        raise InputError(
            f"targets {int(targets.min())} to {int(targets.max())} given: of {logits.shape[1]} classes they are 0 to {logits.shape[1] - 1}."
        )


def measure_temperature(logits: Tensor, targets: Tensor, temperature: float) -> Calibration:
    """Measures logits (n, K) before and after they are divided by a temperature.

    Raises:
        InputError: As ``fit_temperature``.
    """
    check_logits(logits, targets)
    right = logits.argmax(dim=1) == targets
    return Calibration(
        temperature, len(logits), float(right.double().mean()), _sureness(logits, targets, 1.0), _sureness(logits, targets, temperature)
    )


def _sureness(logits: Tensor, targets: Tensor, temperature: float) -> Sureness:
    scaled = logits.double() / temperature
    probability, predicted = scaled.softmax(dim=1).max(dim=1)
    error = calibration_error(calibration_bins(probability, (predicted == targets).numpy()))
    return Sureness(float(probability.mean()), error, float(torch.nn.functional.cross_entropy(scaled, targets.long())))


def describe_calibration(found: Calibration, what: str) -> str:
    """Returns a line of what a temperature changes: ``what`` names the images."""
    before, after = found.before, found.after
    return (
        f"  {what}: {found.n:,} images, calibration error {percent(before.calibration_error, 2)} -> {percent(after.calibration_error, 2)}; "
        f"right in {percent(found.accuracy, 2)}, sure to {percent(before.confidence, 2)} -> {percent(after.confidence, 2)}; "
        f"loss {before.loss:.4f} -> {after.loss:.4f}"
    )


def why_uncalibrated(summary: Mapping[str, Any]) -> str:
    """Says why the calibration error of a run's test is large, from what summary.json holds; empty where it is not, or nothing is known."""
    test = summary.get("test")
    error, confidence = (test.get("calibration_error") if isinstance(test, dict) else None), summary.get("test_confidence")
    accuracy = summary.get("test_accuracy")
    if error is None or confidence is None or accuracy is None or not error > LARGE:
        return ""
    said = f"calibration error {percent(error)}: right in {percent(accuracy)}, sure to {percent(confidence)} on average"
    steps = summary.get("steps") or 0
    if confidence > accuracy:
        return f"{said}: too sure" + (", as long trainings on few images make a network" if steps >= SHORT else "")
    reasons = [f"label smoothing ({smoothing:g})"] if (smoothing := summary.get("label_smoothing")) else []
    reasons += [f"a short run ({steps:,} steps)"] if 0 < steps < SHORT else []
    return f"{said}: too unsure" + (f", as {' and '.join(reasons)} make{'s' * (len(reasons) == 1)} a network" if reasons else "")


def how_to_calibrate(summary: Mapping[str, Any]) -> str:
    """Returns the command that fits a temperature to a run; empty where no checkpoint is kept or no validation images are known."""
    checkpoint = summary.get("best_checkpoint") or summary.get("last_checkpoint")
    return f"cct test {checkpoint} --calibrate" if checkpoint and summary.get("val_accuracy_last") is not None else ""
