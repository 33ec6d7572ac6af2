from dataclasses import replace

import pytest
import studied

from cct_lightning.errors import InputError
from cct_lightning.studies.options import Study
from cct_lightning.studies.plan import Plan, missing

STUDY = Study("mine", "arm", {"a": {}, "bb": {"model.depth": 3}}, "a", seeds=2, fixed={"data.val_fraction": 0.1})
TUNED = replace(STUDY, tune={"model.optim.lr": [0.1, 0.3, 0.2]}, tune_seeds=2)


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("data: {dataset: digits}\n")
    return [path]


def plan(study, recipe, tmp_path):
    return Plan(study, recipe, tmp_path / "studies")


def test_what_is_done_first_is_whole_rows(recipe, tmp_path):
    jobs = plan(replace(STUDY, across={"data.fraction": [0.5, 1.0]}), recipe, tmp_path).reported({})
    assert [(job.cell["data.fraction"], job.seed, job.arm) for job in jobs[:5]] == [
        (0.5, 0, "a"), (0.5, 0, "bb"), (0.5, 1, "a"), (0.5, 1, "bb"), (1.0, 0, "a"),
    ]  # fmt: skip


def test_arms_differ_in_what_the_study_says_alone(recipe, tmp_path):
    a, bb = plan(STUDY, recipe, tmp_path).reported({})[:2]
    own = {key: value for key, value in bb.keys.items() if a.keys.get(key) != value}
    assert own == {"model.depth": 3, "wandb.tags": ["bb"]}
    assert a.keys["seed_everything"] == bb.keys["seed_everything"] == 0


def test_values_are_chosen_by_other_seeds_and_without_the_test_images(recipe, tmp_path):
    trials = plan(TUNED, recipe, tmp_path).trials()
    assert len(trials) == 2 * 3 * 2
    assert {trial.keys["seed_everything"] for trial in trials} == {1000, 1001}
    assert all(trial.keys["trainer.limit_test_batches"] == 0 for trial in trials)
    assert len({trial.folder for trial in trials}) == len(trials)


def test_the_best_mean_on_validation_images_is_chosen_once_tried(recipe, tmp_path):
    mine = plan(TUNED, recipe, tmp_path)
    assert mine.chosen() == {}
    assert mine.reported(mine.chosen()) == []
    for trial in mine.trials():
        studied.pretend(trial)  # its validation accuracy is the rate
    assert set(map(str, mine.chosen().values())) == {"{'model.optim.lr': 0.3}"}
    assert [job.keys["model.optim.lr"] for job in mine.reported(mine.chosen())] == [0.3] * 4


def test_other_values_to_choose_from_compute_what_is_missing(recipe, tmp_path):
    mine = plan(TUNED, recipe, tmp_path)
    mine.record()
    for trial in mine.trials():
        studied.pretend(trial)
    for job in mine.reported(mine.chosen()):
        studied.pretend(job)
    more = plan(replace(TUNED, tune={"model.optim.lr": [0.1, 0.2, 0.3, 0.4]}), recipe, tmp_path)
    more.record()
    assert {job.trial["model.optim.lr"] for job in missing(more.trials())} == {0.4}
    for trial in missing(more.trials()):
        studied.pretend(trial)
    assert [job.keys["model.optim.lr"] for job in missing(more.reported(more.chosen()))] == [0.4] * 4
    assert missing(mine.reported(mine.chosen())) == []
    untuned = plan(STUDY, recipe, tmp_path)
    untuned.record()
    assert len(missing(untuned.reported({}))) == 4
    with pytest.raises(InputError, match="another tune"):  # folders are named after the last part of a key
        plan(replace(TUNED, tune={"model.other.lr": [0.1, 0.2]}), recipe, tmp_path).record()


def test_a_single_value_is_taken_without_a_trial(recipe, tmp_path):
    mine = plan(replace(TUNED, tune={"model.optim.lr": [0.3]}), recipe, tmp_path)
    assert mine.trials() == []
    assert [job.keys["model.optim.lr"] for job in mine.reported(mine.chosen())] == [0.3] * 4


def test_a_choice_without_validation_images_is_refused(recipe, tmp_path):
    mine = plan(TUNED, recipe, tmp_path)
    for trial in mine.trials():
        studied.write(trial, {"finished": True, "val_accuracy": None})
    with pytest.raises(InputError, match=r"(?s)has no validation accuracy.*data.val_fraction: 0.1"):
        mine.chosen()


def test_only_what_is_missing_is_computed_when_seeds_or_arms_are_added(recipe, tmp_path):
    for job in plan(STUDY, recipe, tmp_path).reported({}):
        studied.pretend(job)
    more = replace(STUDY, seeds=3, arms={**STUDY.arms, "c": {"model.depth": 4}})
    assert [(job.arm, job.seed) for job in missing(plan(more, recipe, tmp_path).reported({}))] == [("c", 0), ("c", 1), ("a", 2), ("bb", 2), ("c", 2)]


def test_a_run_that_was_stopped_is_missing_and_known(recipe, tmp_path):
    job = plan(STUDY, recipe, tmp_path).reported({})[0]
    assert job.run is None
    studied.write(job, {"finished": False})
    assert job.summary is None
    assert job.run.path == job.folder / "recipe" / "20260101-000000"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"fixed": {"data.val_fraction": 0.2}}, "another fixed"),
        ({"baseline": "bb"}, "another baseline"),
        ({"arms": {"a": {}, "bb": {"model.depth": 4}}}, "the arm bb with other keys"),
    ],
)
def test_a_folder_keeps_to_one_study(recipe, tmp_path, change, named):
    plan(STUDY, recipe, tmp_path).record()
    plan(replace(STUDY, seeds=9, arms={**STUDY.arms, "c": {}}), recipe, tmp_path).record()
    plan(STUDY, recipe, tmp_path).record()  # an arm less is no other study
    with pytest.raises(InputError, match=named):
        plan(replace(STUDY, **change), recipe, tmp_path).record()


def test_a_folder_keeps_to_one_recipe(recipe, tmp_path):
    plan(STUDY, recipe, tmp_path).record()
    recipe[0].write_text("data: {dataset: mnist}\n")
    with pytest.raises(InputError, match="another recipe"):
        plan(STUDY, recipe, tmp_path).record()
