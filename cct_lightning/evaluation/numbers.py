"""What a test tells of images that numbers are told of: each number's errors, in its own units, and the images that are furthest off."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cct_lightning.data.files import Array

TITLES = {"r2": "R²"}  # of shares, as printed; errors stand in the rows, in their units


class NumberOutcomes(NamedTuple):
    """What came of each image.

    Attributes:
        indices: Of the images in the data set, (n,).
        values: True ones, (n, K).
        predicted: (n, K).
    """

    indices: Tensor
    values: Tensor
    predicted: Tensor

    @classmethod
    def join(cls, parts: Sequence["NumberOutcomes"]) -> "NumberOutcomes":
        """Puts the parts of all batches or devices together, on the host, ordered by index."""
        whole = [torch.cat(values).cpu() for values in zip(*parts, strict=True)]
        order = whole[0].argsort()
        return cls(*(values[order] for values in whole))


class NumberRow(NamedTuple):
    """The errors of a number over ``n`` images: mean absolute and root mean square, in its units; R², the share of its variance that is told (1: all,
    0: no more than the mean of these images does); mean and deviation of the true values."""

    name: str
    n: int
    mae: float
    rmse: float
    r2: float
    mean: float
    std: float


class NumberMistake(NamedTuple):
    """An image, by its index in the data set, and the number of it that is furthest off, counted in that number's deviations."""

    image: int
    file: str
    name: str
    true: str
    predicted: str

    @property
    def told(self) -> str:
        """What stands below it in a picture."""
        return self.name


def number_rows(outcomes: NumberOutcomes, names: Sequence[str]) -> list[NumberRow]:
    """Measures each number; where all true values are the same, R² is 1 of what is right and else 0, as in scikit-learn."""
    values, errors = outcomes.values.double(), (outcomes.predicted.double() - outcomes.values.double())
    spread, left = ((values - values.mean(dim=0)) ** 2).sum(dim=0), (errors**2).sum(dim=0)
    r2 = torch.where(spread > 0, 1 - left / spread.clamp(min=1e-300), (left == 0).double())
    columns = (errors.abs().mean(dim=0), (errors**2).mean(dim=0).sqrt(), r2, values.mean(dim=0), (spread / len(values)).sqrt())
    return [NumberRow(name, len(values), *(float(column[k]) for column in columns)) for k, name in enumerate(names)]


def measure_numbers(rows: Sequence[NumberRow]) -> dict[str, float]:
    """Returns the measures: r2, the mean over the numbers; mae and rmse, of several numbers each by its name behind a stroke."""
    found = {"r2": sum(row.r2 for row in rows) / len(rows)}
    for row in rows:
        of = f"/{row.name}" if len(rows) > 1 else ""
        found |= {f"mae{of}": row.mae, f"rmse{of}": row.rmse}
    return found


@dataclass(frozen=True)
class NumberReport:
    """What an evaluation found.

    Attributes:
        n: Number of images.
        measures: As ``measure_numbers``, and what else was measured.
        classes: One row for each number, in the order of the logits.
        mistakes: Images, the furthest off first.
        values: True ones, (n, K).
        predicted: (n, K).
        source: What the indices of images without files count: "the test split".
    """

    n: int
    measures: dict[str, float]
    classes: list[NumberRow]
    mistakes: list[NumberMistake]
    values: Array
    predicted: Array
    source: str
    confidence: None = field(default=None, init=False)  # a classifier's mean probability of its predictions

    @property
    def tables(self) -> Mapping[str, tuple[Sequence[str], Sequence[Sequence[Any]]]]:
        """The files that hold it: header and rows."""
        return {"numbers.csv": (NumberRow._fields, self.classes), "mistakes.csv": (NumberMistake._fields, self.mistakes)}


def make_number_report(
    outcomes: NumberOutcomes, names: Sequence[str], files: Sequence[object] | None, source: str, measured: Mapping[str, float]
) -> NumberReport:
    """Counts; the arguments are those of ``outcomes.make_report``."""
    rows = number_rows(outcomes, names)
    found = {**measure_numbers(rows), **measured}
    found = {name: found[name] for name in dict.fromkeys((*TITLES, *found))}
    mistakes = list(_mistakes(outcomes, rows, files))
    return NumberReport(len(outcomes.indices), found, rows, mistakes, outcomes.values.numpy(), outcomes.predicted.numpy(), source)


def _mistakes(outcomes: NumberOutcomes, rows: Sequence[NumberRow], files: Sequence[object] | None) -> Iterator[NumberMistake]:
    indices, values, predicted = (found.numpy() for found in outcomes)
    off = np.abs(predicted - values) / np.array([row.std or 1.0 for row in rows])
    off = np.where(np.isnan(off), np.inf, off)  # of a network that diverged
    for i in np.argsort(-off.max(axis=1), kind="stable").tolist():
        k = int(off[i].argmax())
        file = str(files[indices[i]]) if files is not None else ""
        yield NumberMistake(int(indices[i]), file, rows[k].name, f"{values[i, k]:.7g}", f"{predicted[i, k]:.7g}")
