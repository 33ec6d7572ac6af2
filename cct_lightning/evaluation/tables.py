"""What a test found, as files and as text."""

import csv
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cct_lightning.errors import InputError
from cct_lightning.evaluation.outcomes import LABELS, ClassRow, Confusion, Mistake, Report
from cct_lightning.wording import as_cells, percent, printable, shortened, some, table

FILES = ("measures.json", "classes.csv", "confusion.csv", "mistakes.csv")


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def write_report(report: Report, folder: Path, about: Mapping[str, Any]) -> None:
    """Writes measures.json, classes.csv, confusion.csv and mistakes.csv; a value that is none, or not finite, is null or empty.

    Names in the tables are no formulas of a spreadsheet, see ``wording.as_cells``; measures.json has them as they are.

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
            writer.writerows(as_cells(kind._fields, [_cell(value) for value in row]) for row in rows)


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
    odd = [
        f"only the {side} has {some([repr(name) for name in sorted(set(has) - set(other))])}"
        for side, has, other in pairs
        if has and other and set(has) - set(other)
    ]
    raise InputError(
        f"{where} has other classes than {checkpoint}{number_of_classes}{': ' if odd else ''}{'; '.join(odd)}.\n"
        "  Name data with its classes (--data.dataset, --data.root), or train on these from its weights (--model.pretrained)."
    )


MAX_ROWS, WORST, LARGEST = 20, 10, 5  # up to 20 classes are all printed; of more the 10 worst and the 5 largest others
NAME_WIDTH = 28


def _shown(name: str) -> str:
    return shortened(printable(name), NAME_WIDTH)


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
    told = [f"{LABELS[name]} {percent(value, 2)}" if name in LABELS else f"{name} {value:.4f}" for name, value in report.measures.items()]
    classes, left_out = _rows_of_classes(report)
    lines = [title, f"  {', '.join(told)}", ""]
    lines += table(
        ("class", "n", "precision", "recall", "F1"),
        [(_shown(row.name), f"{row.n:,}", percent(row.precision), percent(row.recall), percent(row.f1)) for row in classes],
        left=("class",),
    )
    if left_out:
        where = "" if problem else " in classes.csv"
        lines.append(f"  the {WORST} classes with the lowest F1 and the {LARGEST} largest others; {left_out} more{where}")
    if report.mistakes:
        pairs = [(_shown(c.true), _shown(c.predicted), f"{c.n:,}", percent(c.share)) for c in report.most_confused[:10]]
        lines += ["", "most confused", *table(("class", "taken for", "n", "of the class"), pairs, left=("class", "taken for"))]
        worst = [
            (_shown(m.true), _shown(m.predicted), percent(m.probability), printable(m.file) or f"image {m.image} of {report.source}")
            for m in report.mistakes[:5]
        ]
        lines += ["", f"worst of {len(report.mistakes):,} mistakes" if len(worst) < len(report.mistakes) else "mistakes"]
        lines += table(("class", "taken for", "probability", "image"), worst, left=("class", "taken for", "image"))
    path = shlex.quote(checkpoint)
    files = ", ".join([*FILES, *(["pictures"] if (folder / "pictures").is_dir() else [])])
    written = f"none: {folder} can't be written ({problem.strerror or problem})" if problem else f"{folder}: {files}"
    return "\n".join([*lines, "", f"files  {written}", "next", f"  cct predict {path} PATH...", f"  cct export {path} --format onnx"])
