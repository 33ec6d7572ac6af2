"""Times the augmentation of small images, ours and others, side by side on one core: python -m benchmarks.input [-n N] [--threads 1]

From uint8 images of 32 pixels in memory to a normalised float batch. Ours takes a whole batch, the others an image at a time, then stack.
Every round times all contestants, each on the same images and in an order that changes; the ratio of a round is ours over the other's.
The others are timed on one batch of 128 in each round, ours on 1,024 images, 128 or all at once: about the same time.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else the import asks a server for news

import albumentations
import numpy as np
import PIL
import PIL.Image
import PIL.ImageOps
import timm
import timm.data.auto_augment
import torch
import torchvision
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import v2

from benchmarks.common import machine, ratios, spread
from cct_lightning import AugmentConfig
from cct_lightning.data.augment.per_batch import BatchAugment
from cct_lightning.data.preparation import normalize

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # CIFAR-10
BATCH, CHUNK = 128, 1024
Contestant = Callable[[int], object]  # takes the number of the round


def posterize(image: PIL.Image.Image, bits: int, **_: object) -> PIL.Image.Image:
    """Stands in for timm 1.0.31's, which asks for 0 bits at the highest magnitude; Pillow 13 refuses them."""
    return image if bits >= 8 else PIL.ImageOps.posterize(image, max(bits, 1))


def ours(config: AugmentConfig, pixels: np.ndarray, size: int) -> Contestant:
    """Augments all images, ``size`` at once, and normalises them in batches."""
    augment, images = BatchAugment(config, (32, 32), MEAN, STD, seed=0), torch.from_numpy(pixels).permute(0, 3, 1, 2)
    indices = torch.arange(len(images))

    def run(number: int) -> None:
        for part, its in zip(torch.split(images, size), torch.split(indices, size), strict=True):
            for batch in torch.split(augment(part, number, its), BATCH):
                normalize(batch, MEAN, STD)

    return run


def per_sample(call: Callable[[Any], Tensor], samples: Iterable[object]) -> Contestant:
    """Augments each sample by itself and stacks a batch."""
    return lambda _: torch.stack([call(sample) for sample in samples])


def shifts(pixels: np.ndarray) -> dict[str, tuple[int, Contestant]]:
    """Shift by up to 4 pixels and flip: the number of images and the call of each contestant, ours first."""
    config = AugmentConfig(shift=4, flip=0.5)
    tensor_road = v2.Compose([
        v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD),
    ])  # fmt: skip
    array_road = albumentations.Compose([
        albumentations.PadIfNeeded(40, 40, border_mode=0), albumentations.RandomCrop(32, 32), albumentations.HorizontalFlip(p=0.5),
        albumentations.Normalize(MEAN, STD),
    ])  # fmt: skip
    tensors = list(torch.from_numpy(pixels[:BATCH]).permute(0, 3, 1, 2).contiguous())
    return {
        f"ours, {BATCH} at once": (CHUNK, ours(config, pixels, BATCH)),
        f"ours, {CHUNK} at once": (CHUNK, ours(config, pixels, CHUNK)),
        "torchvision v2": (BATCH, per_sample(tensor_road, tensors)),
        "albumentations": (BATCH, per_sample(lambda image: torch.from_numpy(array_road(image=image)["image"].transpose(2, 0, 1)), pixels[:BATCH])),
    }


def policies(pixels: np.ndarray) -> dict[str, tuple[int, Contestant]]:
    """Flip, RandAugment (2 operations, magnitude 9) and erasing: the number of images and the call of each contestant, ours first."""
    config = AugmentConfig(flip=0.5, policy="randaugment", ops=2, magnitude=9, magnitude_std=0.5, erase=0.25)
    for name in ("Posterize", "PosterizeIncreasing", "PosterizeOriginal"):
        timm.data.auto_augment.NAME_TO_OP[name] = posterize
    fill = tuple(round(255 * m) for m in MEAN)
    policy = timm.data.auto_augment.rand_augment_transform("rand-m9-n2-mstd0.5-inc1", {"translate_const": round(0.45 * 32), "img_mean": fill})
    erasing = RandomErasing(0.25, mode="pixel", device="cpu")
    timm_road = transforms.Compose([transforms.RandomHorizontalFlip(), policy, transforms.ToTensor(), transforms.Normalize(MEAN, STD), erasing])
    torchvision_road = v2.Compose([
        v2.RandomHorizontalFlip(), v2.RandAugment(2, 9, fill=list(fill)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(MEAN, STD), v2.RandomErasing(0.25, value="random"),
    ])  # fmt: skip
    pictures = [PIL.Image.fromarray(image) for image in pixels[:BATCH]]
    return {
        f"ours, {BATCH} at once": (CHUNK, ours(config, pixels, BATCH)),
        f"ours, {CHUNK} at once": (CHUNK, ours(config, pixels, CHUNK)),
        "timm": (BATCH, per_sample(timm_road, pictures)),
        "torchvision v2": (BATCH, per_sample(torchvision_road, pictures)),
    }


def rounds(contestants: dict[str, tuple[int, Contestant]], n: int) -> dict[str, list[float]]:
    """Returns the images per second of each contestant in each round, after two rounds of warming up."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(n + 2):
        names = list(contestants)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            size, call = contestants[name]
            began = time.perf_counter()
            call(number)
            if number >= 2:
                rates[name].append(size / (time.perf_counter() - began))
    return rates


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=40, help="rounds")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{machine('cpu', options.threads, torchvision, timm, albumentations, PIL, np)}; n = {options.n} rounds")
    pixels = np.random.default_rng(0).integers(0, 256, (CHUNK, 32, 32, 3), dtype=np.uint8)
    for title, contestants in (("shift 4, flip", shifts(pixels)), ("flip, RandAugment(2, 9), erasing 0.25", policies(pixels))):
        rates = rounds(contestants, options.n)
        print(f"\n{title}: images/s, median (least to most)")
        for name, found in rates.items():
            print(f"  {name:20}{spread(found, ',.0f')}")
        print("ratio of a round, median (least to most)")
        for mine in [name for name in rates if name.startswith("ours")]:
            for other in [name for name in rates if not name.startswith("ours")]:
                print(f"  {mine} / {other}: {spread(ratios(rates[other], rates[mine]), '.1f')}")


if __name__ == "__main__":
    main()
