"""One run: trained, tested once, summed up and told, until its end or until it is stopped."""

import os
import signal
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException

from cct_lightning.callbacks import EMA, TestReport
from cct_lightning.data.module import ImageDataModule
from cct_lightning.errors import InputError, RunError
from cct_lightning.networks.classifier import ImageClassifier, LoadReport, count_flops
from cct_lightning.run_folder import RunFolder, tables_beside
from cct_lightning.runs.checkpointing import WholeFileIO
from cct_lightning.runs.full_disk import full_disk
from cct_lightning.runs.page import write_page
from cct_lightning.runs.search import SEARCHES
from cct_lightning.runs.summary import Summary, describe, device_name, steps_per_epoch
from cct_lightning.runs.testing import write_tables
from cct_lightning.runs.trainer import Parts, Setting
from cct_lightning.tasks.divergence import DivergenceError
from cct_lightning.tasks.labelled import Labelled, tta_of
from cct_lightning.tasks.needs import KeepsOutcomes, classifier_of
from cct_lightning.tasks.task import Task
from cct_lightning.training.hardware import REFERENCE_SPEED
from cct_lightning.weights.files import Opened
from cct_lightning.wording import printable

T = TypeVar("T")


class Session:
    """A run from its start or resumption to its end or stop.

    Args:
        setting: How it was configured.
        folder: Of this run alone, and held by this process.
        module: What is trained.
        data: On what.
        search: ``find-lr`` or ``find-batch-size`` where a value is looked for and nothing trained.
        opened: The checkpoint that the run goes on from, let go of once the weights are loaded.

    Attributes:
        stopped_by: The signal that ended it, or 0.
        signal: The same, or one that came too late to end it: the run is whole, and what was to follow it is not wanted.
    """

    def __init__(
        self,
        setting: Setting,
        folder: RunFolder,
        module: Task,
        data: ImageDataModule,
        search: str | None = None,
        opened: Opened | None = None,
    ) -> None:
        self.setting, self.folder, self.module, self.data = setting, folder, module, data
        parts = Parts(setting, folder, module, data, search, opened)
        self.trainer, self.best, self.tracker = parts.trainer, parts.best, parts.tracker
        self._throughput, self._stopping, self._sitting, self._search = parts.throughput, parts.stopping, parts.sitting, search
        self._ranks = parts.ranks
        self._flops: int | None = None
        self.stopped_by = self.signal = 0
        self._summary: Summary | None = None

    def fit(self) -> None:
        """Trains, then measures the test images with the best weights, once; a run that was stopped is summed up without touching them.

        Where a signal ended it before its first step, ``stopped_by`` says so and there is no summary.

        Raises:
            InputError: The recipe asks for what can't be had.
            RunError: The training diverged, a disk is full; says which files are whole.
        """
        with self._stopping.listening():
            try:
                self._fit()
            except Exception as error:
                told = self._ranks.blame(error)
                self._ranks.close(failed=True)
                if told is error:
                    raise
                raise told from error
            self._ranks.close(stopped_by=0 if self._stopping.began else self.stopped_by)
        self.signal = self.stopped_by or self._stopping.received

    @property
    def exit_code(self) -> int:
        """What the process ends with: 128 + the signal, else 0; so with ranks behind the first that took a step, which is writing the summary."""
        quiet = self._stopping.began and not self.trainer.is_global_zero
        return 128 + self.signal if self.signal and not quiet else 0

    def _fit(self) -> None:
        self._begin()
        resumed: dict[str, Any] = {"ckpt_path": self.folder.last, "weights_only": True} if self.setting.resumes else {}
        with self.folder.told():
            self._until_stopped(lambda: self.trainer.fit(self.module, datamodule=self.data, **resumed))
        if self._stopping.began or not self.stopped_by:
            self._end()
        elif self.trainer.is_global_zero:
            print("stopped before its first step", file=sys.stderr)

    def _until_stopped(self, part: Callable[[], T]) -> T | None:
        """Does a part of the run, none after a stop; a signal may end it, and is then known as ``stopped_by``."""
        if not self.stopped_by:
            try:
                return part()
            except SystemExit as ended:  # with which Lightning ends the process on Ctrl-C and SIGTERM
                if not self.trainer.interrupted:
                    raise
                self.stopped_by = self._stopping.received or (signal.SIGTERM if isinstance(ended, SIGTERMException) else signal.SIGINT)
            except (RunError, OSError) as error:
                if (failed := error if isinstance(error, RunError) else full_disk(error)) is None:
                    raise
                if isinstance(error, DivergenceError) and not self.trainer.is_global_zero:
                    sys.exit(1)  # all stop after the same step, and the first one tells it
                failed.args = (f"{failed}\n  {self._whole_files(isinstance(error, DivergenceError))}",)
                raise failed from error.__cause__
        return None

    def _whole_files(self, diverged: bool) -> str:
        """Says which files a training that failed has left, and whether it can go on from them."""
        io, names = self.trainer.strategy.checkpoint_io, [path.name for path in (self.folder.last, self.folder.best) if path.is_file()]
        if not names:
            return "No checkpoint was written before."
        steps = io.steps if isinstance(io, WholeFileIO) else {}
        told = " and ".join(f"{name} (step {steps[name]})" if name in steps else name for name in names)
        way = "" if diverged or not self.folder.last.is_file() else f"; cct resume {self.folder.path} goes on"
        return f"{self.folder.checkpoints}: {told} {'is' if len(names) == 1 else 'are'} whole, from before{way}."

    def search(self) -> str:
        """Looks for a value instead of training; returns what was found, and the flag that sets it.

        Raises:
            InputError: None is found.
        """
        assert self._search is not None
        self._begin()
        with self.folder.told():
            return SEARCHES[self._search](self.trainer, self.module, self.data)

    def _begin(self) -> None:
        """Says what became of the weights that were loaded, and starts the clock."""
        module, speaks = self.module, self.trainer.is_global_zero
        if (report := self._load_report) is not None and speaks:
            print(report)
        if frozen := isinstance(module, Labelled) and module.freeze_part == "backbone":
            self._freeze(module)
        try:
            self._flops = count_flops(module.model) if isinstance(module.model, ImageClassifier) else None
        except Exception:  # torch's counter fails on some networks of timm's; a missing figure shall stop no training
            self._flops = None
        self._throughput.flops_per_image = None if frozen else self._flops  # of a frozen part no gradients are computed
        self._throughput.image_size = self.data.image_size
        if self.tracker is not None and self.tracker in self.trainer.loggers:  # not in a fast_dev_run
            self.tracker.begin()
        if self.setting.resumes and speaks:
            print(f"going on from {self.folder.last}")
        self._sitting.start_clock()

    def _freeze(self, module: Labelled) -> None:
        """Has the features of a frozen backbone computed once, where no augmentation changes them."""
        if self._load_report is None and not self.setting.resumes:
            raise InputError("model.freeze=backbone needs weights to keep: give --model.pretrained SOURCE (`cct finetune --help`), or freeze none.")
        plain = module.engine != "graph" and not isinstance(self.trainer.strategy, ModelParallelStrategy)
        if plain and not self.data.augment.is_random:
            if self.data.first_sizes:
                raise InputError("A frozen backbone's features are computed once, at data.image_size: leave data.image_size_schedule out.")
            self.data.use_features(module.encode)
            if self.trainer.is_global_zero:
                print("the backbone is frozen and no augmentation is on: its features are computed once")

    @property
    def _load_report(self) -> LoadReport | None:
        """What became of the weights that the run started from."""
        network = classifier_of(self.module)
        return network.load_report if network is not None else None

    def _end(self) -> None:
        """Measures the test images, writes and prints the summary, and ends the tracking."""
        seconds, computed = self._sitting.spent()
        trainer = self.trainer
        last = self._sitting.measures | {name: float(value) for name, value in trainer.callback_metrics.items()}
        epochs, steps = trainer.current_epoch, trainer.global_step
        trained, speeds = not self.stopped_by, self._sitting.speeds
        best_path = os.path.relpath(self.best.best_model_path) if self.best and self.best.best_model_path else None
        last_path = os.path.relpath(self.folder.last) if self.folder.last.is_file() else None
        if trained:  # what one rank loads, all load
            best_path, last_path = trainer.strategy.broadcast((best_path, last_path))
        raw, measure = self._until_stopped(self._raw_measure), self.module.measure
        best, now = self.best.measured if self.best else last.get(f"val/{measure}"), last.get(f"val/{measure}")
        classifies = measure == "accuracy"
        tested, confidence = self._until_stopped(lambda: self._test(best_path or last_path)) or ({}, None)
        summary = Summary(
            recipe=self.folder.recipe,
            run_dir=str(self.folder.path),
            arch=str(self.setting.recipe["model"]["arch"]),
            pooling=type(network.pooling).__name__ if (network := classifier_of(self.module)) else "",
            val_accuracy=best if classifies else None,
            val_accuracy_last=now if classifies else None,
            val_accuracy_raw=raw if classifies else None,
            test_accuracy=tested.get("test/accuracy"),
            test={name.removeprefix("test/"): value for name, value in tested.items()},
            num_parameters=sum(p.numel() for p in self.module.model.parameters()),
            flops_per_image=self._flops,
            images_per_second=self._throughput.images_per_second,
            seconds=seconds,
            cpu_seconds=computed,
            epochs=epochs,
            steps=steps,
            best_checkpoint=best_path,
            last_checkpoint=last_path,
            load_report=asdict(report) if (report := self._load_report) else None,
            device=device_name(trainer),
            devices=trainer.world_size,
            seed=self.setting.recipe["seed_everything"],
            finished=not self.stopped_by,
            resumed=self._sitting.number - 1,
            test_confidence=confidence,
            label_smoothing=self.setting.recipe["model"].get("label_smoothing"),
            steps_per_epoch=steps_per_epoch(trainer),
            changed_data=self.data.accepted,
            trained=trained,
            product_speeds=speeds or None,
            cpu_seconds_at_350=computed * statistics.mean(speeds) / REFERENCE_SPEED if speeds and self._sitting.number == 1 else None,
            left_out=[printable(str(bad.path)) for bad in self.data.bad],
            task=str(self.setting.recipe["task"]),
            val={name.removeprefix("val/"): value for name, value in last.items() if name.startswith("val/")},
            tta=tta_of(self.module),
            measure=measure,
            val_measure=best,
            val_measure_last=now,
            val_measure_raw=raw,
            test_measure=tested.get(f"test/{measure}"),
        )
        if trainer.is_global_zero:
            self._tell(summary)
        self._summary = summary

    @property
    def summary(self) -> Summary:
        """What came of the run, once it has ended."""
        assert self._summary is not None
        return self._summary

    def _tell(self, summary: Summary) -> None:
        self.folder.write_summary(asdict(summary))
        if any(isinstance(callback, TestReport) for callback in self.trainer.callbacks):  # type: ignore[attr-defined]
            write_page(self.folder.path)
        print(describe(summary))
        if self.tracker is not None:
            checkpoint = summary.best_checkpoint or summary.last_checkpoint
            kept = Path(checkpoint) if checkpoint and self.setting.wandb.log_model == "best" and summary.finished else None
            if line := self.tracker.finish(kept, failed=not summary.finished):
                print(line)

    def _test(self, checkpoint: str | None) -> tuple[Mapping[str, float], float | None]:
        """Measures the test images, where there are any, and writes tables beside the checkpoint.

        Returns:
            The measures, and the mean probability of the classes that were predicted.
        """
        trainer = self.trainer
        if not self.data.has_test or trainer.limit_test_batches == 0 or not self.module.is_tested:
            return {}, None
        if isinstance(self.module, KeepsOutcomes):
            self.module.collect = True
        if tta_of(self.module) != "none":
            self.data.use_features(None)
        tested = trainer.test(self.module, self.data, ckpt_path=checkpoint, verbose=False, weights_only=True)[0]
        confidence = None
        if trainer.is_global_zero and checkpoint and isinstance(self.module, KeepsOutcomes):
            folder = tables_beside(Path(checkpoint), self.data.dataset, "test")
            report, problem = write_tables(folder, "test", tested, Path(checkpoint), self.module, self.data, self.setting.recipe["data"])
            if problem:
                print(f"{folder} can't be written ({problem.strerror or problem}).")
            confidence = report.confidence
        return tested, confidence

    def _raw_measure(self) -> float | None:
        """Validates the last weights as they are where the callback EMA averages them: what its average is worth. None without EMA."""
        trainer, name = self.trainer, f"val/{self.module.measure}"
        average = next((callback for callback in trainer.callbacks if isinstance(callback, EMA)), None)  # type: ignore[attr-defined]
        if average is None or self.best is None or self.module.measure is None:
            return None
        loggers, trainer.loggers = trainer.loggers, []  # what is logged there is the average's
        try:
            with average.raw_weights(self.module):
                found = trainer.validate(self.module, self.data, verbose=False)[0][name]
        finally:
            trainer.loggers = loggers
        for logger in loggers:
            logger.log_metrics({f"{name}_raw": found}, step=trainer.global_step)
        return found
