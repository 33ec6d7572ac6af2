"""``cct resume``: a run that was stopped goes on in its folder, to the bit as if it had never been."""

import csv
import io
import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any

import torch
import yaml
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loops.evaluation_loop import RestartStage
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from cct_lightning.checkpoints import KEY, read_checkpoint
from cct_lightning.errors import InputError
from cct_lightning.hardware import cpu_seconds
from cct_lightning.keys import WHERE, flatten

STATE = "sitting"  # where a checkpoint keeps what ``Sitting`` needs
# Tells the command line, and the processes it launches, that the run of CCT_RUN_DIR goes on from this checkpoint.
VARIABLE = "CCT_RESUME"


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


class WholeFileIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it. Lightning 2.6 writes to the temporary folder, which may be another disk, and copies."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with replacing(Path(path)) as file:
            torch.save(checkpoint, file)


class MetricsWriter(ExperimentWriter):
    """Writes metrics.csv, and goes on in one that is there; Lightning 2.6 deletes it.

    Attributes:
        rows: Rows in the file.
    """

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self._path = Path(self.metrics_file_path)
        rows = self._read() if self._path.is_file() else []
        self.metrics_keys = rows[0] if rows else []
        self.rows = max(len(rows) - 1, 0)

    def _check_log_dir_exists(self) -> None:
        """Lightning's deletes the file here."""

    def save(self) -> None:
        self.rows += len(self.metrics)
        super().save()

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


class Sitting(Callback):
    """One stretch of a run, from its start or resumption to its end or stop: its clock, the signals that end it, and what the next one needs.

    SIGTERM and the first Ctrl-C end a training after the optimizer step at hand, with last.ckpt saved; a second Ctrl-C leaves at once.

    Args:
        run_dir: The run's folder.
        saves: Whether the run keeps checkpoints.

    Attributes:
        number: Of this stretch, from 1.
        received: The signal that ended it, or 0.
        measures: Of the last validation, for a stretch without one.
    """

    def __init__(self, run_dir: Path, saves: bool) -> None:
        self.run_dir, self.saves = run_dir, saves
        self.number, self.received = 1, 0
        self.measures: dict[str, float] = {}
        self._before = (0.0, 0.0)  # seconds of earlier sittings, and of their processors
        self._began = (time.perf_counter(), cpu_seconds())
        self._found: dict[str, Any] | None = None  # what a checkpoint says, until it is used
        self._longer = False  # whether the run was given more epochs than the checkpoint's had
        self._speaks = True

    def start_clock(self) -> None:
        """Counts from now on."""
        self._began = (time.perf_counter(), cpu_seconds())

    def spent(self) -> tuple[float, float]:
        """Returns the seconds of all sittings so far, and those of their processors. What a kill undid does not count."""
        return self._before[0] + time.perf_counter() - self._began[0], self._before[1] + cpu_seconds() - self._began[1]

    @staticmethod
    def _inside_epoch(trainer: Trainer) -> bool:
        progress: Any = trainer.fit_loop.epoch_progress.current
        return bool(progress.started > progress.processed)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # Lightning logs the values of an epoch after its checkpoint is written: the next sitting would miss them after a kill in between.
        unlogged = {} if self._inside_epoch(trainer) else trainer._logger_connector.metrics["log"]
        seconds, computed = self.spent()
        self.measures |= {name: value for name, value in _numbers(trainer.callback_metrics).items() if name.startswith("val/")}
        checkpoint[STATE] = {
            "number": self.number,
            "seconds": seconds,
            "cpu_seconds": computed,
            "rows": sum(logger.experiment.rows for logger in trainer.loggers if isinstance(logger, MetricsFile)) if trainer.is_global_zero else 0,
            "unlogged": {**_numbers(unlogged), "epoch": trainer.current_epoch} if unlogged else {},
            "unlogged_step": trainer.fit_loop.epoch_loop._batches_that_stepped - 1,
            "measures": self.measures,
            "validating": trainer.validating,  # a stop ends a validation as well, which is then made anew
            "should_stop": trainer.should_stop,  # by early stopping, for one
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self._found = found = checkpoint[STATE]
        self.number, self.measures, self._before = found["number"] + 1, found["measures"], (found["seconds"], found["cpu_seconds"])
        self._longer = (checkpoint[KEY]["recipe"]["trainer"]["max_epochs"] or trainer.max_epochs) != trainer.max_epochs

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._speaks = trainer.is_global_zero
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._receive)  # Lightning puts back what was there when the training ends
        if self._found is None:
            return
        trainer.should_stop = self._found["should_stop"] and not self._longer
        if trainer.is_global_zero:
            _mark_unfinished(self.run_dir / "summary.json")
        _mend_loops(trainer, self._found["validating"])
        self._take_up_logs(trainer)
        if self._longer:
            for config in trainer.lr_scheduler_configs:
                scheduler = config.scheduler
                assert isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR)
                for group, rate, base in zip(scheduler.optimizer.param_groups, scheduler.lr_lambdas, scheduler.base_lrs, strict=True):
                    group["lr"] = base * rate(scheduler.last_epoch)  # what is loaded is the rate of the shorter run at this step

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._found is not None:  # there was nothing left to train
            progress: Any = trainer.fit_loop.epoch_progress.current
            progress.completed = progress.processed
            self._take_up_logs(trainer)

    def _take_up_logs(self, trainer: Trainer) -> None:
        assert self._found is not None
        found, self._found = self._found, None
        if trainer.is_global_zero:
            for part in (self.run_dir / "checkpoints").glob("*.part"):
                part.unlink()
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile) and trainer.is_global_zero:
                logger.experiment.cut(found["rows"])
            if found["unlogged"]:
                logger.log_metrics(dict(found["unlogged"]), step=found["unlogged_step"])
                logger.save()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.received and self._speaks:
            os.write(2, b"\nstopping after this step; Ctrl-C again leaves at once, without its checkpoint\n")  # print may be at work already
        self.received = self.received or number

    def _stop_if_asked(self, trainer: Trainer) -> None:
        """Has Lightning leave the loop once it has logged the step, on all devices after the same one; not while gradients accumulate."""
        if not trainer.fit_loop._should_accumulate() and trainer.strategy.reduce_boolean_decision(bool(self.received), all=False):
            trainer._signal_connector.received_sigterm = True

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._stop_if_asked(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_if_asked(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # Between two epochs the checkpoint of the first is the right one. A SIGTERM that came before on_train_start is Lightning's to handle,
        # and may end the loop while gradients accumulate.
        stopped = isinstance(exception, SIGTERMException) and self._inside_epoch(trainer) and not trainer.fit_loop._should_accumulate()
        if stopped and self.saves:
            trainer.save_checkpoint(self.run_dir / "checkpoints" / "last.ckpt", weights_only=False)


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


def _mark_unfinished(path: Path) -> None:
    """Has the summary of an earlier sitting say that the run goes on; its figures stay until there are new ones."""
    if path.is_file():
        summary = read_summary(path.parent) | {"finished": False}
        with replacing(path) as file:
            file.write((json.dumps(summary, indent=2) + "\n").encode())


def read_summary(run_dir: Path) -> dict[str, Any]:
    """Returns what a run's summary.json says, nothing where there is none or a damaged one."""
    try:
        summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return summary if isinstance(summary, dict) else {}


def _mend_loops(trainer: Trainer, validating: bool) -> None:
    """Corrects the counters with which Lightning 2.6 would go on wrongly; ``validating`` where the stop was in a validation."""
    loop, inner = trainer.fit_loop, trainer.fit_loop.epoch_loop
    if trainer.strategy.restore_checkpoint_after_setup:  # FSDP2: the loaders were made before the data module knew where to begin
        loop._combined_loader = None
        loop.setup_data()
    if Sitting._inside_epoch(trainer):
        assert loop._data_fetcher is not None
        if validating:
            inner.val_loop.restarting, inner.val_loop._restart_stage = False, RestartStage.RESTARTED_MID_EVALUATION  # from its first image
        elif inner._should_check_val_fx(loop._data_fetcher):
            inner._batches_that_stepped -= 1  # it skips the validation that is done, and counts the step before it again
    elif trainer.max_steps != -1:
        # A run given in steps is always taken to stand inside an epoch: it would end the last one again.
        for progress in (loop.epoch_progress.total, loop.epoch_progress.current):
            progress.completed = progress.processed  # type: ignore[attr-defined]
        loop.reset_restart_stage()
        loop._restarting = False
        inner.restarting = False


_locks: list[int] = []


@rank_zero_only
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


def arguments_of(arguments: list[str]) -> list[str]:
    """Turns ``resume RUN [flags]``, checked by the front, into the words of the ``fit`` that goes on with the run, and notes its checkpoint.

    Raises:
        InputError: The checkpoint can't be read, does not fit the run's configuration, or there is nothing to extend.
    """
    _, name, *flags = arguments
    run_dir = Path(name)
    config, last = run_dir / "config.yaml", run_dir / "checkpoints" / "last.ckpt"
    try:
        checkpoint = read_checkpoint(last)
    except InputError as error:
        raise InputError(f"{error}\n  Without it the run can't go on; it can start anew: cct fit -c {config}") from None
    if KEY not in checkpoint or STATE not in checkpoint:
        raise InputError(
            f"{last} does not say where the run stopped: it is none of `cct fit`, or of a version without `cct resume`.\n"
            f"  A new run may start from its weights: cct fit -c {config} --model.pretrained {last}"
        )
    recipe = yaml.safe_load(config.read_text(encoding="utf-8"))
    _check_same_run(recipe, checkpoint[KEY]["recipe"], config)
    if "--extend-to" in flags:
        position = flags.index("--extend-to")
        epochs = int(flags[position + 1])
        del flags[position : position + 2]
        _check_length(epochs, recipe["trainer"], checkpoint, run_dir)
        flags += ["--trainer.max_epochs", str(epochs)]
    os.environ["CCT_RUN_DIR"], os.environ[VARIABLE] = str(run_dir), str(last)
    # The checkpoint holds all weights; the file that the run started from may be gone.
    return ["fit", "--config", str(config), "--model.pretrained", "null", *flags]


def _check_same_run(recipe: Mapping[str, Any], trained: Mapping[str, Any], config: Path) -> None:
    """Refuses a config.yaml that was changed in what makes the run this one. Its length counts as it stands there."""
    ours, theirs = flatten(dict(recipe)), flatten(dict(trained))
    for key in sorted(ours.keys() | theirs.keys()):
        if key not in (*WHERE, "trainer.max_epochs") and ours.get(key) != theirs.get(key):
            raise InputError(
                f"{config} was changed since the checkpoint was written: {key}={ours.get(key)}, and the run has {theirs.get(key)}.\n"
                f"  Put it back to resume the run, or start another one: cct fit -c {config}"
            )


def _check_length(epochs: int, trainer: Mapping[str, Any], checkpoint: Mapping[str, Any], run_dir: Path) -> None:
    done = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    if (steps := trainer["max_steps"]) not in (None, -1):
        raise InputError(
            f"--extend-to {epochs}: the run is given by trainer.max_steps={steps} and may end inside an epoch: only whole epochs are extended.\n"
            f"  A longer one from the start: cct fit -c {run_dir}/config.yaml --trainer.max_steps N; from its weights: --model.pretrained {run_dir}"
        )
    if epochs <= done:
        raise InputError(f"--extend-to {epochs}: the run has {done} epochs already. Give the epochs in all, more than those.")
    if epochs < (planned := trainer["max_epochs"] or 0):
        raise InputError(f"--extend-to {epochs}: the run is to have {planned} epochs as it is: `cct resume {run_dir}` goes on, or give more.")
