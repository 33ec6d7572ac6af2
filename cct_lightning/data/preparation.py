"""How an image becomes what a network takes: size, channels, normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from cct_lightning.data.files import Array
from cct_lightning.data.options import Fit, Preprocessing
from cct_lightning.errors import InputError, check_range

STRIP = 16  # times the sides that are asked for: a strip of 1 x 100,000 pixels is enlarged no further, of longer ones the middle

AT_ONCE = 4  # channels that cv2 resizes together


def per_channel(name: str, values: Sequence[float], channels: int) -> list[float]:
    """Returns a mean or deviation for each channel: the average of the colours' for grey, grey's for every colour."""
    for value in values:
        check_range(f"data.{name}", value, 0, 1, exclusive="low" if name == "std" else "")
    if len(values) == channels:
        return list(values)
    if len(values) not in (1, 3) or channels not in (1, 3):
        way = "" if channels in (1, 3) else f": `cct check DATA --statistics --data.in_chans {channels}` measures them"
        raise InputError(f"data.{name}={list(values)} has {len(values)} values, and the images {channels} channel(s): give {channels}{way}.")
    return [round(sum(values) / len(values), 6)] * channels


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turns uint8 images (B, C, H, W), 0..255, into float32 of the given mean and standard deviation per channel, on the scale 0..1."""
    is_channels_last = images.is_contiguous(memory_format=torch.channels_last)
    scale, offset = _scale_and_offset(tuple(mean), tuple(std), images.shape[1:], is_channels_last, images.device)
    return (images * scale).sub_(offset)


@lru_cache(maxsize=8)
def _scale_and_offset(
    mean: tuple[float, ...], std: tuple[float, ...], shape: torch.Size, is_channels_last: bool, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Makes the constants of ``normalize`` once for each device: a copy to a GPU in every step would wait for it.

    They are as large as an image: in channels_last a constant for each channel would make the innermost loop three numbers long, which takes
    a CPU seven times as long.
    """
    layout = torch.channels_last if is_channels_last else torch.contiguous_format
    with torch.inference_mode(False):  # a validation may ask first, and training takes no tensors of inference mode
        deviation = torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)
        offset = torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1) / deviation
        scale, offset = ((constant.expand(1, *shape).contiguous(memory_format=layout)).to(device) for constant in (1 / (255 * deviation), offset))
        return scale, offset


def with_channels(image: Array) -> Array:
    return image[..., None] if image.ndim == 2 else image  # cv2 drops a single channel


def resize(image: Array, height: int, width: int, cubic: bool = False) -> Array:
    """Resizes to (height, width); a side that shrinks is averaged, so that nothing aliases, and one that grows is bilinear or bicubic."""
    if image.ndim == 3 and image.shape[2] > AT_ONCE:
        parts = [np.ascontiguousarray(image[..., first : first + AT_ONCE]) for first in range(0, image.shape[2], AT_ONCE)]
        return np.concatenate([resize(part, height, width, cubic) for part in parts], axis=2)
    smaller = min(image.shape[0], height), min(image.shape[1], width)
    if image.shape[:2] != smaller:
        image = cv2.resize(image, smaller[::-1], interpolation=cv2.INTER_AREA)
    if smaller != (height, width):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC if cubic else cv2.INTER_LINEAR)
    return with_channels(image)


class Fitting(NamedTuple):
    """How an image of other proportions gets into the network's, the same in training and evaluation.

    Attributes:
        mode: ``crop`` fills (H, W) and cuts off what stands out, ``pad`` shows all of it and fills up, ``squash`` stretches it.
        fill: Colour beside a padded image, of each channel, 0..255: the mean, which becomes 0 when it is normalised.
    """

    mode: Fit = "crop"
    fill: tuple[int, ...] = ()

    @classmethod
    def of(cls, mode: Fit, mean: Sequence[float]) -> Fitting:
        """Makes one of the mean of each channel, 0..1."""
        return cls(mode, tuple(round(255 * value) for value in mean))

    def plane(self, size: tuple[int, int], image_size: tuple[int, int]) -> tuple[int, int]:
        """Returns (height, width) of the plane that random crops of an image of ``size`` are drawn in, which but for ``crop`` has the
        proportions of (H, W): a padded image with its borders, or a squashed one. See ``cut``."""
        (height, width), (high, wide) = image_size, size
        if self.mode == "crop":
            return size
        return max(high, round(wide * height / width)), max(wide, round(high * width / height))


CROP = Fitting()


def fit(image: Array, image_size: tuple[int, int], crop_pct: float = 1.0, fitting: Fitting = CROP) -> Array:
    """Resizes and takes the centre, so that the middle ``crop_pct`` of the image fills (H, W): what evaluation sees.

    ``pad`` sees the middle of the image with its borders, ``squash`` that of each side. timm's ``crop_mode`` center, border and squash.
    """
    height, width = image_size
    if image.shape[:2] == image_size and crop_pct == 1.0:
        return image
    factors = height / image.shape[0], width / image.shape[1]
    if fitting.mode != "squash":
        factors = ((max if fitting.mode == "crop" else min)(factors),) * 2
    down, across = (factor / crop_pct for factor in factors)
    rows, columns = (
        max(side - math.ceil(STRIP * asked / factor), 0) // 2 for side, asked, factor in zip(image.shape, image_size, (down, across), strict=False)
    )
    image = image[rows : image.shape[0] - rows, columns : image.shape[1] - columns]
    high, wide = round(image.shape[0] * down), round(image.shape[1] * across)
    if fitting.mode == "pad":
        return _centred(resize(image, max(high, 1), max(wide, 1)), image_size, fitting.fill)
    return _centred(resize(image, max(high, height), max(wide, width)), image_size)


def _centred(image: Array, image_size: tuple[int, int], fill: tuple[int, ...] = ()) -> Array:
    """Takes the centre (H, W) of an image; where that is larger, the rest is filled."""
    (high, wide), (height, width) = image.shape[:2], image_size
    top, left = max(high - height, 0) // 2, max(wide - width, 0) // 2
    image = image[top : top + height, left : left + width]
    return image if image.shape[:2] == image_size else _placed(image, (height - image.shape[0]) // 2, (width - image.shape[1]) // 2, image_size, fill)


def _placed(image: Array, top: int, left: int, image_size: tuple[int, int], fill: tuple[int, ...]) -> Array:
    canvas = np.empty((*image_size, image.shape[2]), image.dtype)
    canvas[:] = fill
    canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    return canvas


def cut(image: Array, box: tuple[int, int, int, int], image_size: tuple[int, int], cubic: bool, fitting: Fitting) -> Array:
    """Resizes a box (top, left, height, width) of an image's plane, see ``Fitting.plane``, to (H, W)."""
    top, left, high, wide = box
    plane = fitting.plane(image.shape[:2], image_size)
    if fitting.mode == "squash":  # back to the image's own pixels
        down, across = (side / of for side, of in zip(image.shape[:2], plane, strict=True))
        rows, columns = _span(top * down, high * down, image.shape[0]), _span(left * across, wide * across, image.shape[1])
        return resize(image[slice(*rows), slice(*columns)], *image_size, cubic=cubic)
    top, left = top - (plane[0] - image.shape[0]) // 2, left - (plane[1] - image.shape[1]) // 2
    rows, columns = (max(top, 0), min(top + high, image.shape[0])), (max(left, 0), min(left + wide, image.shape[1]))
    if (rows, columns) == ((top, top + high), (left, left + wide)):
        return resize(image[slice(*rows), slice(*columns)], *image_size, cubic=cubic)
    down, across = image_size[0] / high, image_size[1] / wide
    if rows[0] >= rows[1] or columns[0] >= columns[1]:  # of the border alone
        return _placed(image[:0, :0], 0, 0, image_size, fitting.fill)
    (first, last), (start, end) = (
        _span((rows[0] - top) * down, (rows[1] - rows[0]) * down, image_size[0]),
        _span((columns[0] - left) * across, (columns[1] - columns[0]) * across, image_size[1]),
    )
    seen = resize(image[slice(*rows), slice(*columns)], last - first, end - start, cubic=cubic)
    return _placed(seen, first, start, image_size, fitting.fill)


def _span(start: float, length: float, most: int) -> tuple[int, int]:
    """Rounds a stretch of pixels to whole ones, at least one, inside of 0..most."""
    first = min(round(start), most - 1)
    return first, min(max(round(start + length), first + 1), most)


def prepare(image: Array, about: Preprocessing) -> Array:
    """Brings an image, uint8 (any H, any W, C), into the network's size as evaluation sees it: (H, W, C)."""
    return fit(image, about.image_size, about.crop_pct, Fitting.of(about.fit, about.mean))
