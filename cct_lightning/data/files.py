"""Image files: which there are, and how one becomes pixels, the same for training, predictions and features.

What a file holds decides how it becomes uint8, never how bright this image happens to be; ``Mode`` is Pillow's:

| Mode | stored | becomes |
|---|---|---|
| 1, L, P, RGB | up to 8 bits a channel | what Pillow reads: 0..255, palettes looked up |
| LA, PA, RGBA | with transparency | the same, transparency left out |
| CMYK, YCbCr, LAB | 8 bits a channel | RGB as Pillow converts it; LAB not for a network of grey images |
| RGB, RGBA, CMYK | 16 bits a channel | the upper 8 bits of each; with ``data.value_range`` a PNG is refused |
| I;16, I;16B, I of PNG and PGM | grey of 16 bits | v // 257: 65535 becomes 255, 300 becomes 1, and what lies in 0..255 black |
| I;16 of TIFF | grey of 12 bits | v * 255 // 4095 |
| I of TIFF and others | 32 bits, or 16 with a sign | refused: no largest value is known |
| F | float, NaN or not | refused, likewise; with ``data.value_range`` these three and 16 bits are scaled by it |
| La | with transparency multiplied in | refused: Pillow can't convert it |

.npy, and TIFF of other channels than 1 and 3, are read by ``arrays``. Of a network of 4 channels RGBA is read whole, of one of 2 LA.

Grey becomes RGB of three equal channels, and colour becomes grey as ITU-R 601-2 weighs it, where the network takes the other. Of animations and
files of several pages the first image is read, turned upright as its EXIF tag says.

A PNG is verified, see ``integrity``. No other format has checksums over its pixels: in a JPEG, GIF, BMP, WebP or TIFF a flipped bit may be
another picture, and is found only where the decoder stumbles.
"""

import glob
import io
import os
import re
import stat
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageOps
import PIL.PngImagePlugin
import PIL.TiffImagePlugin

from cct_lightning.data.arrays import ARRAYS, Range, holds_array, read_shape, read_values, scaled, with_number
from cct_lightning.data.integrity import check_png
from cct_lightning.data.members import File, Own, Packed, unreadable
from cct_lightning.data.options import MAX_MEGAPIXELS
from cct_lightning.errors import InputError

Array = np.ndarray[Any, Any]
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
CLOSED = "can't be opened"  # begins what is said of a folder
KINDS_OF_FILES = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
PROGRAMS = ("EPS", "WMF")  # formats that Pillow has another program draw


def decode(image: Array | File, in_chans: int, max_megapixels: float = MAX_MEGAPIXELS, value_range: Range | None = None) -> Array:
    """Reads a file as uint8 (H, W, C), as the table above says; an array is returned as it is.

    Args:
        image: The file, or its pixels.
        in_chans: C.
        max_megapixels: More are refused before they are decoded.
        value_range: Lowest and highest value of images of more than 8 bits.

    Raises:
        InputError: The file is no regular file, no image, damaged, of a mode without a known range, has too many pixels or other
            channels.
    """
    if isinstance(image, np.ndarray):
        return image
    if isinstance(image, Own):
        given = image.read()
        try:
            if isinstance(given, np.ndarray):
                return with_number(scaled(given, value_range), in_chans)
            return to_uint8(given, in_chans, value_range)
        except ValueError as error:
            raise unreadable(image, error) from None
    if holds_array(image.name, in_chans, value_range):
        values = read_array(image, max_megapixels, in_chans)
        try:
            return with_number(scaled(values, value_range), in_chans)
        except ValueError as error:
            raise unreadable(image, error) from None
    with open_image(image, max_megapixels) as opened:
        return read_pixels(opened, in_chans, value_range)


def read_array(image: Path | Packed, max_megapixels: float, in_chans: int | None = None) -> Array:
    """Reads the values of a file that ``arrays`` reads, (H, W, C), as they are stored; with ``in_chans`` none that could not become that."""
    with _readable(image, max_megapixels) as file:
        (high, wide, channels), _ = read_shape(file, image.name)
        _check_size(image, high * wide, max_megapixels)
        if in_chans is not None:
            with_number(np.zeros((1, 1, channels), np.uint8), in_chans)
        return read_values(file, image.name)


def size_of(image: File, in_chans: int = 3, max_megapixels: float = MAX_MEGAPIXELS, value_range: Range | None = None) -> tuple[int, int]:
    """Reads (H, W) off the header; arguments and errors as of ``decode``."""
    if isinstance(image, Own):
        given = image.read()
        return given.shape[:2] if isinstance(given, np.ndarray) else (given.height, given.width)
    if holds_array(image.name, in_chans, value_range):
        with _readable(image, max_megapixels) as file:
            (high, wide, _), _ = read_shape(file, image.name)
            _check_size(image, high * wide, max_megapixels)
            return high, wide
    with open_image(image, max_megapixels) as opened:
        return opened.height, opened.width


def read_pixels(opened: PIL.Image.Image, in_chans: int, value_range: Range | None = None) -> Array:
    """Reads the pixels of a file that ``open_image`` opened, see ``decode``."""
    if isinstance(opened, PIL.PngImagePlugin.PngImageFile) and opened.fp is not None:
        place = opened.fp.tell()
        check_png(opened.fp)
        opened.fp.seek(place)
    return to_uint8(opened, in_chans, value_range)


@contextmanager
def open_image(path: Path | Packed, max_megapixels: float = MAX_MEGAPIXELS) -> Iterator[PIL.Image.Image]:
    """Opens a file and reads its header: size, mode and format are known, and pixels are decoded when they are asked for.

    Raises:
        InputError: As ``decode``. Whatever else is raised while the image is in use becomes one that names the file.
    """
    with _readable(path, max_megapixels) as file, _opened(file, max_megapixels) as opened:
        width, height = opened.size
        _check_size(path, width * height, max_megapixels)
        if opened.format in PROGRAMS:
            raise ValueError(f"it is {opened.format}, which other programs draw")
        yield opened


@contextmanager
def _readable(path: Path | Packed, max_megapixels: float) -> Iterator[IO[bytes]]:
    """Opens a regular file; whatever is raised while it is in use becomes an error that names it."""
    try:
        # A FIFO would keep whoever opens it waiting for ever, and a device may never end.
        kind = stat.S_IFMT(os.stat(path.file if isinstance(path, Packed) else path).st_mode)
        if kind != stat.S_IFREG:
            raise InputError(f"{path} is {KINDS_OF_FILES.get(kind, 'no file')}, no regular file: mend it or move it out of the data set.")
        with _stream(path) as file:
            yield file
    except InputError:
        raise
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:  # the latter where warnings are errors
        raise _too_large(path, int(next(iter(re.findall(r"\d+", str(error))), 0)), max_megapixels) from None
    except Exception as error:  # what a damaged file raises inside a decoder is not known beforehand
        raise unreadable(path, error) from None


def _stream(path: Path | Packed) -> IO[bytes]:
    return io.BytesIO(path.read()) if isinstance(path, Packed) else open(path, "rb")


def _opened(file: IO[bytes], max_megapixels: float) -> PIL.Image.Image:
    """Opens an image, having Pillow's own limit, which warns and above twice its number refuses, follow where ours is higher."""
    if PIL.Image.MAX_IMAGE_PIXELS is not None and max_megapixels * 1e6 > PIL.Image.MAX_IMAGE_PIXELS:
        PIL.Image.MAX_IMAGE_PIXELS = int(max_megapixels * 1e6)
    return PIL.Image.open(file)


def _check_size(path: File, pixels: int, max_megapixels: float) -> None:
    if pixels > max_megapixels * 1e6:
        raise _too_large(path, pixels, max_megapixels)


def _too_large(path: File, pixels: int, max_megapixels: float) -> InputError:
    rule = f"data.max_megapixels={max_megapixels:g} allows no more"
    return InputError(f"{path} has {pixels / 1e6:.4g} megapixels, and {rule}: make it smaller, or set the key higher.")


def to_uint8(image: PIL.Image.Image, in_chans: int, value_range: Range | None = None) -> Array:
    """Turns an image of Pillow into uint8 (H, W, C), as the table above says.

    Raises:
        ValueError: The range of its mode is not known, Pillow can't convert it, or it has another number of channels.
    """
    if value_range is not None and not _is_deep(image) and any(";16" in str(tile.args) for tile in getattr(image, "tile", ())):
        raise ValueError("colours of 16 bits can't be scaled by data.value_range in a PNG: save it as TIFF")
    image.load()
    highest, inverted = _range(image) if value_range is None or not _is_deep(image) else (0, False)
    # exif_transpose takes as long as decoding a small image, so only where there is something to read the orientation from
    turned = image.format in (None, "TIFF") or any("exif" in str(name).lower() or "xmp" in str(name).lower() for name in image.info)
    upright = PIL.ImageOps.exif_transpose(image) if turned else image
    if highest == 0:
        upright = PIL.Image.fromarray(scaled(np.asarray(upright), value_range))
    elif highest > 255:
        deep = np.asarray(upright).astype(np.uint32)
        deep = highest - deep if inverted else deep
        upright = PIL.Image.fromarray((deep // 257 if highest == 65535 else deep * 255 // highest).astype(np.uint8))
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}.get(in_chans)
    if mode is None or (in_chans in (2, 4) and upright.mode != mode):
        channels = len(upright.getbands())
        raise ValueError(f"it has {channels} channel{'s' * (channels > 1)}, and data.in_chans={in_chans}")
    pixels = np.asarray(upright.convert(mode))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _is_deep(image: PIL.Image.Image) -> bool:
    return image.mode == "F" or image.mode.startswith("I")


def _range(image: PIL.Image.Image) -> tuple[int, bool]:
    """Returns the largest value that the mode of an image can hold, and whether that is black."""
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        kind = "float" if image.mode == "F" else "integers of more than 16 bits"
        raise ValueError(f"mode {image.mode}, {kind}, tells no largest value: save it with 8 or 16 bits")
    if not image.mode.startswith("I"):
        return 255, False
    if not isinstance(image, PIL.TiffImagePlugin.TiffImageFile):
        return 65535, False
    bits, photometric = (image.tag_v2.get(tag) for tag in (PIL.TiffImagePlugin.BITSPERSAMPLE, PIL.TiffImagePlugin.PHOTOMETRIC_INTERPRETATION))
    return 4095 if bits == (12,) else 65535, photometric == 0  # Pillow turns white-is-zero round up to 8 bits alone


class Found(NamedTuple):
    """A file, or a path that leads to none, and why."""

    path: str
    error: str | None = None


def find_images(paths: Iterable[str | Path]) -> Iterator[Found]:
    """Lists files, folders and globs in the order given.

    Folders are read with all that is below them, sorted by name. Of folders and globs only images (``SUFFIXES``) are taken, .npy where there is
    none, and no hidden ones; a named file is taken whatever its name. A path that leads to no file is told, not passed over.
    """
    for path in map(str, paths):
        if os.path.isdir(path):
            tries, none = [_in_folder(path, suffixes) for suffixes in (SUFFIXES, ARRAYS)], "there is no image in this folder"
        elif is_glob(path):
            tries, none = [_in_glob(path, suffixes) for suffixes in (SUFFIXES, ARRAYS)], "no image matches"
        else:
            tries, none = [iter([_found(path, os.path.isfile(path))] if os.path.exists(path) else [])], "there is no such file"
        for files in tries:
            if (first := next(files, None)) is not None:
                yield first
                yield from files
                break
        else:
            yield Found(path, none)


def is_glob(path: str) -> bool:
    """Whether a path is a pattern such as ``photos/**/*.jpg``, and not the name of a file that only looks like one."""
    return glob.has_magic(path) and not os.path.lexists(path)


def _is_image(name: str, suffixes: Set[str]) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes


def _found(path: str, is_regular: bool) -> Found:
    return Found(path) if is_regular else Found(path, "is no regular file" if os.path.exists(path) else "is a link that leads to no file")


def _in_folder(folder: str, suffixes: Set[str], above: tuple[tuple[int, int], ...] = ()) -> Iterator[Found]:
    """Lists the images of a folder; ``above`` identifies the folders it lies in."""
    try:
        about = os.stat(folder)
        with os.scandir(folder) as entries:
            members = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        yield Found(folder, f"{CLOSED} ({error.strerror})")
        return
    identity = (about.st_dev, about.st_ino)
    if identity in above:
        return  # a link that leads back
    for entry in members:
        if entry.is_dir():
            yield from _in_folder(entry.path, suffixes, (*above, identity))
        elif _is_image(entry.name, suffixes):
            yield _found(entry.path, entry.is_file())


def _in_glob(pattern: str, suffixes: Set[str]) -> Iterator[Found]:
    # The names of all matches are sorted: ten megabytes for a hundred thousand. What ** finds below a folder, it finds by itself, too.
    for path in sorted(glob.iglob(pattern, recursive=True)):
        if os.path.isdir(path):
            if "**" not in pattern:
                yield from _in_folder(path, suffixes)
        elif _is_image(os.path.basename(path), suffixes):
            yield _found(path, os.path.isfile(path))
