"""Operations that map each value of an image by itself, as tables for each sample: Pillow's, to the bit.

A table is (B, C, 256) or, where the channels share one, (B, 1, 256), uint8. Nothing is drawn here, and nothing waits for a GPU.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def to_uint8(values: Tensor) -> Tensor:
    """Cuts off the fraction of values in 0..255; by way of int32, which is twice as fast on a CPU."""
    return values.int().to(torch.uint8)


def grey(images: Tensor) -> Tensor:
    """Makes Pillow's mode L of the images, (B, H, W) int32: ITU-R 601-2 in 16 bits behind the point."""
    if images.shape[1] == 1:
        return images[:, 0].int()
    red, green, blue = images.int().unbind(1)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def blend(other: Tensor, image: Tensor, factor: Tensor) -> Tensor:
    """Goes from ``other`` (factor 0) to the image (1) and beyond, in 0..255; float32 and in this order, as ``Image.blend``."""
    return other.add((image - other).mul_(factor)).clamp_(0, 255)


def _values(images: Tensor) -> Tensor:
    return torch.arange(256, device=images.device, dtype=torch.int32)


def lookup(images: Tensor, tables: Tensor) -> Tensor:
    """Replaces every value by its entry in the sample's table, (B, C, 256) uint8."""
    B, C, H, W = images.shape
    places = images.permute(0, 2, 3, 1).reshape(B, H * W * C).int()
    starts = torch.arange(0, B * C * 256, 256, dtype=torch.int32, device=images.device).view(B, C)
    places += starts[:1].repeat(1, H * W)
    places += starts[:, :1]
    return tables.flatten().index_select(0, places.flatten()).view(B, H, W, C).permute(0, 3, 1, 2)


def autocontrast_table(images: Tensor, _: Tensor) -> Tensor:
    low, high = images.amin((2, 3)).double()[..., None], images.amax((2, 3)).double()[..., None]
    scale = torch.full_like(low, 255) / (high - low)  # in float64 and in this order, as in Pillow: the result is cut off
    stretched = (_values(images) * scale + -low * scale).clamp_(0, 255)
    return torch.where(high > low, stretched, _values(images)).to(torch.uint8)


def equalize_table(images: Tensor, _: Tensor) -> Tensor:
    B, C = images.shape[:2]
    places = images.flatten(2).long() + torch.arange(0, 256 * B * C, 256, device=images.device).view(B, C, 1)
    ones = torch.ones(1, dtype=torch.int32, device=images.device).expand(places.numel())
    # One dimension: the only one for which CUDA has a deterministic scatter_add.
    histogram = torch.zeros(B * C * 256, dtype=torch.int32, device=images.device).scatter_add_(0, places.flatten(), ones).view(B, C, 256)
    last = histogram.gather(2, images.amax((2, 3)).long()[..., None])
    step = (places.shape[2] - last).div_(255, rounding_mode="floor")  # 0 where the channel is flat, too
    below = histogram.cumsum(2, dtype=torch.int32) - histogram
    levelled = ((step // 2 + below) // step.clamp(min=1)).clamp_(max=255)
    return torch.where(step > 0, levelled, _values(images)).to(torch.uint8)


def invert_table(images: Tensor, _: Tensor) -> Tensor:
    return (255 - _values(images)).to(torch.uint8).expand(len(images), 1, 256)


def posterize_table(images: Tensor, bits: Tensor) -> Tensor:
    unit = torch.ones_like(bits, dtype=torch.int32).bitwise_left_shift(8 - bits.int().clamp(1, 8))[:, None, None]
    return (_values(images) & -unit).to(torch.uint8)


def solarize_table(images: Tensor, threshold: Tensor) -> Tensor:
    values = _values(images)
    return torch.where(values < threshold[:, None, None], values, 255 - values).to(torch.uint8)


def solarize_add_table(images: Tensor, amount: Tensor) -> Tensor:
    values = _values(images)
    return torch.where(values < 128, (values + amount.int()[:, None, None]).clamp_(max=255), values).to(torch.uint8)


def contrast_table(images: Tensor, factor: Tensor) -> Tensor:
    values = grey(images)
    count = values[0].numel()
    mean = (2 * values.sum((1, 2)) + count) // (2 * count)  # rounded
    return to_uint8(blend(mean.float()[:, None, None], _values(images).float(), factor[:, None, None]))


def brightness_table(images: Tensor, factor: Tensor) -> Tensor:
    return to_uint8((_values(images) * factor[:, None, None]).clamp_(0, 255))


TABLES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "autocontrast": autocontrast_table,
    "equalize": equalize_table,
    "invert": invert_table,
    "posterize": posterize_table,
    "solarize": solarize_table,
    "solarize_add": solarize_add_table,
    "contrast": contrast_table,
    "brightness": brightness_table,
}
