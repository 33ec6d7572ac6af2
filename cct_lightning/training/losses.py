"""The losses: cross-entropy with label smoothing, and classes that weigh as much as each other however few their images are; of several labels
binary cross-entropy and the asymmetric loss."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def class_weights(counts: Sequence[int]) -> Tensor:
    """Returns the weight of each class, n / (K * its images), (K,): 1 where all have as many; ``balanced`` in scikit-learn.

    A class without images has weight 0: nothing could be learned of it.
    """
    images = torch.tensor(counts, dtype=torch.float32)
    used = images > 0
    return torch.where(used, images.sum() / (used.sum() * images.clamp(min=1)), 0.0)


def cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, weights: Tensor | None = None) -> Tensor:
    """Computes the mean cross-entropy of a batch, each image weighted by its class.

    Divided by the number of images, over which ``class_weights`` average 1, and not by the sum of the batch's weights, as torch does where
    targets are indices: so MixUp keeps the scale, and devices or accumulated batches add up to what one large batch gives.

    Args:
        logits: (B, K).
        targets: Class indices (B,), or probabilities (B, K).
        label_smoothing: Share of each target that is spread over all classes.
        weights: Of the classes, (K,).
    """
    if weights is None:
        return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    return F.cross_entropy(logits, targets, weights.to(logits.dtype), reduction="sum", label_smoothing=label_smoothing) / len(logits)


def positive_weights(counts: Sequence[int], images: int) -> Tensor:
    """Returns what a label counts where it is there, (K,): the images without it over those with it, so that both count the same in the whole.

    torch's ``pos_weight``. A label that no image has, or every one, counts 1.
    """
    there = torch.tensor(counts, dtype=torch.float32)
    return torch.where((there > 0) & (there < images), (images - there) / there.clamp(min=1), 1.0)


def soften(targets: Tensor, label_smoothing: float) -> Tensor:
    """Moves targets 0..1 of several labels towards a half, by a share of the way."""
    return targets.lerp(torch.full_like(targets, 0.5), label_smoothing) if label_smoothing else targets


def binary_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Computes the mean binary cross-entropy over images and labels.

    Args:
        logits: (B, K).
        targets: 0..1, (B, K).
        weights: Of a label where it is there, (K,).
    """
    return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=None if weights is None else weights.to(logits.dtype))


def asymmetric_loss(logits: Tensor, targets: Tensor, gamma_neg: float, gamma_pos: float, clip: float, weights: Tensor | None = None) -> Tensor:
    """Computes the mean over images and labels of the asymmetric loss: a label that is there costs -(1 - p)^gamma_pos log(p), and one that is absent
    -q^gamma_neg log(1 - q), q being the probability p less ``clip``, at least 0.

    "Asymmetric Loss For Multi-Label Classification" (arXiv 2009.14119, equations 5 to 7), which sums over the labels. Targets between 0 and 1, of
    mixed images, weigh both parts.

    Args:
        logits: (B, K).
        targets: 0..1, (B, K).
        gamma_neg: 0 takes away nothing.
        gamma_pos: Likewise.
        clip: 0..1.
        weights: Of a label where it is there, (K,).
    """
    logits = logits.float()
    probability = logits.sigmoid()
    there = -F.logsigmoid(logits)
    if gamma_pos:
        there = there * (-logits).sigmoid().clamp(min=1e-8) ** gamma_pos  # 1 - p, of which a power below 1 has no finite gradient at 0
    if clip:
        shifted = (probability - clip).clamp(min=0)
        absent = -torch.log1p(-shifted)  # p is 1 at most, and the clip keeps it from there
    else:
        shifted, absent = probability, -F.logsigmoid(-logits)
    if gamma_neg:
        absent = absent * shifted**gamma_neg
    return (targets * there * (1.0 if weights is None else weights) + (1 - targets) * absent).mean()
