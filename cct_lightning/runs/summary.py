"""The summary of a run, as it is printed."""

import math
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

import cct_lightning
from cct_lightning.evaluation.calibration import how_to_calibrate, why_uncalibrated
from cct_lightning.evaluation.measures import has_measure, measure_of, measured
from cct_lightning.evaluation.options import Tta, cost
from cct_lightning.run_folder import LEFT_OUT
from cct_lightning.tasks.registry import DEFAULT
from cct_lightning.training.hardware import REFERENCE_SPEED
from cct_lightning.wording import part_epochs, percent, some


def about(num_parameters: int, flops_per_image: int | None) -> dict[str, Any]:
    """Returns what a recipe does not say of a run: versions, the commit of the repository it was started in, the network's size."""
    versions = {"cct-lightning": cct_lightning.__version__, "python": platform.python_version()}
    versions |= {name: version(name) for name in ("torch", "lightning", "timm")}
    return {"versions": versions, "git_commit": _git_commit(), "num_parameters": num_parameters, "flops_per_image": flops_per_image}


def _git_commit() -> str | None:
    """Returns the commit of the working directory's repository, with -dirty where files were changed; None where there is none."""
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=3, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


@dataclass(frozen=True)
class Summary:
    """What came of a run: what summary.json holds.

    Attributes:
        recipe: Its name.
        run_dir: The run's folder.
        arch: Of the network.
        pooling: Class of the network's pooling.
        val_accuracy: Validation accuracy of the epoch that is kept as the best, 0..1, as all accuracies; None of tasks that are measured otherwise.
        val_accuracy_last: Of the last one.
        val_accuracy_raw: Of the last weights without their average, where the callback EMA averages.
        test_accuracy: Test accuracy with the best weights; None where the test images were not measured.
        test: All measures of the test, by name.
        num_parameters: Of the network.
        flops_per_image: Operations of classifying an image.
        images_per_second: Training images per second, loading included.
        seconds: Of training and validation, over all sittings.
        cpu_seconds: Of all threads and finished children, reading of images included, test not.
        epochs: That ended.
        steps: Of the optimizer.
        best_checkpoint: File with the best epoch.
        last_checkpoint: File with the last one.
        load_report: What became of the weights that the run started from.
        device: What it was computed on.
        devices: Their number.
        seed: Of the run.
        finished: Whether it came to its end and was not stopped.
        resumed: How often it was resumed.
        test_confidence: Mean probability of the classes that were predicted in the test.
        label_smoothing: Of the run.
        steps_per_epoch: Of the optimizer; None where that is not known.
        changed_data: What became of the images while the run was stopped, where it went on all the same.
        trained: Whether its training came to its end; where it is not finished, it was stopped in the measures that follow.
        left_out: Images that could not be read and were left out.
        product_speeds: Products of bfloat16 that a core computed at the start, in the middle and at the end of the training, GFLOP/s.
        cpu_seconds_at_350: ``cpu_seconds`` of cores that compute 350 GFLOP/s, by the mean of those: what other machines' compare with. None of a run
            that was resumed, or was not computed in bfloat16 on a CPU.
        task: What was learned.
        val: All measures of the last validation, by name.
        tta: What the test saw of each image.
        measure: The task's own, a name of ``evaluation.measures.MEASURES``, at most 1; None where it has none.
        val_measure: It, of the validation of the epoch that is kept as the best.
        val_measure_last: Of the last one.
        val_measure_raw: Of the last weights without their average, where the callback EMA averages.
        test_measure: Of the test with the best weights; None where the test images were not measured.
    """

    recipe: str
    run_dir: str
    arch: str
    pooling: str
    val_accuracy: float | None
    val_accuracy_last: float | None
    val_accuracy_raw: float | None
    test_accuracy: float | None
    test: Mapping[str, float]
    num_parameters: int
    flops_per_image: int | None
    images_per_second: float | None
    seconds: float
    cpu_seconds: float
    epochs: int
    steps: int
    best_checkpoint: str | None
    last_checkpoint: str | None
    load_report: Mapping[str, Any] | None
    device: str
    devices: int
    seed: int
    finished: bool
    resumed: int
    test_confidence: float | None = None
    label_smoothing: float | None = None
    steps_per_epoch: int | None = None
    changed_data: Sequence[str] | None = None
    trained: bool = False
    left_out: Sequence[str] | None = None
    product_speeds: Sequence[float] | None = None
    cpu_seconds_at_350: float | None = None
    task: str = DEFAULT
    val: Mapping[str, float] | None = None
    tta: Tta = "none"
    measure: str | None = None
    val_measure: float | None = None
    val_measure_last: float | None = None
    val_measure_raw: float | None = None
    test_measure: float | None = None


def device_name(trainer: Trainer) -> str:
    """Names what the run computes on."""
    device = trainer.strategy.root_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"


def steps_per_epoch(trainer: Trainer) -> int | None:
    """Returns the optimizer's steps in an epoch of a training, None where that is not known; the last batch steps, too, however few accumulated."""
    batches = trainer.num_training_batches
    return -(-int(batches) // trainer.accumulate_grad_batches) if math.isfinite(batches) else None


def _cost(summary: Summary) -> str:
    if summary.cpu_seconds_at_350 is None or not summary.product_speeds:
        return ""
    measured = statistics.mean(summary.product_speeds)
    return f"; {summary.cpu_seconds:.1f} CPU-seconds of cores with {measured:.0f} GFLOP/s, {summary.cpu_seconds_at_350:.1f} at {REFERENCE_SPEED:.0f}"


def _measures(summary: Summary) -> list[str]:
    """Tells how good the network is, in a line for the validation and one for the test; of what learns no labels the loss alone."""
    if has_measure(vars(summary)):
        val, last, raw, test = (measured(vars(summary), what) for what in ("val", "val_last", "val_raw", "test"))
        without = f"; last without EMA {percent(raw, 2)}" if raw is not None else ""
        weights = f" with the {'best' if summary.best_checkpoint else 'last'} weights{cost(summary.tta)}" if test is not None else ""
        title = measure_of(vars(summary)).title
        return [f"  {f'validation {title}':19}  best {percent(val, 2)}, last {percent(last, 2)}{without}",
                f"  {f'test {title}':19}  {percent(test, 2)}{weights}"]  # fmt: skip
    found = summary.val or {}
    lines = [f"  validation loss      {found['loss']:.4f}"] if "loss" in found else []
    return lines + ([f"  k-NN accuracy        {percent(found['knn'], 2)} of the validation images, by labelled neighbours"] if "knn" in found else [])


def _next(summary: Summary) -> list[str]:
    """Tells what to type now."""
    run_dir, checkpoint = summary.run_dir, summary.best_checkpoint or summary.last_checkpoint
    lines = [f"  cct resume {run_dir}{' measures the test images' * summary.trained}"] if not summary.finished and summary.last_checkpoint else []
    if checkpoint and not has_measure(vars(summary)):
        lines.append(f"  cct finetune DIR --model.pretrained {run_dir}")
    elif checkpoint:  # a run that was not tested has no test images, or was interrupted
        lines.append(f"  cct {'test' if measured(vars(summary), 'test') is not None or not summary.finished else 'validate'} {checkpoint}")
    return [*lines, f"  cct fit -c {run_dir}/config.yaml --seed_everything {summary.seed + 1}"]


def describe(summary: Summary) -> str:
    """Returns the summary as it is printed at the end of a run: results, where the files are, what to type next."""
    run_dir, speed = summary.run_dir, summary.images_per_second
    checkpoints = [c for c in (summary.best_checkpoint, summary.last_checkpoint) if c]
    flops = summary.flops_per_image
    why, way = why_uncalibrated(vars(summary)), how_to_calibrate(vars(summary))
    part = part_epochs(summary.epochs, summary.steps, summary.steps_per_epoch)
    length = f"{summary.steps} steps, {part}," if part else f"{summary.epochs} epochs ({summary.steps} steps)"
    lines = [
        "",
        f"{summary.recipe}: {summary.arch}, {length} in {summary.seconds:.1f} s "
        f"on {summary.device}" + (f", in {1 + summary.resumed} sittings" if summary.resumed else "") + ("" if summary.finished else " (interrupted)"),
        *_measures(summary),
        *([f"  calibration          {why}"] if why else []),
        *([f"                       a temperature mends it: {way}"] if why and way else []),
        f"  network              {summary.num_parameters:,} parameters, {flops / 1e6:,.1f} MFLOPs per image"
        if flops
        else f"  network              {summary.num_parameters:,} parameters",
        (f"  speed                {speed:,.0f} images/s" if speed else "  speed                - (too few steps)") + _cost(summary),
        *(f"  changed data         {line}" for line in summary.changed_data or ()),
        *([f"  left out             {len(bad)} image(s) that can't be read: {some(bad)} ({LEFT_OUT})"] if (bad := summary.left_out) else []),
        f"  files                {run_dir}: config.yaml, metrics.csv, summary.json"
        + "".join(f", {name}" for name in ("pictures", "report.html") if Path(run_dir, name).exists())
        + (f", checkpoints/{', '.join(Path(c).name for c in checkpoints)}" if checkpoints else ""),
        "next",
        *_next(summary),
    ]
    return "\n".join(lines)
