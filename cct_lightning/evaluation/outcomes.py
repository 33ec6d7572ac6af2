"""What a test tells beyond its measures: each class, the most confused pairs, the worst mistakes and the calibration, as text and as files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cct_lightning.data.files import Array
from cct_lightning.wording import percent

BINS = 15  # of the calibration, as many as the measure of the training has
LABELS = {"accuracy": "accuracy", "f1": "F1", "top5": "top-5", "calibration_error": "calibration error"}  # of shares, as printed


class Outcomes(NamedTuple):
    """What came of each image: tensors (n,).

    Attributes:
        indices: Of the images in the data set.
        targets: Their true classes.
        predicted: The classes with the largest logits.
        probability: Probability of the predicted class, 0..1.
        true_probability: Probability of the true class.
    """

    indices: Tensor
    targets: Tensor
    predicted: Tensor
    probability: Tensor
    true_probability: Tensor

    @classmethod
    def of(cls, indices: Tensor, targets: Tensor, logits: Tensor) -> "Outcomes":
        """Keeps of a batch, logits (B, K), what a report needs; nothing waits for the device."""
        predicted, probabilities = logits.argmax(dim=1), logits.softmax(dim=1)
        probability, true_probability = (probabilities.gather(1, classes[:, None])[:, 0] for classes in (predicted, targets))
        return cls(indices, targets, predicted, probability, true_probability)

    @classmethod
    def join(cls, parts: Sequence["Outcomes"]) -> "Outcomes":
        """Puts the parts of all batches or devices together, on the host, ordered by index."""
        whole = [torch.cat(values).cpu() for values in zip(*parts, strict=True)]
        order = whole[0].argsort()
        return cls(*(values[order] for values in whole))


class ClassRow(NamedTuple):
    """The measures of a class, 0..1; None where there is nothing to divide by: no image of the class, none taken for it, or neither."""

    name: str
    n: int
    precision: float | None
    recall: float | None
    f1: float | None


class Confusion(NamedTuple):
    """How many images of a class were taken for which one, and their share of the true class."""

    true: str
    predicted: str
    n: int
    share: float


class Mistake(NamedTuple):
    """An image, by its index in the data set, that was taken for another class; ``file`` is empty where images come from arrays."""

    image: int
    file: str
    true: str
    predicted: str
    probability: float
    true_probability: float

    @property
    def told(self) -> str:
        """What stands below it in a picture."""
        return percent(self.probability, 0)


class Bin(NamedTuple):
    """The images whose predicted class has a probability of low..high: their number, mean probability and accuracy."""

    low: float
    high: float
    n: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Report:
    """What an evaluation found.

    Attributes:
        n: Number of images.
        measures: accuracy, f1 (mean over the classes that occur or were predicted), calibration_error (expected calibration error, "On
            Calibration of Modern Neural Networks", arXiv 1706.04599, section 3), and what else was measured.
        classes: One row for each class, in the order of the logits.
        confusions: Every pair of classes that occurs, right ones included, in the order of the classes.
        most_confused: The wrong ones among them, the most frequent first.
        mistakes: All mistakes, the surest first.
        calibration: The bins of the calibration error. torchmetrics, whose measure a training logs, puts probabilities of exactly 1 into a bin
            of their own.
        source: What the indices of images without files count: "the test split".
    """

    n: int
    measures: dict[str, float]
    classes: list[ClassRow]
    confusions: list[Confusion]
    most_confused: list[Confusion]
    mistakes: list[Mistake]
    calibration: list[Bin]
    source: str

    @property
    def tables(self) -> Mapping[str, tuple[Sequence[str], Sequence[Sequence[Any]]]]:
        """The files that hold it: header and rows."""
        return {
            "classes.csv": (ClassRow._fields, self.classes),
            "confusion.csv": (Confusion._fields, self.confusions),
            "mistakes.csv": (Mistake._fields, self.mistakes),
        }

    @property
    def confidence(self) -> float:
        """Mean probability of the predicted classes."""
        return sum(bin.n * bin.confidence for bin in self.calibration if bin.confidence is not None) / self.n


def make_report(
    outcomes: Outcomes,
    class_names: Sequence[str],
    files: Sequence[object] | None = None,
    source: str = "the data set",
    measured: Mapping[str, float] | None = None,
) -> Report:
    """Counts.

    Args:
        outcomes: Of all images.
        class_names: In the order of the logits.
        files: Of all images of the data set, to be found by index; None where they come from arrays.
        source: See ``Report``.
        measured: Measures of the same images from elsewhere, such as loss and top5; where they are also counted here, these are kept, so
            that a report and a log never differ in the last digit.
    """
    indices, targets, predicted, probability, true_probability = (values.numpy() for values in outcomes)
    k, right = len(class_names), targets == predicted
    n, taken, hits = (np.bincount(labels, minlength=k) for labels in (targets, predicted, targets[right]))
    classes = [
        ClassRow(name, int(n[i]), _ratio(hits[i], taken[i]), _ratio(hits[i], n[i]), _ratio(2 * hits[i], n[i] + taken[i]))
        for i, name in enumerate(class_names)
    ]
    pairs, counts = np.unique(targets * k + predicted, return_counts=True)  # only those that occur: 1,000 classes have a million
    confusions = [
        Confusion(class_names[pair // k], class_names[pair % k], int(count), float(count / n[pair // k]))
        for pair, count in zip(pairs, counts, strict=True)
    ]
    wrong = np.flatnonzero(~right)
    wrong = wrong[np.argsort(-probability[wrong], kind="stable")]  # NaN, of a network that diverged, comes last
    mistakes = [
        Mistake(
            int(indices[i]), str(files[indices[i]]) if files is not None else "", class_names[targets[i]], class_names[predicted[i]],
            float(probability[i]), float(true_probability[i]),
        )
        for i in wrong
    ]  # fmt: skip
    calibration = calibration_bins(outcomes.probability, right)
    f1 = [row.f1 for row in classes if row.f1 is not None]
    measures = {"accuracy": float(right.mean()), "f1": sum(f1) / len(f1), "calibration_error": calibration_error(calibration), **(measured or {})}
    most_confused = sorted((c for c in confusions if c.true != c.predicted), key=lambda c: (-c.n, -c.share))
    measures = {name: measures[name] for name in (*LABELS, *measures) if name in measures}
    return Report(len(right), measures, classes, confusions, most_confused, mistakes, calibration, source)


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def calibration_error(bins: Sequence[Bin]) -> float:
    """Returns the mean distance of probability and accuracy, 0..1, over the images of all bins."""
    gaps = [bin.n * abs(bin.accuracy - bin.confidence) for bin in bins if bin.accuracy is not None and bin.confidence is not None]
    return sum(gaps) / sum(bin.n for bin in bins)


def calibration_bins(probability: Tensor, right: Array) -> list[Bin]:
    """Sorts images by the probability (n,) of their predicted class; ``right`` (n,) tells whether it is the true one."""
    edges = torch.linspace(0, 1, BINS + 1)
    where = (torch.bucketize(probability.float(), edges, right=True) - 1).clamp(max=BINS - 1).numpy()
    n = np.bincount(where, minlength=BINS)
    confidence, accuracy = (np.bincount(where, values, BINS) for values in (probability.double().numpy(), right))
    return [Bin(i / BINS, (i + 1) / BINS, int(n[i]), _ratio(confidence[i], n[i]), _ratio(accuracy[i], n[i])) for i in range(BINS)]
