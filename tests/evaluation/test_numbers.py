"""Errors of numbers, beside scikit-learn's."""

import pytest
import torch
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from cct_lightning.evaluation.drawings import draw_scatter
from cct_lightning.evaluation.numbers import NumberOutcomes, make_number_report
from cct_lightning.evaluation.tables import describe_report, write_report


def outcomes(n=50):
    source = torch.Generator().manual_seed(0)
    values = torch.randn(n, 2, generator=source) * torch.tensor([3.0, 0.01]) + torch.tensor([1e4, 0.5])
    return NumberOutcomes(torch.arange(n), values, values + torch.randn(n, 2, generator=source) * torch.tensor([1.0, 0.02]))


def test_the_measures_are_scikit_learns():
    found = outcomes()
    report = make_number_report(found, ["weight", "share"], None, "the test split", {})
    values, predicted = found.values.double().numpy(), found.predicted.double().numpy()
    assert report.measures["r2"] == pytest.approx(r2_score(values, predicted))
    for k, row in enumerate(report.classes):
        assert row.mae == pytest.approx(mean_absolute_error(values[:, k], predicted[:, k]))
        assert row.rmse == pytest.approx(mean_squared_error(values[:, k], predicted[:, k]) ** 0.5)
        assert row.r2 == pytest.approx(r2_score(values[:, k], predicted[:, k]))
        assert report.measures[f"mae/{row.name}"] == row.mae
    one = make_number_report(NumberOutcomes(found.indices, found.values[:, :1], found.predicted[:, :1]), ["weight"], None, "", {})
    assert set(one.measures) == {"r2", "mae", "rmse"}


def test_numbers_that_are_all_the_same_are_right_or_wrong():
    same = torch.ones(4, 1)
    for predicted, r2 in ((same, 1.0), (same + 1, 0.0)):
        report = make_number_report(NumberOutcomes(torch.arange(4), same, predicted), ["a"], None, "", {})
        assert report.classes[0].r2 == r2


def test_the_report_tells_the_image_that_is_furthest_off_first(tmp_path):
    found = outcomes()
    found.predicted[7, 1] += 1  # a hundred deviations, though far below a unit of the other
    report = make_number_report(found, ["weight", "share"], [f"{i}.png" for i in range(50)], "the test split", {"loss": 0.25})
    assert (report.mistakes[0].image, report.mistakes[0].name, report.mistakes[0].file) == (7, "share", "7.png")
    told = describe_report(report, "test of things: 50 images", "best.ckpt", tmp_path)
    assert "number  mean error  root mean square" in told
    assert "furthest off" in told
    write_report(report, tmp_path / "tables", {"split": "test"})
    assert (tmp_path / "tables/numbers.csv").read_text().splitlines()[0] == "name,n,mae,rmse,r2,mean,std"
    assert len(draw_scatter(report).axes) == 2


def test_small_numbers_keep_their_digits(tmp_path):
    targets = torch.tensor([[1e-7], [3e-7], [5e-7]])
    report = make_number_report(NumberOutcomes(torch.arange(3), targets, targets + 1e-8), ["metres"], None, "", {})
    write_report(report, tmp_path / "tables", {})
    ((_, n, mae, _, _, mean, _),) = [line.split(",") for line in (tmp_path / "tables/numbers.csv").read_text().splitlines()[1:]]
    assert (n, float(mae), float(mean)) == ("3", pytest.approx(1e-8, rel=1e-3), pytest.approx(3e-7, rel=1e-6))
