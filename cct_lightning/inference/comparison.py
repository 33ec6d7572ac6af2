"""Compares an exported network with the original on real images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from cct_lightning.data.files import find_images
from cct_lightning.data.options import Preprocessing
from cct_lightning.errors import InputError
from cct_lightning.networks.outputs import Output
from cct_lightning.weights.schema import FILES

if TYPE_CHECKING:
    from torch import Tensor

    from cct_lightning.data.files import Array
    from cct_lightning.networks.classifier import ImageClassifier
    from cct_lightning.networks.ensemble import Ensemble
    from cct_lightning.weights.files import Opened


NUM_IMAGES = 16  # on which the file is compared with the original
LOOKED_AT = 1000  # files of a folder that these are chosen from, evenly


def sample_pictures(source: Opened | None, preprocessing: Preprocessing, folder: Path | None) -> tuple[Array, str]:
    """Returns real images of the network's size, uint8 (B, H, W, C), and where they are from."""
    import numpy as np
    import PIL.Image

    from cct_lightning.data.preparation import prepare

    recipe = source.about["recipe"] if source is not None and source.about is not None else None
    root = Path(recipe["data"]["root"]).expanduser() if recipe and recipe["data"].get("dataset") == "image_folder" else None
    chosen = folder or root
    files = [found.path for found in islice(find_images([chosen]), LOOKED_AT) if not found.error] if chosen is not None else []
    pixels, problems = _read_some(files, preprocessing)
    if folder is not None and not pixels:
        raise InputError(f"--images {folder} holds no image{f' that can be read: {problems[0]}' if problems else '.'}")
    if pixels:
        where = f"{len(pixels)} image{'s' * (len(pixels) > 1)} of {chosen}"
    else:
        from sklearn.datasets import load_sample_images

        mode = "L" if preprocessing.in_chans == 1 else "RGB"
        photographs = [np.asarray(PIL.Image.fromarray(photograph).convert(mode)) for photograph in load_sample_images().images]
        rows = [row for photograph in photographs for row in np.array_split(photograph, 2)]
        pixels = [np.atleast_3d(piece) for row in rows for piece in np.array_split(row, NUM_IMAGES // len(rows), axis=1)]
        where = f"{len(pixels)} pieces of scikit-learn's photographs"
    # Of more channels than files have, the colours are repeated.
    fitted = [prepare(p[..., np.arange(preprocessing.in_chans) % p.shape[-1]], preprocessing) for p in pixels]
    return np.stack(fitted), where


def _read_some(files: Sequence[str], preprocessing: Preprocessing) -> tuple[list[Array], list[InputError]]:
    """Reads up to ``NUM_IMAGES`` files, spread over all; returns also what is wrong with the first of those that can't be read."""
    pixels: list[Array] = []
    problems: list[InputError] = []
    step = -(-len(files) // NUM_IMAGES) or 1
    for file in [*files[::step], *(file for start in range(1, step) for file in files[start::step])]:
        if len(pixels) == len(files[::step]) or len(problems) == NUM_IMAGES:
            break
        try:
            pixels.append(_decode(Path(file), preprocessing))
        except InputError as error:
            problems.append(error)
    return pixels, problems


def _decode(file: Path, preprocessing: Preprocessing) -> Array:
    """Reads an image; one in colour will do where a network takes more channels."""
    from cct_lightning.data.files import decode

    try:
        return decode(file, preprocessing.in_chans, value_range=preprocessing.value_range)
    except InputError:
        if preprocessing.in_chans in (1, 3):
            raise
        return decode(file, 3)


def _agreeing(given: Tensor, expected: Tensor, output: Output) -> int:
    """Counts the images of the same class, or labels; of numbers all are."""
    if output.kind == "class":
        return int((given.argmax(1) == expected.argmax(1)).sum())
    if output.kind == "labels":
        marks = [output.read(logits).double() >= logits.new_tensor(output.thresholds).double() for logits in (given, expected)]
        return int((marks[0] == marks[1]).all(dim=1).sum())
    return len(given)


def batch_sizes(count: int) -> list[int]:
    return sorted({1, min(3, count), count})


def compare(
    network: ImageClassifier | Ensemble, folder: Path, format: str, preprocessing: Preprocessing, pictures: Array, tolerance: float, output: Output
) -> tuple[float, float, int]:
    """Reads an export back and runs it beside the original.

    Returns:
        The largest difference of a logit, what is allowed, and how many of the images' classes agree.

    Raises:
        InputError: The difference is more than that.
    """
    import timm
    import torch

    from cct_lightning.data.preparation import normalize
    from cct_lightning.inference.opening import load

    readers: list[Callable[[Tensor], Tensor]] = [load(folder, accelerator="cpu").logits]
    if format == "torch-export":  # written a moment ago: torch may run what it holds, and shall, as other programs will
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")  # torch 2.11 of its own reading
            readers.append(torch.export.load(folder / FILES[format]).module())
    if format == "timm":
        readers.append(timm.create_model(f"local-dir:{folder}", pretrained=True).eval())
    images = normalize(torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous(), preprocessing.mean, preprocessing.std)
    with torch.inference_mode():
        wanted = network(images)
        runs = [(read(images[:size]), wanted[:size]) for read in readers for size in batch_sizes(len(images))]
    difference = max(float((given - expected).abs().max()) for given, expected in runs)
    agree = min(_agreeing(given, expected, output) for given, expected in runs if len(given) == len(images))
    allowed = tolerance * max(1.0, float(wanted.abs().max()))
    if not difference <= allowed:  # also where it is not a number
        raise InputError(
            f"the {format} file does not compute what the checkpoint does: logits differ by up to {difference:.1e}, {allowed:.1e} is allowed.\n"
            f"  {agree} of {len(images)} predicted classes agree. Nothing was kept; where that will do, give a larger --tolerance."
        )
    return difference, allowed, agree
