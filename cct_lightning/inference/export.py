"""``cct export``: writes a trained network for other programs, reads the file back and compares it with the original. Plain torch."""

from __future__ import annotations

import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from safetensors import SafetensorError

from cct_lightning.data.options import Preprocessing
from cct_lightning.errors import InputError, check_range, did_you_mean
from cct_lightning.run_folder import ENSEMBLE
from cct_lightning.weights.sources import find_source
from cct_lightning.weights.trained import Saved, read_saved, with_calibration

if TYPE_CHECKING:
    from cct_lightning.networks.classifier import ImageClassifier
    from cct_lightning.networks.ensemble import Ensemble
from cct_lightning.inference.card import CARD, card, is_card, look_up
from cct_lightning.inference.comparison import compare, sample_pictures
from cct_lightning.inference.writers import FORMATS, _write

TOLERANCE = 1e-4  # float32 rounds a network's sums by 1e-6 or so, whatever their order; a graph that computes something else is far off


class Exported(NamedTuple):
    """What was written, and how its logits compare with the original's.

    Attributes:
        folder: It holds the network's file, config.json, and README.md, a card of it.
        format: A name of ``FORMATS``.
        arch: Of the network.
        compared_on: The images, in words.
        num_images: Their number.
        difference: Largest difference of a logit.
        allowed: Largest that passes.
        agreeing: Images with the same predicted class, or labels.
        kind: What the network tells, see ``Output``.
    """

    folder: Path
    format: str
    arch: str
    compared_on: str
    num_images: int
    difference: float
    allowed: float
    agreeing: int
    kind: str = "class"


def export(
    checkpoint: str | Path,
    format: str,
    out: str | Path | None = None,
    images: str | Path | None = None,
    tolerance: float = TOLERANCE,
    overwrite: bool = False,
) -> Exported:
    """Writes a trained network for other programs, and compares what was written with the original.

    Args:
        checkpoint: A run's checkpoint or folder.
        format: A name of ``FORMATS``.
        out: Folder; None: ``export/<format>`` in the run's folder.
        images: Folder of images to compare on.
        tolerance: Largest difference of a logit that passes, times the largest logit where that is above 1.
        overwrite: Replace an export that is there.

    Returns:
        The folder, which holds the network's file, config.json and a card, README.md, and how it compares.

    Raises:
        InputError: Anything the user can mend. Nothing is left then, and what was there before is as it was.
    """
    if format not in FORMATS:
        raise InputError(f"--format {format} is unknown.{did_you_mean(format, FORMATS)}")
    check_range("--tolerance", tolerance, 0)
    if absent := [package for package in FORMATS[format].needs if find_spec(package) is None]:
        raise InputError(f'--format {format} needs {", ".join(absent)}, not installed here: pip install "cct-lightning[{format}]"')
    source = find_source(checkpoint)
    if source.name == "config.json" or source.suffix in {Path(about.file).suffix for about in FORMATS.values()}:
        raise InputError(f"{checkpoint} is an export, or weights alone: give a run's folder or its best.ckpt.")
    target = Path(out).expanduser() if out is not None else _beside(source, format)
    _check_target(target, overwrite)
    if images is not None and not Path(images).expanduser().is_dir():
        raise InputError(f"--images {images} is no folder.")

    saved = with_calibration(read_saved(source))
    if saved.preprocessing["mean"] is None or saved.preprocessing["std"] is None:
        raise InputError(f"{source} does not say how its images are normalised: train with LitClassifier(..., mean=[...], std=[...]).")
    preprocessing = Preprocessing.from_json(saved.preprocessing)
    network = _original(saved)
    pictures, where = sample_pictures(saved.opened, preprocessing, Path(images).expanduser() if images is not None else None)

    # In the nearest folder that is there, so on the same disk, and renamed when all is well.
    place = target.resolve()
    work = next(folder for folder in (place, *place.parents) if folder.is_dir()) / f".{place.name}-{os.getpid()}"
    try:
        work.mkdir()
        _write(network, saved, preprocessing, format, work)
        difference, allowed, agree = compare(network, work, format, preprocessing, pictures, tolerance, saved.output)
        (work / CARD).write_text(card(saved, look_up(saved)), encoding="utf-8")
        _put_in_place(work, place)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{target} can't be written: {getattr(error, 'strerror', None) or error}.") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)

    return Exported(target, format, saved.model["arch"], where, len(pictures), difference, allowed, agree, saved.output.kind)


def _beside(source: Path, format: str) -> Path:
    """Returns the default folder: in the run's, or beside a checkpoint of no run."""
    if source.parent.name == "checkpoints":
        return source.parent.parent / "export" / format
    if source.name == ENSEMBLE:
        return source.with_name("export") / format
    return source.with_name(f"{source.stem}-{format}")


def _check_target(target: Path, overwrite: bool) -> None:
    """Refuses a folder that holds something, unless it is an export alone and shall be replaced."""
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file: name a folder with --out.")
    names = {path.name for path in target.iterdir()} if target.is_dir() else set()
    ours = {"config.json", *(about.file for about in FORMATS.values()), *([CARD] if is_card(target / CARD) else [])} if _is_export(target) else set()
    if others := sorted(names - ours):
        raise InputError(f"{target} holds {others[0]}, which no export wrote: name another folder with --out.")
    if names and not overwrite:
        raise InputError(f"{target} is not empty: --overwrite replaces what is in it, --out DIR writes elsewhere.")


def _is_export(folder: Path) -> bool:
    try:
        return "cct_lightning" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False


def _put_in_place(work: Path, place: Path) -> None:
    """Renames a finished folder, or its files where the folder is there; config.json, which has the other's sha256, comes last."""
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        work.rename(place)
        return
    new = sorted(work.iterdir(), reverse=True)
    for path in new:
        path.replace(place / path.name)
    for name in {about.file for about in FORMATS.values()} - {path.name for path in new}:
        (place / name).unlink(missing_ok=True)


def _original(saved: Saved) -> ImageClassifier | Ensemble:
    """Builds the network with its weights, float32 on the CPU in eval mode."""
    from cct_lightning.weights.ensemble import build_network

    return build_network(saved).float().eval()
