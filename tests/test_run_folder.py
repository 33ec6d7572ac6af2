import json
import os
import time

import pytest

from cct_lightning import InputError
from cct_lightning.run_folder import PARENT, RANKS, VARIABLE, RunFolder, find_network, find_run, new_folder, newest


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in ("CCT_RUN_DIR", *RANKS):
        monkeypatch.delenv(name, raising=False)


def test_two_runs_of_one_second_get_two_folders(tmp_path, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda _: "20260101-000000")
    first = RunFolder.make("digits", tmp_path)
    with first.told():
        assert RunFolder.make("digits", tmp_path) == first  # a process that this run starts
    assert "CCT_RUN_DIR" not in os.environ
    second = RunFolder.make("digits", tmp_path)
    assert [first.path.name, second.path.name] == ["20260101-000000", "20260101-000000-2"]
    assert first.path.is_dir()
    assert second.path.is_dir()
    assert second.recipe == "digits"


@pytest.mark.parametrize("name", RANKS)
def test_other_ranks_make_no_folder(tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, "1")  # NODE_RANK alone: the first process of a second machine
    assert not RunFolder.make("digits", tmp_path).path.exists()


def test_a_folder_that_can_not_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"can't be made .*: name another place with --trainer\.default_root_dir"):
        RunFolder.make("digits", tmp_path / "file")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Makes the folder of a run with both checkpoints, below runs/ of an empty working directory."""
    monkeypatch.chdir(tmp_path)
    run = RunFolder.make("digits")
    run.checkpoints.mkdir()
    run.config_file.write_text("model: {arch: cct_2_3x2_32}")
    run.best.touch()
    run.last.touch()
    return run


def test_every_word_for_a_run_leads_to_it(run):
    for word in (run.path, run.config_file, run.last, run.checkpoints):
        assert find_run(word) == run
        assert find_run(word.absolute()).path == run.path.absolute()  # as it was given
    with pytest.raises(InputError, match=r"a run is resumed from its last\.ckpt: cct resume runs"):
        find_run(run.best)
    with pytest.raises(InputError, match=f"There is no run nowhere. The last run there: cct resume {run.path}"):
        find_run("nowhere")


def test_every_word_for_a_network_leads_to_one_file(run, tmp_path):
    for word in (run.path, run.config_file, run.best, run.checkpoints, run.path.absolute()):
        assert find_network(word).samefile(run.best)
    assert find_network(run.last) == run.last
    run.best.unlink()
    assert find_network(run.path) == run.last
    (run.path / "config.json").touch()  # an export
    assert find_network(run.path).name == "config.json"
    (run.path / "config.json").unlink()
    run.last.unlink()
    with pytest.raises(InputError, match="is a run without checkpoints: it was stopped before its first epoch ended"):
        find_network(run.path)
    with pytest.raises(InputError, match=r"There is no file or folder nowhere\.ckpt\. Checkpoints lie in"):
        find_network("nowhere.ckpt")
    with pytest.raises(InputError, match="There is no file or folder nowhere"):
        find_network("nowhere")


def test_a_folder_of_runs_is_none_and_the_newest_below_it_is_named(run):
    with pytest.raises(InputError, match=f"runs holds no network: .* The newest below it: {run.best}"):
        find_network("runs")
    older = RunFolder.make("other")
    older.checkpoints.mkdir()
    older.best.touch()
    os.utime(older.best, (0, 0))
    assert newest(count=2) == [run.best, older.best]


def test_a_run_is_held_by_one_process_at_a_time(run):
    with run.held(), pytest.raises(InputError, match="is being trained by another process on this machine"), run.held():
        pass
    with run.held():
        pass


def test_what_is_damaged_is_empty(run):
    run.config_file.write_text("model: [")
    run.summary_file.write_text("{")
    assert (run.config, run.summary, run.metrics) == ({}, {}, [])


def test_a_run_that_never_began_leaves_nothing(run):
    run.discard_unless_begun()
    assert run.path.is_dir()
    empty = RunFolder.make("digits")
    empty.write_config("model: {}")
    empty.discard_unless_begun()
    assert not empty.path.exists()


def test_two_that_begin_in_the_same_second_get_two_folders(tmp_path):
    stem = tmp_path / "runs" / "folds-20260101-000000"
    assert [new_folder(stem).name for _ in range(3)] == [stem.name, f"{stem.name}-2", f"{stem.name}-3"]


def test_who_waits_for_a_run_is_told(run, monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    with run.held(), pytest.raises(InputError, match="is being trained by another process"), run.held(patience=5):
        pass
    assert capsys.readouterr().err == f"{run.path} is held by another process on this machine: waiting up to 5 s for its end\n"
    assert 5 < clock[0] < 6


def test_launched_processes_are_told_whose_run_it_is(run):
    with run.told():
        assert (os.environ[VARIABLE], os.environ[PARENT]) == (str(run.path), str(os.getpid()))
    assert not {VARIABLE, PARENT} & set(os.environ)


def test_tables_of_another_test_are_not_taken_for_those_of_the_run(run):
    """`cct test RUN --tta mirror` puts its own in their place; the page told its images, interval and mistakes beside the run's accuracy."""
    run.checkpoints.mkdir(exist_ok=True)
    run.write_config("data: {dataset: digits}")
    run.write_summary({"best_checkpoint": "best.ckpt", "test_accuracy": 0.5, "test_measure": 0.5, "measure": "accuracy"})
    tables = run.checkpoints / "best-digits-test"
    tables.mkdir()
    for accuracy, told in ((0.5 + 1e-9, tables), (0.53, None)):
        (tables / "measures.json").write_text(json.dumps({"accuracy": accuracy, "n": 100}))
        assert RunFolder(run.path).tables == told
