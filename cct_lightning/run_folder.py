"""A run's folder, runs/<recipe>/<time>: every path in it, and how it is made, found from a word, held, read, written whole and discarded."""

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import NoneType
from typing import IO, Any

from cct_lightning.errors import InputError
from cct_lightning.plain_yaml import read_yaml_file
from cct_lightning.side_files import read_json, read_table, read_text, to_number

# Tells the processes that a launch starts on this machine the folder that the first one has made.
VARIABLE = "CCT_RUN_DIR"
PARENT = "CCT_RUN_PROCESS"  # and its process id
PATIENCE = 40.0  # seconds for another process that is being stopped: a long step, a save, the end of W&B
BEST, LAST = "best.ckpt", "last.ckpt"
ENSEMBLE = "ensemble.ckpt"  # in a folder of folds: their networks as one
_SHARE, _TEXT = (float, int, NoneType), (str, NoneType)
# Of what summary.json says, the types that those rely on who read it.
SUMMARY: dict[str, type | tuple[type, ...]] = {
    "finished": bool, "recipe": str, "run_dir": str, "arch": str, "pooling": str, "device": str, "tta": str,
    **dict.fromkeys(("best_checkpoint", "last_checkpoint", "measure"), _TEXT),
    **dict.fromkeys(("epochs", "steps", "num_parameters", "devices", "seed", "resumed"), int), "test": dict, "load_report": (dict, NoneType),
    **dict.fromkeys(("val_accuracy", "val_accuracy_last", "val_accuracy_raw", "test_accuracy", "val_measure",
                     "val_measure_last", "val_measure_raw", "test_measure", "images_per_second", "seconds", "cpu_seconds",
                     "flops_per_image", "test_confidence", "label_smoothing", "steps_per_epoch", "cpu_seconds_at_350"), _SHARE),
}  # fmt: skip
IMAGES, LEFT_OUT = "images.csv.gz", "left_out.csv"  # what the run was trained on, and which images could not be read
# What torchrun, SLURM, and who starts one process a machine tell it of its place.
RANKS = ("RANK", "SLURM_PROCID", "NODE_RANK", "GROUP_RANK", "LOCAL_RANK")


def is_first_rank() -> bool:
    """Tells whether this process is rank zero, before a trainer knows. It alone names and holds folders."""
    return all(os.environ.get(name, "0") == "0" for name in RANKS)


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
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = error.filename or str(path)
        raise


def new_folder(stem: Path) -> Path:
    """Makes a folder for the caller alone; where there is one of that name, with a number behind it.

    Raises:
        InputError: It can't be made.
    """
    path, number = stem, 1
    while True:
        try:
            path.mkdir(parents=True, exist_ok=False)
            return path
        except FileExistsError:
            number += 1
            path = stem.with_name(f"{stem.name}-{number}")
        except (PermissionError, NotADirectoryError, FileNotFoundError) as error:
            raise InputError(f"{path.resolve()} can't be made ({error.strerror}): name another place with --trainer.default_root_dir DIR.") from None


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run. What it holds is read when it is first asked for; what is missing or damaged is empty.

    Attributes:
        path: As it shall stand in commands.
    """

    path: Path

    @classmethod
    def make(cls, recipe: str, base: Path = Path("runs")) -> "RunFolder":
        """Makes base/<recipe>/<time>/, for this run alone: two runs that begin in the same second get two folders.

        Processes that a launch starts on this machine are told it (``told``); other ranks make none, and take rank zero's (``settle``).

        Raises:
            InputError: It can't be made.
        """
        if told := os.environ.get(VARIABLE):
            return cls(Path(told))
        path = base / recipe / time.strftime("%Y%m%d-%H%M%S")
        return cls(new_folder(path) if is_first_rank() else path)

    @property
    def recipe(self) -> str:
        """Name of the recipe that the run is of."""
        return self.path.resolve().parent.name

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def images_file(self) -> Path:
        return self.path / IMAGES

    @property
    def summary_file(self) -> Path:
        return self.path / "summary.json"

    @property
    def page(self) -> Path:
        return self.path / "report.html"

    @property
    def pictures(self) -> Path:
        return self.path / "pictures"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        return self.checkpoints / BEST

    @property
    def last(self) -> Path:
        return self.checkpoints / LAST

    def settle(self, path: Path) -> None:
        """Takes the folder of rank zero."""
        object.__setattr__(self, "path", path)

    @contextmanager
    def told(self) -> Iterator[None]:
        """Tells the folder to the processes that are launched meanwhile."""
        if VARIABLE in os.environ:  # this is such a process
            yield
            return
        os.environ |= {VARIABLE: str(self.path), PARENT: str(os.getpid())}
        try:
            yield
        finally:
            for name in (VARIABLE, PARENT):
                del os.environ[name]

    @contextmanager
    def held(self, patience: float = 0.0) -> Iterator[None]:
        """Keeps other processes of this machine out of the folder, until the end of the block or of the process, however that comes.

        Args:
            patience: Seconds to wait for another process. The workers of one that was killed live for some seconds more.

        Raises:
            InputError: Another process has it.
        """
        try:
            import fcntl

            folder = os.open(self.path, os.O_RDONLY)
        except (ImportError, PermissionError):
            yield  # Windows has no such lock
            return
        try:
            _lock(folder, self.path, patience)
            yield
        finally:
            with suppress(OSError):
                fcntl.flock(folder, fcntl.LOCK_UN)  # a worker that is still there holds the file open, too
            os.close(folder)

    def discard_unless_begun(self) -> None:
        """Removes the folder of a run that never began: it holds nothing, or its configuration and what it shall train on, at most told to W&B."""
        if self.path.is_dir() and {path.name for path in self.path.iterdir()} <= {"config.yaml", IMAGES, LEFT_OUT, "wandb"}:
            shutil.rmtree(self.path)

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        """What summary.json says; nothing where that is damaged."""
        found = read_json(self.summary_file)
        return found if all(isinstance(found[name], kind) for name, kind in SUMMARY.items() if name in found) else {}

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json."""
        with replacing(self.summary_file) as file:
            file.write((json.dumps(summary, indent=2) + "\n").encode())

    def write_config(self, text: str) -> None:
        """Writes config.yaml."""
        with replacing(self.config_file) as file:
            file.write(text.encode())

    @cached_property
    def config_text(self) -> str:
        """config.yaml as it is written."""
        return read_text(self.config_file)

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """What config.yaml says."""
        try:
            config = read_yaml_file(self.config_file)
        except InputError:
            return {}
        return config if isinstance(config, dict) else {}

    @cached_property
    def metrics(self) -> list[dict[str, float]]:
        """Rows of metrics.csv, without the empty cells."""
        return [{name: to_number(cell) for name, cell in row.items() if cell} for row in read_table(self.metrics_file)]

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
        """The folder with the tables of the test that ended the run; None where there was none, or a later one with other settings took its place."""
        checkpoint = self.summary.get("best_checkpoint") or self.summary.get("last_checkpoint")
        if all(self.summary.get(name) is None for name in ("test_measure", "test_accuracy")) or not checkpoint:
            return None  # an earlier sitting may have left its tables
        folder = tables_beside(self.checkpoints / Path(checkpoint).name, str(self.key("data.dataset")), "test")
        own, found = self.summary.get("test_measure"), read_json(folder / "measures.json").get(self.summary.get("measure") or "accuracy")
        other = isinstance(own, float) and isinstance(found, float) and abs(own - found) > 1e-6
        return folder if folder.is_dir() and not other else None


def _lock(folder: int, path: Path, patience: float) -> None:
    import fcntl

    began, told = time.monotonic(), False
    while True:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            waited = time.monotonic() - began
            if waited > patience:
                raise InputError(f"{path} is being trained by another process on this machine: wait for its end, or stop it.") from None
            if waited > 2 and not told:
                told = True
                print(f"{path} is held by another process on this machine: waiting up to {patience:.0f} s for its end", file=sys.stderr)
            time.sleep(0.2)
        except OSError:  # a file system without locks
            return


def tables_beside(checkpoint: Path, dataset: str, stage: str) -> Path:
    """Names the folder beside a checkpoint for what an evaluation finds: its tables and pictures."""
    return checkpoint.with_name(f"{checkpoint.stem}-{dataset}-{stage}")


def recipe_name(path: Path) -> str:
    """Names a run after its recipe; a run of runs/<recipe>/<time>/config.yaml is one of that recipe."""
    return path.parent.parent.name if path.name == "config.yaml" and path.parent.parent.name else path.stem


def newest(name: str = BEST, base: Path = Path("runs"), count: int = 1) -> list[Path]:
    """Returns the checkpoints of a name below a folder of runs, the newest first."""
    found = sorted(base.glob(f"**/checkpoints/{name}"), key=lambda path: path.stat().st_mtime, reverse=True)
    return found[:count]


def _to_resume(base: Path) -> str:
    """Ends an error message with the last run below a folder."""
    return "".join(f" The last run there: cct resume {path.parent.parent}" for path in newest(LAST, base))


def _folder_of(path: Path) -> Path:
    """Returns the folder of a run that a path in it leads to: its config.yaml, its last.ckpt, its checkpoints; else the path."""
    if path.name == LAST and path.parent.name == "checkpoints":
        return path.parent.parent
    return path.parent if path.name in ("config.yaml", "checkpoints") else path


def find_run(word: str | Path | None) -> RunFolder:
    """Returns the folder of a run that can go on, given by itself, its last.ckpt, its checkpoints or its config.yaml.

    Raises:
        InputError: It is no run, or one that can't be resumed.
    """
    if word is None:
        raise InputError(f"resume goes on with one run: cct resume runs/<recipe>/<time>.{_to_resume(Path('runs'))}")
    given = Path(word).expanduser()
    path = _folder_of(Path(os.path.abspath(given)))
    if path.suffix == ".ckpt":
        raise InputError(f"{word}: a run is resumed from its last.ckpt: cct resume {os.path.relpath(path.parent.parent)}")
    run = RunFolder(path if given.is_absolute() else Path(os.path.relpath(path)))
    if not run.path.is_dir():
        raise InputError(f"There is no run {word}.{_to_resume(Path('runs'))}")
    if not run.config_file.is_file():
        raise InputError(f"{run.path} is no run: it holds no config.yaml. Runs lie in runs/<recipe>/<time>.{_to_resume(run.path)}")
    if not run.last.is_file():
        raise InputError(
            f"{run.path} has no checkpoints/last.ckpt: it was stopped before its first epoch ended, or keeps no checkpoints.\n"
            f"  It can start anew: cct fit -c {run.config_file}"
        )
    return run


def find_network(word: str | Path) -> Path:
    """Returns the file that a word for a trained network leads to; the one way for all that take a network.

    Args:
        word: A file; a run's folder, its checkpoints or its config.yaml, of which best.ckpt is taken, else last.ckpt; a folder of folds, of which
            their ensemble is; a folder that ``cct export`` wrote, of which config.json is.

    Raises:
        InputError: There is nothing of that kind.
    """
    path = Path(word).expanduser()
    if path.is_file() and path.name != "config.yaml":
        return path
    folder = path.parent if path.name == "config.yaml" else path
    if not folder.is_dir() or (folder != path and not path.is_file()):
        near = sorted(p.name for p in path.parent.glob("*") if p.suffix in (".ckpt", ".pth", ".pt", ".safetensors"))[:5]
        hint = f"Beside it: {', '.join(near)}." if near else "Checkpoints lie in runs/<recipe>/<time>/checkpoints/."
        raise InputError(f"There is no file or folder {path}. {hint}")
    run = RunFolder(folder)
    for file in (folder / "config.json", run.best, run.last, folder / BEST, folder / LAST, folder / ENSEMBLE):
        if file.is_file():
            return file
    if run.checkpoints.is_dir() or run.config_file.is_file():
        raise InputError(f"{folder} is a run without checkpoints: it was stopped before its first epoch ended, or keeps none.")
    below = "".join(f" The newest below it: {path}" for path in newest(base=folder))
    raise InputError(f"{folder} holds no network: neither a run's checkpoints (best.ckpt, last.ckpt) nor an export (config.json).{below}")
