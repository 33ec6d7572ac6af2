"""Small images on disk, for tests."""

from pathlib import Path

import numpy as np
import PIL.Image


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
