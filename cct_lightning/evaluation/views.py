"""Test-time augmentation: an image seen mirrored and shifted, too, and the mean of what a network makes of these views."""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from cct_lightning.evaluation.options import PASSES, Tta

SHIFTS = {"none": (0,), "mirror": (0,), "shift": (0, -1, 1)}  # steps down and to the right
STEP = 32  # pixels of a side that a step of one pixel is for


def views(images: Tensor, tta: Tta) -> Iterator[Tensor]:
    """Yields what is seen of images (B, C, H, W), of any dtype: each view has their shape, and the first is what was given.

    ``mirror``: each image and its mirror. ``shift``: these two of the image as it is, of the image shifted up and to the left, and of the image
    shifted down and to the right, by one pixel for each 32 of a side and at least one, what comes in reflected at the edge. After cifar10-airbench
    (github.com/KellerJordan/cifar10-airbench, airbench94.py, ``infer_mirror_translate``), which does so at 32 pixels.
    """
    for step in SHIFTS[tta]:
        shifted = _shift(images, step)
        yield shifted
        if tta != "none":
            yield shifted.flip(3)


def mean_logits(network: Callable[[Tensor], Tensor], images: Tensor, tta: Tta, kind: str | None = "class") -> Tensor:
    """Returns the logits of what is seen of images (B, C, H, W): (B, K), those of the network itself where that is the image alone.

    Of several views they are the logarithm of the mean of the views' probabilities, so that softmax gives that mean: what else is made of logits, a
    loss, an order, a temperature, is then made of it. cifar10-airbench averages logits instead, and counts the unshifted views twice.

    Args:
        network: Returns logits (B, K).
        images: (B, C, H, W), of any dtype.
        tta: What is seen.
        kind: class; of labels sigmoid gives the mean of the views' probabilities, of numbers it is their mean.
    """
    if tta == "none":
        return network(images)
    seen = torch.stack([network(view).float() for view in views(images, tta)])
    if kind == "numbers":
        return seen.mean(dim=0)
    if kind == "labels":
        return F.logsigmoid(seen).logsumexp(dim=0) - F.logsigmoid(-seen).logsumexp(dim=0)
    return seen.log_softmax(dim=2).logsumexp(dim=0) - math.log(PASSES[tta])


def _shift(images: Tensor, step: int) -> Tensor:
    if step == 0:
        return images
    rows, columns = (_sources(side, step * max(1, side // STEP), images.device) for side in images.shape[2:])
    # In the layout of the images: a network takes half as long again for images laid out otherwise, such as by the indexing.
    return torch.empty_like(images).copy_(images[:, :, rows[:, None], columns])


def _sources(side: int, pixels: int, device: torch.device) -> Tensor:
    """Returns which pixel of a side comes to each place when all move by ``pixels``, reflected at the edge, which is not repeated."""
    places, last = torch.arange(side, device=device) - pixels, side - 1
    return (last - (last - places.abs()).abs()).clamp(min=0)
