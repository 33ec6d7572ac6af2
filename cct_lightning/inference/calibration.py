"""Fits a temperature to a trained network on labelled images, the way it predicts, and keeps it beside the checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from cct_lightning.data.files import Array
from cct_lightning.data.folders import Split, class_folders, class_images
from cct_lightning.data.options import MAX_MEGAPIXELS
from cct_lightning.errors import InputError
from cct_lightning.evaluation.calibration import Calibration, describe_calibration, fit_temperature, measure_temperature
from cct_lightning.evaluation.options import Tta
from cct_lightning.inference.options import ACCELERATORS
from cct_lightning.side_files import read_json as read_side_file
from cct_lightning.weights.files import Opened
from cct_lightning.weights.trained import calibration_path, write_temperature

if TYPE_CHECKING:
    from cct_lightning.inference.items import Item
    from cct_lightning.inference.predictor import Predictor


def calibrate(
    predictor: Predictor,
    images: str | Path | Iterable[Item],
    targets: Sequence[int | str] | Array | None = None,
    keep: bool = True,
    tta: Tta = "none",
) -> Calibration:
    """Fits the temperature of a predictor and sets it; see ``Predictor.calibrate``."""
    if predictor.output.kind != "class":
        raise InputError("a temperature is fitted to a network that tells one class each, and this one tells several labels or numbers.")
    if keep:
        check_keeping(predictor)
    logits, labels = labelled_logits(predictor, images, targets, tta)
    found = measure_temperature(logits, labels, fit_temperature(logits, labels))
    if keep and predictor.saved is not None:
        about = {"tta": tta, "n": found.n, "accuracy": found.accuracy, "before": found.before._asdict(), "after": found.after._asdict()}
        try:
            write_temperature(predictor.saved.weights, found.temperature, about)
        except OSError as error:
            folder = predictor.saved.weights.parent
            raise InputError(f"the temperature {found.temperature:.4g} can't be kept in {folder}: {error.strerror or error}.") from error
    predictor.temperature = found.temperature
    if predictor.rejection is not None and predictor.rejection.by == "probability":  # it was one of other probabilities
        predictor.rejection = None
    return found


def calibrate_checkpoint(
    checkpoint: Opened,
    splits: Mapping[str, tuple[Split, Array]],
    accelerator: str = "auto",
    batch_size: int = 32,
    tta: Tta = "none",
    max_megapixels: float = MAX_MEGAPIXELS,
) -> str:
    """Fits a temperature to the validation images of a run, keeps it, and measures it on the test images where these are given.

    Args:
        checkpoint: What is calibrated.
        splits: Of ``ImageDataModule.splits``, by name: images, and which of them are meant. ``val`` is among them, ``test`` may be.
        accelerator: As Lightning names it; what predictions know no word for is left to them.
        batch_size: Images at a time.
        tta: What is seen of each.
        max_megapixels: Images of more millions of pixels are not read.

    Returns:
        What came of it, as it is printed.

    Raises:
        InputError: As ``Predictor.calibrate``.
    """
    from cct_lightning.inference.opening import load

    known = accelerator if accelerator in ACCELERATORS else "auto"
    predictor = load(checkpoint, accelerator=known, batch_size=batch_size, calibrated=False, max_megapixels=max_megapixels)
    found = calibrate(predictor, *labelled(*splits["val"]), tta=tta)
    lines = [
        f"calibration  temperature {found.temperature:.4f}, kept in {calibration_path(checkpoint.path)}",
        describe_calibration(found, "validation"),
    ]
    if "test" in splits:
        logits, labels = labelled_logits(predictor, *labelled(*splits["test"]), tta)
        lines.append(describe_calibration(measure_temperature(logits, labels, found.temperature), "test"))
    return "\n".join(lines)


def calibration_note(checkpoint: Path) -> str:
    """Ends what is told of an evaluation, which measures logits as they are, where a temperature or a threshold lies beside the checkpoint."""
    path = calibration_path(checkpoint)
    about = read_side_file(path)
    kept = ["the temperature"] * (about.get("temperature") != 1) + ["the threshold of `none`"] * ("reject" in about)
    return f"\nmeasured without {' and '.join(kept)} in {path}, which predictions use" if path.is_file() and kept else ""


def labelled(split: Split, chosen: Array) -> tuple[list[Item], Array]:
    """Returns images of a split and their classes."""
    images = split.files if split.files is not None else split.images
    return [images[index] for index in chosen], split.targets[chosen]


def check_keeping(predictor: Predictor, what_is_kept: str = "temperature") -> None:
    """Refuses to keep what is found beside a network that is no checkpoint, or was opened otherwise than it was trained.

    Raises:
        InputError: Says so.
    """
    saved, preprocessing = predictor.saved, predictor.preprocessing.to_json()
    if saved is None or saved.format != "checkpoint":
        what = f"{saved.weights} is an export" if saved else "this network came from no file"
        raise InputError(f"{what}, beside which no {what_is_kept} is kept: calibrate the run's checkpoint and export that, or give keep=False.")
    if other := [name for name, value in saved.preprocessing.items() if value is not None and _plain(value) != _plain(preprocessing[name])]:
        name = other[0]
        raise InputError(
            f"{saved.weights} was opened with {name}={preprocessing[name]}, its own is {_plain(saved.preprocessing[name])}.\n"
            f"  A {what_is_kept} that is kept is that of the network as it was trained: leave it out, or give keep=False."
        )


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def labelled_logits(
    predictor: Predictor, images: str | Path | Iterable[Item], targets: Sequence[int | str] | Array | None, tta: Tta = "none"
) -> tuple[Tensor, Tensor]:
    """Returns logits (n, K), on the host, and class indices (n,) of labelled images, given as in ``Predictor.calibrate``.

    Raises:
        InputError: An image can't be read, targets are missing, too many or too few, or a class is none of the network's.
    """
    if targets is None:
        if not isinstance(images, str | Path):
            raise InputError("images are given without targets: give the class of each, or a folder of class folders.")
        images, targets = _in_class_folders(Path(images).expanduser(), predictor.class_names)
    elif isinstance(images, str | Path):
        images = [images]
    labels = [_label(target, predictor.class_names) for target in targets]
    logits = list(predictor.logits_of(images, tta))
    if len(logits) != len(labels):
        raise InputError(f"{len(logits):,} images and {len(labels):,} targets are given: each image needs one.")
    return torch.from_numpy(np.stack(logits)) if logits else torch.zeros(0, len(predictor.class_names)), torch.tensor(labels, dtype=torch.long)


def _label(target: object, class_names: Sequence[str]) -> int:
    if isinstance(target, str):
        if target not in class_names:
            raise InputError(f"target {target!r} is none of the network's classes: {', '.join(map(repr, class_names[:10]))}.")
        return class_names.index(target)
    label = int(target)  # type: ignore[call-overload]
    if not 0 <= label < len(class_names):
        raise InputError(f"target {label} is none of the network's classes, 0 to {len(class_names) - 1}.")
    return int(label)


def _in_class_folders(folder: Path, class_names: Sequence[str]) -> tuple[list[Path], list[int]]:
    found = {path.name: path for path in class_folders(folder)}
    if odd := sorted(found.keys() - set(class_names)) or not found:
        what = f"{odd[0]!r} is none" if isinstance(odd, list) else "it holds none"
        raise InputError(f"{folder} is no folder of class folders of this network ({what} of {', '.join(map(repr, class_names[:10]))}).")
    files: list[Path] = []
    labels: list[int] = []
    for name, path in found.items():
        members = class_images(path)
        files += members
        labels += [class_names.index(name)] * len(members)
    return files, labels
