"""What a test found, as files and as text."""

import csv
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cct_lightning.errors import InputError
from cct_lightning.evaluation import labels, numbers
from cct_lightning.evaluation.labels import LabelReport, LabelRow
from cct_lightning.evaluation.numbers import NumberReport
from cct_lightning.evaluation.outcomes import LABELS, ClassRow, Report
from cct_lightning.evaluation.reports import AnyReport
from cct_lightning.wording import as_cells, percent, printable, shortened, some, table

FILES = ("measures.json", "classes.csv", "confusion.csv", "mistakes.csv")  # of classes
TOLD = {**LABELS, **labels.TITLES, **numbers.TITLES}  # measures that are shares, as printed


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def write_report(report: AnyReport, folder: Path, about: Mapping[str, Any]) -> None:
    """Writes measures.json and the report's tables: classes.csv, confusion.csv and mistakes.csv, of labels without confusion.csv, of numbers
    numbers.csv and mistakes.csv. A value that is none, or not finite, is null or empty.

    Names in the tables are no formulas of a spreadsheet, see ``wording.as_cells``; measures.json has them as they are.

    Args:
        report: What was found.
        folder: Made where it is not there; files of an earlier report are replaced.
        about: What measures.json shall hold besides: of which checkpoint, on which data.

    Raises:
        OSError: The folder can't be written.
    """
    folder.mkdir(exist_ok=True)
    whole = {**{name: _finite(value) for name, value in report.measures.items()}, "n": report.n, **about}
    if isinstance(report, Report):
        whole["calibration"] = [{name: _finite(value) for name, value in bin._asdict().items()} for bin in report.calibration]
    (folder / "measures.json").write_text(json.dumps(whole, indent=2, default=str, allow_nan=False) + "\n", encoding="utf-8")
    for name, (header, rows) in report.tables.items():
        # backslashreplace: a file's name may hold bytes that are no text
        with (folder / name).open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(as_cells(header, [_cell(value) for value in row]) for row in rows)


def _cell(value: str | float | None) -> str | int:
    if isinstance(value, float):
        if not math.isfinite(value):
            return ""
        return f"{value:.7g}" if 0 < abs(value) < 0.01 else f"{value:.6f}"  # numbers in their own units may be of any size
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


def _rows_of_classes(report: Report | LabelReport) -> tuple[Sequence[ClassRow | LabelRow], int]:
    """Returns the classes that are printed, and how many are left out."""
    rows: Sequence[ClassRow | LabelRow] = report.classes
    if len(rows) <= MAX_ROWS:
        return rows, 0
    order = sorted(rows, key=lambda row: (row.f1 is None, row.f1 or 0.0, -row.n))
    worst, others = order[:WORST], sorted(order[WORST:], key=lambda row: -row.n)
    return worst + others[:LARGEST], len(others) - LARGEST


def describe_report(report: AnyReport, title: str, checkpoint: str, folder: Path, problem: OSError | None = None) -> str:
    """Returns the report as it is printed: measures, classes, confused pairs, the worst mistakes, the files and what to type next.

    Args:
        report: What was found.
        title: Says of how many images of which data.
        checkpoint: File, for the commands.
        folder: Where the files are.
        problem: Why they are not there.
    """
    told = []
    for name, value in report.measures.items():
        told.append(f"{TOLD[name]} {percent(value, 2)}" if name in TOLD else f"{name} {value:{'.4f' if name == 'loss' else '.4g'}}")
    lines = [title, f"  {', '.join(told)}", "", *(_number_lines(report) if isinstance(report, NumberReport) else _class_lines(report, not problem))]
    path = shlex.quote(checkpoint)
    files = ", ".join(["measures.json", *report.tables, *(["pictures"] if (folder / "pictures").is_dir() else [])])
    written = f"none: {folder} can't be written ({problem.strerror or problem})" if problem else f"{folder}: {files}"
    return "\n".join([*lines, "", f"files  {written}", "next", f"  cct predict {path} PATH...", f"  cct export {path} --format onnx"])


def _class_lines(report: Report | LabelReport, is_written: bool) -> list[str]:
    """Tells of classes or labels, of confused pairs, and of the worst mistakes."""
    classes, left_out = _rows_of_classes(report)
    cells = [[_shown(row.name), f"{row.n:,}", percent(row.precision), percent(row.recall), percent(row.f1)] for row in classes]
    header = ["class", "n", "precision", "recall", "F1"]
    if isinstance(report, LabelReport):
        header = ["label", *header[1:], "AP", "threshold"]
        cells = [[*found, percent(row.ap), f"{row.threshold:.3f}"] for found, row in zip(cells, classes, strict=True) if isinstance(row, LabelRow)]
    lines = table(header, cells, left=(header[0],))
    if left_out:
        where = " in classes.csv" if is_written else ""
        lines.append(f"  the {WORST} classes with the lowest F1 and the {LARGEST} largest others; {left_out} more{where}")
    if isinstance(report, LabelReport):
        wrong = [f"{_shown(m.label)} {percent(m.probability)}" for m in report.mistakes[:5]]
        places = [printable(m.file) or f"image {m.image} of {report.source}" for m in report.mistakes[:5]]
        found = [(_shown(m.true), _shown(m.predicted), *rest) for m, *rest in zip(report.mistakes, wrong, places, strict=False)]
        columns = ("labels", "predicted", "surest wrong", "image")
        return [*lines, "", _worst(len(found), len(report.mistakes)), *table(columns, found, left=columns)] if found else lines
    if report.mistakes:
        pairs = [(_shown(c.true), _shown(c.predicted), f"{c.n:,}", percent(c.share)) for c in report.most_confused[:10]]
        lines += ["", "most confused", *table(("class", "taken for", "n", "of the class"), pairs, left=("class", "taken for"))]
        worst = [
            (_shown(m.true), _shown(m.predicted), percent(m.probability), printable(m.file) or f"image {m.image} of {report.source}")
            for m in report.mistakes[:5]
        ]
        lines += ["", _worst(len(worst), len(report.mistakes))]
        lines += table(("class", "taken for", "probability", "image"), worst, left=("class", "taken for", "image"))
    return lines


def _worst(shown: int, there: int) -> str:
    return f"worst of {there:,} mistakes" if shown < there else "mistakes"


def _number_lines(report: NumberReport) -> list[str]:
    """Tells of each number, in its own units, and of the images that are furthest off."""
    rows = [
        (_shown(row.name), f"{row.mae:.4g}", f"{row.rmse:.4g}", percent(row.r2), f"{row.mean:.4g} ± {row.std:.4g}")
        for row in report.classes[:MAX_ROWS]
    ]
    lines = table(("number", "mean error", "root mean square", "R²", "true values"), rows, left=("number",))
    found = [(_shown(m.name), m.true, m.predicted, printable(m.file) or f"image {m.image} of {report.source}") for m in report.mistakes[:5]]
    return [*lines, "", "furthest off", *table(("number", "true", "predicted", "image"), found, left=("number", "image"))]
