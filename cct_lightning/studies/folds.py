"""Folds: a run for each part of the images, tested on it; what all of them say together of every image."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch

from cct_lightning.data.division import divide
from cct_lightning.data.files import Array
from cct_lightning.data.fingerprint import Fingerprint
from cct_lightning.data.folders import Split
from cct_lightning.data.options import DataOptions
from cct_lightning.data.source import Read, Source
from cct_lightning.errors import InputError
from cct_lightning.evaluation.options import Tta
from cct_lightning.evaluation.outcomes import Outcomes, Report, make_report
from cct_lightning.evaluation.wrong_labels import WrongLabel, list_wrong_labels
from cct_lightning.inference.items import Item, Prediction
from cct_lightning.inference.opening import load
from cct_lightning.inference.predictor import Predictor
from cct_lightning.run_folder import ENSEMBLE, RunFolder, replacing
from cct_lightning.runs.run import Run
from cct_lightning.side_files import read_json
from cct_lightning.studies.plan import Job
from cct_lightning.weights.ensemble import write_ensemble
from cct_lightning.wording import as_cells, percent, printable

RECORD, SUMMARY, RESULTS = "folds.json", "summary.json", "results.csv"  # in the folder of the folds


@dataclass(frozen=True)
class Plan:
    """The runs of all folds in their folder.

    Attributes:
        root: It.
        words: What was typed behind ``cct finetune``, the images first, without what is the folds' own.
        folds: Their number.
        images: Digest of the images that are divided.
    """

    root: Path
    words: Sequence[str]
    folds: int
    images: str

    def jobs(self, seed: int) -> list[Job]:
        """Returns a run for each fold."""
        return [
            Job(f"fold {number}/{self.folds}", {}, seed, {"data.fold": f"{number}/{self.folds}"}, self.root / "runs" / f"fold{number}")
            for number in range(1, self.folds + 1)
        ]

    def record(self) -> None:
        """Writes folds.json, from which the folds go on.

        Raises:
            InputError: The folder holds folds of other images.
        """
        found = read_json(self.root / RECORD)
        if found and found.get("images") != self.images:
            raise InputError(
                f"{self.root}: the images are not those that the folds began with, and the same folds can't be made of them: put them back,\n"
                "  or begin anew with cct finetune."
            )
        self.root.mkdir(parents=True, exist_ok=True)
        with replacing(self.root / RECORD) as file:
            told = {"folds": self.folds, "words": list(self.words), "images": self.images}
            file.write((json.dumps(told, indent=2) + "\n").encode())


@dataclass(frozen=True)
class FoldsSummary:
    """What came of all folds: what their summary.json holds. Accuracies are 0..1.

    Attributes:
        folds: Their number.
        n: Images, each tested once by the network that has not seen it.
        accuracies: Of each fold.
        accuracy: Their mean.
        deviation: Their standard deviation, of the folds as a sample.
        pooled: All measures of all images together, by name.
        left_out: Images that could not be read.
        test_accuracy: Of the ensemble on the images of a test folder, which are in no fold; None where there is none.
        num_tested: Their number.
        wrong_labels: Images whose label looks wrong.
        runs: Folders of the runs.
        ensemble: File of the networks as one.
        finished: Whether all folds have ended.
    """

    folds: int
    n: int
    accuracies: Sequence[float]
    accuracy: float
    deviation: float
    pooled: dict[str, float]
    left_out: int
    test_accuracy: float | None = None
    num_tested: int = 0
    wrong_labels: int = 0
    runs: Sequence[str] = field(default_factory=list)
    ensemble: str | None = None
    finished: bool = True

    @classmethod
    def read(cls, root: Path) -> "FoldsSummary | None":
        """Reads what was found; None where the folds have not ended."""
        found = read_json(root / SUMMARY)
        known = {option.name for option in fields(cls)}
        try:
            return cls(**{name: value for name, value in found.items() if name in known}) if found.get("finished") else None
        except TypeError:  # damaged: it is written anew
            return None

    def write(self, root: Path) -> None:
        """Writes summary.json."""
        with replacing(root / SUMMARY) as file:
            file.write((json.dumps(asdict(self), indent=2) + "\n").encode())


@dataclass(frozen=True)
class OutOfFold:
    """What the networks say of images that they have not seen.

    Attributes:
        items: All images of the folds, as a ``Predictor`` takes them.
        targets: Their classes, (n,).
        fold: In which each was tested, (n,), counted from 1.
        probabilities: (n, K); not a number where an image could not be read.
        class_names: In the order of the columns.
        runs: Of the folds.
    """

    items: Sequence[Item]
    targets: Array
    fold: Array
    probabilities: Array
    class_names: Sequence[str]
    runs: Sequence[RunFolder]

    @property
    def known(self) -> Array:
        """Which images could be read, (n,)."""
        return np.asarray(np.isfinite(self.probabilities).all(axis=1))

    @property
    def accuracies(self) -> list[float]:
        """The accuracy of each fold."""
        right, known = self.probabilities.argmax(axis=1) == self.targets, self.known
        return [float(right[known & (self.fold == number)].mean()) for number in range(1, len(self.runs) + 1)]

    def name(self, number: int) -> str:
        """Returns the file of an image, or what stands for it."""
        item = self.items[number]
        return f"image {number}" if isinstance(item, np.ndarray) else str(item)

    def report(self) -> Report:
        """Counts over all images."""
        chosen = np.flatnonzero(self.known)
        probabilities, targets = torch.from_numpy(self.probabilities[chosen]), torch.from_numpy(self.targets[chosen])
        probability, predicted = probabilities.max(dim=1)
        outcomes = Outcomes(torch.from_numpy(chosen), targets, predicted, probability, probabilities.gather(1, targets[:, None])[:, 0])
        return make_report(outcomes, self.class_names, None if isinstance(self.items[0], np.ndarray) else [str(item) for item in self.items])

    def wrong_labels(self) -> list[WrongLabel]:
        """Lists the images whose label looks wrong, the surest first."""
        return list_wrong_labels(self.probabilities, self.targets, self.class_names, [self.name(number) for number in range(len(self.items))])

    def write(self, root: Path) -> None:
        """Writes results.csv: a row for each image with its label, fold, predicted class and the probability of each class."""
        columns = ["image", "label", "fold", "predicted", *(f"p({name})" for name in self.class_names)]
        text, known = io.StringIO(), self.known
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(columns)
        for number, row in enumerate(self.probabilities):
            told = [self.class_names[int(row.argmax())], *(f"{value:.6g}" for value in row)] if known[number] else [""] * (1 + len(row))
            label = self.class_names[int(self.targets[number])]
            rows.writerow(as_cells(["path", *columns[1:]], [printable(self.name(number)), label, int(self.fold[number]), *told]))
        with replacing(root / RESULTS) as file:
            file.write(text.getvalue().encode())


class Folds:
    """Folds that have ended.

    Args:
        folder: Theirs.
        summary: What came of them.

    Attributes:
        folder: Path of the folder.
        summary: What came of them, such as ``summary.accuracy`` and ``summary.deviation``.
    """

    def __init__(self, folder: Path, summary: FoldsSummary) -> None:
        self.folder, self.summary = folder, summary

    def __repr__(self) -> str:
        accuracy = percent(self.summary.accuracy, 2).removesuffix(" %")
        return f"Folds({str(self.folder)!r}: {self.summary.folds} folds, accuracy {accuracy} ± {100 * self.summary.deviation:.2f} %)"

    @property
    def runs(self) -> list[Run]:
        """The run of each fold."""
        return [Run.read(Path(folder)) for folder in self.summary.runs]

    @cached_property
    def predictor(self) -> Predictor:
        """The networks as one, opened once: the mean of their probabilities."""
        return load(self.folder)

    def predict(self, what: Item | Iterable[Item], top_k: int = 1, tta: Tta = "none") -> Prediction | Iterator[Prediction]:
        """Classifies one image, or a stream of them, with all networks; see ``Predictor.predict``."""
        return self.predictor.predict(what, top_k, tta)  # type: ignore[arg-type]


def options_of(config: dict[str, Any]) -> DataOptions:
    """Returns what a run's configuration says of its images, but for their augmentation."""
    return DataOptions(**{name: value for name, value in config["data"].items() if name not in ("augment", "image_size_schedule")})


def look_ahead(options: DataOptions, folds: int) -> str:
    """Reads which images there are and tries whether they can be parted, before anything is trained.

    Args:
        options: Of the images; ``fold`` is any of them.
        folds: Their number.

    Returns:
        The digest of the images, and of the fold that each is in.

    Raises:
        InputError: The images are not there, or too few.
    """
    source = Source(options)
    read = source.read()
    digest = sha256(Fingerprint.take(read, source.class_names, source.base, source.heap).digest.encode())
    for number in range(1, folds + 1):
        digest.update(divided(read, source, options, (number, folds))[1].astype(np.int64).tobytes())
    return digest.hexdigest()


def divided(read: Read, source: Source, options: DataOptions, fold: tuple[int, int]) -> tuple[Split, Array]:
    """Returns the images that a fold is tested on."""
    shares = options.val_fraction, options.test_fraction, options.split_seed, options.fraction, options.per_class
    return divide(read, *shares, str(source.root), fold, source.class_names)["test"]


def collect(jobs: Sequence[Job], root: str | None = None) -> tuple[OutOfFold, Split | None]:
    """Has each network classify the images of its fold, as `cct predict` does, in 32 bits and without a temperature.

    Args:
        jobs: Of all folds, which have ended.
        root: Where the images lie now; None: where the first fold read them.

    Returns:
        What was found, and the data set's own test images, which are in no fold.

    Raises:
        InputError: A run kept no checkpoint.
    """
    runs = [job.run for job in jobs if job.run is not None]
    options = options_of(dict(runs[0].config))
    options = options if root is None else replace(options, root=root)
    source = Source(options)
    read = source.read()
    train = read["train"]
    assert train is not None
    probabilities = np.full((len(train), len(source.class_names)), np.nan, np.float32)
    fold = np.zeros(len(train), int)
    for number, run in enumerate(runs, start=1):
        _, chosen = divided(read, source, options, (number, len(runs)))
        fold[chosen] = number
        items = [train.images[index] for index in chosen.tolist()]
        predictor = load(_weights_of(run), calibrated=False, max_megapixels=options.max_megapixels)
        probabilities[chosen] = classify(predictor, items, str(run.key("model.tta") or "none"))
    tested = np.flatnonzero(fold)  # images without labels are in none
    kept = [train.images[index] for index in tested.tolist()]
    return OutOfFold(kept, train.targets[tested], fold[tested], probabilities[tested], source.class_names, runs), read["test"]


def _weights_of(run: RunFolder) -> Path:
    file = run.best if run.best.is_file() else run.last
    if not file.is_file():
        raise InputError(f"{run.path} kept no checkpoint, and nothing can be said of its fold: leave trainer.enable_checkpointing as it is.")
    return file


def join(root: Path, found: "OutOfFold", own_test: Split | None) -> dict[str, Any]:
    """Writes the networks of all folds as one, and has it classify the images of a test folder.

    Args:
        root: The folder of the folds.
        found: Says which runs there are.
        own_test: The images; None where there is no such folder.

    Returns:
        What a summary says of it.
    """
    path = root / ENSEMBLE
    write_ensemble(path, [_weights_of(run) for run in found.runs])
    if own_test is None:
        return {"ensemble": str(path)}
    first = found.runs[0]
    predictor = load(path, calibrated=False, max_megapixels=options_of(dict(first.config)).max_megapixels)
    probabilities = classify(predictor, list(own_test.images), str(first.key("model.tta") or "none"))
    known = np.isfinite(probabilities).all(axis=1)
    right = probabilities[known].argmax(axis=1) == own_test.targets[known]
    return {"ensemble": str(path), "num_tested": int(known.sum()), "test_accuracy": float(right.mean()) if known.any() else None}


def classify(predictor: Predictor, items: Sequence[Item], tta: str) -> Array:
    """Returns the probabilities of images, (n, K); not a number where one can't be read."""
    place = {name: number for number, name in enumerate(predictor.class_names)}
    found = np.full((len(items), len(place)), np.nan, np.float32)
    rows = (prediction for batch in predictor.batches(items, len(place), tta) for prediction in batch)  # type: ignore[arg-type]
    for number, prediction in enumerate(rows):
        for name, probability in prediction.top:
            found[number, place[name]] = probability
    return found


def sum_up(found: OutOfFold, report: Report, **more: Any) -> FoldsSummary:
    """Sums up what came of all folds."""
    accuracies = found.accuracies
    runs = [str(run.path) for run in found.runs]
    left_out = int((~found.known).sum())
    return FoldsSummary(
        len(accuracies), report.n, accuracies, mean(accuracies), stdev(accuracies), dict(report.measures), left_out, runs=runs, **more
    )
