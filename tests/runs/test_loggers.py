from pathlib import Path

import pytest
import yaml
from jsonargparse import Namespace

from cct_lightning.runs.loggers import RUN, in_words, put, with_folder

SHORT = ("--data.per_class", 10, "--data.batch_size", 32, "--trainer.max_epochs", 1, "--trainer.enable_progress_bar", "false")
FILLED = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": RUN}}
OURS = "lightning.pytorch.loggers.CSVLogger"


@pytest.mark.parametrize(("given", "whole"), [
    ("TensorBoardLogger", FILLED),
    ({"class_path": "TensorBoardLogger"}, FILLED),
    ({"class_path": OURS, "init_args": {"name": "x"}}, {"class_path": OURS, "init_args": {"save_dir": RUN, "name": "x"}}),
    (["MLFlowLogger", "TensorBoardLogger"], ["MLFlowLogger", FILLED]),
])  # fmt: skip
def test_a_logger_that_needs_a_folder_gets_the_runs(given, whole):
    assert with_folder(given) == whole


@pytest.mark.parametrize("given", [
    None, True, False, "Nonsense", "no.such.module.Logger", "a b", {"class_path": OURS, "init_args": {"save_dir": "mine"}}, "WandbLogger", {"x": 1},
    {"class_path": None}, 3, "Logger", [],
])  # fmt: skip
def test_what_needs_none_stays_as_it_is(given):
    assert with_folder(given) == given


def test_words_are_read_in_each_form():
    logger = '{"class_path": "TensorBoardLogger", "init_args": {"save_dir": "{run}"}}'
    words = ["--trainer.logger+=TensorBoardLogger", "--trainer.logger.name=x", "--trainer.logger", "TensorBoardLogger", "--model.arch", "CSVLogger"]
    assert in_words(words) == [f"--trainer.logger+={logger}", "--trainer.logger.name=x", "--trainer.logger", logger, "--model.arch", "CSVLogger"]
    assert in_words(in_words(words)) == in_words(words)  # launched processes repeat them
    assert in_words(["--trainer.logger", "{", "--trainer.logger=null"]) == ["--trainer.logger", "{", "--trainer.logger=null"]


def test_the_folder_is_put_in_without_touching_what_was_parsed():
    parsed = [Namespace(class_path=OURS, init_args=Namespace(save_dir=folder, name="x")) for folder in (RUN, "mine")]
    found = put(parsed, Path("runs/x"))
    assert [one.init_args.save_dir for one in found] == ["runs/x", "mine"]
    assert parsed[0].init_args.save_dir == RUN
    assert put(None, Path("x")) is None
    assert put(parsed[1], Path("x")) is parsed[1]


def test_loggers_without_a_folder_write_into_the_runs(cct, tmp_path):
    Path("loggers.yaml").write_text("trainer: {logger: CSVLogger}")
    outcome = cct("fit", "-c", "digits", "-c", "loggers.yaml", *SHORT, "--trainer.logger+=TensorBoardLogger", "--trainer.logger.name=board")
    assert outcome.code == 0, outcome.err
    (run,) = tmp_path.glob("runs/digits/*")
    assert list(run.glob("board/version_0/events.out.tfevents.*"))
    assert list(run.glob("lightning_logs/version_0/metrics.csv"))
    assert not (tmp_path / "lightning_logs").exists()
    kept = yaml.safe_load((run / "config.yaml").read_text())["trainer"]["logger"]
    assert [logger["init_args"]["save_dir"] for logger in kept] == [RUN, RUN]

    assert cct("fit", "-c", run / "config.yaml", *SHORT).code == 0  # repeated, they lie in the new run's folder
    (other,) = set(tmp_path.glob("runs/digits/*")) - {run}
    assert list(other.glob("board/version_0/events.out.tfevents.*"))
    assert len(list(run.glob("board/*"))) == 1

    outcome = cct("test", run / "checkpoints" / "last.ckpt", "--trainer.logger=CSVLogger")
    assert outcome.code == 0, outcome.err
    assert list((run / "checkpoints").glob("lightning_logs/version_0/metrics.csv"))
