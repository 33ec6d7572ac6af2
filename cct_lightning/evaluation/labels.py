"""What a test tells of images with several labels: each label, the thresholds, the worst mistakes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_average_precision

from cct_lightning.data.files import Array
from cct_lightning.wording import percent

FEWEST = 5  # validation images of a label, below which its threshold stays a half: of fewer, chance would choose it
NONE = "(none)"  # stands for the labels of an image without any
TITLES = {"mAP": "mAP", "f1": "F1", "f1_micro": "F1 over all labels", "exact": "exactly right"}  # of shares, as printed


class LabelOutcomes(NamedTuple):
    """What came of each image.

    Attributes:
        indices: Of the images in the data set, (n,).
        marks: Whether each has each label, (n, K), bool.
        probabilities: (n, K).
        thresholds: From which probability on a label is predicted, (K,), float64; the same of all images.
    """

    indices: Tensor
    marks: Tensor
    probabilities: Tensor
    thresholds: Tensor

    @classmethod
    def join(cls, parts: Sequence["LabelOutcomes"]) -> "LabelOutcomes":
        """Puts the parts of all batches or devices together, on the host, ordered by index."""
        indices, marks, probabilities = (torch.cat(values).cpu() for values in zip(*(part[:3] for part in parts), strict=True))
        order = indices.argsort()
        return cls(indices[order], marks[order], probabilities[order], parts[0].thresholds.cpu())


def choose_threshold(probabilities: Array, marks: Array) -> float:
    """Returns from which probability on a label is predicted, so that its F1 is highest; of equal ones the nearest to a half.

    Args:
        probabilities: Of images that were not trained on, (n,).
        marks: Whether they have the label, (n,).

    Returns:
        A half where fewer than ``FEWEST`` have it, else the middle between two images' probabilities, or the half that lies between them.
    """
    if marks.sum() < FEWEST or not np.isfinite(probabilities).all():
        return 0.5
    order = np.argsort(-probabilities, kind="stable")
    values, hits = probabilities[order].astype(np.float64), np.cumsum(marks[order])
    ends = np.flatnonzero(np.append(values[:-1] != values[1:], True))  # behind the last of equal ones: they are predicted together or not at all
    f1 = 2 * hits[ends] / (ends + 1 + hits[-1])
    low = np.append(values[ends[1:]], 0.0)  # of the first that is not predicted
    high = values[ends]
    cuts = np.where((low < 0.5) & (high >= 0.5), 0.5, (low + high) / 2)
    cuts = np.where(cuts > low, cuts, high)  # between two neighbours among the floats there is no middle
    best = np.flatnonzero(f1 == f1.max())
    return float(cuts[best[np.argmin(np.abs(cuts[best] - 0.5))]])


def choose_thresholds(probabilities: Tensor, marks: Tensor) -> list[float]:
    """Returns the threshold of each label, see ``choose_threshold``, of probabilities and marks (n, K)."""
    return [choose_threshold(*pair) for pair in zip(probabilities.float().cpu().numpy().T, marks.cpu().numpy().T, strict=True)]


class LabelRow(NamedTuple):
    """The measures of a label, 0..1; None where there is nothing to divide by. ``ap`` is its average precision, whatever the threshold."""

    name: str
    n: int
    precision: float | None
    recall: float | None
    f1: float | None
    ap: float | None
    threshold: float


class LabelMistake(NamedTuple):
    """An image, by its index in the data set, whose labels were not all told; ``label`` is the one that the network was surest of, and wrong."""

    image: int
    file: str
    true: str
    predicted: str
    label: str
    probability: float
    threshold: float

    @property
    def told(self) -> str:
        """What stands below it in a picture."""
        return f"{self.label} {percent(self.probability, 0)}"


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def label_rows(outcomes: LabelOutcomes, names: Sequence[str]) -> list[LabelRow]:
    """Measures each label. Average precision as torchmetrics computes it: the sum over the images that have it of the precision down to them."""
    marks, predicted = outcomes.marks, outcomes.probabilities.double() >= outcomes.thresholds
    n, taken, hits = (found.sum(dim=0).tolist() for found in (marks, predicted, marks & predicted))
    rows = []
    for k, name in enumerate(names):
        ap = float(binary_average_precision(outcomes.probabilities[:, k].float(), marks[:, k].long())) if n[k] else None
        shares = (_ratio(hits[k], taken[k]), _ratio(hits[k], n[k]), _ratio(2 * hits[k], n[k] + taken[k]))
        rows.append(LabelRow(name, n[k], *shares, ap, float(outcomes.thresholds[k])))
    return rows


def measure_labels(outcomes: LabelOutcomes, rows: Sequence[LabelRow]) -> dict[str, float]:
    """Returns the measures over all labels: mAP, the mean of the average precisions of those that occur; f1, the mean over those that occur or were
    predicted; f1_micro, over all pairs of image and label at once; exact, the share of the images of which no label is wrong."""
    marks, predicted = outcomes.marks, outcomes.probabilities.double() >= outcomes.thresholds
    ap, f1 = ([value for value in values if value is not None] for values in ([row.ap for row in rows], [row.f1 for row in rows]))
    pairs = int(marks.sum() + predicted.sum())
    return {
        "mAP": sum(ap) / len(ap) if ap else 0.0,
        "f1": sum(f1) / len(f1) if f1 else 1.0,
        "f1_micro": 2 * int((marks & predicted).sum()) / pairs if pairs else 1.0,
        "exact": float((marks == predicted).all(dim=1).float().mean()),
    }


@dataclass(frozen=True)
class LabelReport:
    """What an evaluation found.

    Attributes:
        n: Number of images.
        measures: As ``measure_labels``, and what else was measured.
        classes: One row for each label, in the order of the logits.
        mistakes: Images with a wrong label, the surest first.
        source: What the indices of images without files count: "the test split".
    """

    n: int
    measures: dict[str, float]
    classes: list[LabelRow]
    mistakes: list[LabelMistake]
    source: str
    confidence: None = field(default=None, init=False)  # a classifier's mean probability of its predictions

    @property
    def tables(self) -> Mapping[str, tuple[Sequence[str], Sequence[Sequence[Any]]]]:
        """The files that hold it: header and rows."""
        return {"classes.csv": (LabelRow._fields, self.classes), "mistakes.csv": (LabelMistake._fields, self.mistakes)}


def make_label_report(
    outcomes: LabelOutcomes, names: Sequence[str], files: Sequence[object] | None, source: str, measured: Mapping[str, float]
) -> LabelReport:
    """Counts; the arguments are those of ``outcomes.make_report``."""
    rows = label_rows(outcomes, names)
    found = {**measure_labels(outcomes, rows), **measured}
    found = {name: found[name] for name in (*TITLES, *found)}
    return LabelReport(len(outcomes.indices), found, rows, list(_mistakes(outcomes, names, files)), source)


def _mistakes(outcomes: LabelOutcomes, names: Sequence[str], files: Sequence[object] | None) -> Iterator[LabelMistake]:
    indices, marks, probabilities, thresholds = (values.numpy() for values in outcomes)
    predicted = probabilities.astype(np.float64) >= thresholds
    distance = np.where(predicted != marks, np.abs(probabilities - thresholds), -math.inf)
    distance = np.where(np.isnan(distance), 0.0, distance)  # of a network that diverged
    surest = distance.argmax(axis=1)
    wrong = np.flatnonzero((predicted != marks).any(axis=1))
    for i in wrong[np.argsort(-distance[wrong, surest[wrong]], kind="stable")].tolist():
        true, told = ("; ".join(names[k] for k in np.flatnonzero(of_image).tolist()) or NONE for of_image in (marks[i], predicted[i]))
        file, k = str(files[indices[i]]) if files is not None else "", int(surest[i])
        yield LabelMistake(int(indices[i]), file, true, told, names[k], float(probabilities[i, k]), float(thresholds[k]))
