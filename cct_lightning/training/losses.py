"""The loss: cross-entropy with label smoothing, and classes that weigh as much as each other however few their images are."""

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
