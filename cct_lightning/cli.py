"""``cct fit``, ``test`` and ``validate``: LightningCLI with flat groups, short errors, a run folder and a summary."""

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.callbacks import ProgressBar as Bar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from cct_lightning.callbacks import ProgressBar, Throughput
from cct_lightning.checkpoints import KEY, read_checkpoint
from cct_lightning.data import ImageDataModule
from cct_lightning.errors import InputError, did_you_mean
from cct_lightning.hardware import cpu_seconds, default_precision, keep_freed_memory
from cct_lightning.keys import FROM_DATA
from cct_lightning.models import count_flops
from cct_lightning.module import LitClassifier
from cct_lightning.parsing import Parser, quieten
from cct_lightning.summary import describe, device_name
from cct_lightning.tracking import CheckpointConfig, WandbConfig, make_run_dir, wandb_logger


class SaveConfig(SaveConfigCallback):
    """Writes the whole configuration into the run folder, the checkpoints and W&B."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if self.already_saved or stage != "fit":
            return
        self.already_saved = True
        text = self.parser.dump(self.config, skip_none=False, format="yaml")
        recipe = yaml.safe_load(text)
        pl_module.recipe = recipe
        if trainer.is_global_zero:
            Path(trainer.default_root_dir, self.config_filename).write_text(text, encoding="utf-8")
            for logger in trainer.loggers:
                if not isinstance(logger, CSVLogger):
                    logger.log_hyperparams(recipe)


MONITORS = ("val/accuracy", "val/loss", "val/f1", "val/calibration_error", "val/top5")


class BestCheckpoint(ModelCheckpoint):
    """Keeps the best epoch, of equal ones the last: with few validation images the first 100 % comes long before the network is done.

    Attributes:
        accuracy: Validation accuracy of the epoch that is kept, whatever measure chose it.
    """

    accuracy: float | None = None

    def check_monitor_top_k(self, trainer: Trainer, current: torch.Tensor | None = None) -> bool:
        tie = current is not None and self.best_model_score is not None and bool(current == self.best_model_score)
        if chosen := tie or super().check_monitor_top_k(trainer, current):
            self.accuracy = float(trainer.callback_metrics["val/accuracy"])
        return chosen


class CLI(LightningCLI):
    """The command line on our module and data module; no class_path is needed for either."""

    trainer: Trainer
    model: LitClassifier
    datamodule: ImageDataModule
    run_dir: Path
    _parsing: str  # the command whose parser is being built

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        skip = {"model", "datamodule", "weights_only"}
        return {
            "fit": skip | {"train_dataloaders", "val_dataloaders", "ckpt_path"},
            "validate": skip | {"dataloaders", "verbose"},
            "test": skip | {"dataloaders", "verbose"},
        }

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        self._parsing = subcommand
        return super()._prepare_subcommand_parser(klass, subcommand, **kwargs)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.set_defaults({"trainer.enable_model_summary": False})  # the summary at the end says more in fewer lines
        parser.add_class_arguments(LitClassifier, "model", fail_untyped=False, sub_configs=True, skip={"model"})
        parser.add_class_arguments(ImageDataModule, "data", fail_untyped=False, sub_configs=True)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(WandbConfig, "wandb")
        parser.add_class_arguments(CheckpointConfig, "checkpoint")
        if self._parsing == "fit":
            for name in FROM_DATA:
                parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")

    def _parse_ckpt_path(self) -> None:
        """Lightning 2.6 lets hyper-parameters in the checkpoint beat the command line here; nothing of that."""

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        if config.trainer.precision is None and not config.trainer.plugins:  # a plugin may be one for the precision
            config.trainer.precision = default_precision(str(config.trainer.accelerator))
        if self.subcommand == "fit":
            paths = config.get("config") or []
            monitor = config.checkpoint.monitor
            if monitor not in MONITORS:
                raise InputError(f"checkpoint.monitor={monitor} is no measure of the validation.{did_you_mean(monitor, MONITORS)}")
            base = Path(config.trainer.default_root_dir or "runs")
            self.run_dir = make_run_dir(_recipe_name(Path(str(paths[0]))) if paths else "run", base)
        else:
            config.trainer.enable_checkpointing = False
            config.trainer.logger = config.trainer.logger or False

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        if self.subcommand != "fit":
            return super().instantiate_trainer(**kwargs)
        config = self.config_init[self.subcommand]
        if not self.datamodule.has_validation:
            config.trainer.limit_val_batches = 0
        given = config.trainer.logger
        loggers: list[Logger] = [] if given in (None, True, False) else list(given) if isinstance(given, (list, tuple)) else [given]
        loggers.append(CSVLogger(self.run_dir, name="", version=""))
        name = f"{self.run_dir.parent.name}-{self.run_dir.name}"
        if (tracker := wandb_logger(config.wandb, self.run_dir, name)) is not None:
            loggers.append(tracker)
        self.trainer_defaults["callbacks"] = self._callbacks(config)
        return super().instantiate_trainer(logger=loggers, default_root_dir=str(self.run_dir), **kwargs)

    def _callbacks(self, config: Any) -> list[Callback]:
        """The callbacks of every run: images per second, and the best and the last checkpoint, each on its own so that last is the last."""
        self.throughput = Throughput()
        self.best: BestCheckpoint | None = None
        callbacks: list[Callback] = [self.throughput]
        given = config.trainer.callbacks or []
        given = given if isinstance(given, list) else [given]
        if config.trainer.enable_progress_bar is not False and not any(isinstance(callback, Bar) for callback in given):
            callbacks.append(ProgressBar())
        if config.trainer.enable_checkpointing is not False and not config.trainer.fast_dev_run:
            folder = self.run_dir / "checkpoints"
            if self.datamodule.has_validation and config.trainer.limit_val_batches != 0:
                keep = config.checkpoint
                self.best = BestCheckpoint(folder, "best", monitor=keep.monitor, mode=keep.mode, enable_version_counter=False)
                callbacks.append(self.best)
            callbacks.append(ModelCheckpoint(folder, "last", enable_version_counter=False, save_on_train_epoch_end=True))
        return callbacks

    def before_fit(self) -> None:
        """Says what became of the weights that were loaded, and starts the clock."""
        if self.model.model.load_report is not None and self.trainer.is_global_zero:
            print(self.model.model.load_report)
        self._flops: int | None
        try:
            self._flops = count_flops(self.model.model)
        except Exception:  # torch's counter fails on some networks of timm's; a missing figure shall stop no training
            self._flops = None
        self._began, self._computed = time.perf_counter(), cpu_seconds()

    def fit(self, **arguments: Any) -> None:
        """Trains. Lightning ends the process on Ctrl-C: the summary is written before, without touching the test images."""
        try:
            self.trainer.fit(**arguments)
        except SystemExit:
            if self.trainer.interrupted:
                self.after_fit()
                sys.exit(130)
            raise

    def after_fit(self) -> None:
        """Measures the test images, once, with the best weights; writes and prints the summary."""
        seconds, computed = time.perf_counter() - self._began, cpu_seconds() - self._computed
        trainer = self.trainer
        last = {name: float(value) for name, value in trainer.callback_metrics.items()}
        epochs, steps = trainer.current_epoch, trainer.global_step
        best_path = os.path.relpath(self.best.best_model_path) if self.best and self.best.best_model_path else ""
        tested: Mapping[str, float] = {}
        if self.datamodule.has_test and trainer.limit_test_batches != 0 and not trainer.interrupted:
            tested = trainer.test(self.model, self.datamodule, ckpt_path=best_path or None, verbose=False, weights_only=True)[0]
        summary = {
            "recipe": self.run_dir.parent.name,
            "run_dir": str(self.run_dir),
            "arch": self.model.model_config["arch"],
            "pooling": type(self.model.model.pooling).__name__,
            "val_accuracy": self.best.accuracy if self.best else last.get("val/accuracy"),
            "val_accuracy_last": last.get("val/accuracy"),
            "test_accuracy": tested.get("test/accuracy"),
            "test": {name.removeprefix("test/"): value for name, value in tested.items()},
            "num_parameters": sum(p.numel() for p in self.model.model.parameters()),
            "flops_per_image": self._flops,
            "images_per_second": self.throughput.images_per_second,
            "seconds": seconds,
            "cpu_seconds": computed,  # of all threads and finished children, reading of images included, test not
            "epochs": epochs,
            "steps": steps,
            "best_checkpoint": best_path or None,
            "last_checkpoint": os.path.relpath(last_path) if (last_path := self.run_dir / "checkpoints" / "last.ckpt").is_file() else None,
            "load_report": asdict(report) if (report := self.model.model.load_report) else None,
            "device": device_name(trainer),
            "devices": trainer.world_size,
            "seed": self.config.fit.seed_everything,
            "finished": not trainer.interrupted,
        }
        if trainer.is_global_zero:
            path = self.run_dir / "summary.json"
            path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.experiment.finish()  # what is not written now would be lost with the process
            print(describe(summary))

    def test(self, **arguments: Any) -> None:
        """Runs the trainer's test without its table, which ``after_test`` prints in a line."""
        self.trainer.test(verbose=False, weights_only=True, **arguments)

    def validate(self, **arguments: Any) -> None:
        """Runs the trainer's validation without its table."""
        self.trainer.validate(verbose=False, weights_only=True, **arguments)

    def after_test(self) -> None:
        self._print_measures("test")

    def after_validate(self) -> None:
        self._print_measures("val")

    @rank_zero_only
    def _print_measures(self, stage: str) -> None:
        measures = {name.split("/")[1]: float(value) for name, value in self.trainer.callback_metrics.items() if name.startswith(f"{stage}/")}
        print("  ".join(f"{name} {value:.4f}" for name, value in measures.items()))
        config = self.config[self.subcommand]
        checkpoint = Path(config.ckpt_path or "")
        if checkpoint.is_file():
            path = checkpoint.with_name(f"{checkpoint.stem}-{config.data.dataset}-{stage}.json")
            path.write_text(json.dumps(measures, indent=2) + "\n", encoding="utf-8")
            print(f"written to {path}")


def _recipe_name(path: Path) -> str:
    """Names a run after its recipe; a run of runs/<recipe>/<time>/config.yaml is one of that recipe."""
    return path.parent.parent.name if path.name == "config.yaml" and path.parent.parent.name else path.stem


def from_checkpoint(arguments: list[str], folder: Path) -> list[str]:
    """Turns ``test CHECKPOINT [flags]`` into LightningCLI's arguments: what the checkpoint says first, so that recipes and flags win.

    Raises:
        InputError: The file is no checkpoint of ours, or was not written by a recipe and none is given.
    """
    command, *rest = arguments
    position = next(i for i, word in enumerate(rest) if word.removeprefix("--ckpt_path=").endswith(".ckpt"))
    checkpoint = rest.pop(position).removeprefix("--ckpt_path=")
    if position and rest[position - 1] == "--ckpt_path":
        rest.pop(position - 1)
    about = read_checkpoint(checkpoint).get(KEY)
    if not isinstance(about, Mapping) or not about.get("model"):
        raise InputError(f"{checkpoint} is no checkpoint of `cct fit`, or holds a network that only Python can build.")
    known: dict[str, Any] = {"model": {**about["model"], "pretrained": None}}
    if recipe := about["recipe"]:
        known |= {"seed_everything": recipe["seed_everything"], "data": recipe["data"]}
        known["trainer"] = {"precision": recipe["trainer"]["precision"], "accelerator": recipe["trainer"]["accelerator"], "devices": 1}
    elif "--config" not in rest:
        raise InputError(f"{checkpoint} does not hold the recipe it was trained with: name one, cct {command} -c RECIPE {checkpoint}")
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(known), encoding="utf-8")
    return [command, "--config", str(path), *rest, "--ckpt_path", checkpoint]


def _raised_by_lightning(error: BaseException) -> bool:
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and f"{os.sep}lightning{os.sep}" in frame.tb_frame.f_code.co_filename


def _discard(run_dir: str) -> None:
    """Removes the folder of a run that never began: it holds nothing, or its configuration alone."""
    folder = Path(run_dir)
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= {"config.yaml"}:
        shutil.rmtree(folder)


def run(arguments: list[str]) -> None:
    """Runs a command whose arguments the front has checked.

    Raises:
        InputError: Anything the user can mend.
    """
    quieten()
    keep_freed_memory()
    is_first = "CCT_RUN_DIR" not in os.environ
    try:
        with tempfile.TemporaryDirectory() as folder:
            if arguments[0] != "fit":
                arguments = from_checkpoint(arguments, Path(folder))
            sys.argv[1:] = arguments  # what is parsed, and what a launch of more processes repeats
            CLI(
                LitClassifier,
                ImageDataModule,
                save_config_callback=SaveConfig,
                seed_everything_default=0,
                parser_class=Parser,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
            )
    except InputError as error:
        if "Original Traceback" in str(error):  # a DataLoader worker wraps the message in its traceback
            raise InputError(str(error).rsplit("InputError: ", 1)[-1]) from error
        raise
    except (MisconfigurationException, ModuleNotFoundError, OSError) as error:  # of accelerators, loggers and folders that are not there
        raise InputError(str(error)) from error
    except (ValueError, RuntimeError) as error:
        if "Error(s) in loading state_dict" in str(error):
            raise InputError(
                f"the checkpoint's weights do not fit this network: {str(error).splitlines()[1].strip()[:150]}\n"
                "  A flag changes the network (model.arch, model.pooling, ...): leave it out, or start a run with --model.pretrained."
            ) from error
        if _raised_by_lightning(error):  # its own checks of what it was given
            raise InputError(str(error)) from error
        raise
    finally:
        if is_first and (run_dir := os.environ.pop("CCT_RUN_DIR", None)):
            _discard(run_dir)  # the variable was for the processes of this run; the next one gets a folder of its own
