"""What can happen to every sample of a batch: Pillow's operations on uint8 images (B, C, H, W), C 1 or 3, with one argument per sample, (B,).

Nothing is drawn here, nothing waits for a GPU, and no sample depends on another. Any memory format is taken; the fastest, and that
of most results, is channels_last. Arguments are on the device of the images.
"""

import torch
from torch import Tensor

from cct_lightning.data.augment.tables import TABLES, blend, grey, lookup, to_uint8

# A position or a blend is exact but for the rounding of float32; Pillow cuts off, so that 77 times weights that sum to 0.9999999 must stay 77.
ROUNDING = 1 / 512


def _per_sample(argument: Tensor) -> Tensor:
    return argument.view(-1, 1, 1, 1)


def _mapped(name: str, images: Tensor, argument: Tensor) -> Tensor:
    return lookup(images, TABLES[name](images, argument).expand(-1, images.shape[1], -1))


def autocontrast(images: Tensor) -> Tensor:
    """Stretches each channel to 0..255; ``ImageOps.autocontrast`` in Pillow, to the bit."""
    return _mapped("autocontrast", images, images)


def equalize(images: Tensor) -> Tensor:
    """Equalises each channel's histogram; ``ImageOps.equalize`` in Pillow, to the bit."""
    return _mapped("equalize", images, images)


def invert(images: Tensor) -> Tensor:
    """Turns v into 255 - v; ``ImageOps.invert`` in Pillow."""
    return images ^ 255


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keeps the highest bits, at least one, of each value; ``ImageOps.posterize`` in Pillow, to the bit."""
    return _mapped("posterize", images, bits)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Inverts the values from the threshold on, 0..256; ``ImageOps.solarize`` in Pillow, to the bit."""
    return _mapped("solarize", images, threshold)


def solarize_add(images: Tensor, amount: Tensor) -> Tensor:
    """Adds a whole number to the values below 128, up to 255."""
    return _mapped("solarize_add", images, amount)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Between the image's mean grey (0) and the image (1), and beyond; ``ImageEnhance.Contrast`` in Pillow, to the bit."""
    return _mapped("contrast", images, factor)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Between black (0) and the image (1), and beyond; ``ImageEnhance.Brightness`` in Pillow, to the bit."""
    return _mapped("brightness", images, factor)


def color(images: Tensor, factor: Tensor) -> Tensor:
    """Between grey (0) and the image (1), and beyond; ``ImageEnhance.Color`` in Pillow, to the bit."""
    if images.shape[1] == 1:
        return images
    return to_uint8(blend(grey(images)[:, None].float(), images.float(), _per_sample(factor)))


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Between a smoothed image (0) and the image (1), and beyond; the border stays; ``ImageEnhance.Sharpness`` in Pillow, to the bit."""
    values = images.short()  # the largest sum is 13 * 255
    rows = values[:, :, :-2] + values[:, :, 1:-1] + values[:, :, 2:]
    sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * values[:, :, 1:-1, 1:-1]
    image = images.float()
    smooth = image.clone()
    smooth[:, :, 1:-1, 1:-1] = ((sums + 6.5) / 13).floor_()
    return to_uint8(blend(smooth, image, _per_sample(factor)))


def _weights(fraction: Tensor, cubic: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weighs the pixels at -1, 0, 1 and 2 for a position at ``fraction`` (0..1) behind pixel 0; ``cubic`` is 0 (linear) or 1.

    The cubic is that of Pillow's ``Image.transform``, with parameter -1; OpenCV and torch have -0.75, Pillow's ``resize`` -0.5.
    """
    rest = 1 - fraction
    product = fraction * rest * -cubic
    before, after = product * rest, product * fraction
    return before, rest - before, fraction - after, after


def _filled(values: Tensor, inside: Tensor, fill: Tensor) -> Tensor:
    """Cuts off fractions and puts the colour ``fill`` (C,) where ``inside`` (B, H, W) is false; branches would cost the most here."""
    fill = fill.float().view(-1, 1, 1)
    values = values.add_(ROUNDING).clamp_(0, 255).floor_()
    return to_uint8(values.sub_(fill).mul_(inside[:, None].float()).add_(fill))


def shift_rows(images: Tensor, offsets: Tensor, cubic: Tensor, fill: Tensor) -> Tensor:
    """Takes output pixel x of row y from x + offsets[y]: ``shear_x`` and ``translate_x``, and of transposed images ``shear_y`` and ``translate_y``.

    The same as ``affine`` with the inverse matrix (1, shear, translation; 0, 1, 0) and offsets of shear * (y + 0.5) + translation, but ten
    times faster: each row is read as one window and weighed.

    Args:
        images: (B, C, H, W).
        offsets: For each row, (B, H), pixels, float32.
        cubic: Whether the sample is interpolated bicubically, else linearly, (B,).
        fill: Colour of what comes in, (C,), 0..255.
    """
    B, C, H, W = images.shape
    steps = offsets.clamp(-W, W).floor()
    slack = 2 * W  # a window may begin before the first row or end behind the last: what lies there is filled
    buffer = torch.empty(2 * slack + B * C * H * (W + 4), device=images.device)
    buffer[:slack], buffer[-slack:] = 0, 0
    rows = buffer[slack:-slack].view(B, C, H, W + 4)  # Pillow repeats the border, by at most two pixels
    rows[..., 2:-2] = images
    rows[..., :2], rows[..., -2:] = rows[..., 2:3], rows[..., -3:-2]
    first = torch.arange(slack + 1, slack + 1 + B * C * H * (W + 4), W + 4, device=images.device).view(B, C, H)
    windows = buffer.as_strided((len(buffer) - W - 2, W + 3), (1, 1))
    taken = windows.index_select(0, (first + steps.long()[:, None]).flatten()).view(B, C, H, W + 3)
    first_weight, *weights = (weight[:, None, :, None] for weight in _weights(offsets - steps, cubic.float()[:, None]))
    values = taken[..., :W] * first_weight
    for tap, weight in enumerate(weights, 1):
        values.addcmul_(taken[..., tap : tap + W], weight)
    position = offsets[..., None] + (torch.arange(W, device=images.device) + 0.5)
    return _filled(values, (position >= 0) & (position < W), fill)


def affine(images: Tensor, inverse: Tensor, cubic: Tensor, fill: Tensor) -> Tensor:
    """Takes output pixel (x, y) from inverse of (x, y, 1), about the corner of the image; ``Image.transform`` in Pillow, within one grey level.

    Pillow computes in float64 and cuts off, so a float32 that falls on the other side of a whole number differs by one.

    Args:
        images: (B, C, H, W).
        inverse: Maps from the result back to the image, (B, 2, 3), pixels, float32.
        cubic: Whether the sample is interpolated bicubically, else bilinearly, (B,).
        fill: Colour of what comes in, (C,), 0..255.
    """
    B, C, H, W = images.shape
    x = (torch.arange(W, device=images.device) + 0.5).expand(H, W)
    y = (torch.arange(H, device=images.device) + 0.5)[:, None].expand(H, W)
    across, down = (inverse[:, i, 0, None, None] * x + inverse[:, i, 1, None, None] * y + inverse[:, i, 2, None, None] for i in (0, 1))
    inside = (across >= 0) & (across < W) & (down >= 0) & (down < H)
    across, down = across.clamp_(0, W).sub_(0.5), down.clamp_(0, H).sub_(0.5)
    left, top = across.floor().clamp_(max=W - 1), down.floor().clamp_(max=H - 1)
    padded = torch.nn.functional.pad(images.to(torch.float32, memory_format=torch.contiguous_format), (2, 2, 2, 2), mode="replicate").flatten(2)
    places = ((top + 1) * (W + 4) + (left + 1)).long().view(B, 1, H * W).expand(B, C, H * W)
    length = padded.shape[2] - 3 * (W + 5)  # one set of places serves all taps: the image moves under it
    cubic = cubic.float().view(-1, 1, 1)
    weights_x, weights_y = ([weight.view(B, 1, H * W) for weight in _weights(fraction, cubic)] for fraction in (across - left, down - top))
    values, row, taken = (torch.zeros(B, C, H * W, device=images.device) for _ in range(3))
    for i, weight_y in enumerate(weights_y):
        for j, weight_x in enumerate(weights_x):
            start = i * (W + 4) + j
            torch.gather(padded[:, :, start : start + length], 2, places, out=taken)
            torch.mul(taken, weight_x, out=row) if j == 0 else row.addcmul_(taken, weight_x)
        values.addcmul_(row, weight_y)
    return _filled(values.view(B, C, H, W), inside, fill)


def _interpolation(start: Tensor, size: Tensor, length: int, cubic: Tensor) -> Tensor:
    """Makes the matrices (B, length, length) that enlarge the stretch from ``start`` on of ``size`` pixels to ``length`` pixels."""
    out = torch.arange(length, device=start.device) + 0.5
    centre = start[:, None] + out * (size / length)[:, None]
    distance = (out - centre[..., None]).abs_().clamp_(max=2)
    near = (1 - distance).clamp_(min=0)
    # Pillow's cubic for resizing, with parameter -0.5: its two branches differ by near ** 2 * (1 - 2 * near).
    curved = (2.5 - 0.5 * distance).mul_(distance).sub_(4).mul_(distance).add_(2).addcmul_(near.square(), 1 - 2 * near)
    weights = near.lerp_(curved, cubic.float()[:, None, None])
    return weights.div_(weights.sum(dim=2, keepdim=True))


def resized_crop(images: Tensor, boxes: Tensor, cubic: Tensor) -> Tensor:
    """Enlarges a box to the full size; ``Image.resize(box=...)`` in Pillow, within one grey level.

    Pillow's weights are whole numbers of 22 bits, so a value near a half may be rounded the other way. As there, pixels just outside
    of the box take part in the interpolation at its border.

    Args:
        images: (B, C, H, W).
        boxes: Top, left, height and width, (B, 4), pixels; inside of the image.
        cubic: Whether the sample is interpolated bicubically, else bilinearly, (B,).
    """
    B, C, H, W = images.shape
    top, left, high, wide = boxes.float().unbind(1)
    # With the channels between rows and columns each direction is one product of matrices for an image.
    values = images.permute(0, 2, 1, 3).to(torch.float32, memory_format=torch.contiguous_format).view(B, H * C, W)
    values = torch.bmm(values, _interpolation(left, wide, W, cubic).mT).add_(0.5).clamp_(0, 255).floor_()  # Pillow rounds in between, too
    values = torch.bmm(_interpolation(top, high, H, cubic), values.view(B, H, C * W)).add_(0.5).clamp_(0, 255)
    return to_uint8(values).view(B, H, C, W).permute(0, 2, 1, 3)


def shift_and_flip(images: Tensor, down: Tensor, right: Tensor, flip: Tensor, most: int) -> Tensor:
    """Mirrors the flipped samples left to right after moving each; what comes in is zero. Any dtype.

    Args:
        images: (B, C, H, W).
        down: Pixels, (B,) int64, of size ``most`` or less.
        right: The same.
        flip: Whether the sample is mirrored, (B,) bool.
        most: The largest shift.
    """
    B, C, H, W = images.shape
    high, wide = H + 2 * most, W + 2 * most
    # Every row of the result is one window into the padded images or into their mirrored copies, of which a shift to the left is one to the right.
    padded = torch.zeros(2, B, high, wide, C, dtype=images.dtype, device=images.device)
    inner = padded[:, :, most : most + H, most : most + W]
    inner[0] = images.permute(0, 2, 3, 1)
    inner[1] = inner[0].flip(2)
    column = most - torch.where(flip, -right, right)
    first = ((flip.long() * B + torch.arange(B, device=images.device)) * high + most - down) * wide + column
    rows = first[:, None] + torch.arange(0, H * wide, wide, device=images.device)
    windows = padded.view(-1).as_strided((2 * B * high * wide - W + 1, W * C), (C, 1))
    return windows.index_select(0, rows.flatten()).view(B, H, W, C).permute(0, 3, 1, 2)


def _pasted(images: Tensor, boxes: Tensor, pixels: Tensor) -> Tensor:
    """Takes ``pixels`` (B or 1, C, H, W) inside of the boxes (B, 4), by bits: a choice by branches takes ten times as long on a CPU."""
    B, C, H, W = images.shape
    top, left, high, wide = boxes[..., None].unbind(1)
    y, x = torch.arange(H, device=images.device), torch.arange(W, device=images.device).repeat_interleave(C)
    rows, columns = ((y >= top) & (y < top + high)).to(torch.uint8) * 255, ((x >= left) & (x < left + wide)).to(torch.uint8) * 255
    mask = rows[:, :, None] & columns[:, None, :]
    own, other = (tensor.permute(0, 2, 3, 1).reshape(-1, H, W * C) for tensor in (images, pixels))
    return mask.bitwise_and_(own ^ other).bitwise_xor_(own).view(B, H, W, C).permute(0, 3, 1, 2)


def erase(images: Tensor, boxes: Tensor, noise: Tensor) -> Tensor:
    """Replaces a rectangle by noise: "Random Erasing" (arXiv 1708.04896), timm's mode ``pixel``.

    Args:
        images: (B, C, H, W).
        boxes: Top, left, height and width, (B, 4), pixels; cut off at the border.
        noise: (B, C, H, W), uint8, for example random bytes looked up in ``gaussian_table``.
    """
    return _pasted(images, boxes, noise)


def gaussian_table(mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Makes the table (1, C, 256) for ``lookup`` that turns random bytes into Gaussian noise of a mean and deviation on the scale 0..1.

    A table, because a logarithm or a cosine is not the same on every device. Its 256 quantiles end at 2.9 deviations.
    """
    quantiles = torch.special.ndtri((torch.arange(256, dtype=torch.float64) + 0.5) / 256)
    quantiles /= quantiles.square().mean().sqrt()
    centre, spread = torch.tensor(mean, dtype=torch.float64)[:, None], torch.tensor(std, dtype=torch.float64)[:, None]
    table: Tensor = (255 * (centre + spread * quantiles)).round_().clamp_(0, 255).to(torch.uint8)[None]
    return table


def cutout(images: Tensor, boxes: Tensor, fill: Tensor) -> Tensor:
    """Fills a square with the colour ``fill`` (C,): "Improved Regularization of Convolutional Neural Networks with Cutout" (arXiv 1708.04552).

    Args:
        images: (B, C, H, W).
        boxes: Top, left, height and width, (B, 4), pixels; cut off at the border.
        fill: 0..255.
    """
    return _pasted(images, boxes, fill.to(torch.uint8).view(1, -1, 1, 1).expand(1, *images.shape[1:]))
