"""What a run's folder holds, for those who read it afterwards."""

import csv
import io
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import yaml

from cct_lightning.errors import InputError


def recipe_name(path: Path) -> str:
    """Names a run after its recipe; a run of runs/<recipe>/<time>/config.yaml is one of that recipe."""
    return path.parent.parent.name if path.name == "config.yaml" and path.parent.parent.name else path.stem


def discard(run_dir: str) -> None:
    """Removes the folder of a run that never began: it holds nothing, or its configuration alone, at most told to W&B."""
    folder = Path(run_dir)
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= {"config.yaml", "wandb"}:
        shutil.rmtree(folder)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file beside ``path`` that takes its place once it is whole: a kill or a full disk leaves the old one as it was."""
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def read_summary(run_dir: Path) -> dict[str, Any]:
    """Returns what a run's summary.json says, nothing where there is none or a damaged one."""
    try:
        summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return summary if isinstance(summary, dict) else {}


_locks: list[int] = []


def lock(run_dir: Path, patience: float = 0.0) -> None:
    """Takes a run's folder for this process, until ``unlock`` or the process's end however it comes.

    Args:
        run_dir: The folder.
        patience: Seconds to wait for another process. The workers of one that was killed live for some seconds more.

    Raises:
        InputError: Another process on this machine has it.
    """
    try:
        import fcntl

        folder = os.open(run_dir, os.O_RDONLY)
    except (ImportError, PermissionError):
        return  # Windows has no such lock
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                os.close(folder)
                raise InputError(f"{run_dir} is being trained by another process on this machine: wait for its end, or stop it.") from None
            time.sleep(0.2)
        except OSError:  # a file system without locks
            os.close(folder)
            return
        else:
            _locks.append(folder)
            return


def unlock() -> None:
    """Lets go of what ``lock`` took."""
    while _locks:
        import fcntl

        folder = _locks.pop()
        fcntl.flock(folder, fcntl.LOCK_UN)  # a worker that is still there holds the file open, too
        os.close(folder)


def make_run_dir(recipe: str, base: Path = Path("runs")) -> Path:
    """Makes base/<recipe>/<time>/, for this run alone: two runs that begin in the same second get two folders.

    The processes that a launch starts on this machine find the folder of the first one in the environment. Ranks on other machines write
    nothing, and Lightning tells them where the checkpoints lie.
    """
    if told := os.environ.get("CCT_RUN_DIR"):
        return Path(told)
    stem = base / recipe / time.strftime("%Y%m%d-%H%M%S")
    folder, number = stem, 1
    is_first = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) == 0
    while is_first:
        try:
            folder.mkdir(parents=True, exist_ok=False)
            break
        except (PermissionError, NotADirectoryError, FileNotFoundError) as error:
            raise InputError(
                f"{folder.resolve()} can't be made ({error.strerror}): name another place with --trainer.default_root_dir DIR."
            ) from None
        except FileExistsError:
            number += 1
            folder = stem.with_name(f"{stem.name}-{number}")
    os.environ["CCT_RUN_DIR"] = str(folder)
    return folder


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


def newest_run(folder: Path) -> str:
    """Ends an error message with the last run below a folder."""
    found = sorted(folder.glob("**/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
    return f" The last run there: cct resume {found[-1].parent.parent}" if found else ""


def find_run(word: str) -> Path:
    """Returns the folder of a run, given by itself, its last.ckpt or its config.yaml.

    Raises:
        InputError: It is no run, or one that can't be resumed.
    """
    path = Path(os.path.abspath(Path(word).expanduser()))
    if path.name == "last.ckpt" and path.parent.name == "checkpoints":
        path = path.parent.parent
    elif path.name in ("config.yaml", "checkpoints"):
        path = path.parent
    elif path.suffix == ".ckpt":
        raise InputError(f"{word}: a run is resumed from its last.ckpt: cct resume {os.path.relpath(path.parent.parent)}")
    run = path if Path(word).is_absolute() else Path(os.path.relpath(path))
    if not run.is_dir():
        raise InputError(f"There is no run {word}.{newest_run(Path('runs'))}")
    if not (run / "config.yaml").is_file():
        raise InputError(f"{run} is no run: it holds no config.yaml. Runs lie in runs/<recipe>/<time>.{newest_run(run)}")
    if not (run / "checkpoints" / "last.ckpt").is_file():
        raise InputError(
            f"{run} has no checkpoints/last.ckpt: it was stopped before its first epoch ended, or keeps no checkpoints.\n"
            f"  It can start anew: cct fit -c {run / 'config.yaml'}"
        )
    return run
