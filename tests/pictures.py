"""Small images on disk, for tests."""

from pathlib import Path

import numpy as np
import PIL.Image
from sklearn.datasets import load_sample_images


def write_images(folder: Path, classes: int, each: int, size: int = 32, grey: bool = False) -> Path:
    """Writes folder/<class>/<number>.png, classes that differ in brightness."""
    source = np.random.default_rng(0)
    for label in range(classes):
        (folder / f"class{label:04d}").mkdir(parents=True, exist_ok=True)
        for number in range(each):
            shape = (size, size) if grey else (size, size, 3)
            pixels = source.integers(0, 100, shape) + 155 * label // max(classes - 1, 1)
            PIL.Image.fromarray(pixels.astype(np.uint8)).save(folder / f"class{label:04d}" / f"{number}.png")
    return folder


def write_photos(folder: Path, each: int, size: int, first: int = 0) -> Path:
    """Writes folder/<temple or flower>/<number>.png, parts of two photographs, of which none overlap that have other numbers."""
    for photo, name in zip(load_sample_images().images, ("temple", "flower"), strict=True):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(first, first + each):
            down, right = divmod(number, photo.shape[1] // size)
            part = photo[down * size : (down + 1) * size, right * size : (right + 1) * size]
            PIL.Image.fromarray(part).save(folder / name / f"{number}.png")
    return folder
