"""Thresholds and measures of several labels, beside scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score

from cct_lightning.evaluation.labels import FEWEST, LabelOutcomes, choose_threshold, choose_thresholds, make_label_report
from cct_lightning.evaluation.tables import describe_report, write_report

NAMES = ["ant", "bee", "cat"]


def outcomes(n=200, absent=(), seed=0):
    """Probabilities that agree with the marks more often than not."""
    source = torch.Generator().manual_seed(seed)
    marks = torch.rand(n, 3, generator=source) < torch.tensor([0.3, 0.1, 0.5])
    marks[:, list(absent)] = False
    probabilities = (marks * 1.5 - 0.75 + torch.randn(n, 3, generator=source)).sigmoid()
    return LabelOutcomes(torch.arange(n), marks, probabilities, torch.tensor([0.4, 0.5, 0.6], dtype=torch.float64))


@pytest.mark.parametrize("seed", range(5))
def test_no_threshold_is_better_than_the_chosen_one(seed):
    found = outcomes(60, seed=seed)
    for k, threshold in enumerate(choose_thresholds(found.probabilities, found.marks)):
        marks, probabilities = found.marks[:, k].numpy(), found.probabilities[:, k].double().numpy()
        if marks.sum() < FEWEST:
            assert threshold == 0.5
            continue
        scores = [f1_score(marks, probabilities >= cut) for cut in probabilities]
        assert f1_score(marks, probabilities >= threshold) == pytest.approx(max(scores))


def test_a_half_is_kept_where_it_is_as_good_and_where_images_are_few():
    marks = np.array([1] * 6 + [0] * 6, bool)
    assert choose_threshold(np.linspace(0.99, 0.01, 12), marks) == 0.5  # parts them as well as any
    assert choose_threshold(np.linspace(0.9, 0.6, 12), marks) == pytest.approx(0.75, abs=0.02)
    assert choose_threshold(np.full(12, 0.2), marks) == pytest.approx(0.1)  # all alike: all are told
    few = np.array([1] * (FEWEST - 1) + [0] * 20, bool)
    assert choose_threshold(np.linspace(0.3, 0.1, len(few)), few) == 0.5
    assert choose_threshold(np.full(12, np.nan), marks) == 0.5


def test_neighbouring_floats_are_parted_by_the_upper_one():
    high = np.float32(0.3)
    low = np.nextafter(high, np.float32(0))
    threshold = choose_threshold(np.array([high] * 6 + [low] * 6, np.float32), np.array([1] * 6 + [0] * 6, bool))
    assert float(low) < threshold <= float(high)


@pytest.mark.parametrize("absent", [(), (1,)])
def test_the_measures_are_scikit_learns(absent):
    found = outcomes(absent=absent)
    report = make_label_report(found, NAMES, None, "the test split", {"loss": 0.25})
    marks, predicted = found.marks.numpy(), (found.probabilities.double() >= found.thresholds).numpy()
    there = [k for k in range(3) if k not in absent]
    ap = [average_precision_score(marks[:, k], found.probabilities[:, k].numpy()) for k in there]
    assert [row.ap for row in report.classes if row.ap is not None] == pytest.approx(ap, abs=1e-6)
    assert report.measures["mAP"] == pytest.approx(np.mean(ap), abs=1e-6)
    assert report.measures["f1"] == pytest.approx(f1_score(marks, predicted, average="macro", zero_division=0))
    assert report.measures["f1_micro"] == pytest.approx(f1_score(marks, predicted, average="micro"))
    assert report.measures["exact"] == pytest.approx((marks == predicted).all(axis=1).mean())
    assert [row.n for row in report.classes] == marks.sum(axis=0).tolist()


def test_parts_are_joined_in_the_order_of_the_images():
    whole = outcomes(20)
    parts = [LabelOutcomes(*(values[rows] for values in whole[:3]), whole.thresholds) for rows in (slice(12, 20), slice(12))]
    for one, two in zip(LabelOutcomes.join(parts), whole, strict=True):
        assert torch.equal(one, two)


def test_the_report_tells_the_surest_mistake_first(tmp_path):
    marks = torch.tensor([[1, 0, 0], [0, 0, 0], [1, 1, 0]], dtype=torch.bool)
    probabilities = torch.tensor([[0.9, 0.1, 0.2], [0.1, 0.95, 0.1], [0.7, 0.45, 0.1]])
    found = LabelOutcomes(torch.arange(3), marks, probabilities, torch.full((3,), 0.5, dtype=torch.float64))
    report = make_label_report(found, NAMES, None, "the test split", {})
    assert [(m.image, m.true, m.predicted, m.label) for m in report.mistakes] == [(1, "(none)", "bee", "bee"), (2, "ant; bee", "ant", "bee")]
    told = describe_report(report, "test of bugs: 3 images", "best.ckpt", tmp_path)
    assert "mAP 75.00 %, F1 50.00 %, F1 over all labels 66.67 %, exactly right 33.33 %" in told
    assert "(none)    bee        bee 95.0 %    image 1 of the test split" in told
    write_report(report, tmp_path / "tables", {"split": "test"})
    assert (tmp_path / "tables/classes.csv").read_text().splitlines()[1] == "ant,2,1.000000,1.000000,1.000000,1.000000,0.500000"
    assert not (tmp_path / "tables/confusion.csv").exists()
