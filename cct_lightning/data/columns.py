"""What the columns of a table say of its images: a class each, several labels, or numbers."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from cct_lightning.data.files import Array
from cct_lightning.errors import InputError, did_you_mean

Kind = Literal["class", "labels", "numbers"]  # what an image is told by
OWN = ("path", "split", "group")  # columns that say nothing of what is learned
INDEX = r"(unnamed: \d+|__index_level_\d+__)?"  # columns that pandas writes unasked
FLOAT32 = 3.4e38  # the largest number that it holds, about
STRATA = 10  # kinds of images that numbers are divided into, by the first column


class Cells(NamedTuple):
    """Cells of an image's row that say what is learned, and the line that they stand in."""

    line: int
    cells: tuple[str, ...]


class Answers(NamedTuple):
    """What is learned of the images of each split.

    Attributes:
        kind: Of it.
        names: Classes or labels, sorted where they stand in the rows; of columns theirs, in their order.
        targets: By split, as in ``Split``.
        values: Likewise; empty of classes.
    """

    kind: Kind
    names: list[str]
    targets: dict[str, Array]
    values: dict[str, Array]


Rows = Mapping[str, Sequence[Cells]]  # by split


def find_columns(path: object, columns: Mapping[str, str], asked: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the columns that say what is learned, in lower case: label, labels, or all that are no others and no numbers of rows, as pandas adds.

    Args:
        path: The table, for errors.
        columns: Its columns, as they are written, by their names in lower case.
        asked: Those that were asked for, by ``data.targets``.

    Raises:
        InputError: There is no such column.
    """
    for name in asked or ():
        if name.lower() not in columns or name.lower() == "path":
            names = [written for known, written in columns.items() if known and known not in OWN]
            raise InputError(f"data.targets names {name!r}, which is no column of {path} with targets.{did_you_mean(name, names)}")
    if asked:
        return tuple(name.lower() for name in asked)
    for name in ("label", "labels"):
        if name in columns:
            return (name,)
    return tuple(name for name in columns if name not in OWN and not re.fullmatch(INDEX, name))


def read_answers(path: object, names: Sequence[str], rows: Rows, by_name: bool = True) -> Answers:
    """Reads what is learned: labels where each cell of the columns is 0 or 1, else numbers; of the columns label and labels what they say.

    Args:
        path: The table, for errors.
        names: Of the columns, as they are written.
        rows: The cells of these columns.
        by_name: Whether label and labels mean a class and labels by name; where they were asked for as targets they hold numbers.

    Raises:
        InputError: A cell that can't be read, a label that no training image has, a column that is the same in all training rows.
    """
    if by_name and names[0].lower() == "label":
        return _classes(path, rows)
    return _labels(path, rows) if by_name and names[0].lower() == "labels" else _columns(path, names, rows)


def _classes(path: object, rows: Rows) -> Answers:
    labels = {split: [cell for _, (cell,) in of_split] for split, of_split in rows.items()}
    names = sorted(set(labels.get("train", ())))
    if len(names) < 2:
        raise InputError(f"{path}: the training images have {len(names)} class(es): {', '.join(names) or '-'}; at least two are needed.")
    _check_known(path, labels, names)
    number_of = {name: number for number, name in enumerate(names)}
    return Answers("class", names, {split: np.array([number_of[label] for label in of_split]) for split, of_split in labels.items()}, {})


def _labels(path: object, rows: Rows) -> Answers:
    sets = {split: [{part for cell in cells for one in cell.split(";") if (part := one.strip())} for _, cells in of_split]
            for split, of_split in rows.items()}  # fmt: skip
    names = sorted({label for labels in sets.get("train", ()) for label in labels})
    if not names:
        raise InputError(f"{path}: no training image has a label; the column labels holds their names, separated by semicolons: cat; dog.")
    _check_known(path, {split: [label for labels in of_split for label in labels] for split, of_split in sets.items()}, names)
    values = {split: np.array([[name in labels for name in names] for labels in of_split], bool).reshape(-1, len(names))
              for split, of_split in sets.items()}  # fmt: skip
    return Answers("labels", names, strata_of_labels(values), values)


def _check_known(path: object, labels: Mapping[str, Sequence[str]], names: Sequence[str]) -> None:
    for split, of_split in labels.items():
        if odd := sorted(set(of_split) - set(names)):
            raise InputError(f"{path}: {split} has the label(s) {', '.join(odd[:5])}, which no training image has.")


def _columns(path: object, names: Sequence[str], rows: Rows) -> Answers:
    values: dict[str, Array] = {}
    for split, of_split in rows.items():
        values[split] = np.empty((len(of_split), len(names)), np.float32)
        for place, (line, cells) in enumerate(of_split):
            for column, cell in enumerate(cells):
                values[split][place, column] = number = _number(cell)
                if not math.isfinite(number):
                    raise InputError(
                        f"{path}, line {line}: {names[column]}={cell[:60]!r} is no finite number. A table has the column label (a class), labels\n"
                        "  (names, separated by ;), or columns of numbers; data.targets names those that are learned where there are others, too."
                    )
    train = values.get("train", np.empty((0, len(names)), np.float32))
    for column in range(len(names)):
        if not len(train) or (train[:, column] == train[0, column]).all():
            what = f"{train[0, column]:g} in each of {len(train):,} training rows" if len(train) else "in no training row"
            raise InputError(f"{path}: the column {names[column]} is {what}: nothing can be learned of it. data.targets names other columns.")
    if all(((of_split == 0) | (of_split == 1)).all() for of_split in values.values()):
        marks = {split: of_split == 1 for split, of_split in values.items()}
        return Answers("labels", list(names), strata_of_labels(marks), marks)
    return Answers("numbers", list(names), strata_of_numbers(values), values)


def _number(cell: str) -> float:
    try:
        number = float(cell)
    except ValueError:
        return math.nan
    return number if abs(number) < FLOAT32 else math.nan


def strata_of_labels(values: Mapping[str, Array]) -> dict[str, Array]:
    """Says which images are alike where they have several labels: those with the same label as their rarest, and those without any.

    So each label's images are divided, the rare ones first, as iterative stratification does ("On the Stratification of Multi-Label Data", Sechidis,
    Tsoumakas and Vlahavas, 2011), whose order of images this does without.

    Args:
        values: By split, whether each image has each label, (n, K) bool; counted in train.

    Returns:
        By split (n,), the number of the label; K of images without one.
    """
    count = values["train"].sum(axis=0)
    return {split: np.where(marks.any(axis=1), np.where(marks, count, count.max() + 1).argmin(axis=1), len(count)) for split, marks in values.items()}


def strata_of_numbers(values: Mapping[str, Array]) -> dict[str, Array]:
    """Says which images are alike where numbers are told of them: a tenth of the training images each, by the first column.

    Args:
        values: By split, (n, K).
    """
    edges = np.unique(np.quantile(values["train"][:, 0], np.linspace(0, 1, STRATA + 1)[1:-1]))
    return {split: np.searchsorted(edges, numbers[:, 0], side="right") for split, numbers in values.items()}
