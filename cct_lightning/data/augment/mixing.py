"""What happens to a whole batch, on the device: normalisation, MixUp and CutMix. Draws are made apart from the arithmetic."""

import math
import random
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cct_lightning.data.augment.options import AugmentConfig
from cct_lightning.randomness import key


class Mix(NamedTuple):
    """One draw for a batch: the share of each sample that stays, and for CutMix the centre of the box as shares of H and W."""

    weight: float
    centre: tuple[float, float] | None


def draw_mix(config: AugmentConfig, seed: int, epoch: int, number: int) -> Mix | None:
    """Draws what happens to the batch of this number in this epoch; the same on every rank. None: nothing."""
    if not (config.mixup or config.cutmix) or (config.mix_off_epoch and epoch >= config.mix_off_epoch):
        return None
    source = random.Random(key(seed, "mix", epoch, number))
    cut = config.cutmix > 0 and (config.mixup == 0 or source.random() < 0.5)
    alpha = config.cutmix if cut else config.mixup
    weight = source.betavariate(alpha, alpha)
    return Mix(weight, (source.random(), source.random()) if cut else None)


def neighbours(size: int, device: torch.device | None = None) -> Tensor:
    """Pairs 2j with 2j + 1, (size,), so that no split of a batch over devices parts a pair; an odd last one is its own partner."""
    order = torch.arange(size, device=device) ^ 1
    return order.clamp_(max=size - 1)


def mix(images: Tensor, targets: Tensor, weight: float, order: Tensor) -> tuple[Tensor, Tensor]:
    """Blends each sample with another: weight * sample + (1 - weight) * samples[order]; targets (B, K) keep summing to 1.

    "mixup: Beyond Empirical Risk Minimization" (arXiv 1710.09412).
    """
    return images.lerp(images[order], 1 - weight), targets.lerp(targets[order], 1 - weight)


def cutmix(images: Tensor, targets: Tensor, weight: float, centre: tuple[float, float], order: Tensor) -> tuple[Tensor, Tensor]:
    """Pastes a box of another sample: about (1 - weight) of the area around the centre, cut off at the border; targets follow the true area.

    "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features" (arXiv 1905.04899).
    """
    H, W = images.shape[-2:]
    side = math.sqrt(1 - weight)
    (top, bottom), (left, right) = (
        (max(int(middle * size) - int(size * side) // 2, 0), min(int(middle * size) + int(size * side) // 2, size))
        for middle, size in zip(centre, (H, W), strict=True)
    )
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[order, :, top:bottom, left:right]
    share = (bottom - top) * (right - left) / (H * W)
    return mixed, targets.lerp(targets[order], share)


def mix_batch(images: Tensor, targets: Tensor, num_classes: int, drawn: Mix) -> tuple[Tensor, Tensor]:
    """Applies a draw to float images (B, C, H, W) and class indices (B,), or values (B, K); returns the images and probabilities or values (B, K)."""
    order = neighbours(len(images), images.device)
    probabilities = F.one_hot(targets, num_classes).float() if targets.ndim == 1 else targets
    if drawn.centre is None:
        return mix(images, probabilities, drawn.weight, order)
    return cutmix(images, probabilities, drawn.weight, drawn.centre, order)
