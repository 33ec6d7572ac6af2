"""The trainer of a run, with its callbacks and loggers."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import yaml
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import ProgressBar as Bar
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment

from cct_lightning.callbacks import ProgressBar, Throughput
from cct_lightning.data.fingerprint import WENT_ON
from cct_lightning.data.module import ImageDataModule
from cct_lightning.errors import InputError
from cct_lightning.networks.classifier import ImageClassifier
from cct_lightning.networks.poolings import POOLINGS
from cct_lightning.run_folder import RunFolder
from cct_lightning.runs.checkpointing import BestCheckpoint, RunCheckpoint, WholeFileIO
from cct_lightning.runs.lightning_private import own_signals, validate_at_end
from cct_lightning.runs.metrics_file import MetricsFile
from cct_lightning.runs.options import CheckpointConfig, WandbConfig, mode_of
from cct_lightning.runs.ranks import Ranks
from cct_lightning.runs.search import LENGTHS
from cct_lightning.runs.sitting import Sitting
from cct_lightning.runs.stopping import Stopping
from cct_lightning.runs.summary import about
from cct_lightning.runs.tracking.server import is_disabled
from cct_lightning.runs.tracking.tracker import Tracker
from cct_lightning.tasks.task import Task
from cct_lightning.weights.files import Opened


@dataclass(frozen=True)
class Setting:
    """A run as it was configured.

    Attributes:
        command: As it was typed, such as finetune.
        text: Every key with its value, as config.yaml has it.
        trainer: Arguments of Lightning's Trainer; callbacks, loggers and the like are objects.
        wandb: How it is tracked.
        checkpoint: Which epoch is kept as the best.
        resumes: Whether it goes on with an earlier one.
    """

    command: str
    text: str
    trainer: Mapping[str, Any]
    wandb: WandbConfig
    checkpoint: CheckpointConfig
    resumes: bool = False

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The same, nested and plain: what the checkpoints and W&B are told."""
        recipe: dict[str, Any] = yaml.safe_load(self.text)
        return recipe

    @property
    def keeps_checkpoints(self) -> bool:
        return self.trainer["enable_checkpointing"] is not False and not self.trainer["fast_dev_run"]


class KeepConfig(Callback):
    """Writes the whole configuration into the run folder, the checkpoints and W&B.

    Args:
        setting: Of the run.
        folder: Of the run.
    """

    def __init__(self, setting: Setting, folder: RunFolder) -> None:
        self.folder, self.resumes = folder, setting.resumes
        self.text, recipe = setting.text, setting.recipe
        if self.resumes:  # the same run, wherever it is computed; only its length may be another
            recipe = dict(folder.config)
            recipe["trainer"] = {**recipe["trainer"], "max_epochs": setting.recipe["trainer"]["max_epochs"]}
        self.recipe = recipe
        self._written = False

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if self._written or stage != "fit":
            return
        self._written = True
        pl_module.recipe = self.recipe
        if trainer.is_global_zero:
            if not self.resumes:
                self.folder.write_config(self.text)
            if others := [logger for logger in trainer.loggers if not isinstance(logger, CSVLogger)]:
                flops = next((callback.flops_per_image for callback in trainer.callbacks if isinstance(callback, Throughput)), None)  # type: ignore[attr-defined]
                told = self.recipe | {"about": about(sum(p.numel() for p in pl_module.model.parameters()), flops)}
                for logger in others:
                    logger.log_hyperparams(told)
            if not self.resumes:
                self._log_recipe(trainer)

    def _log_recipe(self, trainer: Trainer) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, Tracker):
                logger.log_recipe(self.folder.config_file)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Writes the new length of a resumed run, and that its images are others, now that nothing more can hinder it."""
        if not trainer.is_global_zero or not self.resumes:
            return
        text, said = self.folder.config_text, "".join(f"# {line}\n" for line in trainer.datamodule.accepted)  # type: ignore[attr-defined]
        if self.folder.config != self.recipe:
            text = said + yaml.safe_dump(self.recipe, sort_keys=False)
        elif not text.startswith(said):
            text = said + "".join(line for line in text.splitlines(keepends=True) if not line.startswith(f"# {WENT_ON}"))
        if text != self.folder.config_text:
            self.folder.write_config(text)
            self._log_recipe(trainer)


class Parts:
    """A trainer and those of its callbacks and loggers that every run has.

    Args:
        setting: Of the run.
        folder: Of the run.
        module: What is trained.
        data: On what.
        search: ``find-lr`` or ``find-batch-size`` where a value is looked for and nothing kept.
        opened: The checkpoint that the run goes on from.

    Attributes:
        trainer: With all callbacks and loggers.
        throughput: Counts images per second.
        ranks: Watches over its processes.
        stopping: Lets the run be stopped.
        sitting: Lets it be resumed.
        best: Keeps the best epoch; None without validation or checkpoints.
        tracker: Of W&B; None where that is disabled.
    """

    def __init__(
        self, setting: Setting, folder: RunFolder, module: Task, data: ImageDataModule, search: str | None = None, opened: Opened | None = None
    ) -> None:
        given = {**setting.trainer, "default_root_dir": str(folder.path)}
        if not data.has_validation:
            given["limit_val_batches"] = 0
        self.throughput, self.stopping, self.ranks = Throughput(), Stopping(), Ranks(folder)
        self.sitting = Sitting(folder, self.stopping, setting.keeps_checkpoints and search is None, data)
        self.best: BestCheckpoint | None = None
        self.tracker: Tracker | None = None
        if search is not None:
            bar = [ProgressBar()] if given["enable_progress_bar"] is not False else []
            alone = {"callbacks": [*bar, KeepConfig(setting, folder)], "logger": False, "enable_checkpointing": False}
            self.trainer = _made({**given, **alone, **LENGTHS[search]})
            make_ours(self.trainer)
            return
        if setting.keeps_checkpoints and data.has_validation and given["limit_val_batches"] != 0:
            keep = setting.checkpoint
            mode = mode_of(keep.monitor, keep.mode)
            self.best = BestCheckpoint(folder.checkpoints, "best", monitor=keep.monitor, mode=mode, enable_version_counter=False)
            self.best.measure = module.measure
        self.tracker = _tracker(setting, folder, module)
        loggers = [*as_list(given["logger"]), MetricsFile(folder.path, name="", version="")]
        given["logger"] = loggers if self.tracker is None else [*loggers, self.tracker]
        given["callbacks"] = self._callbacks(setting, folder, as_list(given["callbacks"]))
        self.trainer = _made(given)
        make_ours(self.trainer, opened)
        validate_at_end(self.trainer)
        self.ranks.attach(self.trainer)

    def _callbacks(self, setting: Setting, folder: RunFolder, given: Sequence[Callback]) -> list[Callback]:
        """Puts behind the recipe's callbacks those of every run: the best and the last checkpoint each on its own, so that last is the last."""
        callbacks: list[Callback] = [self.ranks, *given, self.throughput, self.stopping, self.sitting]
        if setting.trainer["enable_progress_bar"] is not False and not any(isinstance(callback, Bar) for callback in given):
            callbacks.append(ProgressBar())
        if self.best is not None:
            callbacks.append(self.best)
        if setting.keeps_checkpoints:
            callbacks.append(RunCheckpoint(folder.checkpoints, "last", enable_version_counter=False, save_on_train_epoch_end=True))
        return callbacks if setting.trainer["fast_dev_run"] else [*callbacks, KeepConfig(setting, folder)]


def _made(given: Mapping[str, Any]) -> Trainer:
    """Makes the trainer. Lightning raises TypeError for devices that its accelerator can't count."""
    try:
        return Trainer(**given)
    except TypeError as error:
        if "`devices`" not in str(error):
            raise
        raise InputError(
            f"trainer.devices={given['devices']}: {error}\n  It takes a number, or auto; on GPUs also a list of theirs, such as [0, 2]."
        ) from None


def check_devices(trainer: Trainer) -> None:
    """Refuses more devices than a CPU has cores: each is a process with a network of its own.

    Raises:
        InputError: Says how many there may be.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # the former only on Linux
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > cores:
        raise InputError(
            f"trainer.devices={trainer.num_devices} on a CPU with {cores} core(s): each device is a process of its own.\n"
            f"  Give at most {cores}, or leave it out: one process uses all cores."
        )


def make_ours(trainer: Trainer, opened: Opened | None = None) -> None:
    """Has a trainer write checkpoints whole, unless it has a way of its own, take one that has been opened, and leave signals to us.

    Raises:
        InputError: It was given more devices than there are cores.
    """
    check_devices(trainer)
    own_signals(trainer)
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if isinstance(environment, SLURMEnvironment):
        environment.auto_requeue = False  # a job that Lightning puts back into the queue starts its command anew, in another folder
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeFileIO(opened)


def as_list(given: Any) -> list[Any]:
    """Returns callbacks or loggers as Lightning's Trainer takes them, one, several, none or a switch, as a list."""
    return [] if given in (None, True, False) else list(given) if isinstance(given, (list, tuple)) else [given]


def _tracker(setting: Setting, folder: RunFolder, module: Task) -> Tracker | None:
    """Returns the run's logger for W&B, None where that is disabled."""
    if is_disabled(setting.wandb.mode):
        return None
    parts = [folder.recipe, str(setting.recipe["model"]["arch"]).replace("/", "_")]
    if isinstance(module.model, ImageClassifier):
        parts += [name for name, kind in POOLINGS.items() if kind is type(module.model.pooling)]
    name = "-".join([*parts, f"s{setting.recipe['seed_everything']}"])
    return Tracker(setting.wandb, folder.path, folder.recipe, name, None if setting.resumes else setting.command)
