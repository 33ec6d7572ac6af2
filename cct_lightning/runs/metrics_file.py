"""metrics.csv, written so that a resumed run goes on in it."""

import csv
import io
import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from cct_lightning.run_folder import replacing
from cct_lightning.side_files import DAMAGED, mended, set_aside


class MetricsWriter(ExperimentWriter):
    """Writes metrics.csv, and goes on in one that is there; Lightning 2.6 deletes it.

    Attributes:
        rows: Rows in the file.
    """

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self._path = Path(self.metrics_file_path)
        rows = self._take_up() if self._path.is_file() else []
        self.metrics_keys = rows[0] if rows else []
        self.rows = max(len(rows) - 1, 0)

    def _check_log_dir_exists(self) -> None:
        """Lightning's deletes the file here."""

    def save(self) -> None:
        self.rows += len(self.metrics)
        try:
            super().save()
        except OSError as error:  # of a full disk has no name
            error.filename = error.filename or str(self._path)
            raise

    def _take_up(self) -> list[list[str]]:
        """Returns header and rows of what is there, mended where it is damaged: a kill or a full disk may have left half a row."""
        found = mended(self._path.read_bytes().decode("utf-8", errors="replace"), ("step",))
        if found is None:
            print(f"{set_aside(self._path)}; a new one begins")
            return []
        rows, damaged = found
        if not rows:
            self._path.unlink()  # Lightning would look for a header in it
        if damaged:
            shutil.copyfile(self._path, self._path.with_name(self._path.name + DAMAGED))
            self._write(rows)
            told = f"{len(damaged)} damaged row{'s' * (len(damaged) > 1)} mended, without the cells that could not be read"
            print(f"{self._path}: {told}; {self._path.name}{DAMAGED} is the file as it was")
        return rows

    def _read(self) -> list[list[str]]:
        with self._path.open(encoding="utf-8", newline="") as file:
            return list(csv.reader(file))

    def _write(self, rows: list[list[str]]) -> None:
        with replacing(self._path) as file:
            text = io.TextIOWrapper(file, encoding="utf-8", newline="")
            csv.writer(text).writerows(rows)
            text.detach()

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        header, *rows = self._read()
        named = [dict(zip(header, row, strict=True)) for row in rows]
        self._write([fieldnames, *([row.get(name, "") for name in fieldnames] for row in named)])

    def cut(self, rows: int) -> None:
        """Keeps the first rows: those that were there when the checkpoint was written. What follows will be measured again."""
        if self.rows > rows:
            self._write(self._read()[: rows + 1])
            self.rows = rows


class MetricsFile(CSVLogger):
    """Lightning's CSV logger with our writer."""

    @property
    def experiment(self) -> Any:
        if self._experiment is None and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            self._experiment = MetricsWriter(self.log_dir)
        return super().experiment
