"""Chooses the threshold of "none of these" for a trained network on labelled images, keeps it beside the checkpoint, and measures it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cct_lightning.data.files import Array
from cct_lightning.data.folders import Split
from cct_lightning.data.options import MAX_MEGAPIXELS
from cct_lightning.errors import InputError
from cct_lightning.evaluation.options import Rejects, Tta
from cct_lightning.evaluation.rejection import (
    Answered,
    check_answers,
    choose_threshold,
    describe_answered,
    describe_outliers,
    measure_outliers,
    measure_rejection,
    score,
)
from cct_lightning.inference.calibration import check_keeping, labelled, labelled_logits
from cct_lightning.inference.items import NONE
from cct_lightning.inference.options import ACCELERATORS
from cct_lightning.networks.ensemble import Ensemble
from cct_lightning.networks.options import RejectBy, Rejection
from cct_lightning.weights.files import Opened
from cct_lightning.weights.trained import calibration_path, read_temperature, write_rejection

if TYPE_CHECKING:
    from cct_lightning.inference.items import Item
    from cct_lightning.inference.predictor import Predictor


class Scored(NamedTuple):
    """Scores (n,) of images of the classes, and which are answered right, bool (n,)."""

    scores: Tensor
    right: Tensor


def choose_rejection(
    predictor: Predictor,
    images: str | Path | Iterable[Item],
    targets: Sequence[int | str] | Array | None = None,
    share: float = 0.95,
    by: RejectBy = "energy",
    keep: bool = True,
    tta: Tta = "none",
) -> Answered:
    """Chooses the threshold of a predictor and sets it; see ``Predictor.reject``.

    The temperature comes first: ``probability`` is one after it. ``energy`` is one of the logits as they are, and of the image alone whatever
    ``tta`` sees, so that a temperature that is fitted later changes nothing of it.
    """
    _check(predictor, by)
    if keep:
        check_keeping(predictor, "threshold")
        _check_temperature(predictor, by)
    found = _scored(predictor, images if isinstance(images, str | Path) else list(images), targets, by, tta)
    rejection = Rejection(by, choose_threshold(found.scores, found.right, share))
    answered = measure_rejection(found.scores, found.right, rejection)
    if keep and predictor.saved is not None:
        _keep(predictor, rejection, {"kept": share, "tta": tta, "validation": answered._asdict()})
    predictor.rejection = rejection
    return answered


def _check(predictor: Predictor, by: RejectBy) -> None:
    if predictor.output.kind != "class":
        raise InputError("a threshold of `none` is for networks that tell one class of each image: this one tells labels or numbers.")
    if NONE in predictor.class_names:
        raise InputError(f"a class of this network is called {NONE!r}, as an answer below the threshold would be: rename its folder, and train anew.")
    if by == "energy" and isinstance(predictor.network, Ensemble):
        raise InputError("an ensemble gives the mean of probabilities, which has no energy: choose the threshold by probability.")


def _check_temperature(predictor: Predictor, by: RejectBy) -> None:
    if by != "probability" or predictor.saved is None or (kept := read_temperature(predictor.saved)) == predictor.temperature:
        return
    raise InputError(
        f"a threshold of probabilities after the temperature {predictor.temperature:.4g} can't be kept beside the temperature {kept:.4g}:\n"
        "  keep that of this network first (calibrate), or give keep=False."
    )


def _keep(predictor: Predictor, rejection: Rejection, about: Mapping[str, Any]) -> None:
    assert predictor.saved is not None
    try:
        write_rejection(predictor.saved.weights, rejection, about)
    except OSError as error:
        folder = predictor.saved.weights.parent
        raise InputError(f"the threshold {rejection.threshold:.4g} can't be kept in {folder}: {error.strerror or error}.") from error


def _scored(predictor: Predictor, images: str | Path | list[Item], targets: Sequence[int | str] | Array | None, by: RejectBy, tta: Tta) -> Scored:
    logits, labels = labelled_logits(predictor, images, targets, tta)
    right = check_answers(logits, labels)
    alone = logits if tta == "none" or by != "energy" else labelled_logits(predictor, images, targets)[0]
    return Scored(score(alone, (logits / predictor.temperature).softmax(dim=1), by), right)


def reject_checkpoint(
    checkpoint: Opened,
    asked: Rejects,
    splits: Mapping[str, tuple[Split, Array]],
    accelerator: str = "auto",
    batch_size: int = 32,
    tta: Tta = "none",
    max_megapixels: float = MAX_MEGAPIXELS,
) -> str:
    """Chooses the threshold on the validation images of a run, keeps it, and measures it on test images and outliers where these are given.

    Args:
        checkpoint: Of the run. A temperature that lies beside it counts.
        asked: What is asked for.
        splits: Of ``ImageDataModule.splits``, by name: images, and which of them are meant. ``val`` is among them, ``test`` may be.
        accelerator: As Lightning names it; what predictions know no word for is left to them.
        batch_size: Images at a time.
        tta: What is seen of each.
        max_megapixels: Images of more millions of pixels are not read.

    Returns:
        What came of it, as it is printed.

    Raises:
        InputError: As ``choose_rejection``; an outlier can't be read.
    """
    from cct_lightning.inference.opening import load

    known = accelerator if accelerator in ACCELERATORS else "auto"
    predictor = load(checkpoint, accelerator=known, batch_size=batch_size, max_megapixels=max_megapixels)
    of_validation = choose_rejection(predictor, *labelled(*splits["val"]), asked.share, asked.by, tta=tta)
    rejection = predictor.rejection
    assert rejection is not None
    temperature = f" after the temperature {predictor.temperature:.4f}" if asked.by == "probability" and predictor.temperature != 1 else ""
    lines = [
        f"rejection  {rejection.by} below {rejection.threshold:.4f}{temperature} is answered {NONE!r}, kept in {calibration_path(checkpoint.path)}",
        describe_answered(of_validation, "validation"),
    ]
    about: dict[str, Any] = {"kept": asked.share, "tta": tta, "validation": of_validation._asdict()}
    beside = "test" if "test" in splits else "val"
    items, targets = labelled(*splits[beside])
    inside = _scored(predictor, items, targets, asked.by, tta)
    if beside == "test":
        of_test = measure_rejection(*inside, rejection)
        lines.append(describe_answered(of_test, "test"))
        about["test"] = of_test._asdict()
    if asked.outliers is not None:
        outside = _scores_of(predictor, asked.outliers, asked.by, tta)
        of_outliers = measure_outliers(inside.scores, outside, rejection)
        lines.append(describe_outliers(of_outliers, str(asked.outliers), {"test": "test", "val": "validation"}[beside]))
        about["outliers"] = {"of": str(asked.outliers), **of_outliers._asdict()}
    _keep(predictor, rejection, about)
    return "\n".join(lines)


def _scores_of(predictor: Predictor, folder: Path, by: RejectBy, tta: Tta) -> Tensor:
    """Returns the scores of all images below a folder."""

    def logits(seen: Tta) -> Tensor:
        return torch.from_numpy(np.stack(list(predictor.logits_of([folder], seen))))

    of_views = logits(tta)
    alone = of_views if tta == "none" or by != "energy" else logits("none")
    return score(alone, (of_views / predictor.temperature).softmax(dim=1), by)
