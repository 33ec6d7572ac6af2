"""What happens to one image: crop, shift, flip, RandAugment or TrivialAugment, Cutout, erasing. Images are numpy uint8 (H, W, C), C 1 or 3;
without RandAugment and TrivialAugment any C.

Geometry and blending are albumentations' functions; the random classes around them are not used, because 2.0.8 repeats its draws in
DataLoader workers. Look-up tables (equalize, autocontrast, posterize, solarize) are our own: those of 2.0.8 differ from Pillow's,
which RandAugment's authors used.
"""

import math
import os
import random
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else the import asks a server for news

import cv2
import numpy as np

from cct_lightning.data.augment.options import AugmentConfig
from cct_lightning.data.preparation import CROP, Fitting, cut, fit, with_channels
from cct_lightning.randomness import key

cv2.setNumThreads(0)  # images are small and DataLoader workers many: threads inside an operation only cost
Image = np.ndarray[Any, Any]
RATIO = (3 / 4, 4 / 3)  # width over height of a random crop, as in Inception, timm and torchvision


class _Functions(NamedTuple):
    """Those of albumentations."""

    warp_affine: Callable[..., Image]
    adjust_saturation: Callable[..., Image]


@cache
def _albumentations() -> _Functions:
    """Imports albumentations, which takes a second of a processor: runs that augment whole batches need none of it."""
    from albumentations.augmentations.geometric.functional import warp_affine
    from albumentations.augmentations.pixel.functional import adjust_saturation_torchvision

    return _Functions(warp_affine, adjust_saturation_torchvision)


def _table(image: Image, table: np.ndarray) -> Image:
    return with_channels(cv2.LUT(image, table.astype(np.uint8)))


def _histogram_tables(image: Image, table_of: Callable[[np.ndarray], np.ndarray]) -> Image:
    channels = [np.ascontiguousarray(image[..., c]) for c in range(image.shape[2])]
    tables = [table_of(np.bincount(channel.ravel(), minlength=256)).astype(np.uint8) for channel in channels]
    return np.stack([cv2.LUT(channel, table) for channel, table in zip(channels, tables, strict=True)], axis=-1)


def autocontrast(image: Image) -> Image:
    """Stretches each channel to 0..255; ``ImageOps.autocontrast`` in Pillow."""

    def table_of(histogram: Image) -> Image:
        used = np.flatnonzero(histogram)
        low, high = used[0], used[-1]
        if high <= low:
            return np.arange(256)
        scale = 255.0 / (high - low)
        stretched: Image = (np.arange(256) * scale - low * scale).astype(int).clip(0, 255)
        return stretched

    return _histogram_tables(image, table_of)


def equalize(image: Image) -> Image:
    """Equalises each channel's histogram; ``ImageOps.equalize`` in Pillow."""

    def table_of(histogram: Image) -> Image:
        used = histogram[histogram > 0]
        step = (used.sum() - used[-1]) // 255
        if len(used) <= 1 or not step:
            return np.arange(256)
        levelled: Image = ((step // 2 + histogram.cumsum() - histogram) // step).clip(max=255)
        return levelled

    return _histogram_tables(image, table_of)


def invert(image: Image) -> Image:
    return 255 - image


def posterize(image: Image, bits: int) -> Image:
    """Keeps the highest bits of each value, at least one (Pillow 13 refuses 0, and a black image teaches nothing)."""
    return image & np.uint8(256 - 2 ** (8 - max(bits, 1)))


def solarize(image: Image, threshold: int) -> Image:
    """Inverts the values from the threshold on, 0..256."""
    values = np.arange(256)
    return _table(image, np.where(values < threshold, values, 255 - values))


def solarize_add(image: Image, amount: int) -> Image:
    """Adds to the values below 128."""
    values = np.arange(256)
    return _table(image, np.where(values < 128, np.minimum(values + amount, 255), values))


def _blend(other: Image, image: Image, factor: float) -> Image:
    return with_channels(cv2.addWeighted(image, factor, other, 1 - factor, 0))


def color(image: Image, factor: float) -> Image:
    """Between grey (0) and the image (1), and beyond."""
    return image if image.shape[2] == 1 else _albumentations().adjust_saturation(image, factor)


def contrast(image: Image, factor: float) -> Image:
    """Between the image's mean grey (0) and the image (1), and beyond."""
    grey = image if image.shape[2] == 1 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return _blend(np.full_like(image, int(grey.mean() + 0.5)), image, factor)


def brightness(image: Image, factor: float) -> Image:
    """Between black (0) and the image (1), and beyond."""
    return _blend(np.zeros_like(image), image, factor)


SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # Pillow's ImageFilter.SMOOTH


def sharpness(image: Image, factor: float) -> Image:
    """Between a smoothed image (0) and the image (1), and beyond; the border stays."""
    smooth = image.copy()
    smooth[1:-1, 1:-1] = with_channels(cv2.filter2D(image, -1, SMOOTH))[1:-1, 1:-1]
    return _blend(smooth, image, factor)


def affine(image: Image, inverse: np.ndarray, fill: tuple[float, ...], cubic: bool = False) -> Image:
    """Takes output pixel (x, y) from inverse (2, 3) of (x, y, 1), about the corner of the image, as Pillow's ``Image.transform``."""
    centre = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    matrix = np.linalg.inv(np.linalg.inv(centre) @ np.vstack([inverse, [0, 0, 1]]) @ centre)
    method = cv2.INTER_CUBIC if cubic else cv2.INTER_LINEAR
    return with_channels(_albumentations().warp_affine(image, matrix, method, fill, cv2.BORDER_CONSTANT, image.shape[:2]))


def _rotation(image: Image, degrees: float) -> np.ndarray:
    """The inverse map of a rotation about the middle, counter-clockwise."""
    y, x = image.shape[0] / 2, image.shape[1] / 2
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[c, -s, x - c * x + s * y], [s, c, y - s * x - c * y]])


class Context(NamedTuple):
    """What geometric operations need beside the image: the colour of what comes in, and the interpolation."""

    fill: tuple[float, ...]
    cubic: bool


Operation = Callable[[Image, float, Context], Image]
OPERATIONS: dict[str, Operation] = {
    "autocontrast": lambda image, _, c: autocontrast(image),
    "equalize": lambda image, _, c: equalize(image),
    "invert": lambda image, _, c: invert(image),
    "rotate": lambda image, degrees, c: affine(image, _rotation(image, degrees), *c),
    "posterize": lambda image, bits, c: posterize(image, int(bits)),
    "solarize": lambda image, threshold, c: solarize(image, int(threshold)),
    "solarize_add": lambda image, amount, c: solarize_add(image, int(amount)),
    "color": lambda image, factor, c: color(image, factor),
    "contrast": lambda image, factor, c: contrast(image, factor),
    "brightness": lambda image, factor, c: brightness(image, factor),
    "sharpness": lambda image, factor, c: sharpness(image, factor),
    "shear_x": lambda image, by, c: affine(image, np.array([[1, by, 0], [0, 1, 0]]), *c),
    "shear_y": lambda image, by, c: affine(image, np.array([[1, 0, 0], [by, 1, 0]]), *c),
    "translate_x": lambda image, pixels, c: affine(image, np.array([[1, 0, pixels], [0, 1, 0]]), *c),
    "translate_y": lambda image, pixels, c: affine(image, np.array([[1, 0, 0], [0, 1, pixels]]), *c),
    "identity": lambda image, _, c: image,
}


def _signed(source: random.Random, value: float) -> float:
    return -value if source.random() < 0.5 else value


RANDAUGMENT = [name for name in OPERATIONS if name != "identity"]
TRIVIALAUGMENT = [name for name in OPERATIONS if name not in ("invert", "solarize_add")]


def randaugment_argument(name: str, magnitude: float, source: random.Random, size: tuple[int, int]) -> float:
    """Translates a magnitude, 0 to 10, into the operation's argument: the ranges of timm's ``rand-...-inc1``, where more is stronger."""
    level = min(max(magnitude, 0.0), 10.0) / 10
    match name:
        case "rotate":
            return _signed(source, 30 * level)
        case "posterize":
            return 4 - int(4 * level)
        case "solarize":
            return 256 - int(256 * level)
        case "solarize_add":
            return int(110 * level)
        case "color" | "contrast" | "brightness" | "sharpness":
            return max(0.1, 1 + _signed(source, 0.9 * level))
        case "shear_x" | "shear_y":
            return _signed(source, 0.3 * level)
        case "translate_x" | "translate_y":
            return _signed(source, 0.45 * level) * size[name == "translate_x"]
    return 0.0


def trivialaugment_argument(name: str, source: random.Random) -> float:
    """Draws the operation's argument over the wide ranges of "TrivialAugment" (arXiv 2103.10158, table 1), 31 steps."""
    level = source.randrange(31) / 30
    match name:
        case "rotate":
            return _signed(source, 135 * level)
        case "posterize":
            return 8 - round(6 * level)
        case "solarize":
            return 256 - round(256 * level)
        case "color" | "contrast" | "brightness" | "sharpness":
            return 1 + _signed(source, 0.99 * level)
        case "shear_x" | "shear_y":
            return _signed(source, 0.99 * level)
        case "translate_x" | "translate_y":
            return _signed(source, 32 * level)
    return 0.0


def draw_crop(source: random.Random, height: int, width: int, scale: tuple[float, float]) -> tuple[int, int, int, int]:
    """Draws a crop (top, left, height, width) of a share of the area in ``scale``: Inception's, as in timm and torchvision."""
    for _ in range(10):
        area = source.uniform(*scale) * height * width
        ratio = math.exp(source.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        high, wide = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < high <= height and 0 < wide <= width:
            return source.randint(0, height - high), source.randint(0, width - wide), high, wide
    high, wide = min(height, round(width / RATIO[0])), min(width, round(height * RATIO[1]))
    return (height - high) // 2, (width - wide) // 2, high, wide


def cutout(image: Image, source: random.Random, side: int, fill: tuple[float, ...]) -> Image:
    """Fills a square around a random pixel: "Improved Regularization of Convolutional Neural Networks with Cutout" (arXiv 1708.04552)."""
    top, left = (source.randrange(size) - side // 2 for size in image.shape[:2])
    image = image.copy()
    image[max(top, 0) : top + side, max(left, 0) : left + side] = fill
    return image


def erase(image: Image, source: random.Random, mean: tuple[float, ...], std: tuple[float, ...]) -> Image:
    """Replaces a rectangle by noise of the data's mean and deviation: "Random Erasing" (arXiv 1708.04896), timm's mode ``pixel``."""
    height, width, channels = image.shape
    area, ratio = source.uniform(0.02, 1 / 3) * height * width, math.exp(source.uniform(math.log(0.3), math.log(1 / 0.3)))
    high, wide = (max(1, min(round(math.sqrt(area * r)), side - 1)) for r, side in ((ratio, height), (1 / ratio, width)))
    top, left = source.randint(0, height - high), source.randint(0, width - wide)
    noise = np.random.Generator(np.random.PCG64(source.getrandbits(64))).standard_normal((high, wide, channels))
    image = image.copy()
    image[top : top + high, left : left + wide] = np.clip(255 * (noise * std + mean), 0, 255)
    return image


class SampleAugment:
    """Augments one training image; every draw follows from (seed, epoch, index).

    Args:
        config: What to do.
        image_size: (H, W) of the result, pixels.
        mean: Colour of what comes in at the borders, per channel, 0..1.
        std: Deviation of the noise of erasing, per channel, 0..1.
        seed: The run's.
        fitting: How images of other proportions get into ``image_size``.
    """

    def __init__(
        self, config: AugmentConfig, image_size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...], seed: int, fitting: Fitting = CROP
    ) -> None:
        self.config, self.image_size, self.mean, self.std, self.seed, self.fitting = config, image_size, mean, std, seed, fitting
        self.fill = tuple(round(255 * m) for m in mean)
        if config.policy != "none":
            _albumentations()  # here, and not again in each of the loader's processes

    def __call__(self, image: Image, epoch: int, index: int) -> Image:
        """Turns a uint8 image (any H, any W, C) into one of image_size, (H, W, C)."""
        config, source = self.config, random.Random(key(self.seed, "sample", epoch, index))
        if config.crop_scale is not None:
            box = draw_crop(source, *self.fitting.plane(image.shape[:2], self.image_size), config.crop_scale)
            image = cut(image, box, self.image_size, source.random() < 0.5, self.fitting)
        else:
            image = fit(image, self.image_size, fitting=self.fitting)
        if config.shift:
            image = self._shift(image, source.randint(-config.shift, config.shift), source.randint(-config.shift, config.shift))
        flips = source.random() < config.flip
        if config.flip_alternate:
            flips = (random.Random(key(self.seed, "side", index)).random() < 0.5) ^ bool(epoch % 2)
        if flips:
            image = image[:, ::-1]
        if config.policy != "none":
            image = self._policy(np.ascontiguousarray(image), source)
        if config.cutout:
            image = cutout(image, source, config.cutout, self.fill)
        if source.random() < config.erase:
            image = erase(image, source, self.mean, self.std)
        return image

    @staticmethod
    def _shift(image: Image, down: int, right: int) -> Image:
        height, width = image.shape[:2]
        shifted = np.zeros_like(image)
        shifted[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = image[
            max(-down, 0) : height + min(-down, 0), max(-right, 0) : width + min(-right, 0)
        ]
        return shifted

    def _policy(self, image: Image, source: random.Random) -> Image:
        context = Context(self.fill, source.random() < 0.5)
        if self.config.policy == "trivialaugment":
            name = source.choice(TRIVIALAUGMENT)
            return OPERATIONS[name](image, trivialaugment_argument(name, source), context)
        for _ in range(self.config.ops):
            name, apply, magnitude = source.choice(RANDAUGMENT), source.random() < 0.5, source.gauss(self.config.magnitude, self.config.magnitude_std)
            if apply:
                image = OPERATIONS[name](image, randaugment_argument(name, magnitude, source, self.image_size), context)
        return image
