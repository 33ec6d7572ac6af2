"""What a run's folder holds, for those who read it afterwards."""

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Run:
    """What a run's folder holds; what is missing or damaged is empty.

    Attributes:
        folder: As it shall stand in the commands.
        summary: Of summary.json.
        config: Of config.yaml.
        config_text: The same as it is written.
        metrics: Rows of metrics.csv, without the empty cells.
    """

    folder: Path
    summary: Mapping[str, Any]
    config: Mapping[str, Any]
    config_text: str
    metrics: list[dict[str, float]]

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """Reads a run's folder."""
        config_text = _read(folder / "config.yaml")
        try:
            config = yaml.safe_load(config_text)
        except yaml.YAMLError:
            config = {}
        rows = [{name: to_number(cell) for name, cell in row.items() if cell} for row in read_table(folder / "metrics.csv")]
        return cls(folder, read_json(folder / "summary.json"), config if isinstance(config, dict) else {}, config_text, rows)

    def key(self, name: str) -> Any:
        """Returns the value of a key of the configuration, by its dotted name; None where it is not there."""
        value: Any = self.config
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def column(self, name: str) -> list[tuple[dict[str, float], float]]:
        """Returns the rows of metrics.csv that have a column, and its values."""
        return [(row, row[name]) for row in self.metrics if name in row]

    @cached_property
    def tables(self) -> Path | None:
        """The folder with the tables of the test that ended the run; None where there was none."""
        checkpoint = self.summary.get("best_checkpoint") or self.summary.get("last_checkpoint")
        if self.summary.get("test_accuracy") is None or not checkpoint:
            return None  # an earlier sitting may have left its tables
        folder = self.folder / "checkpoints" / f"{Path(checkpoint).stem}-{self.key('data.dataset')}-test"
        return folder if folder.is_dir() else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_read(path))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def read_table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(_read(path), newline="")))


def to_number(text: object) -> float:
    try:
        return float(str(text))
    except ValueError:
        return math.nan
