"""How an image becomes what a network takes: size, channels, normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import cv2
import torch
from torch import Tensor

from cct_lightning.data.files import Array

STRIP = 16  # times the sides that are asked for: a strip of 1 x 100,000 pixels is enlarged no further, of longer ones the middle


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
    smaller = min(image.shape[0], height), min(image.shape[1], width)
    if image.shape[:2] != smaller:
        image = cv2.resize(image, smaller[::-1], interpolation=cv2.INTER_AREA)
    if smaller != (height, width):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC if cubic else cv2.INTER_LINEAR)
    return with_channels(image)


def fit(image: Array, image_size: tuple[int, int], crop_pct: float = 1.0) -> Array:
    """Resizes and takes the centre, so that the middle ``crop_pct`` of the image fills (H, W): what evaluation sees."""
    height, width = image_size
    if image.shape[:2] == image_size and crop_pct == 1.0:
        return image
    factor = max(height / image.shape[0], width / image.shape[1]) / crop_pct
    rows, columns = (max(side - math.ceil(STRIP * asked / factor), 0) // 2 for side, asked in zip(image.shape, image_size, strict=False))
    image = image[rows : image.shape[0] - rows, columns : image.shape[1] - columns]
    high, wide = max(round(image.shape[0] * factor), height), max(round(image.shape[1] * factor), width)
    image = resize(image, high, wide)
    top, left = (high - height) // 2, (wide - width) // 2
    return image[top : top + height, left : left + width]
