import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

from cct_lightning.training.losses import class_weights, cross_entropy

SOURCE = torch.Generator().manual_seed(0)
LOGITS, TARGETS = torch.randn(12, 3, generator=SOURCE), torch.tensor([0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2])
WEIGHTS = class_weights([7, 3, 2])


def test_balanced_weights_are_scikit_learns():
    expected = compute_class_weight("balanced", classes=np.arange(3), y=TARGETS.numpy())
    torch.testing.assert_close(WEIGHTS.double(), torch.from_numpy(expected), rtol=1e-6, atol=0)


def test_a_class_without_images_weighs_nothing():
    assert class_weights([4, 0, 4]).tolist() == [1, 0, 1]


def test_without_weights_it_is_torchs():
    assert torch.equal(cross_entropy(LOGITS, TARGETS, 0.1), F.cross_entropy(LOGITS, TARGETS, label_smoothing=0.1))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_probabilities_weigh_as_indices_do(smoothing):
    expected = F.cross_entropy(LOGITS, TARGETS, WEIGHTS, label_smoothing=smoothing)
    torch.testing.assert_close(cross_entropy(LOGITS, TARGETS, smoothing, WEIGHTS), expected)
    torch.testing.assert_close(cross_entropy(LOGITS, F.one_hot(TARGETS, 3).float(), smoothing, WEIGHTS), expected)


def test_parts_of_a_batch_add_up_to_the_batch():
    parts = [cross_entropy(LOGITS[rows], TARGETS[rows], 0.1, WEIGHTS) for rows in (slice(0, 6), slice(6, 12))]
    torch.testing.assert_close(torch.stack(parts).mean(), cross_entropy(LOGITS, TARGETS, 0.1, WEIGHTS))


def test_every_class_counts_the_same():
    losses = F.cross_entropy(LOGITS, TARGETS, reduction="none")
    expected = torch.stack([losses[label == TARGETS].mean() for label in range(3)]).mean()
    torch.testing.assert_close(cross_entropy(LOGITS, TARGETS, 0.0, WEIGHTS), expected)
