import http.server
import socket
import threading
import time

import pytest

from cct_lightning import InputError
from cct_lightning.tracking import WandbConfig, make_run_dir, wandb_id, wandb_logger, wandb_mode


@pytest.fixture(autouse=True)
def no_environment(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "CCT_RUN_DIR", "RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.mark.parametrize("mode", ["online", "offline", "disabled"])
def test_a_given_mode_is_kept(mode):
    assert wandb_mode(mode) == mode


def test_auto_is_offline_without_a_key():
    assert wandb_mode("auto") == "offline"


def test_auto_follows_the_environment(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode("auto") == "disabled"
    assert wandb_logger(WandbConfig(), None, "x") is None


class Teapot(http.server.BaseHTTPRequestHandler):
    """Answers everything with an error, as W&B's server does to strangers."""

    def do_GET(self):
        self.send_error(418)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    with http.server.HTTPServer(("127.0.0.1", 0), Teapot) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        yield server
        server.shutdown()


@pytest.mark.parametrize("key", ["environment", "netrc"])
def test_auto_is_online_where_a_key_is_and_the_server_answers(server, monkeypatch, tmp_path, key):
    assert wandb_mode("auto") == "offline"
    if key == "environment":
        monkeypatch.setenv("WANDB_API_KEY", "k")
    else:
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password k\n")
        (tmp_path / "netrc").chmod(0o600)
    assert wandb_mode("auto") == "online"


def test_auto_waits_no_longer_than_its_probe(monkeypatch):
    monkeypatch.setattr("cct_lightning.tracking.PROBE_SECONDS", 0.5)
    monkeypatch.setenv("WANDB_API_KEY", "k")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and never says a word
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.perf_counter()
        assert wandb_mode("auto") == "offline"
        assert 0.4 < time.perf_counter() - began < 3


def test_auto_goes_offline_where_wandb_refuses_and_online_says_so(server, monkeypatch, tmp_path, capsys):
    import wandb

    wandb.teardown()  # it remembers the server of an earlier run in this process
    monkeypatch.setattr("cct_lightning.tracking.INIT_SECONDS", 2.0)
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    logger = wandb_logger(WandbConfig("auto"), tmp_path, "run")
    assert logger._offline
    assert "tracking it offline" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"wandb\.mode=online: .* choose wandb\.mode offline"):
        wandb_logger(WandbConfig("online"), tmp_path / "other", "run")
    wandb.teardown()
    refused = wandb_id(tmp_path)
    assert logger.experiment.id == refused  # one id, so that a later sitting finds the right one
    logger.experiment.finish()
    assert {path.name.rsplit("-", 1)[1] for path in (tmp_path / "wandb").glob("*run-*-*")} == {refused}


@pytest.mark.parametrize("name", ["run-20261120_095029-a1-b2", "offline-run-20261120_095029-a1-b2"])
def test_a_run_that_was_tracked_has_an_id(tmp_path, name):
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "latest-run").touch()
    assert wandb_id(tmp_path) is None
    (tmp_path / "wandb" / name).mkdir()
    assert wandb_id(tmp_path) == "a1-b2"


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
