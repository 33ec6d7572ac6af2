"""What a checkpoint is worth on the test or the validation images: measured, and told in tables."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Trainer

from cct_lightning.data.module import ImageDataModule
from cct_lightning.data.places import OWN
from cct_lightning.errors import InputError
from cct_lightning.evaluation.options import Rejects, cost
from cct_lightning.evaluation.reports import AnyReport, report_of
from cct_lightning.evaluation.tables import check_class_names, describe_report, write_report
from cct_lightning.inference.calibration import calibrate_checkpoint, calibration_note
from cct_lightning.inference.rejection import reject_checkpoint
from cct_lightning.run_folder import RunFolder, tables_beside
from cct_lightning.runs.page import write_page
from cct_lightning.runs.trainer import make_ours
from cct_lightning.tasks.labelled import tta_of
from cct_lightning.tasks.needs import KeepsOutcomes, classifier_of
from cct_lightning.tasks.task import Task
from cct_lightning.weights.files import Opened
from cct_lightning.weights.sources import sha256
from cct_lightning.wording import printable, some

Stage = Literal["val", "test"]
NAMES = {"val": "validation", "test": "test"}


def write_tables(
    folder: Path,
    stage: Stage,
    measured: Mapping[str, Any],
    checkpoint: Path,
    module: KeepsOutcomes,
    data: ImageDataModule,
    images: Mapping[str, Any],
) -> tuple[AnyReport, OSError | None]:
    """Writes what an evaluation found.

    Args:
        folder: Where to.
        stage: Which images were measured.
        measured: By name, ``test/accuracy`` and so on.
        checkpoint: What was measured.
        module: Holds what came of each image.
        data: The images.
        images: The group ``data`` of the recipe.

    Returns:
        What was found, and why the folder can't be written.
    """
    assert module.outcomes is not None
    split, chosen = data.splits[stage]
    set_aside = split is data.splits["train"][0]  # the indices then count all images
    measures = {name.removeprefix(f"{stage}/"): float(value) for name, value in measured.items() if name.startswith(f"{stage}/")}
    source = data.dataset if set_aside else f"the {NAMES[stage]} split"
    report = report_of(module.outcomes, data.class_names, split.files, source, measures)
    told = {name: value for name, value in images.items() if name != "augment"}  # which is for training alone
    about = {
        "checkpoint": checkpoint.name,
        "sha256": sha256(checkpoint),
        "split": stage,
        "split_size": len(chosen),
        "tta": tta_of(module),
        "data": told,
    }
    try:
        write_report(report, folder, about)
    except OSError as error:
        return report, error
    return report, None


def tables_of(checkpoint: Opened, data: ImageDataModule, stage: Stage) -> Path:
    """Names the folder for what an evaluation finds: beside the checkpoint, of other images than its run's named after these, too."""
    said = (checkpoint.about or {}).get("recipe") or {}
    own, root = (os.path.abspath(Path(place).expanduser()) for place in (said.get("data", {}).get("root", data.root), data.root))
    name = data.dataset if own == root or data.dataset not in OWN else f"{data.dataset}-{Path(root).stem}"
    return tables_beside(checkpoint.path, name, stage)


def _check_fitting(flags: Sequence[str], module: Task, data: ImageDataModule) -> None:
    """Refuses to fit something to validation images where there are none, or where no classes are predicted."""
    for name in flags:
        if not data.has_validation:
            raise InputError(
                f"--{name} needs validation images, and there are none: give a val folder, or train with a share set aside (--data.val_fraction 0.1)."
            )
        if module.kind != "class":
            raise InputError(f"--{name} is for classification: this task predicts no classes.")


def evaluate(
    stage: Stage,
    trainer: Mapping[str, Any],
    checkpoint: Opened,
    module: Task,
    data: ImageDataModule,
    images: Mapping[str, Any],
    calibrates: bool = False,
    rejects: Rejects | None = None,
) -> str | None:
    """Measures a checkpoint and writes tables of what was found beside it.

    Args:
        stage: Which images are measured.
        trainer: Arguments of Lightning's Trainer.
        checkpoint: What is measured.
        module: The network that it is of; its weights are loaded.
        data: The images.
        images: The group ``data`` of the recipe.
        calibrates: Whether a temperature is then fitted to the validation images, and kept beside the checkpoint.
        rejects: A threshold of "none of these" that is then chosen on them, and kept there, too; None: none is.

    Returns:
        What was found, as it is printed; None on all ranks but the first.

    Raises:
        InputError: There are no such images, or their classes are not the checkpoint's.
    """
    if stage == "val" and not data.has_validation:
        raise InputError("there are no validation images: data.val_fraction=0 sets none aside; use `cct test`, or train with a share that is.")
    _check_fitting([flag for flag, given in (("calibrate", calibrates), ("reject", rejects is not None)) if given], module, data)
    path = checkpoint.path
    where = f"data.dataset={data.dataset}" if data.about.num_classes and not data.folder else f"data.root={images['root']}"
    if (network := classifier_of(module)) is not None:
        check_class_names(str(path), module.class_names, network.num_classes, data.class_names, where)
    if isinstance(module, KeepsOutcomes):
        module.collect = True
    folder = tables_of(checkpoint, data, stage)
    ours = {"default_root_dir": trainer["default_root_dir"] or str(folder), "enable_checkpointing": False, "logger": trainer["logger"] or False}
    runner = Trainer(**{**trainer, **ours})
    make_ours(runner, checkpoint)
    measure = runner.test if stage == "test" else runner.validate
    measure(module, datamodule=data, ckpt_path=path, verbose=False, weights_only=True)
    if not runner.is_global_zero:
        return None
    source = images["dataset"] if data.about.num_classes else images["root"]
    if not isinstance(module, KeepsOutcomes):
        return "\n".join([f"{NAMES[stage]} of {source}", *(f"  {name} {float(value):.4f}" for name, value in runner.callback_metrics.items())])
    if module.outcomes is None:
        raise InputError("no image was measured: leave out trainer.limit_test_batches=0 and trainer.limit_val_batches=0.")
    report, problem = write_tables(folder, stage, runner.callback_metrics, path, module, data, images)
    there = len(data.splits[stage][1])
    limited = f" of {there:,}" if report.n < there else ""  # by trainer.limit_test_batches and its like
    tta = tta_of(module)
    names = some([printable(str(one.path)) for one in data.bad])
    bad = f"\n  left out of the data set: {len(data.bad):,} image(s) that can't be read: {names}" if data.bad else ""
    told = describe_report(report, f"{NAMES[stage]} of {source}: {report.n:,}{limited} images{cost(tta)}{bad}", str(path), folder, problem)
    splits = {name: data.splits[name] for name in ("val", stage) if name in data.splits}  # no test image is looked at in a validation
    return told + _set(checkpoint, calibrates, rejects, (splits, str(trainer["accelerator"]), data.batch_size, tta, data.max_megapixels))


def _set(checkpoint: Opened, calibrates: bool, rejects: Rejects | None, where_and_how: tuple[Any, ...]) -> str:
    """Fits and keeps what was asked for, and tells of it, or of what is kept already; the run's page tells it as well."""
    told = ""
    if calibrates:
        told += f"\n{calibrate_checkpoint(checkpoint, *where_and_how)}"
    if rejects is not None:  # after the temperature, by which probabilities are others
        told += f"\n{reject_checkpoint(checkpoint, rejects, *where_and_how)}"
    if told and (run := RunFolder(checkpoint.path.resolve().parent.parent)).page.is_file():
        write_page(run.path)
    return told if calibrates else told + calibration_note(checkpoint.path)
