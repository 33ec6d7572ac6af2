"""None of these: a threshold below which an answer is not given, chosen so that most right answers are. Plain torch."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cct_lightning.errors import InputError, check_range
from cct_lightning.evaluation.calibration import check_logits
from cct_lightning.evaluation.options import Tta
from cct_lightning.evaluation.views import mean_logits
from cct_lightning.networks.options import RejectBy, Rejection
from cct_lightning.wording import percent


class Answered(NamedTuple):
    """What a threshold does to some images of the network's classes.

    Attributes:
        n: Number of images.
        coverage: Share that is answered, 0..1.
        accuracy: Of these; None where there are none.
        accuracy_of_all: Of all, as without a threshold.
    """

    n: int
    coverage: float
    accuracy: float | None
    accuracy_of_all: float


class Outliers(NamedTuple):
    """How images of none of the classes are told from those of the classes.

    Attributes:
        n: Number of outliers.
        answered: Share of them that the threshold lets pass, 0..1.
        auroc: Probability that an image of the classes has a higher score than an outlier.
        fpr95: Share of the outliers that pass where 95 % of the images of the classes do.
    """

    n: int
    answered: float
    auroc: float
    fpr95: float


def score(logits: Tensor, probabilities: Tensor, by: RejectBy) -> Tensor:
    """Returns how much images look like those of the classes, (B,); higher is more.

    Args:
        logits: Of the images as they are, (B, K), before any temperature.
        probabilities: Of the answers, (B, K): after the temperature, and the mean over views.
        by: ``energy`` is the logarithm of the sum of the logits' exponentials, the negative energy of "Energy-based Out-of-distribution Detection"
            (arXiv 2010.03759, equation 3, T = 1). ``probability`` is the largest, the baseline of "A Baseline for Detecting Misclassified and
            Out-of-Distribution Examples in Neural Networks" (arXiv 1610.02136).
    """
    return logits.logsumexp(dim=1) if by == "energy" else probabilities.amax(dim=1)


def scored(network: Callable[[Tensor], Tensor], softmax: Callable[[Tensor], Tensor], images: Tensor, tta: Tta, by: RejectBy) -> Tensor:
    """Classifies images (B, C, H, W): probabilities and behind them the score, (B, K + 1).

    Args:
        network: Returns logits (B, K).
        softmax: Makes probabilities of them, after a temperature.
        images: Float, normalised.
        tta: What is seen of each; energy is that of the image alone.
        by: See ``score``.
    """
    seen: list[Tensor] = []  # the logits of each view, of which the first is the image

    def keep(view: Tensor) -> Tensor:
        seen.append(network(view))
        return seen[-1]

    probabilities = softmax(mean_logits(keep, images, tta))
    return torch.cat([probabilities, score(seen[0], probabilities, by)[:, None]], dim=1)


def choose_threshold(scores: Tensor, right: Tensor, share: float) -> float:
    """Returns the highest threshold that at least a share of the right answers reach.

    Args:
        scores: Of images of the classes that were not trained on, (n,).
        right: Which of them are answered right, bool (n,).
        share: More than 0 and at most 1.

    Raises:
        InputError: No answer is right, or a score is no number.
    """
    check_range("reject", share, 0, 1, exclusive="low")
    kept = scores[right].double().sort(descending=True).values
    if not len(kept):
        raise InputError("not one answer is right on the validation images: there is nothing to keep, and no threshold to choose.")
    if not kept.isfinite().all():
        raise InputError("a logit is no number: the network diverged, and no threshold mends that.")
    return float(kept[math.ceil(share * len(kept) - 1e-9) - 1])


def measure_rejection(scores: Tensor, right: Tensor, rejection: Rejection) -> Answered:
    """Measures a threshold on images of the classes, scores (n,) and which are answered right, bool (n,)."""
    passed = scores.double() >= rejection.threshold
    accuracy = float(right[passed].double().mean()) if passed.any() else None
    return Answered(len(scores), float(passed.double().mean()), accuracy, float(right.double().mean()))


def measure_outliers(inside: Tensor, outside: Tensor, rejection: Rejection) -> Outliers:
    """Measures how the scores (n,) of images of the classes and of outliers (m,) lie apart; equal scores count half."""
    inside, outside = inside.double(), outside.double()
    ordered = outside.sort().values
    below, up_to = (torch.searchsorted(ordered, inside, right=right).double() for right in (False, True))
    auroc = float((below + up_to).mean() / 2 / len(outside))
    limit = inside.sort(descending=True).values[math.ceil(0.95 * len(inside)) - 1]
    return Outliers(len(outside), float((outside >= rejection.threshold).double().mean()), auroc, float((outside >= limit).double().mean()))


def check_answers(logits: Tensor, targets: Tensor) -> Tensor:
    """Tells which images are answered right, bool (n,).

    Raises:
        InputError: As ``check_logits``.
    """
    check_logits(logits, targets)
    return logits.argmax(dim=1) == targets


def describe_answered(found: Answered, what: str) -> str:
    """Returns a line of what a threshold does: ``what`` names the images."""
    of_answered = f", of which {percent(found.accuracy, 2)} right" if found.accuracy is not None else ""
    return f"  {what}: {found.n:,} images, {percent(found.coverage, 2)} answered{of_answered} (of all {percent(found.accuracy_of_all, 2)})"


def describe_outliers(found: Outliers, what: str, beside: str) -> str:
    """Returns a line of how outliers are told: ``what`` names them, ``beside`` the images of the classes."""
    return (
        f"  {what}: {found.n:,} outliers, {percent(found.answered, 2)} answered; beside the {beside} images AUROC {percent(found.auroc, 2)}, "
        f"{percent(found.fpr95, 2)} pass where 95 % of those do"
    )
