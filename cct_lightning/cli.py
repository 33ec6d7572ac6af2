"""``cct fit``, ``test`` and ``validate``: LightningCLI with flat groups, short errors, a run folder and a summary."""

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.callbacks import ProgressBar as Bar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from cct_lightning import finetune, resume, tuning
from cct_lightning.callbacks import EMA, ProgressBar, TestReport, Throughput
from cct_lightning.checkpoints import KEY, read_checkpoint
from cct_lightning.data import ImageDataModule
from cct_lightning.errors import InputError, did_you_mean
from cct_lightning.evaluation import Report, check_class_names, describe_report, make_report, write_report
from cct_lightning.hardware import default_precision, keep_freed_memory
from cct_lightning.keys import FIND, FROM_DATA
from cct_lightning.models import count_flops
from cct_lightning.module import LitClassifier
from cct_lightning.parsing import Parser, quieten
from cct_lightning.pooling import POOLINGS
from cct_lightning.summary import describe, device_name
from cct_lightning.tracker import Tracker, end_tracking, is_disabled
from cct_lightning.tracking import CheckpointConfig, WandbConfig, about, make_run_dir


class SaveConfig(SaveConfigCallback):
    """Writes the whole configuration into the run folder, the checkpoints and W&B."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if self.already_saved or stage != "fit":
            return
        self.already_saved = True
        path = Path(trainer.default_root_dir, self.config_filename)
        resumed = resume.VARIABLE in os.environ
        if resumed:  # the same run, wherever it is computed; only its length may be another
            recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
            recipe["trainer"]["max_epochs"] = self.config.trainer.max_epochs
        else:
            text = self.parser.dump(self.config, skip_none=False, format="yaml")
            recipe = yaml.safe_load(text)
        pl_module.recipe = recipe
        if trainer.is_global_zero:
            if not resumed:
                path.write_text(text, encoding="utf-8")
            if others := [logger for logger in trainer.loggers if not isinstance(logger, CSVLogger)]:
                flops = next((callback.flops_per_image for callback in trainer.callbacks if isinstance(callback, Throughput)), None)  # type: ignore[attr-defined]
                told = recipe | {"about": about(sum(p.numel() for p in pl_module.model.parameters()), flops)}
                for logger in others:
                    logger.log_hyperparams(told)
            if not resumed:
                self._log_recipe(trainer, path)

    @staticmethod
    def _log_recipe(trainer: Trainer, path: Path) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, Tracker):
                logger.log_recipe(path)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Writes the new length of a resumed run, now that nothing more can hinder it."""
        path = Path(trainer.default_root_dir, self.config_filename)
        if trainer.is_global_zero and yaml.safe_load(path.read_text(encoding="utf-8")) != pl_module.recipe:
            with resume.replacing(path) as file:
                file.write(yaml.safe_dump(pl_module.recipe, sort_keys=False).encode())
            self._log_recipe(trainer, path)


STAGES = {"val": "validation", "test": "test"}
MONITORS = ("val/accuracy", "val/loss", "val/f1", "val/calibration_error", "val/top5")


class RunCheckpoint(ModelCheckpoint):
    """Keeps a file of the run's folder, wherever that has been moved between two sittings."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return str(Path(str(self.dirpath), Path(path).name)) if path else path

        moved = {name: here(state_dict[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **moved, "best_k_models": best, "dirpath": self.dirpath})
        self.current_score = state_dict["current_score"]  # which Lightning 2.6 leaves out


class BestCheckpoint(RunCheckpoint):
    """Keeps the best epoch, of equal ones the last: with few validation images the first 100 % comes long before the network is done.

    Attributes:
        accuracy: Validation accuracy of the epoch that is kept, whatever measure chose it.
    """

    accuracy: float | None = None
    _validated = False  # since it chose last: a run given in steps may end inside an epoch

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated = not trainer.sanity_checking
        super().on_validation_end(trainer, pl_module)

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, torch.Tensor]) -> None:
        if self._validated:
            self._validated = False
            super()._save_topk_checkpoint(trainer, monitor_candidates)

    def check_monitor_top_k(self, trainer: Trainer, current: torch.Tensor | None = None) -> bool:
        tie = current is not None and self.best_model_score is not None and bool(current == self.best_model_score)
        if chosen := tie or super().check_monitor_top_k(trainer, current):
            self.accuracy = float(trainer.callback_metrics["val/accuracy"])
        return chosen

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "accuracy": self.accuracy}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.accuracy = state_dict["accuracy"]


class CLI(LightningCLI):
    """The command line on our module and data module; no class_path is needed for either."""

    trainer: Trainer
    model: LitClassifier
    datamodule: ImageDataModule
    run_dir: Path
    finding: str | None = None  # one of keys.FIND: a value is looked for, and nothing trained
    command = "fit"  # as it was typed
    tracker: Tracker | None = None
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
            self.resumed_from = os.environ.get(resume.VARIABLE)
            resume.lock(self.run_dir, patience=8 if self.resumed_from else 0)
        else:
            config.trainer.enable_checkpointing = False
            config.trainer.logger = config.trainer.logger or False

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config_init[self.subcommand]
        if self.subcommand != "fit":
            folder = self._report_folder("test" if self.subcommand == "test" else "val", Path(config.ckpt_path))
            return super().instantiate_trainer(default_root_dir=config.trainer.default_root_dir or str(folder), **kwargs)
        if not self.datamodule.has_validation:
            config.trainer.limit_val_batches = 0
        if self.finding:
            config.trainer.callbacks = None
            self.throughput, self.sitting = Throughput(), resume.Sitting(self.run_dir, False)
            alone = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "default_root_dir": str(self.run_dir)}
            length = {"max_steps": tuning.LR_STEPS, "max_epochs": -1, "limit_val_batches": 0} if self.finding == "--find-lr" else {}
            return super().instantiate_trainer(**alone, **length, **kwargs)
        given = config.trainer.logger
        loggers: list[Logger] = [] if given in (None, True, False) else list(given) if isinstance(given, (list, tuple)) else [given]
        loggers.append(resume.MetricsFile(self.run_dir, name="", version=""))
        if (tracker := self._make_tracker(config)) is not None:
            loggers.append(tracker)
        self.trainer_defaults["callbacks"] = self._callbacks(config)
        trainer = super().instantiate_trainer(logger=loggers, default_root_dir=str(self.run_dir), **kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = resume.WholeFileIO()
        return trainer

    def _make_tracker(self, config: Any) -> Tracker | None:
        """The run's logger for W&B, None where that is disabled."""
        if not is_disabled(config.wandb.mode):
            recipe, arch = self.run_dir.resolve().parent.name, self.model.model_config["arch"].replace("/", "_")
            pooling = next(name for name, kind in POOLINGS.items() if kind is type(self.model.model.pooling))
            name = f"{recipe}-{arch}-{pooling}-s{config.seed_everything}"
            self.tracker = Tracker(config.wandb, self.run_dir, recipe, name, None if self.resumed_from else self.command)
        return self.tracker

    def _callbacks(self, config: Any) -> list[Callback]:
        """The callbacks of every run: images per second, what lets it be resumed, and the best and the last checkpoint, each on its own so that
        last is the last."""
        keeps = config.trainer.enable_checkpointing is not False and not config.trainer.fast_dev_run
        self.throughput, self.sitting = Throughput(), resume.Sitting(self.run_dir, keeps)
        self.best: BestCheckpoint | None = None
        callbacks: list[Callback] = [self.throughput, self.sitting]
        given = config.trainer.callbacks or []
        given = given if isinstance(given, list) else [given]
        if config.trainer.enable_progress_bar is not False and not any(isinstance(callback, Bar) for callback in given):
            callbacks.append(ProgressBar())
        if keeps:
            folder = self.run_dir / "checkpoints"
            if self.datamodule.has_validation and config.trainer.limit_val_batches != 0:
                keep = config.checkpoint
                self.best = BestCheckpoint(folder, "best", monitor=keep.monitor, mode=keep.mode, enable_version_counter=False)
                callbacks.append(self.best)
            callbacks.append(RunCheckpoint(folder, "last", enable_version_counter=False, save_on_train_epoch_end=True))
        return callbacks

    def before_fit(self) -> None:
        """Says what became of the weights that were loaded, and starts the clock."""
        if self.model.model.load_report is not None and self.trainer.is_global_zero:
            print(self.model.model.load_report)
        frozen = self.model.freeze_part == "backbone"
        if frozen and self.model.model.load_report is None and not self.resumed_from:
            raise InputError("model.freeze=backbone needs weights to keep: give --model.pretrained SOURCE (`cct finetune --help`), or freeze none.")
        plain = self.model.engine != "graph" and not isinstance(self.trainer.strategy, ModelParallelStrategy)
        if frozen and plain and not self.datamodule.augment.is_random:
            self.datamodule.use_features(self.model.encode)
            if self.trainer.is_global_zero:
                print("the backbone is frozen and no augmentation is on: its features are computed once")
        self._flops: int | None
        try:
            self._flops = count_flops(self.model.model)
        except Exception:  # torch's counter fails on some networks of timm's; a missing figure shall stop no training
            self._flops = None
        self.throughput.flops_per_image = None if frozen else self._flops  # of a frozen part no gradients are computed
        if self.tracker in self.trainer.loggers:  # not in a fast_dev_run
            self.tracker.begin()
        self.sitting.start_clock()

    def fit(self, **arguments: Any) -> None:
        """Trains. Lightning ends the process on Ctrl-C and SIGTERM: the summary is written before, without touching the test images."""
        if self.finding:
            search = tuning.find_lr if self.finding == "--find-lr" else tuning.find_batch_size
            print(search(self.trainer, self.model, self.datamodule))
            return
        if self.resumed_from:
            if self.trainer.is_global_zero:
                print(f"going on from {self.resumed_from}")
            arguments |= {"ckpt_path": self.resumed_from, "weights_only": True}
        try:
            self.trainer.fit(**arguments)
        except SystemExit as ended:
            if not self.trainer.interrupted:
                raise
            self.after_fit()
            number = self.sitting.received or (signal.SIGTERM if isinstance(ended, SIGTERMException) else signal.SIGINT)
            # A launched process that fails has Lightning kill the first one, which is writing the summary.
            sys.exit(128 + number if self.trainer.is_global_zero else 0)

    def after_fit(self) -> None:
        """Measures the test images, once, with the best weights; writes and prints the summary."""
        if self.finding:
            return
        seconds, computed = self.sitting.spent()
        trainer = self.trainer
        last = self.sitting.measures | {name: float(value) for name, value in trainer.callback_metrics.items()}
        epochs, steps = trainer.current_epoch, trainer.global_step
        best_path = os.path.relpath(self.best.best_model_path) if self.best and self.best.best_model_path else ""
        last_path = os.path.relpath(path) if (path := self.run_dir / "checkpoints" / "last.ckpt").is_file() else ""
        raw = self._raw_accuracy()
        tested: Mapping[str, float] = {}
        if self.datamodule.has_test and trainer.limit_test_batches != 0 and not trainer.interrupted:
            self.model.collect = True
            tested = trainer.test(self.model, self.datamodule, ckpt_path=best_path or last_path or None, verbose=False, weights_only=True)[0]
            if trainer.is_global_zero and (best_path or last_path):
                _, folder, problem = self._write_report("test", tested, Path(best_path or last_path))
                if problem:
                    print(f"{folder} can't be written ({problem.strerror or problem}).")
        summary = {
            "recipe": self.run_dir.resolve().parent.name,
            "run_dir": str(self.run_dir),
            "arch": self.model.model_config["arch"],
            "pooling": type(self.model.model.pooling).__name__,
            "val_accuracy": self.best.accuracy if self.best else last.get("val/accuracy"),
            "val_accuracy_last": last.get("val/accuracy"),
            "val_accuracy_raw": raw,
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
            "last_checkpoint": last_path or None,
            "load_report": asdict(report) if (report := self.model.model.load_report) else None,
            "device": device_name(trainer),
            "devices": trainer.world_size,
            "seed": self.config.fit.seed_everything,
            "finished": not trainer.interrupted,
            "resumed": self.sitting.number - 1,
        }
        if trainer.is_global_zero:
            with resume.replacing(self.run_dir / "summary.json") as file:
                file.write((json.dumps(summary, indent=2) + "\n").encode())
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, TestReport):
                    callback.write_page(self.run_dir)
            print(describe(summary))
            if self.tracker is not None:
                kept = (best_path or last_path) if self.config.fit.wandb.log_model == "best" and not trainer.interrupted else ""
                if line := self.tracker.finish(Path(kept) if kept else None, failed=trainer.interrupted):
                    print(line)

    def _raw_accuracy(self) -> float | None:
        """Validates the last weights as they are where the callback EMA averages them: what its average is worth. None without EMA."""
        trainer = self.trainer
        average = next((callback for callback in trainer.callbacks if isinstance(callback, EMA)), None)  # type: ignore[attr-defined]
        if average is None or self.best is None or trainer.interrupted:
            return None
        loggers, trainer.loggers = trainer.loggers, []  # val/accuracy is the average's
        with average.raw_weights(self.model):
            found = trainer.validate(self.model, self.datamodule, verbose=False)[0]["val/accuracy"]
        trainer.loggers = loggers
        for logger in loggers:
            logger.log_metrics({"val/accuracy_raw": found}, step=trainer.global_step)
        return found

    def test(self, **arguments: Any) -> None:
        """Runs the trainer's test without its table, which ``after_test`` prints in a line."""
        self.trainer.test(verbose=False, weights_only=True, **arguments)

    def validate(self, **arguments: Any) -> None:
        """Runs the trainer's validation without its table."""
        self.trainer.validate(verbose=False, weights_only=True, **arguments)

    def before_test(self) -> None:
        self._prepare_report()

    def before_validate(self) -> None:
        if not self.datamodule.has_validation:
            raise InputError("there are no validation images: data.val_fraction=0 sets none aside; give another share, or use `cct test`.")
        self._prepare_report()

    def _prepare_report(self) -> None:
        """Refuses classes that are not the checkpoint's, before anything is run."""
        data, config = self.datamodule, self.config[self.subcommand]
        where = f"data.dataset={config.data.dataset}" if data.about.num_classes and not data.folder else f"data.root={config.data.root}"
        check_class_names(config.ckpt_path, self.model.class_names, self.model.model.num_classes, data.class_names, where)
        self.model.collect = True

    def after_test(self) -> None:
        self._print_report("test")

    def after_validate(self) -> None:
        self._print_report("val")

    @rank_zero_only
    def _print_report(self, stage: str) -> None:
        config = self.config[self.subcommand]
        if self.model.outcomes is None:
            raise InputError("no image was measured: leave out trainer.limit_test_batches=0 and trainer.limit_val_batches=0.")
        report, folder, problem = self._write_report(stage, self.trainer.callback_metrics, Path(config.ckpt_path))
        data = config.data.dataset if self.datamodule.about.num_classes else config.data.root
        there = len(self.datamodule.splits[stage][1])
        limited = f" of {there:,}" if report.n < there else ""  # by trainer.limit_test_batches and its like
        print(describe_report(report, f"{STAGES[stage]} of {data}: {report.n:,}{limited} images", config.ckpt_path, folder, problem))

    def _report_folder(self, stage: str, checkpoint: Path) -> Path:
        """Names the folder beside the checkpoint for what an evaluation finds: its tables, and the pictures of ``TestReport``."""
        return checkpoint.with_name(f"{checkpoint.stem}-{self.datamodule.dataset}-{stage}")

    def _write_report(self, stage: str, measured: Mapping[str, Any], checkpoint: Path) -> tuple[Report, Path, OSError | None]:
        """Writes what an evaluation found into a folder beside the checkpoint; returns it, the folder, and why it can't be written."""
        assert self.model.outcomes is not None
        data, (split, chosen) = self.config[self.subcommand].data, self.datamodule.splits[stage]
        set_aside = split is self.datamodule.splits["train"][0]  # the indices then count all images
        measures = {name.removeprefix(f"{stage}/"): float(value) for name, value in measured.items() if name.startswith(f"{stage}/")}
        source = data.dataset if set_aside else f"the {STAGES[stage]} split"
        report = make_report(self.model.outcomes, self.datamodule.class_names, split.files, source, measures)
        folder = self._report_folder(stage, checkpoint)
        images = {name: value for name, value in data.as_dict().items() if name != "augment"}  # which is for training alone
        try:
            write_report(report, folder, {"checkpoint": checkpoint.name, "split": stage, "split_size": len(chosen), "data": images})
        except OSError as error:
            return report, folder, error
        return report, folder, None


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
    """Removes the folder of a run that never began: it holds nothing, or its configuration alone, at most told to W&B."""
    folder = Path(run_dir)
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= {"config.yaml", "wandb"}:
        shutil.rmtree(folder)


def run(arguments: list[str]) -> None:
    """Runs a command whose arguments the front has checked.

    Raises:
        InputError: Anything the user can mend.
    """
    quieten()
    keep_freed_memory()
    is_first, command = "CCT_RUN_DIR" not in os.environ, arguments[0]
    try:
        with tempfile.TemporaryDirectory() as folder:
            if arguments[0] == "finetune":
                arguments = finetune.arguments_of(arguments, Path(folder))
            elif arguments[0] == "resume":
                arguments = resume.arguments_of(arguments)
            if arguments[0] != "fit":
                arguments = from_checkpoint(arguments, Path(folder))
            CLI.command = command
            CLI.finding = next((word for word in arguments if word in FIND), None)
            arguments = [word for word in arguments if word not in FIND]
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
        if isinstance(error.__cause__, InputError):  # of a callback, wrapped by the parser in what it has against every other type
            raise InputError(str(error.__cause__)) from error
        if "Error(s) in loading state_dict" in str(error):
            raise InputError(
                f"the checkpoint's weights do not fit this network: {str(error).splitlines()[1].strip()[:150]}\n"
                "  A flag changes the network (model.arch, model.pooling, ...): leave it out, or start a run with --model.pretrained."
            ) from error
        if _raised_by_lightning(error):  # its own checks of what it was given
            raise InputError(str(error)) from error
        raise
    finally:
        end_tracking()
        resume.unlock()
        if is_first:
            os.environ.pop(resume.VARIABLE, None)
        if is_first and (run_dir := os.environ.pop("CCT_RUN_DIR", None)):
            _discard(run_dir)  # the variable was for the processes of this run; the next one gets a folder of its own
