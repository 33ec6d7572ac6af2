"""``cct resume``: a run that was stopped goes on in its folder, to the bit as if it had never been."""

import time
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from cct_lightning.data.bad_images import table_of
from cct_lightning.data.module import ImageDataModule
from cct_lightning.run_folder import LEFT_OUT, RunFolder, replacing
from cct_lightning.runs.lightning_private import inside_epoch, logged_step, mend_loops, put_off_end, unlogged
from cct_lightning.runs.metrics_file import MetricsFile
from cct_lightning.runs.resumption import check_states
from cct_lightning.runs.stopping import Stopping
from cct_lightning.side_files import set_aside
from cct_lightning.training.hardware import cpu_seconds, product_speed
from cct_lightning.weights.files import KEY

STATE = "sitting"  # where a checkpoint keeps what ``Sitting`` needs
# Tells the command line, and the processes it launches, that the run of CCT_RUN_DIR goes on from this checkpoint.
VARIABLE = "CCT_RESUME"


class Sitting(Callback):
    """One stretch of a run, from its start or resumption to its end or stop: its clock, and what the next one needs.

    Args:
        folder: The run's.
        stopping: What may end it before its time, with last.ckpt saved.
        saves: Whether the run keeps checkpoints.
        data: Its images, whose fingerprint is kept.

    Attributes:
        number: Of this stretch, from 1.
        measures: Of the last validation, for a stretch without one.
        speeds: Products of bfloat16 that a core computed at the start, in the middle and at the end of the training, GFLOP/s; none elsewhere than on
            one CPU device that computes in bfloat16.
    """

    def __init__(self, folder: RunFolder, stopping: Stopping, saves: bool, data: ImageDataModule) -> None:
        self.folder, self.stopping, self.saves, self.data = folder, stopping, saves, data
        self.number = 1
        self.measures: dict[str, float] = {}
        self.speeds: list[float] = []
        self._before = (0.0, 0.0)  # seconds of earlier sittings, and of their processors
        self._began = (time.perf_counter(), cpu_seconds())
        self._found: dict[str, Any] | None = None  # what a checkpoint says, until it is used
        self._longer = False  # whether the run was given more epochs than the checkpoint's had
        self._put_off = False  # whether the validation after the last step is to come

    def start_clock(self) -> None:
        """Counts from now on."""
        self._began = (time.perf_counter(), cpu_seconds())

    def spent(self) -> tuple[float, float]:
        """Returns the seconds of all sittings so far, and those of their processors. What a kill undid does not count."""
        return self._before[0] + time.perf_counter() - self._began[0], self._before[1] + cpu_seconds() - self._began[1]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes down which images the run is trained on, for the message where they are others when it goes on."""
        now, past = self.data.fingerprint, self.data.past
        if stage != "fit" or not self.saves or not trainer.is_global_zero or now is None:
            return
        if past is None or past.digest != now.digest or not self.folder.images_file.is_file():
            with replacing(self.folder.images_file) as file:
                now.write(file)
        if self.data.bad and (past is None or past.digest != now.digest):
            with replacing(self.folder.path / LEFT_OUT) as file:
                file.write(table_of(self.data.bad).encode(errors="surrogateescape"))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # Lightning logs the values of an epoch after its checkpoint is written: the next sitting would miss them after a kill in between.
        values = unlogged(trainer)
        seconds, computed = self.spent()
        self.measures |= {name: value for name, value in _numbers(trainer.callback_metrics).items() if name.startswith("val/")}
        checkpoint[STATE] = {
            "number": self.number,
            "seconds": seconds,
            "cpu_seconds": computed,
            "rows": sum(logger.experiment.rows for logger in trainer.loggers if isinstance(logger, MetricsFile)) if trainer.is_global_zero else 0,
            "unlogged": {**_numbers(values), "epoch": trainer.current_epoch} if values else {},
            "unlogged_step": logged_step(trainer),
            "measures": self.measures,
            "validating": trainer.validating,  # a stop ends a validation as well, which is then made anew
            "should_stop": trainer.should_stop,  # by early stopping, for one
            "images": self.data.about_images(),
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        check_states(trainer, checkpoint, self.folder.last)
        self._found = found = checkpoint[STATE]
        self.number, self.measures, self._before = found["number"] + 1, found["measures"], (found["seconds"], found["cpu_seconds"])
        if found["validating"] and checkpoint["global_step"] == trainer.max_steps:
            put_off_end(trainer, trainer.max_steps + 1)
            self._put_off = True
        self._longer = (checkpoint[KEY]["recipe"]["trainer"]["max_epochs"] or trainer.max_epochs) != trainer.max_epochs

    def _measure_speed(self, trainer: Trainer) -> None:
        if trainer.strategy.root_device.type == "cpu" and trainer.world_size == 1 and str(trainer.precision).startswith("bf16"):
            self.speeds.append(product_speed())

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if len(self.speeds) == 1 and trainer.global_step >= trainer.estimated_stepping_batches // 2:
            self._measure_speed(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._measure_speed(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._measure_speed(trainer)
        if self._found is None:
            return
        trainer.should_stop = self._found["should_stop"] and not self._longer
        if trainer.is_global_zero:
            _mark_unfinished(self.folder)
        mend_loops(trainer, self._found["validating"])
        self._take_up_logs(trainer)
        if self._longer:
            for config in trainer.lr_scheduler_configs:
                scheduler = config.scheduler
                assert isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR)
                for group, rate, base in zip(scheduler.optimizer.param_groups, scheduler.lr_lambdas, scheduler.base_lrs, strict=True):
                    group["lr"] = base * rate(scheduler.last_epoch)  # what is loaded is the rate of the shorter run at this step

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._put_off:
            self._put_off = False
            put_off_end(trainer, trainer.max_steps - 1)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._found is not None:  # there was nothing left to train
            progress: Any = trainer.fit_loop.epoch_progress.current
            progress.completed = progress.processed
            self._take_up_logs(trainer)

    def _take_up_logs(self, trainer: Trainer) -> None:
        assert self._found is not None
        found, self._found = self._found, None
        if trainer.is_global_zero:
            for part in self.folder.checkpoints.glob("*.part"):
                part.unlink()
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile) and trainer.is_global_zero:
                logger.experiment.cut(found["rows"])
            if found["unlogged"]:
                logger.log_metrics(dict(found["unlogged"]), step=found["unlogged_step"])
                logger.save()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # Between two epochs the checkpoint of the first is the right one.
        stopped = isinstance(exception, SIGTERMException) and self.stopping.began and trainer.state.fn == TrainerFn.FITTING
        if stopped and self.saves and inside_epoch(trainer):
            self.stopping.saving = True
            trainer.save_checkpoint(self.folder.last, weights_only=False)
            self.stopping.saving = False


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


def _mark_unfinished(folder: RunFolder) -> None:
    """Has the summary of an earlier sitting say that the run goes on; its figures stay until there are new ones."""
    if folder.summary:
        folder.write_summary({**folder.summary, "finished": False})
    elif folder.summary_file.is_file():
        print(set_aside(folder.summary_file))
