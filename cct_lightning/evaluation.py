"""What a test tells beyond its measures: each class, the most confused pairs, the worst mistakes and the calibration, as text and as files."""

import csv
import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cct_lightning.errors import InputError
from cct_lightning.images import Array

BINS = 15  # of the calibration, as many as the measure of the training has
LABELS = {"accuracy": "accuracy", "f1": "F1", "top5": "top-5", "calibration_error": "calibration error"}  # of shares, as printed
FILES = ("measures.json", "classes.csv", "confusion.csv", "mistakes.csv")


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


def make_report(
    outcomes: Outcomes,
    class_names: Sequence[str],
    files: Sequence[Path] | None = None,
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
    calibration = _calibration(outcomes.probability, right)
    f1 = [row.f1 for row in classes if row.f1 is not None]
    gaps = [bin.n * abs(bin.accuracy - bin.confidence) for bin in calibration if bin.accuracy is not None and bin.confidence is not None]
    measures = {"accuracy": float(right.mean()), "f1": sum(f1) / len(f1), "calibration_error": sum(gaps) / len(right), **(measured or {})}
    most_confused = sorted((c for c in confusions if c.true != c.predicted), key=lambda c: (-c.n, -c.share))
    measures = {name: measures[name] for name in (*LABELS, *measures) if name in measures}
    return Report(len(right), measures, classes, confusions, most_confused, mistakes, calibration, source)


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def _calibration(probability: Tensor, right: Array) -> list[Bin]:
    edges = torch.linspace(0, 1, BINS + 1)
    where = (torch.bucketize(probability.float(), edges, right=True) - 1).clamp(max=BINS - 1).numpy()
    n = np.bincount(where, minlength=BINS)
    confidence, accuracy = (np.bincount(where, values, BINS) for values in (probability.double().numpy(), right))
    return [Bin(i / BINS, (i + 1) / BINS, int(n[i]), _ratio(confidence[i], n[i]), _ratio(accuracy[i], n[i])) for i in range(BINS)]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def write_report(report: Report, folder: Path, about: Mapping[str, Any]) -> None:
    """Writes measures.json, classes.csv, confusion.csv and mistakes.csv; a value that is none, or not finite, is null or empty.

    Args:
        report: What was found.
        folder: Made where it is not there; files of an earlier report are replaced.
        about: What measures.json shall hold besides: of which checkpoint, on which data.

    Raises:
        OSError: The folder can't be written.
    """
    folder.mkdir(exist_ok=True)
    calibration = [{name: _finite(value) for name, value in bin._asdict().items()} for bin in report.calibration]
    whole = {**{name: _finite(value) for name, value in report.measures.items()}, "n": report.n, **about, "calibration": calibration}
    (folder / "measures.json").write_text(json.dumps(whole, indent=2, default=str, allow_nan=False) + "\n", encoding="utf-8")
    for name, kind, rows in (
        ("classes.csv", ClassRow, report.classes),
        ("confusion.csv", Confusion, report.confusions),
        ("mistakes.csv", Mistake, report.mistakes),
    ):
        # backslashreplace: a file's name may hold bytes that are no text
        with (folder / name).open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(kind._fields)
            writer.writerows([_cell(value) for value in row] for row in rows)


def _cell(value: str | float | None) -> str | int:
    if isinstance(value, float):
        return f"{value:.6f}" if math.isfinite(value) else ""
    return "" if value is None else value


def check_class_names(checkpoint: str, known: Sequence[str] | None, num_classes: int, names: Sequence[str], where: str) -> None:
    """Refuses data whose classes are not the checkpoint's: the targets count the data's classes, the logits the checkpoint's.

    Args:
        checkpoint: File, for the message.
        known: Class names in the checkpoint, in the order of the logits; None where it holds none.
        num_classes: Number of logits.
        names: Class names of the data, in the order of the targets.
        where: The data, for the message.

    Raises:
        InputError: Another number of classes, other names, or another order.
    """
    if len(names) == num_classes and (known is None or list(known) == list(names)):
        return
    if known is not None and sorted(known) == sorted(names):
        number = next(i for i, (ours, theirs) in enumerate(zip(known, names, strict=True)) if ours != theirs)
        raise InputError(
            f"{where} has the classes of {checkpoint} in another order: class {number} is {names[number]!r} there and {known[number]!r} in the "
            "checkpoint.\n  Right answers would count as wrong ones: name the data in the form in which it was trained on (--data.root)."
        )
    number_of_classes = f" ({len(names)} instead of {num_classes})" if len(names) != num_classes else ""
    pairs = (("data", names, known), ("checkpoint", known, names))
    odd = [f"only the {side} has {_some(set(has) - set(other))}" for side, has, other in pairs if has and other and set(has) - set(other)]
    raise InputError(
        f"{where} has other classes than {checkpoint}{number_of_classes}{': ' if odd else ''}{'; '.join(odd)}.\n"
        "  Name data with its classes (--data.dataset, --data.root), or train on these from its weights (--model.pretrained)."
    )


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(map(repr, listed[:3])) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


MAX_ROWS, WORST, LARGEST = 20, 10, 5  # up to 20 classes are all printed; of more the 10 worst and the 5 largest others
NAME_WIDTH = 28


def _shown(text: str, width: int | None = NAME_WIDTH) -> str:
    """Cuts the middle out of a name that is wider than a column; what a terminal can't show becomes its escape."""
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return plain if width is None or len(plain) <= width else f"{plain[: width // 2]}…{plain[width // 2 - width + 1 :]}"


def _percent(value: float | None, digits: int = 1) -> str:
    return "-" if _finite(value) is None else f"{100 * value:.{digits}f} %"  # type: ignore[operator]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[str]) -> list[str]:
    """Aligns columns: numbers to the right, those named in ``left`` to the left."""
    columns = []
    for title, *cells in zip(header, *rows, strict=True):
        width = max(map(len, (title, *cells)))
        columns.append([cell.ljust(width) if title in left else cell.rjust(width) for cell in (title, *cells)])
    return [f"  {'  '.join(row)}".rstrip() for row in zip(*columns, strict=True)]


def _rows_of_classes(report: Report) -> tuple[list[ClassRow], int]:
    """Returns the classes that are printed, and how many are left out."""
    if len(report.classes) <= MAX_ROWS:
        return report.classes, 0
    order = sorted(report.classes, key=lambda row: (row.f1 is None, row.f1 or 0.0, -row.n))
    worst, others = order[:WORST], sorted(order[WORST:], key=lambda row: -row.n)
    return worst + others[:LARGEST], len(others) - LARGEST


def describe_report(report: Report, title: str, checkpoint: str, folder: Path, problem: OSError | None = None) -> str:
    """Returns the report as it is printed: measures, classes, confused pairs, the worst mistakes, the files and what to type next.

    Args:
        report: What was found.
        title: Says of how many images of which data.
        checkpoint: File, for the commands.
        folder: Where the files are.
        problem: Why they are not there.
    """
    told = [f"{LABELS[name]} {_percent(value, 2)}" if name in LABELS else f"{name} {value:.4f}" for name, value in report.measures.items()]
    classes, left_out = _rows_of_classes(report)
    lines = [title, f"  {', '.join(told)}", ""]
    lines += _table(
        ("class", "n", "precision", "recall", "F1"),
        [(_shown(row.name), f"{row.n:,}", _percent(row.precision), _percent(row.recall), _percent(row.f1)) for row in classes],
        left=("class",),
    )
    if left_out:
        where = "" if problem else " in classes.csv"
        lines.append(f"  the {WORST} classes with the lowest F1 and the {LARGEST} largest others; {left_out} more{where}")
    if report.mistakes:
        pairs = [(_shown(c.true), _shown(c.predicted), f"{c.n:,}", _percent(c.share)) for c in report.most_confused[:10]]
        lines += ["", "most confused", *_table(("class", "taken for", "n", "of the class"), pairs, left=("class", "taken for"))]
        worst = [
            (_shown(m.true), _shown(m.predicted), _percent(m.probability), _shown(m.file, None) or f"image {m.image} of {report.source}")
            for m in report.mistakes[:5]
        ]
        lines += ["", f"worst of {len(report.mistakes):,} mistakes" if len(worst) < len(report.mistakes) else "mistakes"]
        lines += _table(("class", "taken for", "probability", "image"), worst, left=("class", "taken for", "image"))
    path = shlex.quote(checkpoint)
    files = ", ".join([*FILES, *(["pictures"] if (folder / "pictures").is_dir() else [])])
    written = f"none: {folder} can't be written ({problem.strerror or problem})" if problem else f"{folder}: {files}"
    return "\n".join([*lines, "", f"files  {written}", "next", f"  cct predict {path} PATH...", f"  cct export {path} --format onnx"])
