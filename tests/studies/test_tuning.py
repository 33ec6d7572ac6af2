import shutil
import time
from dataclasses import replace
from functools import partial
from itertools import islice

import optuna
import pytest
import searched

from cct_lightning import InputError
from cct_lightning.studies.running import Result, carry_out
from cct_lightning.studies.space import Choices, Numbers
from cct_lightning.studies.tuning import DATABASE, Search
from cct_lightning.studies.tuning_report import as_csv, as_text, command, line, write_report

SPACE = {"model.optim.lr": Numbers(1e-4, 1e-1, log=True), "model.depth": Choices((2, 4))}
USUAL = {"model.optim.lr": 1e-3, "model.depth": 2}


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """An empty one: making its tables takes a second."""
    path = tmp_path_factory.mktemp("empty") / DATABASE
    optuna.storages.RDBStorage(f"sqlite:///{path}").engine.dispose()
    return path


@pytest.fixture
def search(tmp_path, database):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("data: {dataset: digits}\n")
    for name in ("tuning", "other"):
        (tmp_path / name).mkdir()
        shutil.copy(database, tmp_path / name / DATABASE)
    return Search(SPACE, USUAL, {"trainer.max_epochs": 5}, (recipe,), ("mine.yaml",), tmp_path / "tuning")


def carry(search, trials, processes=1, until=float("inf"), **leaves):
    call = partial(searched.pretend, search=replace(search), **leaves)
    return [search.tell(result) for result in carry_out(search.jobs(trials, until), call, processes)]


def test_a_search_finds_the_best_and_ends_the_poor_early(search):
    outcomes = carry(search, 13)
    assert outcomes[0].keys == USUAL  # the recipe's own
    assert [outcome.number for outcome in outcomes] == list(range(13))
    best = search.ranked()[0]
    assert best.value == max(outcome.value for outcome in outcomes) > outcomes[0].value
    early = [outcome for outcome in outcomes if outcome.state == "stopped early"]
    assert early
    assert {outcome.share for outcome in early} == {0.4}  # the first validation after a quarter
    assert all(outcome.number >= 5 for outcome in early)
    for outcome in outcomes:  # what is told is what was trained
        assert float(f"{outcome.keys['model.optim.lr']:.4g}") == outcome.keys["model.optim.lr"]


def test_the_keys_that_count_are_told_of_ten_trials(search):
    space = {"model.optim.lr": optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True)}
    space["model.depth"] = optuna.distributions.CategoricalDistribution(["2", "4"])
    for number in range(10):
        if number == 9:
            assert search.importance() == {}
        values = {"model.optim.lr": 10 ** (-1 - number / 3), "model.depth": "24"[number % 2]}
        search.study.add_trial(optuna.trial.create_trial(params=values, distributions=space, value=number / 10))
    importance = search.importance()
    assert importance["model.optim.lr"] > 0.8 > importance["model.depth"]
    assert sum(importance.values()) == pytest.approx(1)
    assert "comes from (fANOVA): model.optim.lr " in "\n".join(as_text(search))


def test_trials_of_other_images_end_the_search(search):
    carry(search, 2, content="one")
    with pytest.raises(InputError, match=r"0003.* the images are not those of the trials before: a\.png has the same size and other content"):
        carry(replace(search), 5, content="other")
    assert [outcome.state for outcome in search.outcomes] == ["finished", "finished", "failed"]
    assert search.outcomes[2].error.startswith(str(search.root / "trials" / "0003"))
    assert [outcome.state for outcome in carry(search, 5, content="one")] == ["finished", "finished"]


def test_a_trial_that_validates_nothing_ends_the_search(search):
    with pytest.raises(InputError, match="measured no val/accuracy, by which trials are judged: set images aside for that"):
        carry(search, 5, measure="train/loss")
    assert [outcome.state for outcome in search.outcomes] == ["failed"]


def test_a_search_that_was_stopped_tries_the_same(search, tmp_path):
    whole = carry(search, 6)
    other = replace(search, root=tmp_path / "other")
    carry(other, 3)
    again = replace(other)
    (job,) = [next(again.jobs(6))]  # killed inside: begun, and nobody told what came of it
    assert job.trial == whole[3].keys
    outcomes = carry(replace(other), 6)
    assert [outcome.number for outcome in outcomes] == [3, 4, 5]
    assert [outcome.keys for outcome in outcomes] == [outcome.keys for outcome in whole[3:]]
    assert [(one.state, one.value) for one in replace(other).outcomes] == [(one.state, one.value) for one in whole]
    assert carry(replace(other), 6) == []


def test_a_run_that_was_stopped_stays_open_and_is_told_once(search):
    job = next(search.jobs(4))
    watch = search.watch(job)
    assert not watch({"val/accuracy": 0.5}, 0.2)
    assert search.tell(Result(job, None, 1.0, stopped=130)).state == "unfinished"
    again = replace(search)
    other = next(again.jobs(4))
    assert (other.arm, other.folder, other.trial) == (job.arm, job.folder, job.trial)
    assert not again.watch(other)({"val/accuracy": 0.7}, 0.2)  # of a validation that was told before: the first counts
    assert again.outcomes[0].value == 0.5
    assert not again.watch(other)({"val/accuracy": float("nan")}, 0.4)
    assert not again.watch(other)({"val/loss": 1.0}, 0.6)


def test_a_run_that_ended_before_a_signal_could_stop_it_is_told(search):
    job = next(search.jobs(2))
    searched.pretend(job, search)
    assert search.tell(Result(job, None, 1.0, stopped=143)).state == "finished"


def test_a_run_that_ended_while_nobody_was_there_is_told(search):
    job = next(search.jobs(2))
    searched.pretend(job, search)
    again = replace(search)
    assert [job.arm for job in islice(again.jobs(2), 1)] == ["1"]
    assert [outcome.state for outcome in again.outcomes] == ["finished", "unfinished"]
    assert again.outcomes[0].value == pytest.approx(0.91)


def test_a_trial_that_fails_costs_itself(search):
    search = replace(search, space={**SPACE, "model.depth": Choices((3, 2))})
    outcomes = carry(search, 5)
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    assert failed
    assert {outcome.keys["model.depth"] for outcome in failed} == {3}
    assert search.ranked()
    assert "FAILED, three is what it can't do (" in line(search, failed[0], 5, False)
    assert "three is what it can't do" in as_csv(search)
    assert f"5 trials by val/accuracy: {len(search.ranked())} finished" in as_text(search)[0]


def test_trials_side_by_side_are_told_one_by_one(search):
    outcomes = carry(search, 4, processes=2)
    assert sorted(outcome.number for outcome in outcomes) == list(range(4))
    assert {outcome.state for outcome in outcomes} == {"finished"}


def test_less_may_be_better(search):
    search = replace(search, monitor="val/loss", mode="min")
    for number, value in enumerate((3.0, 1.0, 2.0)):
        job = next(search.jobs(number + 1))
        run = job.folder / "digits" / "20260101-000000"
        run.mkdir(parents=True)
        (run / "config.yaml").touch()
        (run / "metrics.csv").write_text(f"step,val/loss\n0,9\n1,{value}\n2,9\n")
        (run / "summary.json").write_text('{"finished": true}')
        search.tell(Result(job, None, 1.0))
    assert [outcome.value for outcome in search.ranked()] == [1.0, 2.0, 3.0]
    assert "1.0000" in as_text(search)[2]


def test_a_run_without_the_measure_has_failed(search):
    outcome = search.tell(Result(next(search.jobs(1)), None, 1.0))
    assert (outcome.state, outcome.error) == ("failed", "it measured no val/accuracy")


def test_no_trial_begins_when_time_is_up(search):
    assert carry(search, 3, until=time.monotonic()) == []


@pytest.mark.parametrize(("changes", "message"), [
    ({"space": {**SPACE, "model.depth": Choices((2, 5))}}, r'another space: .*"model\.depth": "2, 4".* there, .*"2, 5"'),
    ({"fixed": {"trainer.max_epochs": 6}}, "another fixed"),
    ({"mode": "min"}, "another measure"),
    ({"seed": 1}, "another seed"),
])  # fmt: skip
def test_another_search_in_the_same_folder_is_refused(search, changes, message):
    carry(search, 1)
    with pytest.raises(InputError, match=message):
        list(replace(search, **changes).jobs(2))


def test_the_report_says_what_was_found_and_what_it_can_not_tell(search):
    carry(search, 3)
    write_report(search)
    best, text = search.ranked()[0], as_text(search)
    assert text[-1].strip() == command(search, best)
    assert command(search, best).startswith("cct fit -c mine.yaml --trainer.max_epochs 5 --model.optim.lr ")
    whole = "\n".join(text)
    assert "The recipe's own values are trial 1: 91.00 %, number " in whole
    assert "flatters. The test images were not looked at" in whole
    page = (search.root / "report.html").read_text()
    assert page.count("data:image/png") == 2
    assert page.count("<tr>") == 4
    assert command(search, best) in page
    rows = (search.root / "trials.csv").read_text().splitlines()
    assert len(rows) == 4
    assert rows[0] == "trial,state,val/accuracy,model.optim.lr,model.depth,share,seconds,run_dir,error"


def test_a_search_without_a_result_is_told(search):
    write_report(search)
    assert "nothing to choose from yet" in "\n".join(as_text(search))
