"""What happens to every sample of a batch of small images: crop, shift, flip, RandAugment or TrivialAugment, Cutout, erasing, on tensors.

The same keys, ranges and order as ``sample``, which takes one image at a time, and an order of magnitude faster at 32 pixels. All draws
are made on the CPU, from the samples' indices, and only they travel to the images' device: nothing waits for a GPU.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from cct_lightning.data.augment import pixels as operations
from cct_lightning.data.augment.options import AugmentConfig
from cct_lightning.data.augment.per_image import RANDAUGMENT, RATIO, TRIVIALAUGMENT
from cct_lightning.data.augment.tables import TABLES, lookup
from cct_lightning.randomness import bits, key, uniform

# In this order the samples of a batch are sorted, so that each kind of work is one stretch of it.
ROWS, COLUMNS = ("shear_x", "translate_x"), ("shear_y", "translate_y")
ORDER = (*TABLES, "color", "sharpness", *ROWS, *COLUMNS, "rotate", "identity")
PIECE = 1024  # images at a time on a CPU: more do not fit into its caches, which takes twice as long


class Range(NamedTuple):
    """Where an operation's argument begins and how far it goes at the full level; ``whole`` ones only by whole numbers."""

    start: float = 0.0
    span: float = 0.0
    signed: bool = False
    whole: bool = False


def randaugment_ranges(image_size: tuple[int, int]) -> dict[str, Range]:
    """Says what ``sample.randaugment_argument`` does, for images (H, W)."""
    enhance, shear = Range(1, 0.9, signed=True), Range(0, 0.3, signed=True)
    return {
        **dict.fromkeys(("color", "contrast", "brightness", "sharpness"), enhance),
        **dict.fromkeys(("shear_x", "shear_y"), shear),
        "rotate": Range(0, 30, signed=True),
        "posterize": Range(4, -4, whole=True),
        "solarize": Range(256, -256, whole=True),
        "solarize_add": Range(0, 110, whole=True),
        "translate_x": Range(0, 0.45 * image_size[1], signed=True),
        "translate_y": Range(0, 0.45 * image_size[0], signed=True),
    }


def trivialaugment_ranges() -> dict[str, Range]:
    """Says what ``sample.trivialaugment_argument`` does."""
    return {
        **dict.fromkeys(("color", "contrast", "brightness", "sharpness"), Range(1, 0.99, signed=True)),
        **dict.fromkeys(("shear_x", "shear_y"), Range(0, 0.99, signed=True)),
        **dict.fromkeys(("translate_x", "translate_y"), Range(0, 32, signed=True)),
        "rotate": Range(0, 135, signed=True),
        "posterize": Range(8, -6, whole=True),
        "solarize": Range(256, -256, whole=True),
    }


class Ranges:
    """Draws operations with equal chances from a list of names, and their arguments.

    Args:
        names: The operations.
        ranges: Of those that take an argument.
        nearest: Whether whole numbers are rounded (TrivialAugment), else cut off (RandAugment).
    """

    def __init__(self, names: list[str], ranges: dict[str, Range], nearest: bool) -> None:
        table = [ranges.get(name, Range()) for name in names]
        # Start, size and direction of the span, and whether it is signed and whole: one row for each operation.
        self.table = torch.tensor([(r.start, abs(r.span), 1 - 2 * (r.span < 0), r.signed, r.whole) for r in table], dtype=torch.float32)
        self.rank = torch.tensor([ORDER.index(name) for name in names])
        self.nearest = nearest

    def __len__(self) -> int:
        return len(self.rank)

    def arguments(self, which: Tensor, level: Tensor, negative: Tensor) -> Tensor:
        """Turns operations (B,), levels in 0..1 (B,) and signs (B,) into arguments (B,), float32."""
        start, span, direction, signed, whole = self.table.index_select(0, which).unbind(1)
        reach = span * level
        reach = torch.where(whole > 0, reach.round() if self.nearest else reach.floor(), reach)
        return start + reach * direction * (1 - 2 * signed * negative)


def crop_boxes(draws: Tensor, height: int, width: int, scale: tuple[float, float]) -> Tensor:
    """Makes the boxes (B, 4) of ``sample.draw_crop`` (top, left, height, width) from draws in [0, 1), (B, 22).

    Two draws for each of ten attempts, then two for the place.
    """
    area = (scale[0] + (scale[1] - scale[0]) * draws[:, 0:20:2]) * (height * width)
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    ratio = (low + (high - low) * draws[:, 1:20:2]).exp()
    highs, wides = (area / ratio).sqrt().round(), (area * ratio).sqrt().round()
    fits = (highs > 0) & (highs <= height) & (wides > 0) & (wides <= width)
    found, first = fits.any(1), fits.int().argmax(1, keepdim=True)
    widest, highest = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    highs = torch.where(found, highs.gather(1, first)[:, 0], highest)
    wides = torch.where(found, wides.gather(1, first)[:, 0], widest)
    room = torch.stack([height - highs, width - wides], dim=1)
    corner = torch.where(found[:, None], (draws[:, 20:] * (room + 1)).floor(), (room / 2).floor())
    return torch.cat([corner, highs[:, None], wides[:, None]], dim=1)


def erase_boxes(draws: Tensor, height: int, width: int) -> Tensor:
    """Makes the boxes (B, 4) of ``sample.erase`` (top, left, height, width) from draws in [0, 1), (B, 4): area, ratio and place."""
    area = (0.02 + (1 / 3 - 0.02) * draws[:, 0]) * (height * width)
    ratio = (math.log(0.3) * (1 - 2 * draws[:, 1])).exp()
    sizes = torch.stack([(area * ratio).sqrt().round().clamp(max=height - 1), (area / ratio).sqrt().round().clamp(max=width - 1)], dim=1).clamp(min=1)
    return torch.cat([(draws[:, 2:] * (torch.tensor([height, width]) - sizes + 1)).floor(), sizes], dim=1)


def cutout_boxes(draws: Tensor, height: int, width: int, side: int) -> Tensor:
    """Makes the boxes (B, 4) of ``sample.cutout`` (top, left, height, width) from draws in [0, 1), (B, 2)."""
    corner = (draws * torch.tensor([height, width])).floor() - side // 2
    return torch.cat([corner, torch.full_like(corner, side)], dim=1)


def rotations(degrees: Tensor, height: int, width: int) -> Tensor:
    """Makes the inverse maps (B, 2, 3) of counter-clockwise rotations about the middle."""
    y, x, angle = height / 2, width / 2, degrees.double().deg2rad()
    c, s = angle.cos(), angle.sin()
    return torch.stack([c, -s, x - c * x + s * y, s, c, y - s * x - c * y], dim=1).view(-1, 2, 3).float()


class _Batch:
    """Images in channels_last, in an order of its own: samples that meet the same fate lie side by side, and are written in place."""

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.order: Tensor | None = None  # number of the sample at each place, on the CPU; None: the given order

    def sent(self, tensor: Tensor) -> Tensor:
        """Copies what was drawn to the images' device without waiting for it."""
        return tensor.to(self.images.device, non_blocking=True)

    def here(self, drawn: Tensor) -> Tensor:
        """Puts what was drawn for the samples, (B, ...), into the order of the images."""
        return drawn if self.order is None else drawn[self.order]

    def arrange(self, order: Tensor) -> None:
        """Puts the samples into an order, into new memory: whole images move, which costs next to nothing."""
        moves = order if self.order is None else self.order.argsort()[order]
        pixels = self.images.permute(0, 2, 3, 1).contiguous()
        self.images, self.order = pixels.index_select(0, self.sent(moves)).permute(0, 3, 1, 2), order

    def result(self) -> Tensor:
        """Returns the images in the given order; the given tensor itself where nothing was done."""
        if self.order is not None:
            self.arrange(torch.arange(len(self.order)))
        return self.images


class BatchAugment:
    """Augments a batch of training images; every draw follows from (seed, epoch, index), on every device and in every batch the same.

    Args:
        config: What to do.
        image_size: (H, W) of the images and of the result, pixels.
        mean: Colour of what comes in at the borders, per channel, 0..1.
        std: Deviation of the noise of erasing, per channel, 0..1.
        seed: The run's.
    """

    def __init__(self, config: AugmentConfig, image_size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...], seed: int) -> None:
        self.config, self.image_size = config, image_size
        self.fill = torch.tensor([round(255 * m) for m in mean], dtype=torch.uint8)
        self.noise = operations.gaussian_table(mean, std)
        self.streams = {purpose: key(seed, purpose) for purpose in ("crop", "place", "side", "policy", "cutout", "erase", "noise")}
        if config.policy == "trivialaugment":
            self.ranges = Ranges(TRIVIALAUGMENT, trivialaugment_ranges(), nearest=True)
        else:
            self.ranges = Ranges(RANDAUGMENT, randaugment_ranges(image_size), nearest=False)

    def __call__(self, images: Tensor, epoch: int, indices: Tensor) -> Tensor:
        """Turns uint8 images (B, C, H, W) into others; the images themselves stay.

        Args:
            images: Of ``image_size``, on any device and of any memory format; channels_last is the fastest.
            epoch: Number of the epoch.
            indices: Of the samples in the data set, (B,) int64, on the CPU.

        Returns:
            uint8 (B, C, H, W) in the memory format channels_last, on the images' device.

        Raises:
            ValueError: The images have another size or number of channels.
        """
        shape = (len(self.fill), *self.image_size)
        if tuple(images.shape[1:]) != shape:
            raise ValueError(f"images of shape {tuple(images.shape)}: they must be (B, {str(shape)[1:]}; resize them to image_size first.")
        size = PIECE if images.device.type == "cpu" else max(len(images), 1)
        result = torch.empty_like(images, memory_format=torch.channels_last)
        with torch.inference_mode():  # without autograd's bookkeeping a batch of 128 takes a seventh less; the result is an ordinary tensor
            pieces = (torch.split(tensor, size) for tensor in (result, images, indices))
            for piece, part, its in zip(*pieces, strict=True):
                piece.copy_(self._augment(part, epoch, its))
        return result

    def _augment(self, images: Tensor, epoch: int, indices: Tensor) -> Tensor:
        H, W = self.image_size
        config, batch = self.config, _Batch(images)
        if config.crop_scale is not None:
            draws = self._draws("crop", epoch, indices, 23)
            boxes = crop_boxes(draws[:, :22], H, W, config.crop_scale)
            batch.images = operations.resized_crop(batch.images, batch.sent(boxes), batch.sent(draws[:, 22] < 0.5))
        if config.shift or config.flip or config.flip_alternate:
            draws = self._draws("place", epoch, indices, 3)
            shifts = (draws[:, :2] * (2 * config.shift + 1)).long().sub_(config.shift)
            flips = (self._draws("side", 0, indices, 1)[:, 0] < 0.5) ^ bool(epoch % 2) if config.flip_alternate else draws[:, 2] < config.flip
            (down, right), flip = batch.sent(shifts).unbind(1), batch.sent(flips)
            batch.images = operations.shift_and_flip(batch.images, down, right, flip, config.shift)
        if config.policy == "trivialaugment":
            cubic, choice, level, sign = self._draws("policy", epoch, indices, 4).unbind(1)
            self._operate(batch, choice, (level * 31).floor() / 30, sign, cubic)
        elif config.policy == "randaugment":
            draws = self._draws("policy", epoch, indices, 1 + 4 * config.ops)
            for column in range(1, draws.shape[1], 4):
                choice, apply, strength, sign = draws[:, column : column + 4].unbind(1)
                normal = torch.special.ndtri(strength + 2.0**-25)  # a draw may be 0, never 1
                level = (config.magnitude + config.magnitude_std * normal).clamp_(0, 10) / 10
                self._operate(batch, choice, level, sign, draws[:, 0], apply < 0.5)
        if config.cutout:
            boxes = cutout_boxes(self._draws("cutout", epoch, indices, 2), H, W, config.cutout)
            batch.images = operations.cutout(batch.images, batch.sent(batch.here(boxes)), batch.sent(self.fill))
        if config.erase:
            self._erase(batch, epoch, indices)
        return batch.result()

    def _draws(self, purpose: str, epoch: int, indices: Tensor, count: int) -> Tensor:
        return uniform(self.streams[purpose], epoch, indices, count)

    def _operate(self, batch: _Batch, choice: Tensor, level: Tensor, sign: Tensor, cubic: Tensor, apply: Tensor | None = None) -> None:
        """Applies one operation to every sample, or to those for which ``apply`` says so; the other draws in [0, 1), each (B,)."""
        which = (choice * len(self.ranges)).long()
        rank = self.ranges.rank[which]
        if apply is not None:
            rank = torch.where(apply, rank, ORDER.index("identity"))
        batch.arrange(rank.argsort())
        ends = rank.bincount(minlength=len(ORDER)).cumsum(0).tolist()
        stretches = {name: slice(first, last) for name, first, last in zip(ORDER, [0, *ends], ends, strict=False)}
        drawn = batch.here(torch.stack([self.ranges.arguments(which, level, sign < 0.5), (cubic < 0.5).float()], dim=1))
        arguments, cubic = batch.sent(drawn).unbind(1)
        self._tables(batch, stretches, arguments)
        for name, operation in (("color", operations.color), ("sharpness", operations.sharpness)):
            part = batch.images[stretches[name]]
            if len(part):
                part.copy_(operation(part, arguments[stretches[name]]))
        self._geometry(batch, stretches, arguments, cubic, drawn)

    def _tables(self, batch: _Batch, stretches: dict[str, slice], arguments: Tensor) -> None:
        """Applies the operations that map values: one lookup for all of them."""
        tables = [
            make(batch.images[stretches[name]], arguments[stretches[name]]).expand(-1, len(self.fill), -1)
            for name, make in TABLES.items()
            if stretches[name].stop > stretches[name].start
        ]
        if tables:
            part = batch.images[: sum(map(len, tables))]
            part.copy_(lookup(part, torch.cat(tables)))

    def _geometry(self, batch: _Batch, stretches: dict[str, slice], arguments: Tensor, cubic: Tensor, drawn: Tensor) -> None:
        """Applies the operations that move pixels: one call for rows, one for columns and one for rotations."""
        fill = batch.sent(self.fill)
        for shear, translate in (ROWS, COLUMNS):
            both, sheared = slice(stretches[shear].start, stretches[translate].stop), stretches[shear].stop - stretches[shear].start
            if len(part := batch.images[both]):
                part = part.mT if shear == "shear_y" else part
                offsets = arguments[both, None].repeat(1, part.shape[2])
                offsets[:sheared] *= torch.arange(part.shape[2], device=part.device) + 0.5
                part.copy_(operations.shift_rows(part, offsets, cubic[both], fill))
        turned = stretches["rotate"]
        if len(part := batch.images[turned]):
            part.copy_(operations.affine(part, batch.sent(rotations(drawn[turned, 0], *self.image_size)), cubic[turned], fill))

    def _erase(self, batch: _Batch, epoch: int, indices: Tensor) -> None:
        """Erases a rectangle of some samples, which are put to the front."""
        draws = self._draws("erase", epoch, indices, 5)
        spared = draws[:, 0] >= self.config.erase
        count = len(spared) - int(spared.sum())
        if not count:
            return
        order = spared.byte().argsort()
        batch.arrange(order)
        part, erased = batch.images[:count], order[:count]
        B, C, H, W = part.shape
        words = bits(self.streams["noise"], epoch, batch.sent(indices[erased]), -(-C * H * W // 8))
        random = words.view(torch.uint8)[:, : C * H * W].reshape(B, H, W, C).permute(0, 3, 1, 2)
        noise = lookup(random, batch.sent(self.noise).expand(B, -1, -1))
        part.copy_(operations.erase(part, batch.sent(erase_boxes(draws[erased, 1:], H, W)), noise))
