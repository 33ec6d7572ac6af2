from dataclasses import replace

import pytest
import studied

from cct_lightning.studies.options import Study
from cct_lightning.studies.plan import Plan
from cct_lightning.studies.results import collect, notes

STUDY = Study("mine", "arm", {"a": {}, "bb": {"model.depth": 3}}, "a", seeds=2)


def found(tmp_path, study):
    """Pretends all runs of a study; the validation accuracy of a trial is its rate."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: {dataset: digits}\n")
    plan = Plan(study, [recipe], tmp_path / "studies")
    for job in plan.trials():
        studied.pretend(job)
    for job in plan.reported(plan.chosen()):
        studied.pretend(job)
    (cell,) = collect(plan)
    return cell


@pytest.mark.parametrize(
    ("tune", "further"),
    [
        ({"model.optim.lr": [0.1, 0.4, 0.2]}, " The same with --tune model.optim.lr=0.1,0.2,0.4,0.8 computes what is missing."),
        ({"model.optim.lr": [0.4, 0.1], "model.depth": [1]}, " The same with --tune model.optim.lr=0.1,0.4,1.6 computes what is missing."),
        ({"model.depth": [2, 3]}, ""),  # what a number may be that is no rate isn't known here
    ],
)
def test_a_choice_at_the_edge_is_told_with_what_tries_more(tmp_path, tune, further):
    assert f"  At the edge of what was tried, so perhaps not at its best: a, bb.{further}" in notes(found(tmp_path, replace(STUDY, tune=tune)))


@pytest.mark.parametrize("tune", [{}, {"model.optim.lr": [0.2]}, {"model.bias": [False, True]}, {"model.optim.name": ["sgd", "lamb"]}])
def test_a_choice_that_has_no_edge_is_not_at_it(tmp_path, tune):
    assert not any("edge" in note for note in notes(found(tmp_path, replace(STUDY, tune=tune))))
