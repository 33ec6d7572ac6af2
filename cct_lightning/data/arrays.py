"""Images that Pillow has no mode for: any number of channels, 16 bits and more. NumPy's .npy, (H, W) or (H, W, C), and TIFF, by tifffile.

Values become 0..1, and with 8 bits 0..255, by their type alone: uint8 by 255, uint16 by 65535, float is taken to be 0..1 already. Others, such as
int16, have no largest value. ``data.value_range`` names lowest and highest instead: what lies beyond is cut off, and uint8 stays as it is.
"""

import os
from collections.abc import Sequence
from importlib import import_module
from typing import IO, Any

import numpy as np

from cct_lightning.errors import InputError

Array = np.ndarray[Any, Any]
Range = Sequence[float]
ARRAYS = {".npy"}
TIFFS = {".tif", ".tiff"}
INSTALL = 'pip install "cct-lightning[tiff]"'
UNLIKE = {  # PhotometricInterpretation
    0: "zero is white in it: save it with zero as black",
    3: "its values stand for the colours of a palette: save it as grey or RGB",
}
GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601-2


def holds_array(name: str, in_chans: int, value_range: Range | None) -> bool:
    """Tells by its name whether a file is read here: a TIFF where Pillow might not do, for channels that it has no mode for, or more than 8 bits."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix in ARRAYS or (suffix in TIFFS and (in_chans not in (1, 3) or value_range is not None))


def read_shape(file: IO[bytes], name: str) -> tuple[tuple[int, int, int], str]:
    """Reads (H, W, C) and the type of the values off the header.

    Raises:
        ValueError: It is no image.
    """
    if os.path.splitext(name)[1].lower() in ARRAYS:
        found, kind = _npy_header(file)
        return _of_three(found), str(kind)
    file.seek(0)  # where it takes the TIFF to begin
    with _tifffile().TiffFile(file) as opened:
        axes, shape, dtype = _series(opened)
        return (shape[axes.index("Y")], shape[axes.index("X")], _channels(axes, shape)), dtype


def read_values(file: IO[bytes], name: str) -> Array:
    """Reads values as they are stored, (H, W, C).

    Raises:
        ValueError: It is no image, of another type than numbers, or its values stand for colours of a palette or begin with white.
    """
    if os.path.splitext(name)[1].lower() in ARRAYS:
        file.seek(0)
        values = np.load(file, allow_pickle=False)
        return values.reshape(_of_three(values.shape))  # type: ignore[no-any-return]
    file.seek(0)  # where it takes the TIFF to begin
    with _tifffile().TiffFile(file) as opened:
        axes, _, _ = _series(opened)
        if said := UNLIKE.get(int(opened.series[0].keyframe.photometric)):
            raise ValueError(said)
        values = opened.series[0].asarray().transpose([axes.index(axis) for axis in ("Y", "X", *sorted(set(axes) - {"Y", "X"}))])
        return values.reshape(*values.shape[:2], -1)  # type: ignore[no-any-return]


def scaled(values: Array, value_range: Range | None) -> Array:
    """Turns values into uint8, as the head of this module says.

    Raises:
        ValueError: They have no known range, or are not numbers.
    """
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.uint16 and value_range is None:
        return (values // 257).astype(np.uint8)  # 65535 becomes 255
    kind = values.dtype.kind
    if kind not in "iuf":
        raise ValueError(f"{values.dtype} are no numbers of an image")
    if kind != "f" and value_range is None:
        raise ValueError(f"{values.dtype} tells no largest value: give data.value_range, lowest and highest")
    if kind == "f" and not np.isfinite(values).all():
        raise ValueError("it holds values that are no numbers (NaN) or infinite")
    low, high = value_range or (0.0, 1.0)
    if value_range is None and values.size and (values.min() < low or values.max() > high):
        raise ValueError(f"float from {values.min():.6g} to {values.max():.6g} lies beyond 0..1: give data.value_range, lowest and highest")
    unit = ((values.astype(np.float32) - low) / (high - low)).clip(0, 1)
    return (unit * 255 + 0.5).astype(np.uint8)


def with_number(image: Array, in_chans: int) -> Array:
    """Returns uint8 (H, W, C) with as many channels as are asked for: grey repeated for colour, colour weighed for grey.

    Raises:
        ValueError: Neither is.
    """
    channels = image.shape[2]
    if channels == in_chans:
        return image
    if (channels, in_chans) == (1, 3):
        return np.repeat(image, 3, axis=2)
    if (channels, in_chans) == (3, 1):
        return (image @ GREY).round().astype(np.uint8)[..., None]  # type: ignore[no-any-return]
    raise ValueError(f"it has {channels} channel{'s' * (channels > 1)}, and data.in_chans={in_chans}")


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    file.seek(0)
    major, _ = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _of_three(shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) not in (2, 3) or 0 in shape:
        raise ValueError(f"an array {shape} is no image: (H, W) or (H, W, C) is one")
    return shape[0], shape[1], shape[2] if len(shape) == 3 else 1


def _tifffile() -> Any:
    try:
        return import_module("tifffile")
    except ImportError:
        raise InputError(f"TIFF of this kind needs tifffile, which is not installed: {INSTALL}") from None


def _series(opened: Any) -> tuple[str, tuple[int, ...], str]:
    """Returns the axes of the first image, their lengths and the type; samples, planes or pages are its channels."""
    series = opened.series[0]
    axes, shape = series.axes, tuple(series.shape)
    if not {"X", "Y"} <= set(axes) or sum(side > 1 for axis, side in zip(axes, shape, strict=True) if axis not in "XY") > 1:
        raise ValueError(f"its axes {axes} {shape} are more than height, width and channels")
    return axes, shape, str(series.dtype)


def _channels(axes: str, shape: tuple[int, ...]) -> int:
    return int(np.prod([side for axis, side in zip(axes, shape, strict=True) if axis not in "XY"]))
