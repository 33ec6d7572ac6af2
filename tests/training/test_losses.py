import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

from cct_lightning.training.losses import asymmetric_loss, binary_cross_entropy, class_weights, cross_entropy, positive_weights, soften

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


def labels_of(seed=0):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(6, 4, generator=source) * 3, (torch.rand(6, 4, generator=source) < 0.4).float()


def test_the_asymmetric_loss_without_its_terms_is_binary_cross_entropy():
    logits, targets = labels_of()
    weights = torch.tensor([1.0, 2.0, 3.0, 0.5])
    torch.testing.assert_close(asymmetric_loss(logits, targets, 0, 0, 0), binary_cross_entropy(logits, targets))
    torch.testing.assert_close(asymmetric_loss(logits, targets, 0, 0, 0, weights), binary_cross_entropy(logits, targets, weights))


def test_the_asymmetric_loss_is_the_papers_and_finite_far_out():
    logits, targets = labels_of()
    p, q = logits.sigmoid(), (logits.sigmoid() - 0.05).clamp(min=0)
    wanted = -(targets * (1 - p) ** 1 * p.log() + (1 - targets) * q**4 * (1 - q).log()).mean()
    torch.testing.assert_close(asymmetric_loss(logits, targets, 4, 1, 0.05), wanted)
    far = torch.tensor([[80.0, -80.0]], requires_grad=True)
    asymmetric_loss(far, torch.tensor([[0.0, 1.0]]), 4, 1, 0.05).backward()
    assert far.grad.isfinite().all()
    sure = torch.tensor([[20.0, 20.0]], requires_grad=True)
    asymmetric_loss(sure, torch.tensor([[0.0, 1.0]]), 4, 0.5, 0.05).backward()
    assert sure.grad.isfinite().all()
    easy = torch.tensor([[-3.5]], requires_grad=True)  # p = 0.03, below the clip
    asymmetric_loss(easy, torch.zeros(1, 1), 4, 0, 0.05).backward()
    assert easy.grad == 0


def test_targets_between_0_and_1_weigh_both_parts():
    logits = labels_of()[0]
    there, absent = (asymmetric_loss(logits, torch.full((6, 4), value), 4, 1, 0.05) for value in (1.0, 0.0))
    torch.testing.assert_close(asymmetric_loss(logits, torch.full((6, 4), 0.3), 4, 1, 0.05), 0.3 * there + 0.7 * absent)


def test_balanced_labels_count_as_much_as_their_absence():
    assert positive_weights([1, 5, 0, 10], 10).tolist() == [9.0, 1.0, 1.0, 1.0]


def test_smoothed_labels_move_towards_a_half():
    torch.testing.assert_close(soften(torch.tensor([0.0, 1.0, 0.5]), 0.1), torch.tensor([0.05, 0.95, 0.5]))
