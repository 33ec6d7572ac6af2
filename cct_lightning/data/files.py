"""Image files: which there are, and how one becomes pixels."""

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageOps

from cct_lightning.errors import InputError

Array = np.ndarray[Any, Any]
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


def decode(image: Array | Path, in_chans: int) -> Array:
    """Reads a file as uint8 (H, W, C), turned upright as its EXIF tag says; an array is returned as it is.

    Raises:
        InputError: The file is no image, or damaged.
    """
    if isinstance(image, np.ndarray):
        return image
    try:
        with PIL.Image.open(image) as file:
            file.load()
            # exif_transpose takes as long as decoding a small image, so only where there is something to read the orientation from
            turned = file.format == "TIFF" or any("exif" in str(name).lower() or "xmp" in str(name).lower() for name in file.info)
            upright = PIL.ImageOps.exif_transpose(file) if turned else file
            if upright.mode in ("I", "F", "I;16", "I;16B", "I;16L"):  # 16 bits: Pillow would cut them off at 255
                deep = np.asarray(upright, dtype=np.float64)
                upright = PIL.Image.fromarray((deep / (257 if deep.max() > 255 else 1)).clip(0, 255).astype(np.uint8))
            pixels = np.asarray(upright.convert("L" if in_chans == 1 else "RGB"))
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise InputError(f"{image} can't be read as an image ({str(error).splitlines()[0][:80]}): mend it or move it out of the data set.") from None
    return pixels[..., None] if pixels.ndim == 2 else pixels


class Found(NamedTuple):
    """A file, or a path that leads to none, and why."""

    path: str
    error: str | None = None


def find_images(paths: Iterable[str | Path]) -> Iterator[Found]:
    """Lists files, folders and globs in the order given.

    Folders are read with all that is below them, sorted by name. Of folders and globs only images (``SUFFIXES``) are taken, and no hidden
    ones; a named file is taken whatever its name. A path that leads to no file is told, not passed over.
    """
    for path in map(str, paths):
        if os.path.isdir(path):
            files, none = _in_folder(path), "there is no image in this folder"
        elif is_glob(path):
            files, none = _in_glob(path), "no image matches"
        else:
            files, none = iter([Found(path)] if os.path.isfile(path) else []), "there is no such file"
        yield next(files, Found(path, none))
        yield from files


def is_glob(path: str) -> bool:
    """Whether a path is a pattern such as ``photos/**/*.jpg``, and not the name of a file that only looks like one."""
    return glob.has_magic(path) and not os.path.lexists(path)


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def _in_folder(folder: str, above: tuple[tuple[int, int], ...] = ()) -> Iterator[Found]:
    """Lists the images of a folder; ``above`` identifies the folders it lies in."""
    try:
        about = os.stat(folder)
        with os.scandir(folder) as entries:
            members = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        yield Found(folder, f"can't be opened ({error.strerror})")
        return
    identity = (about.st_dev, about.st_ino)
    if identity in above:
        return  # a link that leads back
    for entry in members:
        if entry.is_dir():
            yield from _in_folder(entry.path, (*above, identity))
        elif _is_image(entry.name):
            yield Found(entry.path)


def _in_glob(pattern: str) -> Iterator[Found]:
    # The names of all matches are sorted: ten megabytes for a hundred thousand. What ** finds below a folder, it finds by itself, too.
    for path in sorted(glob.iglob(pattern, recursive=True)):
        if os.path.isdir(path):
            if "**" not in pattern:
                yield from _in_folder(path)
        elif _is_image(os.path.basename(path)):
            yield Found(path)
