"""The run at Weights & Biases, and what may befall it."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from cct_lightning.errors import InputError
from cct_lightning.runs.options import WandbConfig
from cct_lightning.runs.tracking.server import wandb_id, wandb_mode
from cct_lightning.runs.tracking.worker import Watched, Worker, _reason, watched, within

START_SECONDS = 15.0  # the most that tracking may add to the start of a run
CALL_SECONDS = 5.0  # to one step in between; such a call takes a millisecond
END_SECONDS = 30.0  # to its end; of these,
FINISH_SECONDS = 20.0  # for what the server has not taken yet,
TEARDOWN_SECONDS = 2.0  # and for the end of W&B's process
CHECK_SECONDS = 15.0  # between two looks at W&B's folder, as often as its process writes there
# What the summary of a run keeps of a measure; of all others, the last value.
BEST = {
    "val/accuracy": "max",
    "val/mAP": "max",
    "val/r2": "max",
    "val/f1": "max",
    "val/top5": "max",
    "val/knn": "max",
    "val/loss": "min",
    "val/calibration_error": "min",
}
# W&B reports its errors to its server: with one that does not answer, that holds up the end of the process by 10 s.
ENVIRONMENT = {"WANDB_ERROR_REPORTING": "false"}


def _log_file(run: Any, path: Path, file: str, name: str, kind: str, aliases: list[str]) -> None:
    import wandb

    artifact = wandb.Artifact(re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)[:128], type=kind)
    artifact.add_file(str(path.resolve()), name=file, policy="immutable", skip_cache=True)  # else it is copied into the home folder
    run.log_artifact(artifact, aliases=aliases)


def _problem(file: str, keep: Callable[[], Any]) -> str:
    """Keeps a file as an artifact; returns what there is to say of it."""
    try:
        keep()
    except Exception as error:
        return f" (without {file}: {_reason(error)})"
    return ""


_running: list["Tracker"] = []


class Tracker(WandbLogger):
    """Lightning's logger for W&B, except that nothing that befalls W&B stops a training or holds it up for long.

    The first call that fails or does not come back ends the tracking, with one line; from then on nothing is done. Only the first rank tracks.

    Args:
        config: The group ``wandb`` of the recipe.
        run_dir: The run's folder.
        recipe: Name of the recipe.
        name: Name of the run at W&B.
        job_type: Command that the run is of; None where it goes on with an earlier one's.
    """

    def __init__(self, config: WandbConfig, run_dir: Path, recipe: str, name: str, job_type: str | None) -> None:
        super().__init__(save_dir=run_dir.resolve())  # W&B's own process has a working directory of its own
        self._experiment: Any = None
        self.config, self.run_dir, self.recipe = config, run_dir, recipe
        group, tags = config.group or recipe, config.tags or None
        self._wandb_init = {"dir": self._save_dir, "name": name, "group": group, "job_type": job_type, "tags": tags, "resume": "allow"}
        if "WANDB_SWEEP_ID" not in os.environ:  # the agent of a sweep says which project and run it is
            self._wandb_init |= {"project": config.project, "entity": config.entity, "id": wandb_id(run_dir)}
        self._project, self._name = config.project, name
        self.mode, self._why = "", ""
        self._state: Literal["new", "running", "over"] = "new"
        self._changed: list[str] = []  # names in the environment
        self._checked = 0.0
        self._worker: Worker | None = None
        self._recipe_kept: Callable[[float], Any] | None = None

    @property
    def is_running(self) -> bool:
        """Whether what is logged is tracked."""
        return self._state == "running"

    def begin(self) -> None:
        """Starts the run at W&B, in at most 15 s.

        Raises:
            InputError: ``online`` was asked for and W&B refuses, for want of a key or of a network. ``auto`` goes offline then.
        """
        if self._state != "new" or rank_zero_only.rank != 0:  # type: ignore[attr-defined]
            return
        self._state = "running"
        _running.append(self)
        self._changed = [name for name in ENVIRONMENT if name not in os.environ]
        os.environ |= {name: ENVIRONMENT[name] for name in self._changed}
        until = time.monotonic() + START_SECONDS
        try:
            self.mode, self._why = within(START_SECONDS, lambda: wandb_mode(self.config.mode))
            if self.mode == "online":
                # What is left must do for the end of its process and a start offline, or for the first call that gets no answer.
                self._go_online(until - time.monotonic() - CALL_SECONDS - TEARDOWN_SECONDS)
            if self.mode == "offline":
                seconds = until - time.monotonic()
                self._experiment = within(seconds, lambda: self._init("offline", seconds))
        except InputError:
            self._release()
            raise
        except Exception as error:
            self._end(_reason(error))

    def _init(self, mode: Literal["online", "offline"], seconds: float) -> Any:
        import wandb

        wandb.setup(wandb.Settings(silent=True))  # the line at the end tells what there is to tell
        settings = wandb.Settings(silent=True, init_timeout=seconds, finish_timeout=FINISH_SECONDS, finish_timeout_raises=True)
        run = wandb.init(mode=mode, settings=settings, **self._wandb_init)
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        for name, summary in BEST.items():
            run.define_metric(name, step_metric="trainer/global_step", step_sync=True, summary=summary)
        return run

    def _go_online(self, seconds: float) -> None:
        try:
            self._experiment = within(seconds + 0.5, lambda: self._init("online", seconds))
            print(f"W&B: {self._experiment.url}")
        except Exception as error:
            if self.config.mode == "online":
                raise InputError(f"wandb.mode=online: {_reason(error).rstrip('.')}. Choose wandb.mode offline or auto to train without.") from error
            self._teardown()  # its process would go on to hold the run's id
            self._wandb_init["id"] = wandb_id(self.run_dir)
            self.mode, self._why = "offline", f"the server does not take the run: {_reason(error)}"

    def call(self, call: Callable[[], Any]) -> Any:
        """Makes a call of W&B's, and returns what it returns; None where the tracking has ended, or ends with it."""
        if isinstance(threading.current_thread(), Worker):  # a call within one
            return call()
        self.begin()
        if not self.is_running:
            return None

        def checked() -> Any:
            self._check_folder()
            return call()

        self._worker = self._worker or Worker()
        try:
            return self._worker.ask(checked)(CALL_SECONDS)
        except Exception as error:
            self._end(_reason(error))

    def _check_folder(self) -> None:
        """Sees whether W&B's folder takes data: its process says nothing where a disk is full."""
        if time.monotonic() - self._checked < CHECK_SECONDS:
            return
        file = self._folder / ".room"
        file.write_bytes(bytes(2**16))
        file.unlink()
        self._checked = time.monotonic()

    @property
    def _folder(self) -> Path:
        return Path(self._experiment.settings.sync_dir)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run, as ``wandb.init`` returns it; what is called on it is watched."""
        self.begin()
        return Watched(self, self._experiment)

    watch = watched(WandbLogger.watch)
    log_hyperparams = watched(WandbLogger.log_hyperparams)
    log_metrics = watched(WandbLogger.log_metrics)
    log_table = watched(WandbLogger.log_table)
    log_text = watched(WandbLogger.log_text)
    log_image = watched(WandbLogger.log_image)
    log_audio = watched(WandbLogger.log_audio)
    log_video = watched(WandbLogger.log_video)
    use_artifact = watched(WandbLogger.use_artifact)

    def log_recipe(self, path: Path) -> None:
        """Keeps the run's configuration as an artifact, from which the run can be repeated; meanwhile the training goes on."""
        if not self.is_running:
            return
        copy = self._folder / "recipe.yaml"  # a later sitting may change the file, and what has been told stays
        run = self._experiment

        def log() -> None:
            shutil.copyfile(path, copy)
            _log_file(run, copy, path.name, f"recipe-{self.recipe}", "recipe", [])

        worker = Worker()
        self._recipe_kept = worker.ask(log)  # W&B asks its server, which may take its time
        worker.stop()

    def finish(self, model: Path | None = None, failed: bool = False) -> str | None:
        """Ends the run at W&B, in at most 30 s.

        Args:
            model: Checkpoint that is kept as an artifact.
            failed: Whether the run did not reach its end.

        Returns:
            One line that says where the run is, or how it gets there; None where the tracking has ended before.
        """
        if not self.is_running:
            return None
        try:
            return self._finish(model, failed) if self._experiment is not None else None
        finally:
            self._release()

    def _finish(self, model: Path | None, failed: bool) -> str:
        run, upload, until = self._experiment, self._upload(), time.monotonic() + END_SECONDS - 2 * TEARDOWN_SECONDS

        def keep_model() -> None:
            assert model is not None
            _log_file(run, model, model.name, f"model-{run.id}", "model", [model.stem])

        line = f"W&B: {run.url}" if self.mode == "online" else f"W&B: offline{f' ({self._why})' if self._why else ''}: upload with  {upload}"
        self._checked = 0.0
        try:
            within(CALL_SECONDS, self._check_folder)
            if (kept := self._recipe_kept) is not None:
                line += _problem("config.yaml", lambda: kept(1.0))
            if model is not None:
                line += _problem(model.name, lambda: within(CALL_SECONDS, keep_model))
            within(until - time.monotonic(), lambda: run.finish(exit_code=int(failed)))
        except Exception as error:
            if isinstance(error, TimeoutError) and self.mode == "online":
                return f"W&B: the server did not take all of the run within {FINISH_SECONDS:.0f} s: upload the rest with  {upload}"
            return f"W&B tracking ended ({_reason(error)}); the run's figures are in {self.run_dir}/metrics.csv"
        return line

    def _upload(self) -> str:
        """Returns the command that uploads the run: all its pieces, where it was resumed."""
        folder = self._folder
        pieces = sorted(folder.parent.glob(f"offline-run-*-{self._experiment.id}")) if self.mode == "offline" else [folder]
        place = self.run_dir / "wandb" if folder.parent == Path(self._wandb_init["dir"], "wandb") else folder.parent
        words = ["wandb", "sync", *([] if self.mode == "offline" else ["--include-online"]), *(str(place / piece.name) for piece in pieces)]
        return shlex.join(words)

    def _end(self, why: str) -> None:
        self._release()
        before = "\n" if sys.stderr.isatty() else ""  # of a progress line
        print(f"{before}W&B tracking ended ({why}); the training goes on, its figures are in {self.run_dir}/metrics.csv", file=sys.stderr)

    def _release(self) -> None:
        """Lets go of W&B and its process, which would else hold up the end of ours."""
        self._state, self._experiment = "over", None
        if self._worker is not None:
            self._worker.stop()
        if self in _running:
            _running.remove(self)
        self._teardown()
        for name in self._changed:
            os.environ.pop(name, None)

    @staticmethod
    def _teardown() -> None:
        process: Any = None

        def end() -> None:
            nonlocal process
            import wandb

            with suppress(AttributeError):  # there is none
                process = wandb.setup()._connection._proc._process  # type: ignore[union-attr]
            wandb.teardown()

        try:
            within(TEARDOWN_SECONDS, end)
        except TimeoutError:
            if process is not None:
                process.kill()  # hung, it would hold our output open: `cct fit | tee log` would not end
                with suppress(subprocess.TimeoutExpired):
                    process.wait(1)
        except Exception:
            pass  # it has died


def end_tracking() -> None:
    """Ends what is still tracked: runs that have failed."""
    for tracker in [*_running]:
        tracker.finish(failed=True)
