"""Several networks that classify as one. Shapes as in encoder.py."""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from cct_lightning.networks.classifier import ImageClassifier
from cct_lightning.networks.encoder import Encoder


class Ensemble(nn.Module):
    """Classifies by the mean of what several networks hold probable.

    Args:
        members: Networks of the same classes, in their order, for images of one size.
    """

    def __init__(self, members: Sequence[ImageClassifier]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        """Classifies images (B, C, H, W): the logarithm of the mean of the members' probabilities, (B, K), of which softmax is that mean."""
        logs = torch.stack([member(images).float().log_softmax(dim=1) for member in self.members])
        return logs.logsumexp(dim=0) - math.log(len(self.members))

    @property
    def encoder(self) -> Encoder:
        """The first member's, for what all have in common: image size, channels and grid."""
        return cast(ImageClassifier, self.members[0]).encoder

    @property
    def num_classes(self) -> int:
        """K."""
        return cast(ImageClassifier, self.members[0]).num_classes
