import csv
import json
import signal

import pytest
import yaml

import cct_lightning
from cct_lightning.commands.tune import _by_task, prepare
from cct_lightning.runs.watching import Watched
from cct_lightning.studies.space import Choices, Numbers
from cct_lightning.studies.tuning import Outcome
from cct_lightning.studies.tuning_report import command

RATE = ("--key", "model.optim.lr=1e-4..1e-2:log")
SMALL = ("--data.per_class", 12, "--data.batch_size", 40, "--trainer.max_epochs", 2, "--trainer.callbacks", "null")


def rows(folder):
    with (folder / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_trials_are_runs_that_never_see_the_test_images_and_go_on_where_they_were_stopped(cct, tmp_path, monkeypatch):
    elsewhere = {"class_path": "lightning.pytorch.profilers.SimpleProfiler", "init_args": {"dirpath": str(tmp_path / "times"), "filename": "all"}}
    (tmp_path / "profiled.yaml").write_text(yaml.safe_dump({"trainer": {"profiler": elsewhere}}))
    recipes = ("-c", "digits", "-c", "profiled.yaml", "--allow-path", tmp_path / "times", "--out", "tuning/digits")
    words = ("tune", *recipes, *RATE, "--key", "model.num_heads=2,3", "--trials", 3, *SMALL)
    end = Watched.on_validation_end

    def interrupted(self, trainer, pl_module):
        end(self, trainer, pl_module)
        if trainer.current_epoch == 0 and not trainer.sanity_checking:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Watched, "on_validation_end", interrupted)
        outcome = cct(*words)
    assert outcome.code == 130
    assert "[1/3] lr 0.001, num_heads 2: stopped, it goes on from there" in outcome.out
    assert "stopped; the same command goes on" in outcome.err
    folder = tmp_path / "tuning" / "digits"
    assert [row["state"] for row in rows(folder)] == ["unfinished"]

    outcome = cct(*words)
    assert outcome.code == 0, outcome.err
    found = rows(folder)
    assert [row["trial"] for row in found] == ["1", "2", "3"]
    finished = [row for row in found if row["state"] == "finished"]
    failed = [row for row in found if row["state"] == "failed"]
    assert len(finished) + len(failed) == 3
    assert all(row["model.num_heads"] == "3" and "does not divide embed_dim" in row["error"] for row in failed)
    for row in finished:
        summary = json.loads((tmp_path / row["run_dir"] / "summary.json").read_text())
        assert summary["val_accuracy"] == pytest.approx(float(row["val/accuracy"]), abs=1e-5)
        assert (summary["test_accuracy"], summary["seed"], summary["finished"]) == (None, 0, True)
        assert summary["resumed"] == int(row["trial"] == "1")
        config = yaml.safe_load((tmp_path / row["run_dir"] / "config.yaml").read_text())
        assert config["model"]["optim"]["lr"] == float(row["model.optim.lr"])
    best = max(finished, key=lambda row: float(row["val/accuracy"]))
    assert f"--model.optim.lr {best['model.optim.lr']} --model.num_heads 2" in outcome.out
    assert cct(*words).out.count("[") == 0  # all are there

    outcome = cct(*words, "--model.embed_dim", 64)
    assert outcome.code == 2
    assert "holds trials with another fixed" in outcome.err


def test_a_search_from_python_is_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    (tmp_path / "mine.py").write_text("import lightning\n\n\nclass Note(lightning.pytorch.Callback):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    keys = {"data.per_class": 12, "trainer.max_epochs": 1, "trainer.callbacks": "mine.Note"}
    with pytest.raises(cct_lightning.InputError, match="no trial came to its end"):
        cct_lightning.tune("digits", {"model.pooling": ["mean", "seqpool"]}, keys, trials=1, out="not")
    assert "mine.Note is code of neither" in (tmp_path / "not" / "trials.csv").read_text()
    tuned = cct_lightning.tune("digits", {"model.pooling": ["mean", "seqpool"]}, keys, trials=1, out="here", allow_import=["mine"])
    assert tuned.keys["model.pooling"] in ("mean", "seqpool")
    assert 0 <= tuned.value <= 1
    assert tuned.folder.name == "here"
    assert (tuned.folder / "report.html").is_file()
    assert tuned.command.endswith(f"--model.pooling {tuned.keys['model.pooling']} --allow-import=mine")


def test_what_is_typed_is_what_is_searched():
    request = prepare(["-c", "digits", *RATE, "--key", "model.depth=2,3", "--minutes", "1.5", "--data.root=a b", "--checkpoint.monitor", "val/loss"])
    search = request.search
    assert search.space == {"model.optim.lr": Numbers(1e-4, 1e-2, log=True), "model.depth": Choices((2, 3))}
    assert search.usual == {"model.optim.lr": 1e-3, "model.depth": 2}  # the depth is the network's
    assert (search.monitor, search.mode, search.seed) == ("val/loss", "min", 0)
    assert (request.trials, request.minutes, request.jobs) == (20, 1.5, 1)
    assert search.fixed["data.root"] == "a b"


def test_what_is_fixed_and_allowed_is_typed_again(tmp_path):
    words = ["-c", "digits", *RATE, "--data.root", "010", "--data.per_class", "012", "--allow-import", "mine", "--allow-path", str(tmp_path)]
    search = prepare(words).search
    assert search.fixed == {"data.root": "010", "data.per_class": 10}  # a name stays, a number is YAML's
    outcome = Outcome(0, "finished", {"model.optim.lr": 1e-3}, 0.9, 1.0, 1.0, None)
    assert command(search, outcome).endswith(
        f"--data.root 010 --data.per_class 10 --model.optim.lr 0.001 --allow-import=mine --allow-path={tmp_path}"
    )


def test_a_task_without_classes_is_judged_by_its_own_measure(tmp_path):
    (tmp_path / "mine.yaml").write_text("task: masked\ndata: {dataset: digits}\n")
    search = prepare(["-c", str(tmp_path / "mine.yaml"), "--key", "model.mask_ratio=0.5..0.9"]).search
    assert search.monitor == ""  # nothing heavy is imported before
    search = _by_task(search)
    assert (search.monitor, search.mode, search.task) == ("val/loss", "min", "masked")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "tune needs a recipe"),
        (("-c", "digits"), "tune needs something to search"),
        (("-c", "smoke", *RATE), "no recipe says which data"),
        (("-c", "digit", *RATE), "neither a file nor a recipe. Did you mean digits?"),
        (("digits", *RATE), "does not take the word 'digits'"),
        (("-c", "digits", "--key", "model.optim.lr"), "what may it be? --key model.optim.lr=LOW..HIGH"),
        (("-c", "digits", "--key", "model.optim.rl=1..2"), "there is no key 'model.optim.rl'. Did you mean model.optim.lr?"),
        (("-c", "digits", "--key", "model.optim=1..2"), "--key model.optim: it is no key with a value of its own"),
        (("-c", "digits", "--key", "model.num_classes=2,3"), "--key model.num_classes: it is no key"),
        (("-c", "digits", "--key", "model.drop_path=0..2"), "--key: model.drop_path=2.0 is out of range"),
        (("-c", "digits", "--key", "model.pooling=map,seqpol"), "--key: model.pooling=seqpol is unknown. Did you mean seqpool?"),
        (("-c", "digits", "--key", "model.depth=a,b"), "a is of another type: model.depth takes whole numbers"),
        (("-c", "digits", *RATE, *RATE), "--key model.optim.lr is given twice"),
        (("-c", "digits", *RATE, "--model.optim.lr", "1e-3"), "model.optim.lr is searched and set to"),
        (("-c", "digits", *RATE, "--data.dataset", "image_folder", "--data.root", "nowhere"), "nowhere"),
        (("-c", "digits", "--key", "model.pretrained=a.ckpt,null"), "There is no file a.ckpt"),
        (("-c", "digits", "--key", "model.optim.name=adamw,adamwx"), "adamwx"),
        (("-c", "digits", *RATE, "--trainer.devices", "2"), "trainer.devices=2: a trial is one process on one device; --jobs N"),
        (("-c", "digits", "--key", "model.mask_ratio=0.5..0.9"), "model.mask_ratio is a key of another task than this one"),
        (("-c", "digits", *RATE, "--trials", "0"), "--trials 0: it takes a whole number"),
        (("-c", "digits", *RATE, "--minutes", "soon"), "--minutes soon: it takes a number above 0"),
        (("-c", "digits", *RATE, "--model.deph", "3"), "model.deph"),
        (("-c", "digits", *RATE, "--trainer.callbacks+=EMA"), "can't be said of a search"),
    ],
)
def test_what_can_not_be_searched_is_refused_before_anything_is_read(cct, tmp_path, words, said):
    outcome = cct("tune", *words)
    assert outcome.code == 2
    assert said in outcome.err
    assert not (tmp_path / "tuning").exists()


def test_without_optuna_it_says_how_to_get_it(cct, monkeypatch):
    monkeypatch.setattr("cct_lightning.commands.tune.find_spec", lambda _: None)
    assert 'pip install "cct-lightning[tune]"' in cct("tune", "-c", "digits", *RATE).err


def test_the_help_is_there(cct):
    assert "--key model.optim.lr=1e-4..1e-2:log" in cct("tune", "--help").out
