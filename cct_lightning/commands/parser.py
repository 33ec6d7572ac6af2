"""LightningCLI as the parser of recipes and keys: flat groups, short errors. It builds the task and the data; runs/ does the rest."""

from inspect import signature
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from cct_lightning.commands.messages import Parser
from cct_lightning.commands.requests import Request
from cct_lightning.data.imports import allowing
from cct_lightning.data.module import ImageDataModule
from cct_lightning.errors import InputError, did_you_mean
from cct_lightning.runs.loggers import in_words, put
from cct_lightning.runs.options import CheckpointConfig, WandbConfig, mode_of
from cct_lightning.runs.trainer import Setting
from cct_lightning.tasks.options import FROM_DATA
from cct_lightning.tasks.registry import DEFAULT, TASKS, task_class
from cct_lightning.tasks.task import Task
from cct_lightning.training.hardware import default_precision
from cct_lightning.weights.files import Opened


class CLI(LightningCLI):
    """The command line on our tasks and data module; no class_path is needed for either.

    Args:
        request: What was asked for.
        words: Recipes and keys for the parser, in place of those of the request.
        weights: What ``model.pretrained`` leads to, where it has been opened already.
        task: What is learned; None: what the request says.
    """

    model: Task
    datamodule: ImageDataModule

    def __init__(self, request: Request, words: list[str], weights: Opened | None = None, task: str | None = None) -> None:
        self.request, self.weights, self.task = request, weights, task or request.task or DEFAULT
        self.trains = request.checkpoint is None
        with allowing(request.permissions.imports):
            super().__init__(
                task_class(self.task),
                ImageDataModule,
                args=in_words(words),
                run=False,
                save_config_callback=None,
                seed_everything_default=0,
                parser_class=Parser,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
            )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        # The summary at the end says more in fewer lines. Lightning would take all GPUs, and not every recipe runs on several: overlays ask for them.
        parser.set_defaults({"trainer.enable_model_summary": False, "trainer.devices": 1})
        parser.add_class_arguments(self._model_class, "model", fail_untyped=False, sub_configs=True, skip={"model"})
        parser.add_class_arguments(ImageDataModule, "data", fail_untyped=False, sub_configs=True)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--task", type=Literal[tuple(TASKS)], default=self.task, help="What is learned.")  # so that files may say it
        parser.add_class_arguments(WandbConfig, "wandb")
        parser.add_class_arguments(CheckpointConfig, "checkpoint")
        measure = task_class(self.task).measure
        parser.set_defaults({"checkpoint.monitor": f"val/{measure or 'loss'}"})
        if self.trains:
            taken = signature(self._model_class).parameters
            for name in filter(taken.__contains__, FROM_DATA):
                parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")
        if self.weights is not None:
            parser.add_instantiator(self._with_weights, self._model_class, subclasses=False)

    def _with_weights(self, kind: type[Task], *arguments: Any, **named: Any) -> Task:
        return kind(*arguments, **{**named, "pretrained": self.weights})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the words; Lightning's would warn where the process has words of its own, too."""
        self.config = parser.parse_args(args)

    def instantiate_classes(self) -> None:
        """Waits: Lightning's would build all of it at once, before there is a folder for the run."""
        config = self.config
        if config.trainer.precision is None and not config.trainer.plugins:  # a plugin may be one for the precision
            config.trainer.precision = default_precision(str(config.trainer.accelerator))
        monitor = config.checkpoint.monitor
        known = task_class(self.task).measures
        if self.trains and "/".join(monitor.split("/")[:2]) not in known:
            raise InputError(f"checkpoint.monitor={monitor} is no measure of the validation.{did_you_mean(monitor, known)}")
        config.checkpoint.mode = mode_of(monitor, config.checkpoint.mode)

    @property
    def base(self) -> Path:
        """Folder that the folders of runs are in."""
        return Path(self.config.trainer.default_root_dir or "runs")

    def build(self, folder: Path) -> Setting:
        """Builds the task (``model``) and the data (``datamodule``); returns all that is known of the run.

        Args:
            folder: Where loggers write that were given none, and what ``{run}`` stands for.
        """
        config = self.config.clone()
        for name in ("callbacks", "logger", "plugins", "profiler", "strategy"):
            config.trainer[name] = put(config.trainer[name], folder)
        with allowing(self.request.permissions.imports):
            built = self.parser.instantiate_classes(config)
            text = self.parser.dump(self.config, skip_none=False, format="yaml")
        self.model, self.datamodule = built.model, built.data
        monitor, known = built.checkpoint.monitor, built.model.measured(built.data.class_names)
        if self.trains and monitor not in known:
            raise InputError(f"checkpoint.monitor={monitor} is no measure of the validation of these images.{did_you_mean(monitor, known)}")
        return Setting(self.request.command, text, dict(built.trainer), built.wandb, built.checkpoint, self.request.run is not None)
