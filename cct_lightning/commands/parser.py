"""``cct fit``, ``test`` and ``validate``: LightningCLI with flat groups, short errors, a run folder and a summary."""

import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.callbacks import ProgressBar as Bar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from cct_lightning.callbacks import EMA, ProgressBar, TestReport, Throughput
from cct_lightning.commands.keys import FROM_DATA
from cct_lightning.data.module import ImageDataModule
from cct_lightning.errors import InputError, did_you_mean
from cct_lightning.evaluation.outcomes import Report, make_report
from cct_lightning.evaluation.tables import check_class_names, describe_report, write_report
from cct_lightning.networks.classifier import count_flops
from cct_lightning.networks.poolings import POOLINGS
from cct_lightning.run_folder import lock, make_run_dir, recipe_name, replacing
from cct_lightning.runs import search
from cct_lightning.runs.checkpointing import MONITORS, BestCheckpoint, RunCheckpoint, WholeFileIO
from cct_lightning.runs.metrics_file import MetricsFile
from cct_lightning.runs.options import CheckpointConfig, WandbConfig
from cct_lightning.runs.page import write_page
from cct_lightning.runs.sitting import VARIABLE, Sitting
from cct_lightning.runs.summary import describe, device_name
from cct_lightning.runs.tracking.server import is_disabled
from cct_lightning.runs.tracking.tracker import Tracker
from cct_lightning.tasks.classification import LitClassifier
from cct_lightning.training.hardware import default_precision

STAGES = {"val": "validation", "test": "test"}


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
            self.run_dir = make_run_dir(recipe_name(Path(str(paths[0]))) if paths else "run", base)
            self.resumed_from = os.environ.get(VARIABLE)
            if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
                lock(self.run_dir, patience=8 if self.resumed_from else 0)
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
            self.throughput, self.sitting = Throughput(), Sitting(self.run_dir, False)
            alone = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "default_root_dir": str(self.run_dir)}
            length = {"max_steps": search.LR_STEPS, "max_epochs": -1, "limit_val_batches": 0} if self.finding == "--find-lr" else {}
            return super().instantiate_trainer(**alone, **length, **kwargs)
        given = config.trainer.logger
        loggers: list[Logger] = [] if given in (None, True, False) else list(given) if isinstance(given, (list, tuple)) else [given]
        loggers.append(MetricsFile(self.run_dir, name="", version=""))
        if (tracker := self._make_tracker(config)) is not None:
            loggers.append(tracker)
        self.trainer_defaults["callbacks"] = self._callbacks(config)
        trainer = super().instantiate_trainer(logger=loggers, default_root_dir=str(self.run_dir), **kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeFileIO()
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
        self.throughput, self.sitting = Throughput(), Sitting(self.run_dir, keeps)
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
            find = search.find_lr if self.finding == "--find-lr" else search.find_batch_size
            print(find(self.trainer, self.model, self.datamodule))
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
            with replacing(self.run_dir / "summary.json") as file:
                file.write((json.dumps(summary, indent=2) + "\n").encode())
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, TestReport):
                    write_page(self.run_dir)
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
