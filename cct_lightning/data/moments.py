"""Mean and standard deviation of the channels of a data set, in one pass: what ``data.mean`` and ``data.std`` take."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cct_lightning.data.arrays import Array
from cct_lightning.errors import InputError


class Moments(NamedTuple):
    """Of one image: of each channel the mean and the mean of the squares, and the least and the largest value of all.

    ``deep`` tells that these are values as they are stored; else they are 0..1.
    """

    means: tuple[float, ...]
    squares: tuple[float, ...]
    low: float
    high: float
    deep: bool


def measure(values: Array) -> Moments:
    """Measures an image (H, W, C), uint8 or as it is stored.

    Raises:
        ValueError: It holds values that are no numbers, or none.
    """
    deep = values.dtype != np.uint8
    rows = values.reshape(-1, values.shape[-1]).astype(np.float64)
    rows = rows if deep else rows / 255
    if not np.isfinite(rows).all():
        raise ValueError("it holds values that are no numbers (NaN) or infinite")
    return Moments(tuple(rows.mean(axis=0).tolist()), tuple(np.square(rows).mean(axis=0).tolist()), float(rows.min()), float(rows.max()), deep)


def as_yaml(of_images: Sequence[Moments]) -> str:
    """Joins those of all images, of which each counts alike, into lines for a recipe: in_chans, value_range where it has to be named, mean, std.

    Of images of more than 8 bits the least and the largest value of all are the range, and mean and std are of what it makes of them.

    Raises:
        InputError: There are none, or images of 8 bits lie beside those of more.
    """
    if not of_images:
        raise InputError("--statistics measures training images, and none could be read.")
    if len({about.deep for about in of_images}) > 1:
        deep = sum(about.deep for about in of_images)
        raise InputError(f"{deep:,} of {len(of_images):,} training images have more than 8 bits: give their --data.value_range [LOW, HIGH], too.")
    mean, square = (np.mean([getattr(about, name) for about in of_images], axis=0) for name in ("means", "squares"))
    std = np.sqrt(np.maximum(square - mean**2, 0))
    lines = ["data:", f"  in_chans: {len(mean)}"]
    if of_images[0].deep:
        low, high = min(about.low for about in of_images), max(about.high for about in of_images)
        high = high if high > low else low + 1
        lines.append(f"  value_range: [{low:.7g}, {high:.7g}]")
        mean, std = (mean - low) / (high - low), std / (high - low)
    lines += [f"  {name}: [{', '.join(f'{value:.5f}' for value in values)}]" for name, values in (("mean", mean), ("std", std))]
    if flat := [str(number + 1) for number, value in enumerate(std) if value < 5e-6]:
        lines.append(f"  # of one value everywhere, so that a std can't divide: channel {', '.join(flat)}")
    return "\n".join(lines)
