"""What Python gets of a run."""

from collections.abc import Iterable, Iterator
from dataclasses import MISSING, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from cct_lightning.errors import InputError
from cct_lightning.evaluation.measures import measure_of, measured
from cct_lightning.evaluation.options import Tta
from cct_lightning.inference.items import Item, Prediction
from cct_lightning.inference.opening import load
from cct_lightning.inference.predictor import Predictor
from cct_lightning.run_folder import RunFolder
from cct_lightning.runs.summary import Summary
from cct_lightning.wording import percent


class Run:
    """A run that has ended, by itself or by a stop.

    Args:
        folder: The run's.
        summary: What came of it.

    Attributes:
        folder: Path of the run's folder.
        summary: What came of it, such as ``summary.test_accuracy``.
    """

    def __init__(self, folder: Path, summary: Summary) -> None:
        self.folder, self.summary = folder, summary

    def __repr__(self) -> str:
        test = measured(vars(self.summary), "test")
        told = "not tested" if test is None else f"test {measure_of(vars(self.summary)).title} {percent(test, 2)}"
        return f"Run({str(self.folder)!r}: {self.summary.recipe}, {told}{'' if self.summary.finished else ', interrupted'})"

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """Reads a run that ended earlier.

        Raises:
            InputError: The folder holds no summary of a run.
        """
        found = RunFolder(folder).summary
        values: dict[str, Any] = {field.name: found.get(field.name, None if field.default is MISSING else field.default) for field in fields(Summary)}
        if not found:
            raise InputError(f"{folder} holds no summary.json: it is no run, or one that was killed; `cct resume {folder}` goes on with it.")
        return cls(folder, Summary(**values))

    @property
    def best(self) -> Path | None:
        """The checkpoint of the best epoch; None where none was kept."""
        return self._if_there(RunFolder(self.folder).best)

    @property
    def last(self) -> Path | None:
        """The checkpoint of the last epoch; None where none was kept."""
        return self._if_there(RunFolder(self.folder).last)

    @staticmethod
    def _if_there(path: Path) -> Path | None:
        return path if path.is_file() else None

    @cached_property
    def predictor(self) -> Predictor:
        """The network with its best weights, opened once.

        Raises:
            InputError: The run kept no checkpoint.
        """
        checkpoint = self.best or self.last
        if checkpoint is None:
            raise InputError(f"{self.folder} has no checkpoint to predict with: it was stopped before its first epoch ended, or keeps none.")
        return load(checkpoint)

    def predict(self, what: Item | Iterable[Item], top_k: int = 1, tta: Tta = "none") -> Prediction | Iterator[Prediction]:
        """Classifies one image, or a stream of them, with the best weights; see ``Predictor.predict``."""
        return self.predictor.predict(what, top_k, tta)  # type: ignore[arg-type]
