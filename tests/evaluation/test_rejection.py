import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve

from cct_lightning import InputError
from cct_lightning.evaluation.rejection import choose_threshold, describe_answered, measure_outliers, measure_rejection, score
from cct_lightning.networks.options import Rejection


def drawn(n=500, seed=0, shift=0.0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)) + shift


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.95, 0.999, 1.0])
def test_no_higher_threshold_keeps_the_share_of_right_answers(share):
    scores, right = drawn(), drawn(seed=1) > -0.5
    threshold = choose_threshold(scores, right, share)
    kept = scores[right].double()
    assert (kept >= threshold).double().mean() >= share
    assert (kept > threshold).double().mean() < share
    found = measure_rejection(scores, right, Rejection("energy", threshold))
    passed = (scores.double() >= threshold).numpy()
    assert (found.n, found.coverage) == (500, passed.mean())
    assert found.accuracy == right.numpy()[passed].mean()
    assert found.accuracy_of_all == right.double().mean()


def test_outliers_are_told_as_scikit_learn_tells_them():
    inside, outside = (drawn(400, seed, shift).mul(4).round() for seed, shift in ((0, 1.5), (1, 0.0)))  # with many that are equal
    found = measure_outliers(inside, outside, Rejection("energy", 3.0))
    labels, scores = np.r_[np.ones(400), np.zeros(400)], torch.cat([inside, outside]).numpy()
    assert found.auroc == pytest.approx(roc_auc_score(labels, scores))
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert found.fpr95 == pytest.approx(false[np.argmax(true >= 0.95)])
    assert found.answered == (outside >= 3).double().mean()


def test_scores_are_those_of_their_papers():
    logits = drawn(12).view(4, 3)
    probabilities = (logits / 2).softmax(dim=1)
    torch.testing.assert_close(score(logits, probabilities, "energy"), logits.exp().sum(dim=1).log())
    torch.testing.assert_close(score(logits, probabilities, "probability"), probabilities.max(dim=1).values)


def test_what_tells_nothing_is_refused():
    with pytest.raises(InputError, match="not one answer is right on the validation images"):
        choose_threshold(drawn(), torch.zeros(500, dtype=torch.bool), 0.95)
    with pytest.raises(InputError, match="reject=0 is out of range"):
        choose_threshold(drawn(), drawn() > 0, 0)
    with pytest.raises(InputError, match="a logit is no number"):
        choose_threshold(drawn() * float("nan"), drawn() > 0, 0.5)
    assert describe_answered(measure_rejection(drawn(), drawn() > 0, Rejection("energy", 99.0)), "test") == (
        f"  test: 500 images, 0.00 % answered (of all {100 * float((drawn() > 0).double().mean()):.2f} %)"
    )
