import subprocess

import pytest

from cct_lightning import InputError
from cct_lightning.run_folder import make_run_dir
from cct_lightning.runs.summary import about


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in ("CCT_RUN_DIR", "RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)


def test_two_runs_of_one_second_get_two_folders(tmp_path, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda _: "20260101-000000")
    first = make_run_dir("digits", tmp_path)
    assert make_run_dir("digits", tmp_path) == first  # a process that this run starts
    monkeypatch.delenv("CCT_RUN_DIR")
    second = make_run_dir("digits", tmp_path)
    assert [first.name, second.name] == ["20260101-000000", "20260101-000000-2"]
    assert first.is_dir()
    assert second.is_dir()


def test_other_ranks_make_no_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert not make_run_dir("digits", tmp_path).exists()


def test_a_folder_that_can_not_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"can't be made .*: name another place with --trainer\.default_root_dir"):
        make_run_dir("digits", tmp_path / "file")


def test_a_run_tells_the_commit_it_was_started_at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    found = about(7, None)
    assert (found["git_commit"], found["num_parameters"], found["flops_per_image"]) == (None, 7, None)
    assert found["versions"].keys() == {"cct-lightning", "python", "torch", "lightning", "timm"}

    def git(*words):
        return subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *words], check=True, capture_output=True, text=True
        ).stdout.strip()

    (tmp_path / "file").write_text("1")
    git("init")
    git("add", "file")
    git("commit", "-m", "one")
    git("tag", "v1")
    commit = git("rev-parse", "HEAD")
    assert about(7, 3)["git_commit"] == commit
    (tmp_path / "new").touch()  # the commit does not know it
    assert about(7, 3)["git_commit"] == commit
    (tmp_path / "file").write_text("2")
    assert about(7, 3)["git_commit"] == f"{commit}-dirty"
    monkeypatch.setenv("PATH", "")
    assert about(7, 3)["git_commit"] is None
